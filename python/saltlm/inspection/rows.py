"""Where each row of a transferred model came from: saltlm.json and provenance.safetensors, read for people."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..alignment.tokens import load_tokens
from ..errors import InputError, first_line, input_error

FILES = ("saltlm.json", "provenance.safetensors")
EXPECTED = "a folder written by saltlm transfer (or adapt), with " + " and ".join(FILES)
TYPES = {
    "origin": "uint8",
    "source_id": "int32",
    "support_size": "int32",
    "rank": "int32",
    "residual": "float32",
    "status": "uint8",
    "rule": "uint8",
    "rule_offsets": "int64",
    "rule_ids": "int32",
    "rule_weights": "float32",
    "rule_kept": "float32",
    "source_bytes": "uint8",
    "source_offsets": "int64",
}
BUILT = ("solved", "composed", "drawn")
EXTREMES = 8  # rows named at each end of the overview


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """A transferred folder's record of its T' rows.

    Attributes:
        folder: it was read from here.
        summary: what ``saltlm.json`` holds.
        arrays: what ``provenance.safetensors`` holds, by name; checked to fit together.
        norms: float64 [T'], Euclidean norms of the input rows as they are now.
        texts: T', each token as :func:`spelled` shows it; an id without token has an empty text.
        tokens: the folder's tokenizer, made ready for alignment.
    """

    folder: Path
    summary: dict[str, Any]
    arrays: dict[str, np.ndarray]
    norms: np.ndarray
    texts: list[str]
    tokens: Any

    def __repr__(self) -> str:
        return f"Rows(T'={len(self.norms)}, method={self.summary['method']!r})"

    def origin(self, row: int) -> str:
        """How the row came about, one of the summary's ``origins``."""
        return self.summary["origins"][self.arrays["origin"][row]]

    def status(self, row: int) -> str:
        """Outcome of its solve, one of the summary's ``statuses``."""
        return self.summary["statuses"][self.arrays["status"][row]]["name"]

    def rule(self, row: int) -> str:
        """What made it, one of the summary's ``rules``."""
        return self.summary["rules"][self.arrays["rule"][row]]

    def parts(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Source ids and weights that made it, both empty where no list did."""
        begin, end = self.arrays["rule_offsets"][row : row + 2]
        return self.arrays["rule_ids"][begin:end], self.arrays["rule_weights"][begin:end]

    def source_text(self, source: int) -> str:
        """A source token as :func:`spelled` shows it; a row of the source's that has no token has an empty one."""
        if source >= len(self.arrays["source_offsets"]) - 1:
            return ""
        begin, end = self.arrays["source_offsets"][source : source + 2]
        return spelled(self.arrays["source_bytes"][begin:end].tobytes())

    def find(self, wanted: str) -> list[int]:
        """Rows of a token: ``#123`` is an id; a text is as shown, as the tokenizer spells it, or with either word start.

        Raises:
            InputError: there is none; the message names the nearest.
        """
        if re.fullmatch(r"#\d+", wanted):
            row = int(wanted[1:])
            if row >= len(self.norms):
                found = f"no row of that id in {self.folder}"
                raise input_error(f"token {wanted}", found, f"an id below {len(self.norms)}", "give a smaller one")
            return [row]
        native = self.tokens.find(wanted)
        bare = wanted.removeprefix("▁")
        found = {
            row for row, text in enumerate(self.texts) if text == wanted or (text.removeprefix("▁") == bare and text)
        }
        if native is not None and native < len(self.norms):
            found.add(native)
        if wanted.startswith("▁"):
            found = {row for row in found if self.texts[row].startswith("▁")} or found
        if not found:
            raise input_error(f"token {wanted!r}", f"none in {self.folder}", "a token's text or #ID", self._near(bare))
        return sorted(found)

    def _near(self, wanted: str) -> str:
        import difflib

        # Of tokens about as long: the ratio of all of a large vocabulary would take many seconds.
        near = {text for text in self.texts if abs(len(text) - len(wanted)) <= 2 and set(text) & set(wanted)}
        close = difflib.get_close_matches(wanted, sorted(near), n=3, cutoff=0.5)
        return f"did you mean {' or '.join(map(repr, close))}?" if close else "check the spelling"

    def detail(self, row: int) -> dict[str, Any]:
        """All that is known of one row, plain values."""
        ids, weights = self.parts(row)
        source, arrays = int(self.arrays["source_id"][row]), self.arrays
        return {
            "id": row,
            "token": self.texts[row],
            "origin": self.origin(row),
            "rule": self.rule(row),
            "status": self.status(row),
            "source_id": source,
            "source_token": self.source_text(source) if source >= 0 else None,
            "support_size": int(arrays["support_size"][row]),
            "rank": int(arrays["rank"][row]),
            "residual": float(arrays["residual"][row]),
            "norm": _number(self.norms[row]),
            "weight_kept": float(arrays["rule_kept"][row]),
            "map_weight": self.map_weight(row),
            "mean_weight": self.mean_weight(row),
            "parts": [
                {"source_id": int(i), "source_token": self.source_text(int(i)), "weight": float(weight)}
                for i, weight in zip(ids, weights, strict=True)
            ],
        }

    def map_weight(self, row: int) -> float:
        """Weight of a map that all anchors made: all, or what the pieces beside it leave; 0 where none can be told."""
        rule = self.rule(row)
        if rule == "pieces and map":
            return self._length - float(self.parts(row)[1].sum())
        return 1.0 if rule in ("map", "map and anchors") else 0.0

    def mean_weight(self, row: int) -> float:
        """Weight of the mean anchor row, which a blend of another length than 1 adds to its two sides; else 0."""
        return 1.0 - self._length if self.rule(row).startswith("pieces") and self.rule(row) != "pieces" else 0.0

    @property
    def _length(self) -> float:
        return self.summary["blend"]["length"] if self.summary.get("blend") else 1.0

    def overview(self) -> dict[str, Any]:
        """Counts, quantiles and extremes of all rows, plain values."""
        arrays, summary = self.arrays, self.summary
        names = np.array(summary["origins"], dtype=object)[arrays["origin"]]
        rules = np.bincount(arrays["rule"], minlength=len(summary["rules"]))
        built = np.flatnonzero(np.isin(names, BUILT))
        sized = arrays["support_size"][arrays["support_size"] > 0]
        solved = np.flatnonzero(names == "solved")
        worst = solved[np.argsort(-arrays["residual"][solved], kind="stable")[:EXTREMES]]
        by_norm = built[np.argsort(self.norms[built], kind="stable")]
        return {
            "folder": str(self.folder),
            "method": summary["method"],
            "rows": len(self.norms),
            "counts": {name: int((names == name).sum()) for name in summary["origins"]},
            "rules": {name: int(count) for name, count in zip(summary["rules"], rules, strict=True)},
            "statuses": {
                entry["name"]: int((arrays["status"] == code).sum()) for code, entry in enumerate(summary["statuses"])
            },
            "support": _quantiles(sized),
            "residual": _quantiles(arrays["residual"][solved]),
            "norms": {
                name: _quantiles(self.norms[names == name]) for name in summary["origins"] if (names == name).any()
            },
            "worst_residuals": [self._short(row) for row in worst],
            "largest_norms": [self._short(row) for row in by_norm[::-1][:EXTREMES]],
            "smallest_norms": [self._short(row) for row in by_norm[:EXTREMES]],
            "warnings": [*map(str, summary.get("warnings", ())), *self._warnings()],
        }

    def _short(self, row: int) -> dict[str, Any]:
        return {
            "id": int(row),
            "token": self.texts[row],
            "origin": self.origin(row),
            "status": self.status(row),
            "residual": float(self.arrays["residual"][row]),
            "norm": _number(self.norms[row]),
        }

    def _warnings(self) -> list[str]:
        found = []
        if (self.folder / "metrics.jsonl").is_file():
            found.append(
                "the rows were trained after the transfer: weights tell how they began, norms how they are now"
            )
        if cut := int((self.arrays["rule_kept"] < 1).sum()):
            least = float(self.arrays["rule_kept"].min())
            found.append(f"of {cut:,} rows only the largest weights were kept, at least {least:.0%} of their sum")
        return found


def inspect(folder: str | Path) -> Rows:
    """Read a transferred folder's record.

    Args:
        folder: written by ``saltlm transfer`` or ``saltlm adapt``.

    Raises:
        InputError: it is no such folder, a file is missing or broken, or they do not fit together.
    """
    from ..model.checkpoint import load_source

    folder = Path(folder)
    for name in FILES:
        if not (folder / name).is_file():
            raise input_error(f"folder {folder}", f"no {name}", EXPECTED, "name a transferred folder")
    try:
        summary = json.loads((folder / "saltlm.json").read_bytes())
        arrays = _arrays(folder / "provenance.safetensors")
        _check(summary, arrays)
    except InputError:
        raise
    except Exception as error:  # safetensors raises its own kinds for broken files
        reason = first_line(error)
        raise input_error(
            f"folder {folder}", f"a record that cannot be read ({reason})", EXPECTED, "transfer again with this version"
        ) from error
    matrix = load_source(folder).input_rows
    if len(matrix) != len(arrays["origin"]):
        found = f"{len(matrix):,} rows and a record of {len(arrays['origin']):,}"
        raise input_error(f"folder {folder}", found, "one entry a row", "it was changed after the transfer")
    norms = np.concatenate([part.double().norm(dim=1).numpy() for part in matrix.split(8192)])
    tokens = load_tokens(folder)
    return Rows(folder, summary, arrays, norms, _texts(tokens, len(norms)), tokens)


def found(rows: Rows, tokens: Sequence[str]) -> list[int]:
    """Rows of all the tokens asked for, each once, in that order."""
    return list(dict.fromkeys(row for token in tokens for row in rows.find(token)))


def spelled(data: bytes) -> str:
    r"""Canonical bytes as one visible line: a word start as U+2581, bytes that are no text as ``\xNN``.

    Example:
        >>> spelled(b" talo"), spelled(b"a\n"), spelled(b"\xc3")
        ('▁talo', 'a\\n', '\\xc3')
    """
    text = data.decode("utf-8", errors="backslashreplace").replace(" ", "▁")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        names = set(file.keys())
        if lacking := [name for name in TYPES if name not in names]:
            raise ValueError(f"provenance.safetensors lacks {', '.join(lacking)}")
        return {name: file.get_tensor(name) for name in TYPES}


def _check(summary: Any, arrays: dict[str, np.ndarray]) -> None:
    """Raises ValueError, KeyError or TypeError where something does not fit, so that nothing below can fail."""
    rows = len(arrays["origin"])
    for name, kind in TYPES.items():
        if arrays[name].dtype != kind or arrays[name].ndim != 1:
            raise ValueError(
                f"{name} is {arrays[name].dtype} {list(arrays[name].shape)}, expected {kind} in one dimension"
            )
    for name in ("source_id", "support_size", "rank", "residual", "status", "rule", "rule_kept"):
        if len(arrays[name]) != rows:
            raise ValueError(f"{name} has {len(arrays[name])} entries, origin {rows}")
    if len(arrays["rule_offsets"]) != rows + 1:
        raise ValueError(f"rule_offsets has {len(arrays['rule_offsets'])} entries, expected {rows + 1}")
    for offsets, entries in (
        ("rule_offsets", "rule_ids"),
        ("rule_offsets", "rule_weights"),
        ("source_offsets", "source_bytes"),
    ):
        bounds = arrays[offsets]
        if not len(bounds) or bounds[0] or (np.diff(bounds) < 0).any() or bounds[-1] != len(arrays[entries]):
            raise ValueError(f"{offsets} does not part {entries}")
    known, named = len(arrays["source_offsets"]) - 1, arrays["rule_ids"]
    if len(named) and not 0 <= int(named.min()) <= int(named.max()) < known:
        raise ValueError(f"rule_ids names a token beyond the source's {known}")
    str(summary["method"])
    for name, codes in (("origin", summary["origins"]), ("rule", summary["rules"]), ("status", summary["statuses"])):
        if len(arrays[name]) and int(arrays[name].max()) >= len(codes):
            raise ValueError(f"{name} has a code that saltlm.json does not name")
    [entry["name"] for entry in summary["statuses"]]
    float((summary.get("blend") or {"length": 1.0})["length"])


def _texts(tokens: Any, rows: int) -> list[str]:
    data, offsets = tokens.vocabulary.token_bytes()
    joined, bounds = data.tobytes(), offsets.tolist()
    texts = [spelled(joined[bounds[i] : bounds[i + 1]]) for i in range(min(rows, len(bounds) - 1))]
    return texts + [""] * (rows - len(texts))


def _quantiles(values: np.ndarray) -> dict[str, float | None] | None:
    """Minimum, quartiles, 95th percentile and maximum."""
    if not len(values):
        return None
    points = np.percentile(values.astype(np.float64), [0, 25, 50, 75, 95, 100])
    return dict(zip(("min", "p25", "median", "p75", "p95", "max"), map(_number, points), strict=True))


def _number(value: float) -> float | None:
    """JSON has no infinity."""
    return float(value) if np.isfinite(value) else None
