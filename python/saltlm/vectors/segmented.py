"""Vectors of both tokenizers' tokens from multilingual word vectors, by segmenting the words (OFA)."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import torch

from .. import _rust
from ..errors import InputError, input_error
from ..files.summary_file import VectorsDescription
from ..protocols import Tokenizer
from .auxiliary import Auxiliary, check_auxiliary, file_digest

LANGUAGE_PREFIX = re.compile(r"[a-z]{3}:")
BATCH = 20_000  # words that are segmented at once


def check_words(spec: str | Path) -> None:
    """Check that the vectors exist and are a list of words, without reading them.

    Raises:
        InputError: they are missing or of another kind.
    """
    if (kind := check_auxiliary(spec)) not in ("text", "word2vec"):
        raise input_error(
            "auxiliary",
            f"{str(spec)!r}, of kind {kind}",
            "a .vec or word2vec file for method 'ofa'",
            "its words are segmented: name a file of multilingual vectors that lists its words",
        )


def segmented_vectors(path: str | Path, tokenizers: tuple[Tokenizer, ...], sizes: tuple[int, ...]) -> list[Auxiliary]:
    """Give each token of each tokenizer the mean vector of the words whose segmentation contains it.

    As in OFA's code, a word is segmented in three spellings (:func:`variants`) and counts once for each that contains the
    token. A leading ``xxx:`` names the word's language and is removed; ``$`` stands for a space (as in ColexNet+).

    Args:
        path: word2vec or GloVe file, also packed.
        tokenizers: transformers tokenizers.
        sizes: number of tokens of each tokenizer.

    Returns:
        For each tokenizer the vectors of its tokens.

    Raises:
        InputError: the file is broken or holds NaN or infinity.
    """
    try:
        words = _rust.listed_words(path)
        values, known = _rust.read_vectors(path, words)
    except (ValueError, OSError) as error:
        raise InputError(str(error)) from None
    if not np.isfinite(values).all():
        raise input_error(str(path), "NaN or inf in the vectors", "finite numbers", "fetch the file again")
    rows_known = np.flatnonzero(known)
    results = []
    for tokenizer, size in zip(tokenizers, sizes, strict=True):
        total = torch.zeros(size, values.shape[1], dtype=torch.float64)
        count = torch.zeros(size, 1, dtype=torch.float64)
        for block in np.array_split(rows_known, max(1, -(-len(rows_known) // BATCH))):
            owner, tokens = _segments(tokenizer, [words[i] for i in block], size)
            rows = torch.from_numpy(values[block]).double()[torch.from_numpy(owner)]
            total.index_add_(0, torch.from_numpy(tokens), rows)
            count.index_add_(0, torch.from_numpy(tokens), torch.ones(len(tokens), 1, dtype=torch.float64))
        vectors = (total / count.clamp_min(1)).float()
        has_vector = (vectors != 0).any(dim=1)
        description: VectorsDescription = {
            "kind": "segmented",
            "path": str(path),
            **file_digest(Path(path)),
            "words": len(rows_known),
            "dimension": values.shape[1],
            "vectors_sha256": hashlib.sha256(vectors.numpy().tobytes()).hexdigest(),
            "known": int(has_vector.sum()),
        }
        results.append(Auxiliary(vectors, has_vector, description))
    return results


def variants(word: str) -> tuple[str, ...]:
    """The three spellings of a word that are segmented: as written, after a space, and capitalised."""
    text = word[4:] if LANGUAGE_PREFIX.match(word) else word
    starts, text = text.startswith("$"), text.replace("$", " ")
    plain = text[1:] if starts else text
    capital = plain[:1].upper() + plain[1:]
    return text, " " + text, capital if starts else " " + capital


def _segments(tokenizer: Tokenizer, words: list[str], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Word index and token of each pair where the word contains the token, once for each spelling.

    Args:
        tokenizer: a transformers tokenizer.
        words: words of the file.
        size: number of tokens.

    Returns:
        int64 word indices and int64 token ids, of equal length.
    """
    spellings = [variants(word) for word in words]
    owners, tokens = [], []
    for variant in range(len(spellings[0]) if spellings else 0):
        ids = tokenizer([entry[variant] for entry in spellings], add_special_tokens=False)["input_ids"]
        owner = np.repeat(np.arange(len(ids)), [len(entry) for entry in ids])
        pairs = np.unique(owner * size + np.concatenate([np.asarray(entry, dtype=np.int64) for entry in ids]))
        owners.append(pairs // size)
        tokens.append(pairs % size)
    return np.concatenate(owners or [np.zeros(0, np.int64)]), np.concatenate(tokens or [np.zeros(0, np.int64)])
