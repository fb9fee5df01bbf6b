"""How rows of new tokens are built: one generator a method (step 4).

A method yields :class:`~saltlm.assemble.Block` after block for the tokens it can build; what it leaves is drawn
(:meth:`~saltlm.assemble.Assembly.draw`). Shared rows are copied before, whatever the method. The methods in one grid:

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
blend               -                                all anchors, pieces    half subword mean, half ridge map
wechsel             vectors of both languages        10 source tokens       softmax of cosines, temperature 0.1
ofa                 means of multilingual words      10 source tokens       softmax of cosines, temperature 0.1
subword-mean        -                                source pieces          equal
subword-length      -                                source pieces          by characters
subword-asymmetric  -                                source pieces          input: equal, at the typical norm; output: by
                                                                            characters
==================  ===============================  =====================  ===========================================
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from ..assemble import Block
from . import blend, flat, local, pieces, whole, words
from .job import Job, anchors_of

__all__ = ["METHODS", "NEEDS_VECTORS", "Job", "Method", "anchors_of"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A way to build rows, and what it asks for.

    Attributes:
        build: yields the blocks.
        vectors: whether it needs auxiliary vectors.
        plm: whether it looks at the PLM's rows.
        anchors: whether it learns from shared tokens, so that the self-check can hide some.
        source_vectors: where vectors of the source tokens come from: a ``dictionary`` and vectors of the source's language, or
            ``segmented`` words of the one file of vectors; empty where it needs none.
        neighbours: what its support sizes count, empty where there are none.
        sparse: whether few neighbours are a choice it makes, so that many are a sign of vectors that tell nothing apart.
        options: names of the options that change it, beside those that every method has.
    """

    build: Callable[[Job], Iterator[Block]]
    vectors: bool = False
    plm: bool = False
    anchors: bool = False
    source_vectors: str = ""
    neighbours: str = ""
    sparse: bool = False
    options: tuple[str, ...] = ()


_ANCHORED = {"anchors": True, "neighbours": "anchors"}
_PIECES = {"neighbours": "pieces"}

METHODS: dict[str, Method] = {
    "salt": Method(
        build=local.salt, vectors=True, plm=True, sparse=True, options=("ridge", "center", "max_support"), **_ANCHORED
    ),
    "focus": Method(build=local.focus, vectors=True, sparse=True, options=("max_support",), **_ANCHORED),
    "clp": Method(build=whole.clp, plm=True, **_ANCHORED),
    "clp-plus": Method(build=local.clp_plus, plm=True, sparse=True, options=("max_support",), **_ANCHORED),
    "omp": Method(build=local.omp, plm=True, options=("ridge", "center", "max_support"), **_ANCHORED),
    "sava-affine": Method(build=whole.sava_affine, plm=True, options=("ridge",), **_ANCHORED),
    "sava-orthogonal": Method(build=whole.sava_orthogonal, plm=True, **_ANCHORED),
    "blend": Method(build=blend.blend, plm=True, options=("ridge", "blend_weight"), **_ANCHORED),
    "wechsel": Method(
        build=words.wechsel,
        vectors=True,
        source_vectors="dictionary",
        neighbours="source tokens",
        options=("source_auxiliary", "dictionary"),
    ),
    "ofa": Method(build=words.wechsel, vectors=True, source_vectors="segmented", neighbours="source tokens"),
    "subword-mean": Method(build=pieces.subword_mean, **_PIECES),
    "subword-length": Method(build=pieces.subword_length, **_PIECES),
    "subword-asymmetric": Method(build=pieces.subword_asymmetric, **_PIECES),
    "multivariate": Method(build=flat.multivariate),
    "mean": Method(build=flat.mean),
    "normal": Method(build=flat.normal),
    "zero": Method(build=flat.zero),
}
NEEDS_VECTORS = tuple(name for name, method in METHODS.items() if method.vectors)
