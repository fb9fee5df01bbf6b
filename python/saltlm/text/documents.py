"""Text files -> documents, the units that are scored one by one and drawn for confidence intervals."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from ..errors import input_error

# From the line end before the first blank line to the one that closes the last; or blank lines at the very start.
BLANK_LINES = re.compile(r"(?:\r?\n[ \t]*)+(?:\r?\n|\Z)|\A(?:[ \t]*\r?\n)+")


def split_documents(text: str) -> list[str]:
    r"""Split text at its blank lines.

    A document is a block of lines between blank lines (empty, or spaces and tabs only). The blank lines and the line end
    that closes a block belong to no document; everything else is kept as it is, inner line ends included.

    Args:
        text: any text.

    Returns:
        The documents in order; none if the text is blank.

    Example:
        >>> split_documents("first line\nsecond line\n\n\n  next block\n")
        ['first line\nsecond line', '  next block']
    """
    return [block for block in BLANK_LINES.split(text) if block.strip(" \t")]


def read_text(path: str | Path, limit: int | None = None) -> str:
    """The whole text of a UTF-8 file, line ends as they are, without a byte order mark.

    Args:
        path: a text file.
        limit: of a file with more bytes than that, only what of the first ``limit`` bytes ends with a line or at least with a
            character is read; ``None`` is all.

    Returns:
        The text.

    Raises:
        InputError: the file is missing or cannot be read, holds a zero byte (a binary file), or is not UTF-8; the offset of
            the first wrong byte is named.
    """
    what, advice = f"text file {str(path)!r}", "give plain text; unpack or convert other files first"
    try:
        with Path(path).open("rb") as file:
            data = file.read(-1 if limit is None else limit)
            if limit is not None and file.read(1):
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
    """The beginning of a text up to its last line end, or up to its last whole character where there is none."""
    if (end := data.rfind(b"\n")) >= 0:
        return data[: end + 1]
    last = max(0, len(data) - 3)  # a character has four bytes at most
    begun = next((at for at in range(len(data) - 1, last - 1, -1) if data[at] >= 0xC0), None)
    return data if begun is None else data[:begun]


def read_documents(paths: str | Path | Iterable[str | Path], limit: int | None = None) -> list[str]:
    """The documents of one or several text files, in order; see :func:`split_documents`.

    Args:
        paths: one path or several.
        limit: of each file, as :func:`read_text` has it.

    Returns:
        At least one document per file.

    Raises:
        InputError: as :func:`read_text`; or a file holds nothing but blank lines; or there is no path at all.
    """
    documents: list[str] = []
    for path in [paths] if isinstance(paths, str | Path) else paths:
        found = split_documents(read_text(path, limit))
        if not found:
            raise input_error(
                f"text file {str(path)!r}", "no text", "at least one line that is not blank", "check the file"
            )
        documents.extend(found)
    if not documents:
        raise input_error("text", "no file", "at least one text file", "name the files to read")
    return documents
