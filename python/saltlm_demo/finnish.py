"""Inputs of a real transfer: an English LM, a PLM and vectors of one language; and the operators' arguments for Finnish."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch

from saltlm.errors import input_error
from saltlm.progress import Progress

from .e5 import language_donor
from .inputs import finnish_vectors, french_vectors, source_lm

VECTORS = {"fi": ("Finnish floret vectors", finnish_vectors), "fr": ("French word vectors", french_vectors)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """Paths of the inputs of a real transfer.

    Attributes:
        source: folder of SmolLM2-135M-Instruct.
        gguf_file: name of its GGUF file in that folder.
        donor: folder of multilingual-e5-small, reduced to the language.
        vectors: spaCy folder with the language's vectors.
    """

    source: Path
    gguf_file: str
    donor: Path
    vectors: Path


def finnish_pair(step: Callable[[str], AbstractContextManager[Progress | None]] | None = None) -> Pair:
    """:func:`language_pair` of Finnish."""
    return language_pair("fi", step)


def language_pair(language: str, step: Callable[[str], AbstractContextManager[Progress | None]] | None = None) -> Pair:
    """Paths of the inputs for a language; fetches those that are not in the cache.

    Args:
        language: a key of :data:`VECTORS`.
        step: input name -> context manager that yields the progress callback (bytes done, total bytes) of that input.

    Raises:
        InputError: an input cannot be fetched, or the language is not in :data:`VECTORS`.
    """
    if language not in VECTORS:
        raise input_error("language", repr(language), "one of " + ", ".join(VECTORS), "choose one of these")
    name, vectors_of = VECTORS[language]
    step = step or (lambda name: nullcontext())
    with step("SmolLM2-135M-Instruct") as report:
        source, gguf_file = source_lm(report)
    with step(f"multilingual-e5-small, cut to {language!r}") as report:
        donor = language_donor(language, report)
    with step(name) as report:
        vectors = vectors_of(report)
    return Pair(source=source, gguf_file=gguf_file, donor=donor, vectors=vectors)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """The operators' arguments in the Finnish transfer, float32.

    Attributes:
        new_auxiliary: [N, P], auxiliary vectors of the new tokens.
        anchor_auxiliary: [A, P], auxiliary vectors of the anchors.
        new_plm: [N, E], PLM rows of the new tokens.
        anchor_plm: [A, E], PLM rows of the anchors.
        anchor_lm: [A, D], source LM rows of the anchors.
        new: int64 [N], target ids of the new tokens.
        anchors: int64 [A], target ids of the anchors.
    """

    new_auxiliary: torch.Tensor
    anchor_auxiliary: torch.Tensor
    new_plm: torch.Tensor
    anchor_plm: torch.Tensor
    anchor_lm: torch.Tensor
    new: np.ndarray
    anchors: np.ndarray

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """The arguments of :func:`saltlm.salt_rows`, in order."""
        return self.new_auxiliary, self.anchor_auxiliary, self.new_plm, self.anchor_plm, self.anchor_lm

    def __repr__(self) -> str:
        sizes = {"N": len(self.new), "A": len(self.anchors), "P": self.new_auxiliary.shape[1]}
        return f"Problem({sizes | {'E': self.new_plm.shape[1], 'D': self.anchor_lm.shape[1]}})"


def finnish_problem(pair: Pair) -> Problem:
    """The operators' arguments in :func:`saltlm.transfer` of the pair, for all tokens that SALT can solve."""
    from saltlm.alignment.align import align
    from saltlm.alignment.causal_tokenizer import causal_tokenizer
    from saltlm.model.checkpoint import load_donor, load_source
    from saltlm.rows.assembly import Assembly
    from saltlm.rows.methods import anchors_of
    from saltlm.vectors.auxiliary import load_auxiliary

    source = load_source(pair.source, gguf_file=pair.gguf_file)
    donor = load_donor(pair.donor)
    tokenizer = causal_tokenizer(donor.tokenizer, source.tokenizer, chat_template="target")
    alignment = align(source.tokenizer, tokenizer)
    vectors = load_auxiliary(pair.vectors, alignment.target.words())
    assembly = Assembly(source, alignment, alignment.target.size, None)
    anchors = anchors_of(assembly, alignment, vectors, donor.input_rows)
    new = np.flatnonzero(assembly.open & vectors.known.numpy())
    new_ids, anchor_ids = torch.from_numpy(new), torch.from_numpy(anchors)
    return Problem(
        new_auxiliary=vectors.vectors[new_ids],
        anchor_auxiliary=vectors.vectors[anchor_ids],
        new_plm=donor.input_rows[new_ids].float(),
        anchor_plm=donor.input_rows[anchor_ids].float(),
        anchor_lm=source.input_rows[torch.from_numpy(alignment.source_id[anchors].astype(np.int64))].float(),
        new=new,
        anchors=anchors,
    )
