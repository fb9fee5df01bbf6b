"""The methods that build the rows of new tokens (step 4), and their registry.

A method is a generator of :class:`~saltlm.rows.assembly.Block` for the tokens that it can build; the assembly draws the others
(:meth:`~saltlm.rows.assembly.Assembly.draw`). Shared rows are copied before, by every method. ``METHODS`` lists all methods
with what each needs; ``saltlm methods`` prints it.

Two steps exist for all methods: anchors may be left out before (:func:`.whole.cleaned_anchors`), and finished rows may be
shifted (:mod:`saltlm.rows.unigram_shift`) and scaled (:mod:`saltlm.rows.norm_guard`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypedDict

from ...config import MethodName, TransferConfig
from ..assembly import Block
from ..job import Job, anchors_of
from . import blend, flat, local, local_map, pieces, whole, words

__all__ = ["METHODS", "NEEDS_VECTORS", "Job", "Method", "anchors_of", "build", "describe_methods", "method_of"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A method and its needs.

    Attributes:
        build: yields the blocks.
        summary: what the row of a new token is, in one sentence.
        source: publication that the method is from; ``saltlm`` for a method of this package, ``baseline`` for a baseline.
        vectors: whether it reads auxiliary vectors.
        plm: whether it reads the PLM's rows.
        anchors: whether it learns from shared tokens, so that the self-check can hide some of them.
        alone: whether it works without any shared token.
        source_vectors: where the vectors of the source tokens come from: ``dictionary``, from vectors of the source's language
            and a dictionary; ``segmented``, from the words of the one file of vectors; empty for a method that reads none.
        neighbours: what its support sizes count; empty for a method without neighbours.
        every: whether every anchor is a neighbour of every token.
        interpolates: whether its regression can fit a token exactly. Its rows may then be very long where a token has about as
            many neighbours as the PLM has dimensions and there is no ridge.
        sparse: whether the method chooses few neighbours, so that many of them show vectors that do not distinguish tokens.
        regression: whether ``blend`` can average it with the mean of pieces (``config.RegressionName`` has the same names).
        options: names of the options that change its rows, without those that every method has.
    """

    build: Callable[[Job], Iterator[Block]]
    summary: str = ""
    source: str = ""
    vectors: bool = False
    plm: bool = False
    anchors: bool = False
    alone: bool = False
    source_vectors: Literal["", "dictionary", "segmented"] = ""
    neighbours: str = ""
    sparse: bool = False
    every: bool = False
    interpolates: bool = False
    regression: bool = False
    options: tuple[str, ...] = ()


class _Anchored(TypedDict):
    anchors: bool
    neighbours: str


class _Regression(_Anchored):
    regression: bool


_ANCHORED: _Anchored = {"anchors": True, "neighbours": "anchors"}
_REGRESSION: _Regression = {"regression": True, **_ANCHORED}
_SAVA = "SAVA, Moroni et al. 2025, arXiv 2504.17025"
_CLP = "CLP-Transfer, Ostendorff and Rehm 2023, arXiv 2301.09626"
_ASYMMETRIC = "asymmetric composition, arXiv 2608.03494"

METHODS: dict[MethodName, Method] = {
    "auto": Method(
        build=lambda job: blend.auto(job, METHODS["ridge-map"].build),
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
        **_REGRESSION,
    ),
    "focus": Method(
        build=local.focus,
        summary="Mean of the sparsemax neighbours among the auxiliary vectors, with the sparsemax weights.",
        source="FOCUS, Dobler and de Melo 2023, arXiv 2305.14481",
        vectors=True,
        sparse=True,
        options=("max_support",),
        **_REGRESSION,
    ),
    "clp": Method(
        build=whole.clp,
        summary="Mean of all anchors, weighted by the cosine between PLM rows.",
        source=_CLP,
        plm=True,
        every=True,
        **_REGRESSION,
    ),
    "clp-plus": Method(
        build=local.clp_plus,
        summary="Mean of the sparsemax neighbours among the PLM rows, with the sparsemax weights.",
        source=f"{_CLP}, with the sparsemax weights of FOCUS",
        plm=True,
        sparse=True,
        options=("max_support",),
        **_REGRESSION,
    ),
    "omp": Method(
        build=local.omp,
        summary="Least squares in the PLM space on 64 anchors picked by orthogonal matching pursuit.",
        source="Goddard and Fernandes Neto 2025, arXiv 2506.06607",
        plm=True,
        interpolates=True,
        options=("ridge", "center", "max_support"),
        **_REGRESSION,
    ),
    "sava-affine": Method(
        build=whole.sava_affine,
        summary="One affine map from PLM rows to source rows, fitted on all anchors by least squares.",
        source=_SAVA,
        plm=True,
        every=True,
        options=("ridge",),
        **_REGRESSION,
    ),
    "sava-orthogonal": Method(
        build=whole.sava_orthogonal,
        summary="One orthogonal map from scaled PLM rows to source rows, fitted on all anchors.",
        source=_SAVA,
        plm=True,
        every=True,
        **_REGRESSION,
    ),
    "ridge-map": Method(
        build=whole.ridge_map,
        summary="One affine map from PLM rows to source rows, fitted on all anchors by ridge regression.",
        source="saltlm",
        plm=True,
        every=True,
        options=("ridge",),
        **_REGRESSION,
    ),
    "local-map": Method(
        build=local_map.local_map,
        summary="ridge-map, plus a ridge regression of its residuals on the neighbours of each token.",
        source="saltlm",
        plm=True,
        interpolates=True,
        options=("ridge", "map_ridge", "center", "max_support", "support_rule"),
        **_REGRESSION,
    ),
    "blend": Method(
        build=lambda job: blend.blend(job, METHODS[job.config.blend_with or blend.DEFAULT].build),
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
        neighbours="pieces",
    ),
    "subword-length": Method(
        build=pieces.subword_length,
        summary="Mean of the source pieces, weighted by their numbers of characters.",
        source=_ASYMMETRIC,
        neighbours="pieces",
    ),
    "subword-asymmetric": Method(
        build=pieces.subword_asymmetric,
        summary="Input row: subword-mean scaled to the source's median norm; output row: subword-length.",
        source=_ASYMMETRIC,
        neighbours="pieces",
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
    """The method of a configuration, with its needs: a blend needs what its regression needs."""
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
    """The list that ``saltlm methods`` prints.

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
    """The inputs that a method needs besides source and target model."""
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
    """The blocks of the job's method; with ``clean_anchors`` from the anchors that are left."""
    if job.config.clean_anchors:
        job = dataclasses.replace(job, anchors=whole.cleaned_anchors(job))
    yield from METHODS[job.config.method].build(job)
