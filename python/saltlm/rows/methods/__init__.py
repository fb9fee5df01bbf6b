"""How rows of new tokens are built: one generator a method (step 4).

A method yields :class:`~saltlm.rows.assembly.Block` after block for the tokens it can build; what it leaves is drawn
(:meth:`~saltlm.rows.assembly.Assembly.draw`). Shared rows are copied before, whatever the method. The methods in one grid:

==================  ===============================  =====================  ===========================================
method              compares                         neighbours             coefficients
==================  ===============================  =====================  ===========================================
salt                auxiliary vectors                sparsemax's support    least squares in the PLM's space
focus               auxiliary vectors                sparsemax's support    the sparsemax weights
clp-plus            PLM rows                         sparsemax's support    the sparsemax weights
clp                 PLM rows                         all anchors            cosine / sum of cosines
omp                 PLM rows                         greedy pursuit, 64     least squares in the PLM's space
sava-affine         PLM rows                         all anchors            one map with intercept for all tokens
sava-orthogonal     PLM rows                         all anchors            one orthogonal map between scaled spaces
ridge-map           PLM rows                         all anchors            one ridge map with intercept, ridge 1
local-map           PLM rows, or auxiliary vectors   256 nearest, or        the ridge map, and local least squares with a
                                                     sparsemax's support    ridge of what it misses
auto                as blend                         all anchors, pieces    blend of the two, 1.4 times as long; pieces alone
                                                                            with few anchors
blend               as the regression in it          its anchors, pieces    w subword mean, 1 - w a regression; w a number,
                                                                            or by pieces, support or held-out precision;
                                                                            l times as far from the mean anchor row
wechsel             vectors of both languages        10 source tokens       softmax of cosines, temperature 0.1
ofa                 means of multilingual words      10 source tokens       softmax of cosines, temperature 0.1
subword-mean        -                                source pieces          equal
subword-length      -                                source pieces          by characters
subword-asymmetric  -                                source pieces          input: equal, at the typical norm; output: by
                                                                            characters
==================  ===============================  =====================  ===========================================

Post-steps for all of them: anchors cleaned before (:mod:`.clean`), and after it a shift of the output rows towards the
log-unigram (:mod:`saltlm.rows.unigram_shift`) and a guard of the norms (:mod:`saltlm.rows.norm_guard`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from ...config import MethodName, TransferConfig
from ..assembly import Block
from ..job import Job, anchors_of
from . import auto, blend, clean, flat, local, local_map, pieces, whole, words

__all__ = ["METHODS", "NEEDS_VECTORS", "Job", "Method", "anchors_of", "build", "describe_methods", "method_of"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A way to build rows, and what it asks for.

    Attributes:
        build: yields the blocks.
        summary: what the row of a new token is, in a sentence.
        source: publication that the method comes from; ``saltlm`` where it is this package's, ``baseline`` for a plain one.
        vectors: whether it needs auxiliary vectors.
        plm: whether it looks at the PLM's rows.
        anchors: whether it learns from shared tokens, so that the self-check can hide some.
        alone: whether it can do without any.
        source_vectors: where vectors of the source tokens come from: a ``dictionary`` and vectors of the source's language, or
            ``segmented`` words of the one file of vectors; empty where it needs none.
        neighbours: what its support sizes count, empty where there are none.
        every: whether every anchor is a neighbour of every token.
        interpolates: whether its regression can fit a token exactly, so that its rows may explode where the neighbours of
            a token are about as many as the PLM's dimensions and no ridge holds them.
        sparse: whether few neighbours are a choice it makes, so that many are a sign of vectors that tell nothing apart.
        options: names of the options that change it, beside those that every method has.
    """

    build: Callable[[Job], Iterator[Block]]
    summary: str = ""
    source: str = ""
    vectors: bool = False
    plm: bool = False
    anchors: bool = False
    alone: bool = False
    source_vectors: str = ""
    neighbours: str = ""
    sparse: bool = False
    every: bool = False
    interpolates: bool = False
    options: tuple[str, ...] = ()


