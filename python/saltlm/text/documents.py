"""Split text files into documents: the units that are scored one by one and resampled for confidence intervals."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from gzip import GzipFile
from pathlib import Path
from typing import BinaryIO

from ..errors import input_error
from ..files.open_file import FileKind, open_file, read_file

# Longest line, in bytes, of text that is read line by line.
MAX_LINE_BYTES = 64 << 20
# A packed file may unpack to this many times its size, or to the second number of bytes if that is more.
MAX_EXPANSION, MIN_UNPACKED_BYTES = 100, 1 << 30
# A run of blank lines with the line end before it; or blank lines at the start of the text.
BLANK_LINES = re.compile(r"(?:\r?\n[ \t]*)+(?:\r?\n|\Z)|\A(?:[ \t]*\r?\n)+")


def split_documents(text: str) -> list[str]:
    r"""Split text at its blank lines.

    A document is a block of lines between blank lines (empty, or only spaces and tabs). Blank lines and the last line end of
    a block belong to no document; everything else is kept, including line ends within a block.

    Args:
        text: any text.

    Returns:
        The documents in order; an empty list if the text is blank.

    Example:
        >>> split_documents("first line\nsecond line\n\n\n  next block\n")
        ['first line\nsecond line', '  next block']
    """
    return [block for block in BLANK_LINES.split(text) if block.strip(" \t")]


def read_text(path: str | Path, limit: int | None = None, kind: FileKind = FileKind.TEXT) -> str:
    """Read the text of a UTF-8 file, with its line ends, without a byte order mark.

    Args:
        path: a text file.
        limit: read only the first ``limit`` bytes, in [0, inf), up to the last line end in them, or up to the last complete
            character if they have no line end; ``None`` reads all.
        kind: kind of the file, which limits the size of a file that is read whole.

    Returns:
        The text.

    Raises:
        InputError: the file is missing, too large, no regular file or cannot be read, holds a zero byte (a binary file), or is
            not UTF-8. The message names the offset of the first wrong byte.
    """
    what, advice = f"text file {str(path)!r}", "give plain text; unpack or convert other files first"
    try:
        if limit is None:
            data = read_file(path, kind, what=what)
        else:
            with open_file(path, what=what) as file:
                data = file.read(limit)
                if file.read(1):
                    data = _whole_lines(data)
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else (error.strerror or str(error))
        raise input_error(what, reason.lower(), "a readable file of UTF-8 text", "check the path") from error
    zero = data.find(b"\0")
    if zero >= 0:
        raise input_error(what, f"a zero byte at offset {zero}: a binary file", "UTF-8 text", advice)
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        found = f"byte 0x{data[error.start]:02x} at offset {error.start}, which is not UTF-8"
        raise input_error(what, found, "UTF-8 text", "convert it, e.g. with iconv -t UTF-8") from error


def _whole_lines(data: bytes) -> bytes:
    """The data up to its last line end, or up to its last complete character if it has no line end."""
    if (end := data.rfind(b"\n")) >= 0:
        return data[: end + 1]
    earliest = max(0, len(data) - 3)  # a character has at most four bytes; the first one of several is at least 0xC0
    cut = next((at for at in range(len(data) - 1, earliest - 1, -1) if data[at] >= 0xC0), None)
    return data if cut is None else data[:cut]


def bounded_lines(file: BinaryIO | GzipFile, what: str, limit: int | None = None) -> Iterator[bytes]:
    """Lines of an open file, each with its line end.

    Args:
        file: the file, at its first byte.
        what: its name in messages.
        limit: bytes of all lines together; ``None`` for no limit. A packed file is read up to :func:`unpacked_limit`.

    Raises:
        InputError: a line is longer than :data:`MAX_LINE_BYTES`, or the lines are longer than ``limit``.
    """
    total = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        total += len(line)
        if len(line) > MAX_LINE_BYTES and b"\0" not in line:  # a zero byte has an error of its own: a binary file
            raise input_error(
                what,
                f"a line of more than {MAX_LINE_BYTES:,} bytes",
                "shorter lines",
                "break its lines, or give .jsonl or .parquet",
            )
        if limit is not None and total > limit:
            raise input_error(
                what,
                f"more than {limit:,} bytes when unpacked",
                f"at most {MAX_EXPANSION} times its size, or {MIN_UNPACKED_BYTES:,} bytes",
                "unpack it with gunzip and give the unpacked file, if that is what you mean",
            )
        yield line


def unpacked_limit(size: int) -> int:
    """Bytes to which a packed file of ``size`` bytes may unpack. Text is packed to a third or a tenth of its size."""
    return max(MIN_UNPACKED_BYTES, MAX_EXPANSION * size)


def read_documents(paths: str | Path | Iterable[str | Path], limit: int | None = None) -> list[str]:
    """Read the documents of text files, in order; see :func:`split_documents`.

    Args:
        paths: one path or several.
        limit: bytes to read of each file, as in :func:`read_text`.

    Returns:
        The documents; at least one per file.

    Raises:
        InputError: as :func:`read_text`; or a file has only blank lines; or ``paths`` is empty.
    """
    documents: list[str] = []
    for path in [paths] if isinstance(paths, str | Path) else paths:
        of_file = split_documents(read_text(path, limit))
        if not of_file:
            raise input_error(
                f"text file {str(path)!r}", "no text", "at least one line that is not blank", "check the file"
            )
        documents.extend(of_file)
    if not documents:
        raise input_error("text", "no file", "at least one text file", "name the files to read")
    return documents
