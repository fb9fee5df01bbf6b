"""Look up static vectors of the target language: auxiliary vectors f(t) of the target tokens (step 3)."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import _rust
from ..errors import InputError, first_line, input_error
from ..files.hashing import sha256_joined
from ..files.json_files import parse_json
from ..files.open_file import FileKind, check_file, check_inside, read_file
from ..files.summary_file import VectorsDescription
from ..options import is_whole_number

ACCEPTED = (
    "a fastText .bin, a .vec or word2vec file (also .gz or .zip), a spaCy vectors folder, 'plm' or 'train:FILE[,...]'"
)

# Settings of a floret table -> the smallest and the largest number, or the largest number of characters of a text.
FLORET_SETTINGS: dict[str, tuple[int, int] | int] = {
    "minn": (1, 64),
    "maxn": (1, 64),
    "hash_count": (1, 4),
    "hash_seed": (0, 2**32 - 1),
    "bow": 64,
    "eow": 64,
}
# As in the native readers: the widest vectors, and the largest number of values that are read into memory (4 GiB).
MAX_WIDTH, MAX_VALUES = 1 << 14, 1 << 30
# Larger files are not hashed: a look-up reads only the pages that the words need, and hashing would read the whole file.
MAX_HASHED_BYTES = 1 << 30


@dataclasses.dataclass(frozen=True)
class Auxiliary:
    """Auxiliary vectors of ``T`` target tokens.

    Attributes:
        vectors: float32 [T, P]; zeros for a token without a vector.
        known: bool [T]; whether the token has a finite, non-zero vector.
        description: origin of the vectors: ``kind``, ``path``, ``bytes`` and ``sha256`` of the file (``None`` above 1 GiB;
            then ``changed`` is the time of its last change), ``vectors_sha256`` of ``vectors``, ``dimension``, and ``known``:
            number of tokens with a vector.
    """

    vectors: torch.Tensor
    known: torch.Tensor
    description: VectorsDescription

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or self.known.shape != self.vectors.shape[:1]:
            raise ValueError(f"vectors {tuple(self.vectors.shape)} and known {tuple(self.known.shape)} do not agree")

    def __repr__(self) -> str:
        rows, width = self.vectors.shape
        return f"Auxiliary(T={rows}, P={width}, known={int(self.known.sum())}, kind={self.description.get('kind')!r})"


def load_auxiliary(
    spec: str | Path,
    words: Sequence[str | None],
    *,
    plm_rows: torch.Tensor | None = None,
    width: int | None = None,
) -> Auxiliary:
    """Look up a static vector for each token.

    Words are looked up with their case. Two tokens with the same text, one at a word start and one within a word, share a
    vector. A fastText ``.bin`` and a floret table give a vector to any word that has an n-gram; a word list only to its words.

    Args:
        spec: a fastText ``.bin``; a ``.vec``, word2vec or GloVe file (all of these also as ``.gz`` or ``.zip``); a spaCy
            vectors folder (floret or word table); ``plm``: the PLM's input rows; ``train:FILE[,FILE...]``: fastText trained on
            these text files.
        words: text of each of the ``T`` tokens; ``None`` for tokens without text.
        plm_rows: [T, E], rows of the PLM; required for ``plm``.
        width: P of vectors that are trained here, in [1, inf); ``None`` is 100. Vectors of a file have the file's width.

    Returns:
        The vectors, and which tokens have one.

    Raises:
        InputError: ``spec`` is missing, truncated, of an unknown kind, holds NaN or infinity, or has none of the words.
    """
    kind = check_auxiliary(spec)
    if kind == "plm":
        return _from_plm(plm_rows, len(words))
    # Equal words are looked up once: many tokens share a text.
    unique = sorted({word for word in words if word})
    index_of = {word: index for index, word in enumerate(unique)}
    path = Path(str(spec))
    try:
        if kind == "train":
            from .train import train

            path = train([Path(name) for name in auxiliary_files(spec)], width)
        values, known = _read(kind, path, unique)
    except ValueError as error:
        raise error if isinstance(error, InputError) else InputError(str(error)) from None
    except OSError as error:
        raise InputError(str(error)) from None
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        bad = [unique[i] for i in np.flatnonzero(~finite)[:3]]
        raise input_error(str(path), f"NaN or inf in the vectors of {bad}", "finite numbers", "fetch the file again")
    known = known & (values != 0).any(axis=1)
    rows = np.array([index_of[word] if word else -1 for word in words], dtype=np.int64)
    dimension = values.shape[1]
    vectors = np.zeros((len(words), dimension), dtype=np.float32)
    has_vector = rows >= 0
    has_vector[has_vector] = known[rows[has_vector]]
    vectors[has_vector] = values[rows[has_vector]]
    if not has_vector.any():
        raise input_error(
            f"auxiliary vectors {spec}",
            f"a vector for none of the {len(unique)} words that tokens stand for, such as {unique[:3]}",
            "vectors of the target tokenizer's language and script",
            "give vectors of that language, or 'plm' to use the PLM's own rows",
        )
    description: VectorsDescription = {
        "kind": kind,
        "path": str(spec),
        **file_digest(path),
        "vectors_sha256": hashlib.sha256(vectors.tobytes()).hexdigest(),
        "dimension": dimension,
        "known": int(has_vector.sum()),
    }
    return Auxiliary(torch.from_numpy(vectors), torch.from_numpy(has_vector), description)


def auxiliary_files(spec: str | Path | None) -> list[str]:
    """Paths that auxiliary vectors are read from: files or one folder; none for ``plm``."""
    text = "" if spec is None else str(spec)
    if text.startswith("train:"):
        return text[len("train:") :].split(",")
    return [] if text in ("", "plm") else [text]


def check_auxiliary(spec: str | Path) -> str:
    """Check that auxiliary vectors exist, without reading them.

    Args:
        spec: as in :func:`load_auxiliary`.

    Returns:
        Their kind: ``fasttext``, ``text`` (a word list), ``word2vec`` (a binary word list), ``spacy``, ``plm`` or ``train``.

    Raises:
        InputError: nothing exists at this path, or it is of an unknown kind.
    """
    text = str(spec)
    if text == "plm":
        return "plm"
    if text.startswith("train:"):
        for name in auxiliary_files(text):
            if not os.path.exists(name):
                raise input_error(
                    f"auxiliary {text}", f"no file at {name!r}", "text files to train on", "check the path"
                )
            _check_readable(name, f"auxiliary train:{name}")
        return "train"
    path = Path(text)
    # Unlike pathlib's methods, os.path's functions return False for a name that is too long or has forbidden characters.
    if os.path.isdir(path):
        folder = _spacy_folder(path)
        for name in ("vectors", "key2row", "vectors.cfg"):
            if (folder / name).exists():
                check_inside(folder / name, path, f"auxiliary {folder / name}")
                _check_readable(folder / name, f"auxiliary {folder / name}")
        return "spacy"
    if not os.path.exists(path):
        raise input_error("auxiliary vectors", f"nothing at {text!r}", ACCEPTED, "check the path")
    _check_readable(path, text)
    try:
        return _rust.check_vectors(path)
    except (ValueError, OSError) as error:
        raise InputError(str(error)) from None


def _check_readable(path: str | Path, what: str) -> None:
    """Raise InputError unless the path is a regular file that can be read."""
    try:
        check_file(path, what=what)
    except OSError as error:
        raise input_error(what, f"a file that cannot be read ({error.strerror})", ACCEPTED, "check it") from error


def _read(kind: str, path: Path, words: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of words, float32 [n, P], and bool [n]: whether the file has them."""
    if kind == "spacy":
        return _read_spacy(_spacy_folder(path), words)
    return _rust.read_vectors(path, words)


