"""fastText vectors trained on the user's own text, by gensim; the same text gives the same file, and it is kept."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import input_error
from ..files.cache import cache_folder
from ..files.file_errors import CACHE_ADVICE, output_errors
from ..files.hashing import sha256_file

# One worker makes training deterministic. 200,000 n-gram buckets instead of fastText's two million keep the file near
# 100 MB; FOCUS's other settings: CBOW, width 100, 3 epochs, 10 negatives, n-grams of 3 to 6 characters.
SETTINGS = {
    "vector_size": 100,
    "epochs": 3,
    "negative": 10,
    "min_count": 5,
    "min_n": 3,
    "max_n": 6,
    "window": 5,
    "sg": 0,
    "bucket": 200_000,
    "workers": 1,
    "seed": 0,
}


def trained_file(files: Sequence[Path], width: int | None = None) -> Path:
    """Where the vectors trained on these texts are kept, or will be: named by the texts' content and the settings."""
    digest = hashlib.sha256(repr(sorted(_settings(width).items())).encode())
    for path in files:
        digest.update(bytes.fromhex(sha256_file(path)))
    return cache_folder() / "trained" / f"{digest.hexdigest()}.bin"


def _settings(width: int | None) -> dict[str, int]:
    return SETTINGS if width is None else {**SETTINGS, "vector_size": width}


def train(files: Sequence[Path], width: int | None = None) -> Path:
    """Train on white-space separated words of UTF-8 text files, one text a line; returns the ``.bin``, from the cache if there.

    Args:
        files: texts.
        width: P, in [1, inf); ``None`` is that of :data:`SETTINGS`.

    Raises:
        InputError: gensim is not installed, a file is empty or not UTF-8, or has too few words, or the cache is full.
        BackendError: the cache cannot be written.
    """
    try:
        from gensim.models import FastText
        from gensim.models.fasttext import save_facebook_model
    except ImportError:
        raise input_error(
            "auxiliary train:...", "no gensim", "gensim to train with", 'pip install "saltlm[train]"'
        ) from None
    kept = trained_file(files, width)
    if kept.is_file():
        return kept
    with output_errors(kept, 0, CACHE_ADVICE):  # before the work, not after it
        kept.parent.mkdir(parents=True, exist_ok=True)
    model = FastText(**_settings(width))
    lines = _Lines(files)
    try:
        model.build_vocab(lines)
        model.train(lines, total_examples=model.corpus_count, epochs=model.epochs)
    except RuntimeError as error:
        found = f"too little text ({error})"
        raise input_error(
            "auxiliary train:...", found, f"words seen {SETTINGS['min_count']} times", "give more text"
        ) from None
    with output_errors(kept, 0, CACHE_ADVICE):
        handle, name = tempfile.mkstemp(dir=kept.parent, suffix=".part")
        os.close(handle)
        try:
            save_facebook_model(model, name)
            os.replace(name, kept)
        finally:
            Path(name).unlink(missing_ok=True)
    return kept


class _Lines:
    """Lines as lists of words, read again for every epoch."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files

    def __iter__(self) -> Iterator[list[str]]:
        for path in self.files:
            try:
                with path.open(encoding="utf-8") as file:
                    for line in file:
                        if words := line.split():
                            yield words
            except UnicodeDecodeError as error:
                found = f"bytes that are not UTF-8 ({error})"
                raise input_error(f"auxiliary train:{path}", found, "text", "convert it") from None
