"""Word vectors of many languages in one space -> vectors of both tokenizers' tokens, by segmenting the words (OFA)."""

from __future__ import annotations

import gzip
import hashlib
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import _rust
from ..errors import InputError, input_error
from .auxiliary import Auxiliary, check_auxiliary, file_digest

_LANGUAGE = re.compile(r"[a-z]{3}:")
BATCH = 20_000  # words segmented at once
GZIP = b"\x1f\x8b"  # how a gzipped file begins, whatever it is called; the native reader goes by it, too


def check_words(spec: str | Path) -> None:
    """A cheap look that the vectors are a list of words.

    Raises:
        InputError: they are of another kind.
    """
    if (kind := check_auxiliary(spec)) != "text":
        raise input_error(
            "auxiliary",
            f"{str(spec)!r}, of kind {kind}",
            "a .vec or word2vec text file for method 'ofa'",
            "its words are segmented: name a text file of multilingual vectors",
        )


def segmented_vectors(path: str | Path, tokenizers: tuple[Any, ...], sizes: tuple[int, ...]) -> list[Auxiliary]:
    """The mean vector of the words whose segmentation contains a token, for the tokens of each tokenizer.

    As in OFA's code a word is segmented as it stands, after a space and capitalised, and counts once for each of these; a
    leading ``xxx:`` names its language and is cut off, and ``$`` stands for a space (as in ColexNet+).

    Args:
        path: word2vec or GloVe text, also gzipped.
        tokenizers: transformers tokenizers.
        sizes: how many tokens each has.

    Returns:
        Vectors of each tokenizer's tokens.

    Raises:
        InputError: the file is broken or holds a NaN or infinity.
    """
    try:
        words = _words(Path(path))
        values, known = _rust.read_text_vectors(path, words)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise input_error(str(path), f"a damaged gzip file ({error})", "a whole one", "fetch the file again") from None
    except (ValueError, OSError) as error:
        raise InputError(str(error)) from None
    if not np.isfinite(values).all():
        raise input_error(str(path), "NaN or inf in the vectors", "finite numbers", "fetch the file again")
    kept = np.flatnonzero(known)
    found = []
    for tokenizer, size in zip(tokenizers, sizes, strict=True):
        total = torch.zeros(size, values.shape[1], dtype=torch.float64)
        count = torch.zeros(size, 1, dtype=torch.float64)
        for block in np.array_split(kept, max(1, -(-len(kept) // BATCH))):
            owner, tokens = _segments(tokenizer, [words[i] for i in block], size)
            rows = torch.from_numpy(values[block]).double()[torch.from_numpy(owner)]
            total.index_add_(0, torch.from_numpy(tokens), rows)
            count.index_add_(0, torch.from_numpy(tokens), torch.ones(len(tokens), 1, dtype=torch.float64))
        vectors = (total / count.clamp_min(1)).float()
        have = (vectors != 0).any(dim=1)
        description = {
            "kind": "segmented",
            "path": str(path),
            **file_digest(Path(path)),
            "words": len(kept),
            "dimension": values.shape[1],
            "vectors_sha256": hashlib.sha256(vectors.numpy().tobytes()).hexdigest(),
            "known": int(have.sum()),
        }
        found.append(Auxiliary(vectors, have, description))
    return found


def variants(word: str) -> tuple[str, ...]:
    """How a word of the file is written for segmentation."""
    text = word[4:] if _LANGUAGE.match(word) else word
    starts, text = text.startswith("$"), text.replace("$", " ")
    plain = text[1:] if starts else text
    capital = plain[:1].upper() + plain[1:]
    return text, " " + text, capital if starts else " " + capital


def _segments(tokenizer: Any, words: list[str], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Word and token of each pair that occurs, once for each way of writing the word."""
    written = [variants(word) for word in words]
    owners, tokens = [], []
    for way in range(len(written[0]) if written else 0):
        ids = tokenizer([entry[way] for entry in written], add_special_tokens=False)["input_ids"]
        owner = np.repeat(np.arange(len(ids)), [len(entry) for entry in ids])
        pairs = np.unique(owner * size + np.concatenate([np.asarray(entry, dtype=np.int64) for entry in ids]))
        owners.append(pairs // size)
        tokens.append(pairs % size)
    return np.concatenate(owners or [np.zeros(0, np.int64)]), np.concatenate(tokens or [np.zeros(0, np.int64)])


def _words(path: Path) -> list[str]:
    """The words of a text file of vectors, first of each spelling, without the line of sizes."""
    with path.open("rb") as file:
        packed = file.read(2) == GZIP
    words: dict[str, None] = {}
    with gzip.open(path, "rb") if packed else path.open("rb") as lines:
        for number, line in enumerate(lines):
            word, space, _ = line.partition(b" ")
            if space and not (number == 0 and re.fullmatch(rb"\d+ \d+\s*", line)):
                words[word.decode("utf-8", "replace")] = None
    return list(words)