def _from_plm(plm_rows: torch.Tensor | None, size: int) -> Auxiliary:
    """The PLM's rows as auxiliary vectors; rows with NaN or infinity count as missing."""
    if plm_rows is None or plm_rows.ndim != 2 or len(plm_rows) != size:
        found = "none" if plm_rows is None else f"shape {tuple(plm_rows.shape)}"
        raise input_error("plm_rows", found, f"the PLM's rows, shape [{size}, E]", "pass plm_rows=... with spec 'plm'")
    vectors = plm_rows.to(torch.float32)
    known = vectors.isfinite().all(dim=1) & (vectors != 0).any(dim=1)
    vectors = torch.where(known[:, None], vectors, 0.0)
    return Auxiliary(vectors, known, {"kind": "plm", "dimension": vectors.shape[1], "known": int(known.sum())})


def _spacy_folder(path: Path) -> Path:
    """The folder with files ``vectors`` and ``key2row``: ``path``, ``path/vocab``, or ``vocab`` in a subfolder."""
    for folder in (path, path / "vocab", *sorted(path.glob("*/vocab"))):
        if (folder / "vectors").is_file() and (folder / "key2row").is_file():
            return folder
    raise input_error(
        f"auxiliary folder {path}", "no files vectors and key2row", ACCEPTED, "name a spaCy model or its vocab"
    )