_ANCHORED: dict[str, Any] = {"anchors": True, "neighbours": "anchors"}
_PIECES: dict[str, Any] = {"neighbours": "pieces"}
_SAVA = "SAVA, Moroni et al. 2025, arXiv 2504.17025"
_CLP = "CLP-Transfer, Ostendorff and Rehm 2023, arXiv 2301.09626"
_ASYMMETRIC = "asymmetric composition, arXiv 2608.03494"

METHODS: dict[MethodName, Method] = {
    "auto": Method(
        build=auto.auto,
        summary="Average of subword-mean and ridge-map, with the weight and length that are best on average.",
        source="saltlm",
        plm=True,
        alone=True,
        options=("ridge", "blend_weight", "blend_length"),
        **_ANCHORED,
    ),
    "salt": Method(
        build=local.salt,
        summary="Least squares in the PLM space on the sparsemax neighbours among the auxiliary vectors.",
        source="SALT, Lee et al. 2025, arXiv 2505.10945",
        vectors=True,
        plm=True,
        sparse=True,
        interpolates=True,
        options=("ridge", "center", "max_support"),
        **_ANCHORED,
    ),
    "focus": Method(
        build=local.focus,
        summary="Mean of the sparsemax neighbours among the auxiliary vectors, with the sparsemax weights.",
        source="FOCUS, Dobler and de Melo 2023, arXiv 2305.14481",
        vectors=True,
        sparse=True,
        options=("max_support",),
        **_ANCHORED,
    ),
    "clp": Method(
        build=whole.clp,
        summary="Mean of all anchors, weighted by the cosine between PLM rows.",
        source=_CLP,
        plm=True,
        every=True,
        **_ANCHORED,
    ),
    "clp-plus": Method(
        build=local.clp_plus,
        summary="Mean of the sparsemax neighbours among the PLM rows, with the sparsemax weights.",
        source=f"{_CLP}, with the sparsemax weights of FOCUS",
        plm=True,
        sparse=True,
        options=("max_support",),
        **_ANCHORED,
    ),
    "omp": Method(
        build=local.omp,
        summary="Least squares in the PLM space on 64 anchors picked by orthogonal matching pursuit.",
        source="Goddard and Fernandes Neto 2025, arXiv 2506.06607",
        plm=True,
        interpolates=True,
        options=("ridge", "center", "max_support"),
        **_ANCHORED,
    ),
    "sava-affine": Method(
        build=whole.sava_affine,
        summary="One affine map from PLM rows to source rows, fitted on all anchors by least squares.",
        source=_SAVA,
        plm=True,
        every=True,
        options=("ridge",),
        **_ANCHORED,
    ),
    "sava-orthogonal": Method(
        build=whole.sava_orthogonal,
        summary="One orthogonal map from scaled PLM rows to source rows, fitted on all anchors.",
        source=_SAVA,
        plm=True,
        every=True,
        **_ANCHORED,
    ),
    "ridge-map": Method(
        build=whole.ridge_map,
        summary="One affine map from PLM rows to source rows, fitted on all anchors by ridge regression.",
        source="saltlm",
        plm=True,
        every=True,
        options=("ridge",),
        **_ANCHORED,
    ),
    "local-map": Method(
        build=local_map.local_map,
        summary="ridge-map, plus a ridge regression of its residuals on the neighbours of each token.",
        source="saltlm",
        plm=True,
        interpolates=True,
        options=("ridge", "map_ridge", "center", "max_support", "support_rule"),
        **_ANCHORED,
    ),
    "blend": Method(
        build=blend.blend,
        summary="Average of subword-mean and a regression of your choice.",
        source="saltlm",
        plm=True,
        options=("blend_with", "blend_weight", "blend_length"),
        **_ANCHORED,
    ),
    "wechsel": Method(
        build=words.wechsel,
        summary="Mean of the 10 nearest source tokens among bilingual vectors, weighted by a softmax (temperature 0.1).",
        source="WECHSEL, Minixhofer et al. 2022, arXiv 2112.06598",
        vectors=True,
        source_vectors="dictionary",
        neighbours="source tokens",
        options=("source_auxiliary", "dictionary"),
    ),
    "ofa": Method(
        build=words.wechsel,
        summary="As wechsel, over means of multilingual word vectors; without the factorisation of the rows.",
        source="OFA, Liu et al. 2024, arXiv 2311.08849",
        vectors=True,
        source_vectors="segmented",
        neighbours="source tokens",
    ),
    "subword-mean": Method(
        build=pieces.subword_mean,
        summary="Mean of the source pieces that spell the token.",
        source="Fast Vocabulary Transfer, Gee et al. 2022",
        **_PIECES,
    ),
    "subword-length": Method(
        build=pieces.subword_length,
        summary="Mean of the source pieces, weighted by their numbers of characters.",
        source=_ASYMMETRIC,
        **_PIECES,
    ),
    "subword-asymmetric": Method(
        build=pieces.subword_asymmetric,
        summary="Input row: subword-mean scaled to the source's median norm; output row: subword-length.",
        source=_ASYMMETRIC,
        **_PIECES,
    ),
    "multivariate": Method(
        build=flat.multivariate,
        summary="Random rows from a normal distribution with the mean and covariance of the source rows.",
        source="Hewitt 2021",
    ),
    "mean": Method(build=flat.mean, summary="The mean source row for every new token.", source="baseline"),
    "normal": Method(
        build=flat.normal,
        summary="Random rows from a normal distribution with the mean and deviation of each source dimension.",
        source="baseline",
    ),
    "zero": Method(build=flat.zero, summary="Rows of zeros.", source="baseline"),
}
NEEDS_VECTORS = tuple(name for name, method in METHODS.items() if method.vectors)


