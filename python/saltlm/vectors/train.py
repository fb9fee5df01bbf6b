"""Train fastText vectors on text files by gensim. The same text gives the same file, which is kept in the cache."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..environment import require
from ..errors import input_error
from ..files.cache import cache_folder
from ..files.file_errors import CACHE_ADVICE, output_errors
from ..files.hashing import sha256_file
from ..files.open_file import open_file
from ..text.documents import MAX_LINE_BYTES

# FOCUS's settings (CBOW, width 100, 3 epochs, 10 negatives, n-grams of 3 to 6 characters) with two changes: one worker, so
# that training is deterministic, and 200,000 n-gram buckets instead of two million, so that the file has about 100 MB.
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
    """File of the cache for vectors trained on these texts; its name is a sha256 of the texts' contents and the settings."""
    digest = hashlib.sha256(repr(sorted(_settings(width).items())).encode())
    for path in files:
        digest.update(bytes.fromhex(sha256_file(path)))
    return cache_folder() / "trained" / f"{digest.hexdigest()}.bin"


def _settings(width: int | None) -> dict[str, int]:
    """Gensim's settings, with this width."""
    return SETTINGS if width is None else {**SETTINGS, "vector_size": width}


def train(files: Sequence[Path], width: int | None = None) -> Path:
    """Train fastText vectors, unless the cache has them.

    Args:
        files: UTF-8 text files; each line is one text, its words are separated by white space.
        width: P, in [1, inf); ``None`` is the width of :data:`SETTINGS`.

    Returns:
        Path of the fastText ``.bin`` in the cache.

    Raises:
        InputError: gensim is not installed, a file is empty or not UTF-8, or has too few words, or the cache is full.
        BackendError: the cache cannot be written.
    """
    require("gensim", "train", "auxiliary train:...")
    from gensim.models import FastText
    from gensim.models.fasttext import save_facebook_model

    target = trained_file(files, width)
    if target.is_file():
        return target
    with output_errors(target, 0, CACHE_ADVICE):  # checked before the training
        target.parent.mkdir(parents=True, exist_ok=True)
    model = FastText(**_settings(width))
    lines = _TrainingText(files)
    try:
        model.build_vocab(lines)
        model.train(lines, total_examples=model.corpus_count, epochs=model.epochs)
    except RuntimeError as error:
        found = f"too little text ({error})"
        raise input_error(
            "auxiliary train:...", found, f"words seen {SETTINGS['min_count']} times", "give more text"
        ) from None
    with output_errors(target, 0, CACHE_ADVICE):
        handle, name = tempfile.mkstemp(dir=target.parent, suffix=".part")
        os.close(handle)
        try:
            save_facebook_model(model, name)
            os.replace(name, target)
        finally:
            Path(name).unlink(missing_ok=True)
    return target


class _TrainingText:
    """Lines of text files as lists of words. gensim iterates over it once per epoch."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files

    def __iter__(self) -> Iterator[list[str]]:
        for path in self.files:
            what = f"auxiliary train:{path}"
            try:
                with io.TextIOWrapper(open_file(path, what=what), encoding="utf-8") as file:
                    while line := file.readline(MAX_LINE_BYTES + 1):
                        if len(line) > MAX_LINE_BYTES:
                            found = f"a line of more than {MAX_LINE_BYTES:,} characters"
                            raise input_error(what, found, "lines of text", "break its lines")
                        if words := line.split():
                            yield words
            except UnicodeDecodeError as error:
                found = f"bytes that are not UTF-8 ({error})"
                raise input_error(what, found, "text", "convert it") from None
