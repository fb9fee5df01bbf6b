"""Read documents from files and datasets one at a time, and split them into training and held-out text."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..environment import require
from ..errors import InputError, first_line, input_error
from ..files.hashing import sampled_digest
from ..files.json_files import parse_json
from ..files.open_file import check_file, check_tree, open_file
from ..files.summary_file import TextFingerprint
from .documents import bounded_lines, unpacked_limit

TEXT, LINES, PARQUET, FOLDER, DATASET = "text", "jsonl", "parquet", "dataset folder", "dataset"
# Characters after which a document is cut at the next line end, so that a file without blank lines is not one document.
MAX_DOCUMENT = 1 << 20
# Characters: shorter lines and documents occur twice by chance, so they do not count as overlap.
MIN_OVERLAP = 64


class Corpus:
    """Documents of one or several sources, in order. Each iteration reads the sources again.

    A source is a UTF-8 text file; a ``.jsonl`` file with a JSON object per line; one of these as ``.gz``; a ``.parquet`` file;
    a folder written by ``datasets.save_to_disk``; or ``dataset:NAME[,CONFIG][,SPLIT]``, which ``datasets`` streams.
    """

    def __init__(
        self, sources: str | Path | Iterable[str | Path], *, column: str = "text", split_at: str = "blank-line"
    ) -> None:
        """Check that the sources exist and are regular files; nothing is read.

        Args:
            sources: one source or several.
            column: name of the column or JSON key that holds the text.
            split_at: what separates the documents of a text file: ``blank-line`` or ``line``.

        Raises:
            InputError: there is no source, a source does not exist, or it is a pipe or a device.
        """
        given = [sources] if isinstance(sources, str | Path) else list(sources)
        if not given:
            raise input_error("text", "no file", "at least one text file", "name the files to read")
        self.sources = [str(source) for source in given]
        self.column = column
        self.split_at = split_at
        for source in self.sources:
            _check_source(source)

    def __iter__(self) -> Iterator[str]:
        """Documents that are not blank, in order.

        Raises:
            InputError: a source cannot be read, or all of its documents are blank.
        """
        for source in self.sources:
            has_text = False
            for document in self._documents(source):
                if document.strip():
                    has_text = True
                    yield document if document.isascii() else _checked(document, source)
            if not has_text:
                raise input_error(
                    f"text {source!r}", "no text", "at least one line that is not blank", "check the file"
                )

    @property
    def local(self) -> bool:
        """Whether all sources are on this machine, so that they can be read twice."""
        return all(kind_of(source) != DATASET for source in self.sources)

    def fingerprint(self) -> list[TextFingerprint]:
        """Path and sha256 of each source (``None`` for a streamed dataset), to find out whether it has changed."""
        return [
            {"path": source, "sha256": None if kind_of(source) == DATASET else sampled_digest(Path(source))}
            for source in self.sources
        ]

    def _documents(self, source: str) -> Iterator[str]:
        kind = kind_of(source)
        if kind == PARQUET:
            return self._parquet(source)
        if kind in (FOLDER, DATASET):
            return self._dataset(source, kind)
        return self._lines(source, json_lines=kind == LINES)

    def _lines(self, source: str, *, json_lines: bool) -> Iterator[str]:
        try:
            with _lines_of(source) as raw_lines:
                lines = _decoded(raw_lines, f"text {source!r}")
                yield from self._json(source, lines) if json_lines else _plain(lines, self.split_at)
        except (OSError, EOFError, zlib.error) as error:
            if isinstance(error, OSError) and error.errno is None and not isinstance(error, gzip.BadGzipFile):
                raise
            raise input_error(
                f"text {source!r}", str(error).lower(), "a readable file of UTF-8 text", "check the file"
            ) from error

    def _json(self, source: str, lines: Iterable[str]) -> Iterator[str]:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                entry = parse_json(line)
            except ValueError as error:
                raise input_error(
                    f"text {source!r}",
                    f"line {number}, which is no JSON ({error})",
                    "a JSON object on each line",
                    "repair it",
                ) from error
            text = entry.get(self.column) if isinstance(entry, dict) else None
            if not isinstance(text, str):
                keys = ", ".join(entry) if isinstance(entry, dict) else type(entry).__name__
                raise self._no_column(f"{source}, line {number}", keys)
            yield text

    def _parquet(self, source: str) -> Iterator[str]:
        require("pyarrow", "adapt", f"text {source!r}")
        import pyarrow
        import pyarrow.parquet

        try:
            with pyarrow.parquet.ParquetFile(source) as file:
                if self.column not in file.schema_arrow.names:
                    raise self._no_column(source, ", ".join(file.schema_arrow.names))
                for batch in file.iter_batches(batch_size=1024, columns=[self.column]):
                    yield from self._strings(source, batch.column(0).to_pylist())
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise input_error(f"text {source!r}", f"{error}", "a parquet file", "fetch it again") from error

    def _dataset(self, source: str, kind: str) -> Iterator[str]:
        require("datasets", "adapt", f"text {source!r}")
        import datasets

        try:
            if kind == FOLDER:
                rows = datasets.load_from_disk(source)
                rows = rows["train"] if isinstance(rows, dict) and "train" in rows else rows
            else:
                name, *rest = source.removeprefix("dataset:").split(",")
                config, split = [*rest, None, None][:2] if len(rest) != 1 else (None, rest[0])
                rows = datasets.load_dataset(name, config, split=split or "train", streaming=True)
        except Exception as error:  # a loader may raise any error
            raise _unread(source, error, "check its name") from error
        if isinstance(rows, dict):
            raise input_error(
                f"text {source!r}", f"splits {', '.join(rows)}", "one dataset", "name the folder of one split"
            )
        if rows.column_names is not None and self.column not in rows.column_names:
            raise self._no_column(source, ", ".join(rows.column_names))
        try:
            for row in rows.select_columns([self.column]):
                yield from self._strings(source, [row[self.column]])
        except InputError:
            raise
        except Exception as error:  # a streamed dataset is fetched while it is read, and may raise any error
            raise _unread(source, error, "try again, or download it first") from error

    def _strings(self, source: str, texts: Sequence[Any]) -> Iterator[str]:
        for text in texts:
            if text is None:
                continue
            if not isinstance(text, str):
                raise input_error(
                    f"text {source!r}",
                    f"column {self.column!r} of {type(text).__name__}",
                    "strings",
                    "name another column",
                )
            yield text

    def _no_column(self, source: str, columns: str) -> Exception:
        return input_error(
            f"text {source!r}", f"columns {columns}", f"a column {self.column!r} of strings", "name it by --text-column"
        )


def _unread(source: str, error: Exception, remedy: str) -> Exception:
    return input_error(f"text {source!r}", first_line(error)[:300], "a dataset that can be loaded", remedy)


def _checked(document: str, source: str) -> str:
    """The document, after a check that UTF-8 can encode it: JSON can hold lone surrogates, at which tokenizers fail."""
    try:
        document.encode()
    except UnicodeEncodeError as error:
        raise input_error(
            f"text {source!r}",
            f"a lone surrogate U+{ord(document[error.start]):04X} in {document[:40]!r}...",
            "text that UTF-8 can encode",
            "repair that document, or leave it out",
        ) from error
    return document


def kind_of(source: str) -> str:
    """Kind of a source, by its name and, for a folder, by its files.

    Raises:
        InputError: a folder that ``datasets.save_to_disk`` did not write.
    """
    if source.startswith("dataset:"):
        return DATASET
    path = Path(source)
    # Unlike pathlib's methods, os.path's functions return False for a name that is too long or has forbidden characters.
    if os.path.isdir(path):
        if any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
            return FOLDER
        raise input_error(
            f"text {source!r}",
            "a folder",
            "a file, or a folder written by datasets.save_to_disk",
            "name the files in it",
        )
    name = path.name.removesuffix(".gz").lower()
    if name.endswith((".jsonl", ".ndjson")):
        return LINES
    return PARQUET if name.endswith(".parquet") else TEXT


def is_heldout(document: str, share: float) -> bool:
    """Whether a document belongs to the held-out part, by a hash of its text, so that copies fall into the same part.

    Args:
        document: the text.
        share: expected share of held-out documents, in [0, 1].
    """
    return int.from_bytes(_digest(document), "big") < share * 2**64


class Overlap:
    """Finds training documents that share text with held-out documents."""

    def __init__(self, documents: Iterable[str]) -> None:
        """Hash the held-out documents and their lines.

        Args:
            documents: the held-out documents.
        """
        self.units = {unit for document in documents for unit in _units(document)}

    def __call__(self, document: str) -> bool:
        """Whether a document shares its text, or a line, of at least :data:`MIN_OVERLAP` characters with a held-out one."""
        return bool(self.units) and any(unit in self.units for unit in _units(document))


def _units(document: str) -> Iterator[bytes]:
    """Hashes of a document and of its lines, white space normalized, without those that are too short."""
    lines = [" ".join(line.split()) for line in document.splitlines()]
    for unit in {*lines, " ".join(line for line in lines if line)}:
        if len(unit) >= MIN_OVERLAP:
            yield _digest(unit)


def _digest(text: str) -> bytes:
    """64-bit hash of a text, white space normalized."""
    return hashlib.blake2b(" ".join(text.split()).encode(errors="surrogatepass"), digest_size=8).digest()


def _check_source(source: str) -> None:
    """Check that a source exists and that its files are regular files."""
    what, kind = f"text {source!r}", kind_of(source)
    if kind == DATASET:
        return
    if kind == FOLDER:
        check_tree(Path(source), what)
        return
    try:
        check_file(source, what=what)
    except FileNotFoundError:
        raise input_error(what, "no such file", "a file or a dataset folder", "check the path") from None
    except OSError as error:
        raise input_error(what, str(error.strerror or error).lower(), "a readable file", "check the path") from None


@contextlib.contextmanager
def _lines_of(source: str) -> Iterator[Iterator[bytes]]:
    """Lines of a file, unpacked if its name ends in ``.gz``."""
    what = f"text {source!r}"
    with open_file(source, what=what) as file:
        if source.endswith(".gz"):
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield bounded_lines(unpacked, what, unpacked_limit(os.fstat(file.fileno()).st_size))
        else:
            yield bounded_lines(file, what)


def _decoded(lines: Iterable[bytes], what: str) -> Iterator[str]:
    """Lines as text, without a byte order mark; a zero byte or a byte that is not UTF-8 is an error."""
    offset = 0
    for number, line in enumerate(lines):
        zero = line.find(b"\0")
        if zero >= 0:
            raise input_error(
                what,
                f"a zero byte at offset {offset + zero}: a binary file",
                "UTF-8 text",
                "give plain text, jsonl or parquet; unpack or convert other files first",
            )
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            found = f"byte 0x{line[error.start]:02x} at offset {offset + error.start}, which is not UTF-8"
            raise input_error(what, found, "UTF-8 text", "convert it, e.g. with iconv -t UTF-8") from error
        yield text.removeprefix("\ufeff") if number == 0 else text
        offset += len(line)


def _plain(lines: Iterable[str], split_at: str) -> Iterator[str]:
    """Documents of a text file as :func:`saltlm.text.documents.split_documents` gives them, cut after :data:`MAX_DOCUMENT`."""
    if split_at == "line":
        yield from (line.rstrip("\r\n") for line in lines)
        return
    block: list[str] = []
    size = 0
    for line in lines:
        blank = not line.strip(" \t\r\n")
        if not blank:
            block.append(line)
            size += len(line)
        if (blank or size >= MAX_DOCUMENT) and block:
            yield _without_line_end("".join(block))
            block, size = [], 0
    if block:
        yield _without_line_end("".join(block))


def _without_line_end(text: str) -> str:
    """A block of lines without its last line end."""
    return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text


def take_bytes(documents: Iterable[str], size: int) -> list[str]:
    """The first documents that together have at least ``size`` bytes, or all documents."""
    taken: list[str] = []
    total = 0
    for document in documents:
        taken.append(document)
        total += len(document.encode(errors="surrogatepass"))
        if total >= size:
            break
    return taken


def training_documents(corpus: Corpus, keep: Callable[[str], bool]) -> Callable[[], Iterator[str]]:
    """A function that starts a new iteration over those documents of a corpus that ``keep`` accepts."""
    return lambda: (document for document in corpus if keep(document))