def method_of(config: TransferConfig) -> Method:
    """What the method as configured asks for: a blend asks for what its regression does."""
    method = METHODS[config.method]
    if config.method == "blend":
        other = METHODS[config.blend_with or blend.DEFAULT]
        method = dataclasses.replace(other, build=method.build, options=(*method.options, *other.options))
    if "support_rule" in method.options and config.support_rule == "auxiliary":
        method = dataclasses.replace(method, vectors=True)
    if method.anchors:
        method = dataclasses.replace(method, options=(*method.options, "clean_anchors"))
        if config.clean_anchors and "map_ridge" not in method.options:
            method = dataclasses.replace(method, options=(*method.options, "map_ridge"))
    return method


def describe_methods() -> list[dict[str, Any]]:
    """What ``saltlm methods`` lists.

    Returns:
        For each method ``name``, ``default`` (whether it is the default method), ``summary``, ``needs`` (a list of phrases),
        ``options`` (names of fields of :class:`~saltlm.TransferConfig` that change its rows) and ``source``.
    """
    return [
        {
            "name": name,
            "default": name == TransferConfig().method,
            "summary": method.summary,
            "needs": _needs(method),
            "options": list(method_of(TransferConfig(method=name)).options),
            "source": method.source,
        }
        for name, method in METHODS.items()
    ]


def _needs(method: Method) -> list[str]:
    """The inputs beside source and target model that a method cannot do without."""
    needs = []
    if method.anchors and not method.alone:
        needs.append("shared tokens")
    if method.source_vectors == "segmented":
        needs.append("multilingual word vectors in a text file (--auxiliary)")
    elif method.vectors:
        needs.append("auxiliary vectors (--auxiliary)")
    if method.source_vectors == "dictionary":
        needs += ["vectors of the source language (--source-auxiliary)", "a dictionary (--dictionary)"]
    return needs


def build(job: Job) -> Iterator[Block]:
    """The blocks of the job's method, from anchors cleaned as asked."""
    if job.config.clean_anchors:
        job = dataclasses.replace(job, anchors=clean.cleaned(job))
    yield from METHODS[job.config.method].build(job)
