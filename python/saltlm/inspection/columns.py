"""The token table of the page in compact form: one compressed block of columns, which the page unpacks.

The block is gzip of: the length of the header (uint32, little-endian), the header (JSON), the sections. The header names for
each section its type, its number of values, its offset and its length. A section of numbers is stored by byte planes: first the
lowest byte of every value, then the next one, which compresses better. A section of type ``text`` is UTF-8, one entry a line.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .rows import Rows

# Largest number of parts of a row on the page; fewer if the page would be too large.
SHOWN = 8
# Largest size of the block on the page, in base64 characters. Charts and text take some 0.5 MB more; a page stays below 5 MB.
LARGEST = 4_100_000
# Bits of the mantissa that numbers keep. They are then exact to one part in a thousand; the page shows three digits.
BITS = 9


def block(rows: Rows, names: Mapping[str, Sequence[str]]) -> tuple[str, int]:
    """The columns of all rows as base64 text, without a character that HTML could misread.

    Args:
        rows: the record of a folder.
        names: ``origins``, ``rules`` and ``statuses``: name of each code, as the page shows it.

    Returns:
        The text, and the largest number of parts of a row in it.
    """
    texts = {SHOWN: _text(rows, names, SHOWN)}
    shown = SHOWN
    if len(texts[SHOWN]) > LARGEST:
        texts[1] = _text(rows, names, 1)
        # The size is nearly linear in the number of parts.
        parts = [int(np.minimum(np.diff(rows.arrays["rule_offsets"]), limit).sum()) for limit in range(SHOWN + 1)]
        slope = (len(texts[SHOWN]) - len(texts[1])) / max(1, parts[SHOWN] - parts[1])
        fitting = [n for n in range(1, SHOWN) if len(texts[1]) + slope * (parts[n] - parts[1]) <= LARGEST]
        shown = max(fitting, default=0)
        while len(texts.setdefault(shown, _text(rows, names, shown))) > LARGEST and shown:
            shown -= 1
    return texts[shown], shown


def _text(rows: Rows, names: Mapping[str, Sequence[str]], shown: int) -> str:
    return base64.b64encode(_packed(rows, names, shown)).decode("ascii")


def unpack(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a block as the page does.

    Args:
        text: what :func:`block` returned.

    Returns:
        The header, and the content of each section: an array, or a list of texts.
    """
    data = gzip.decompress(base64.b64decode(text))
    size = int.from_bytes(data[:4], "little")
    header = json.loads(data[4 : 4 + size])
    content: dict[str, Any] = {}
    for section in header["sections"]:
        begin = 4 + size + section["offset"]
        part = data[begin : begin + section["bytes"]]
        if section["type"] == "text":
            content[section["name"]] = part.decode("utf-8").split("\n")[: section["length"]]
        else:
            dtype = np.dtype(section["type"])
            planes = np.frombuffer(part, np.uint8).reshape(dtype.itemsize, section["length"])
            content[section["name"]] = np.ascontiguousarray(planes.T).reshape(-1).view(dtype)
    return header, content