def _read_spacy(folder: Path, words: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of words from spaCy's word table or floret table, and whether they are known."""
    floret = _floret_settings(folder / "vectors.cfg")
    table = _spacy_table(folder / "vectors")
    for count, where in ((len(words), "for these words"), (len(table) if floret else 0, "in a floret table")):
        if count * table.shape[1] > MAX_VALUES:
            found = f"vectors of width {table.shape[1]} and {count:,} rows {where}"
            raise input_error(
                str(folder / "vectors"), found, f"at most {MAX_VALUES:,} values", "give narrower vectors, or fewer rows"
            )
    if floret is not None:
        return _rust.floret_vectors(words, np.ascontiguousarray(table, dtype=np.float32), **floret)
    rows = _rust.table_rows(read_file(folder / "key2row", FileKind.KEYS), words, str(folder / "key2row"))
    known = (rows >= 0) & (rows < len(table))
    values = np.zeros((len(words), table.shape[1]), dtype=np.float32)
    values[known] = table[rows[known]]
    return values, known


def _floret_settings(path: Path) -> dict[str, Any] | None:
    """The settings of a floret table from its ``vectors.cfg``; ``None`` for a word table."""
    try:
        config = parse_json(read_file(path, FileKind.SETTINGS)) if path.is_file() else {}
        floret = {name: config[name] for name in FLORET_SETTINGS} if config.get("mode") == "floret" else None
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        found = f"a broken file ({type(error).__name__}: {error})"
        raise input_error(str(path), found, "settings as spaCy writes them", "fetch the folder again") from error
    for name, value in (floret or {}).items():
        bounds = FLORET_SETTINGS[name]
        if isinstance(bounds, int):
            valid, expected = isinstance(value, str) and len(value) <= bounds, f"a text of at most {bounds} characters"
        else:
            valid, expected = is_whole_number(value, *bounds), f"a whole number in [{bounds[0]}, {bounds[1]}]"
        if not valid:
            raise input_error(f"{path}, {name}", repr(value)[:80], expected, "fetch the folder again")
    return floret


def _spacy_table(path: Path) -> np.ndarray:
    """The mapped table of a spaCy folder, [rows, P] of floating-point numbers."""
    try:
        check_file(path)
        table = np.load(path, mmap_mode="r", allow_pickle=False)
    except InputError:
        raise
    except OSError as error:
        raise input_error(str(path), f"{error.strerror or error}", "a NumPy array", "check the file") from error
    except Exception as error:  # NumPy parses the header with Python's parser, which may raise any error
        raise input_error(str(path), first_line(error), "a NumPy array", "fetch the folder again") from error
    if table.ndim != 2 or not table.size or table.dtype.kind != "f" or table.shape[1] > MAX_WIDTH:
        raise input_error(
            str(path),
            f"shape {table.shape}, {table.dtype.name}",
            f"a table of rows of at most {MAX_WIDTH:,} floating-point numbers",
            "use a model with vectors",
        )
    return table


def file_digest(path: Path) -> VectorsDescription:
    """Identity of a vectors file, or of a spaCy folder's table and keys.

    Returns:
        ``bytes``: size; ``sha256``: hexadecimal digest, or ``None`` above :data:`MAX_HASHED_BYTES`; ``changed``: time of the
        last change (UTC), only if ``sha256`` is ``None``.
    """
    files = [path] if path.is_file() else [_spacy_folder(path) / name for name in ("vectors", "key2row")]
    size = sum(file.stat().st_size for file in files)
    if size > MAX_HASHED_BYTES:
        changed = max(file.stat().st_mtime for file in files)
        return {"bytes": size, "sha256": None, "changed": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(changed))}
    return {"bytes": size, "sha256": sha256_joined(files)}
