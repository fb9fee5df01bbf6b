"""Tiny source models, donors and vectors on disk, written once in a test run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from models_tiny import save_bert, save_llama
from tokenizers_tiny import tiny

from saltlm.alignment.align import load_tokens


@dataclasses.dataclass(frozen=True)
class Pair:
    """Folders of a source model and a donor, and a vectors file for the donor's words."""

    source: Path
    target: Path
    vectors: Path

    def arguments(self, out: Path, *more: str) -> list[str]:
        """Arguments of ``saltlm transfer``."""
        fixed = [
            "transfer",
            "--source",
            self.source,
            "--target",
            self.target,
            "--auxiliary",
            self.vectors,
            "--out",
            out,
        ]
        return [*map(str, fixed), *more]


def write_vectors(path: Path, tokenizer, width: int = 12, drop: int = 0) -> None:
    """Write random vectors for the tokenizer's words, without every ``drop``-th word."""
    words = sorted({word for word in load_tokens(tokenizer).vocabulary.words() if word and " " not in word})
    if drop:
        words = [word for index, word in enumerate(words) if index % drop]
    values = np.random.default_rng(0).normal(size=(len(words), width))
    lines = [f"{word} {' '.join(f'{x:.5f}' for x in row)}" for word, row in zip(words, values, strict=True)]
    path.write_text(f"{len(lines)} {width}\n" + "\n".join(lines) + "\n", encoding="utf-8")


def make_pair(root: Path, source: str, target: str, *, tied: bool = True, drop: int = 0, **options) -> Pair:
    """A Llama with tokenizer kind ``source`` and a BERT with kind ``target``."""
    save_llama(root / "source", tiny(source), tied=tied, **options)
    save_bert(root / "target", tiny(target))
    write_vectors(root / "v.vec", tiny(target), drop=drop)
    return Pair(root / "source", root / "target", root / "v.vec")


@pytest.fixture(scope="session")
def pair(tmp_path_factory) -> Pair:
    """Byte-level tied source, Unigram donor."""
    return make_pair(tmp_path_factory.mktemp("pair"), "byte_level_bpe", "sentencepiece_unigram")


@pytest.fixture(scope="session")
def untied(tmp_path_factory) -> Pair:
    """SentencePiece untied source, WordPiece donor; some words have no vector."""
    return make_pair(tmp_path_factory.mktemp("untied"), "sentencepiece_bpe", "wordpiece", tied=False, drop=7)