def largest_parts(rows: Rows, shown: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The parts with the largest absolute weights of each row, in the order of the record.

    Args:
        rows: the record of a folder.
        shown: largest number of parts of a row.

    Returns:
        int64 [T'], number of parts of each row; source ids and weights of all these parts.
    """
    offsets, weights = rows.arrays["rule_offsets"], rows.arrays["rule_weights"]
    row_of = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    order = np.lexsort((np.arange(len(weights)), -np.abs(weights), row_of))
    rank = np.empty(len(weights), dtype=np.int64)
    rank[order] = np.arange(len(weights)) - offsets[row_of[order]]
    kept = rank < shown
    return np.bincount(row_of[kept], minlength=len(offsets) - 1), rows.arrays["rule_ids"][kept], weights[kept]


def _packed(rows: Rows, names: Mapping[str, Sequence[str]], shown: int) -> bytes:
    arrays = rows.arrays
    scripts, script_codes = np.unique(np.array(rows.scripts, dtype=object).astype(str), return_inverse=True)
    counts, ids, weights = largest_parts(rows, shown)
    # A copied row nearly always has the text of its source token; only other texts of source tokens are needed.
    copied = np.flatnonzero(arrays["source_id"] >= 0)
    renamed = [row for row in copied if rows.source_text(int(arrays["source_id"][row])) != rows.texts[row]]
    sources = np.unique(np.concatenate([ids, arrays["source_id"][renamed]])).astype(np.int32)
    exceptions = [row for row in range(len(rows.texts)) if rows.token_bytes(row) != implied_bytes(rows.texts[row])]
    sections: dict[str, np.ndarray | Sequence[str]] = {
        "text": rows.texts,
        "origin": arrays["origin"],
        "rule": arrays["rule"],
        "status": arrays["status"],
        "script": script_codes.astype(np.uint8 if len(scripts) < 256 else np.uint16),
        "source": arrays["source_id"],
        "support": arrays["support_size"],
        "rank": arrays["rank"],
        "residual": _rounded(np.where(arrays["rank"] > 0, arrays["residual"], np.nan)),
        "norm": _rounded(rows.norms),
        "map": _rounded(_map_weights(rows)),
        "parts": counts.astype(np.uint8),
        "more": (np.diff(arrays["rule_offsets"]) - counts).astype(np.int32),
        "part_source": np.searchsorted(sources, ids).astype(np.int32),
        "part_weight": _rounded(weights),
        "source_id": sources,
        "source_text": [rows.source_text(int(source)) for source in sources],
        "exception": np.array(exceptions, dtype=np.int32),
        "exception_bytes": [rows.token_bytes(row).hex() for row in exceptions],
    }
    described, parts, offset = [], [], 0
    for name, values in sections.items():
        if isinstance(values, np.ndarray):
            kind, data = values.dtype.newbyteorder("<").str, _planes(values)
        else:
            kind, data = "text", "\n".join(values).encode("utf-8")
        described.append({"name": name, "type": kind, "length": len(values), "offset": offset, "bytes": len(data)})
        parts.append(data)
        offset += len(data)
    header = {"rows": len(rows.norms), "names": {**names, "scripts": scripts.tolist()}, "sections": described}
    head = json.dumps(header, ensure_ascii=True).encode("ascii")
    # Without a time, so that equal folders have equal pages.
    return gzip.compress(b"".join([len(head).to_bytes(4, "little"), head, *parts]), compresslevel=6, mtime=0)


def implied_bytes(text: str) -> bytes:
    """The bytes that the page takes for those of a token with this text; other bytes are listed as exceptions."""
    return text.replace("▁", " ").encode("utf-8")


def _map_weights(rows: Rows) -> np.ndarray:
    """Weight of the map in each row; 0 for rows without one."""
    weights = np.zeros(len(rows.norms))
    with_map = {code for code, name in enumerate(rows.summary["rules"]) if "map" in name}
    for row in np.flatnonzero(np.isin(rows.arrays["rule"], list(with_map))):
        weights[row] = rows.map_weight(int(row))
    return weights


def _rounded(values: np.ndarray) -> np.ndarray:
    """float32 with :data:`BITS` bits of mantissa, so that the low bytes are zero; infinity and what overflows become NaN."""
    with np.errstate(over="ignore", invalid="ignore"):
        single = values.astype(np.float32)
    single[~np.isfinite(single)] = np.nan
    bits = single.view(np.uint32)
    step = np.uint32(1 << (23 - BITS))
    rounded = (bits + step // np.uint32(2)) & ~(step - np.uint32(1))
    return np.where(np.isnan(single), bits, rounded).astype(np.uint32).view(np.float32)


def _planes(values: np.ndarray) -> bytes:
    """The values by byte planes, the lowest byte first."""
    little = np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<")))
    return little.view(np.uint8).reshape(len(values), values.dtype.itemsize).T.tobytes() if len(values) else b""
