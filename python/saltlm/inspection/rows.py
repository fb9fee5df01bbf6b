"""The origin of each row of a transferred model, read from saltlm.json and provenance.safetensors."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from ..alignment.tokens import Tokens, load_tokens
from ..errors import InputError, first_line, input_error
from ..files.json_files import read_json
from ..files.open_file import check_model_folder
from ..files.summary_file import SCHEMA_VERSION, SUMMARY, Summary, schema_version_of
from ..text.scripts import script_of
from .verdict import Verdict, verdict_of

FILES = (SUMMARY, "provenance.safetensors")
EXPECTED = "a folder written by saltlm transfer (or adapt), with " + " and ".join(FILES)
# Arrays of the record by what they tell. A record of an older version may lack a whole group other than the first.
GROUPS = {
    "origins": {"origin": "uint8", "source_id": "int32", "status": "uint8"},
    "support sizes, ranks and residuals": {"support_size": "int32", "rank": "int32", "residual": "float32"},
    "the rule and the source tokens of each row": {
        "rule": "uint8",
        "rule_offsets": "int64",
        "rule_ids": "int32",
        "rule_weights": "float32",
        "rule_kept": "float32",
    },
    "the text of the source tokens": {"source_bytes": "uint8", "source_offsets": "int64"},
}
TYPES = {name: dtype for group in GROUPS.values() for name, dtype in group.items()}
# Origins of the rows that the transfer computed; the other rows are copies of source rows, or padding.
BUILT = ("solved", "composed", "drawn")
# Number of rows in each list of extremes of the overview.
EXTREMES = 8
# Rows whose norms are computed together: bounds the memory for their float64 copy.
NORM_ROWS = 8192


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """The record that a transfer wrote of its T' rows.

    Attributes:
        folder: the transferred folder.
        summary: content of ``saltlm.json``.
        arrays: name -> array of ``provenance.safetensors``; the arrays are consistent with each other and with the summary.
        norms: float64 [T'], Euclidean norms of the current input rows.
        texts: T' texts, each token as :func:`spelled` shows it; an id without a token has an empty text.
        tokens: the tokenizer of the folder, prepared for alignment.
        matrix: [T', D], the current input rows, mapped from the file.
        missing: what a record of an older version lacks, in words; neutral values stand in its place.
    """

    folder: Path
    summary: Summary
    arrays: dict[str, np.ndarray]
    norms: np.ndarray
    texts: list[str]
    tokens: Tokens
    matrix: torch.Tensor
    missing: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Rows(T'={len(self.norms)}, method={self.summary['method']!r})"

    def origin(self, row: int) -> str:
        """Origin of the row, one of the ``origins`` of the summary."""
        return self.summary["origins"][self.arrays["origin"][row]]

    def status(self, row: int) -> str:
        """Status of the solve of the row, one of the ``statuses`` of the summary."""
        return self.summary["statuses"][self.arrays["status"][row]]["name"]

    def rule(self, row: int) -> str:
        """Rule by which the row was computed, one of the ``rules`` of the summary."""
        return self.summary["rules"][self.arrays["rule"][row]]

    def parts(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Source ids and weights of the weighted sum behind the row; both are empty for a row of another rule."""
        begin, end = self.arrays["rule_offsets"][row : row + 2]
        return self.arrays["rule_ids"][begin:end], self.arrays["rule_weights"][begin:end]

    @functools.cached_property
    def _bytes(self) -> tuple[bytes, list[int]]:
        """Canonical bytes of all tokens, and where each token begins and ends."""
        data, offsets = self.tokens.vocabulary.token_bytes()
        return data.tobytes(), offsets.tolist()

    def token_bytes(self, row: int) -> bytes:
        """Canonical bytes of the token of a row; empty for a row without a token."""
        joined, bounds = self._bytes
        return joined[bounds[row] : bounds[row + 1]] if row + 1 < len(bounds) else b""

    @functools.cached_property
    def scripts(self) -> list[str]:
        """Script of the text of each row's token, as :func:`~saltlm.text.scripts.script_of` names it."""
        scripts = []
        for row in range(len(self.norms)):
            token = self.token_bytes(row)
            # Most tokens are ASCII words, for which the look-up of Unicode names would be slow.
            is_word = token.isascii() and token.strip().isalpha()
            scripts.append("Latin" if is_word else script_of(token.decode("utf-8", "surrogateescape")))
        return scripts

    @property
    def verdict(self) -> Verdict:
        """What the record means, and what to do next."""
        verdict = verdict_of(self.summary, self.folder, missing=self.missing)
        return dataclasses.replace(verdict, warnings=(*verdict.warnings, *self._warnings()))

    def source_text(self, source: int) -> str:
        """A source token as :func:`spelled` shows it; empty for a source row without a token."""
        if source >= len(self.arrays["source_offsets"]) - 1:
            return ""
        begin, end = self.arrays["source_offsets"][source : source + 2]
        return spelled(self.arrays["source_bytes"][begin:end].tobytes())

    def find(self, token: str) -> list[int]:
        """Rows of a token.

        Args:
            token: ``#123`` for the row of that id; or the text of a token, as :func:`spelled` shows it, as the tokenizer
                spells it, or without its word start. A text that begins with a word start prefers such tokens.

        Returns:
            Row numbers in ascending order, at least one.

        Raises:
            InputError: no row fits; the message names the most similar tokens.
        """
        if re.fullmatch(r"#\d+", token):
            row = int(token[1:])
            if row >= len(self.norms):
                raise input_error(
                    f"token {token}",
                    f"no row of that id in {self.folder}",
                    f"an id below {len(self.norms)}",
                    "give a smaller one",
                )
            return [row]
        spelled_id = self.tokens.find(token)
        bare = token.removeprefix("▁")
        rows = {
            row for row, text in enumerate(self.texts) if text == token or (text.removeprefix("▁") == bare and text)
        }
        if spelled_id is not None and spelled_id < len(self.norms):
            rows.add(spelled_id)
        if token.startswith("▁"):
            rows = {row for row in rows if self.texts[row].startswith("▁")} or rows
        if not rows:
            advice = self._suggestion(bare)
            raise input_error(f"token {token!r}", f"none in {self.folder}", "a token's text or #ID", advice)
        return sorted(rows)

    def _suggestion(self, bare: str) -> str:
        import difflib

        # Only tokens of similar length are compared: all tokens of a large vocabulary would take many seconds.
        candidates = {text for text in self.texts if abs(len(text) - len(bare)) <= 2 and set(text) & set(bare)}
        close = difflib.get_close_matches(bare, sorted(candidates), n=3, cutoff=0.5)
        return f"did you mean {' or '.join(map(repr, close))}?" if close else "check the spelling"

    def detail(self, row: int) -> dict[str, Any]:
        """The whole record of one row, as values that :mod:`json` can write."""
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
        """Weight of the map that was fitted on all anchors.

        1 for a row that only a map produced, the length of the blend minus the weights of the pieces for a blend of pieces
        and map, and 0 for all other rules.
        """
        rule = self.rule(row)
        if rule == "pieces and map":
            return self._length - float(self.parts(row)[1].sum())
        return 1.0 if rule in ("map", "map and anchors") else 0.0

    def mean_weight(self, row: int) -> float:
        """Weight of the mean anchor row: 1 minus the length of the blend for a blend with pieces, 0 for all other rules."""
        return 1.0 - self._length if self.rule(row).startswith("pieces") and self.rule(row) != "pieces" else 0.0

    @property
    def _length(self) -> float:
        """Sum of the weights of the two sides of a blend."""
        return _blend_length(self.summary)

    def overview(self) -> dict[str, Any]:
        """Counts, quantiles and extremes of all rows, as values that :mod:`json` can write."""
        arrays, summary = self.arrays, self.summary
        origins = np.array(summary["origins"], dtype=object)[arrays["origin"]]
        rules = np.bincount(arrays["rule"], minlength=len(summary["rules"]))
        built = np.flatnonzero(np.isin(origins, BUILT))
        support_sizes = arrays["support_size"][arrays["support_size"] > 0]
        solved = np.flatnonzero(origins == "solved")
        worst = solved[np.argsort(-arrays["residual"][solved], kind="stable")[:EXTREMES]]
        by_norm = built[np.argsort(self.norms[built], kind="stable")]
        return {
            "folder": str(self.folder),
            "method": summary["method"],
            "rows": len(self.norms),
            "counts": {name: int((origins == name).sum()) for name in summary["origins"]},
            "rules": {name: int(count) for name, count in zip(summary["rules"], rules, strict=True)},
            "statuses": {
                entry["name"]: int((arrays["status"] == code).sum()) for code, entry in enumerate(summary["statuses"])
            },
            "support": _quantiles(support_sizes),
            "residual": _quantiles(arrays["residual"][solved]),
            "norms": {
                name: _quantiles(self.norms[origins == name]) for name in summary["origins"] if (origins == name).any()
            },
            "worst_residuals": [self._short(row) for row in worst],
            "largest_norms": [self._short(row) for row in by_norm[::-1][:EXTREMES]],
            "smallest_norms": [self._short(row) for row in by_norm[:EXTREMES]],
            "warnings": list(self.verdict.warnings),
            "missing": list(self.verdict.missing),
            "verdict": self.verdict.to_json(),
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
        warnings = []
        if (self.folder / "metrics.jsonl").is_file():
            warnings.append(
                "the rows were trained after the transfer: weights tell how they began, norms how they are now"
            )
        if cut := int((self.arrays["rule_kept"] < 1).sum()):
            share = float(self.arrays["rule_kept"].min())
            warnings.append(f"of {cut:,} rows only the largest weights were kept, at least {share:.0%} of their sum")
        return warnings


def inspect(folder: str | Path, *, trust_remote_code: bool = False) -> Rows:
    """Read the record of a transferred folder.

    Args:
        folder: a folder that ``saltlm transfer`` or ``saltlm adapt`` wrote.
        trust_remote_code: let transformers run code from the folder.

    Returns:
        The record with the norms of the current rows.

    Raises:
        InputError: the folder is none that saltlm wrote, a file is missing or broken, or the files contradict each other.
    """
    from ..model.checkpoint import load_source

    folder = Path(folder)
    for name in FILES:
        if not (folder / name).is_file():
            raise input_error(f"folder {folder}", f"no {name}", EXPECTED, "name a transferred folder")
    try:
        check_model_folder(folder, f"folder {folder}")
        summary = cast(Summary, read_json(folder / SUMMARY))
        arrays, missing = _arrays(folder / "provenance.safetensors")
        if "rule" in missing:
            summary = {**summary, "rules": ["none"]}
        _check(summary, arrays, missing)
    except InputError:
        raise
    except Exception as error:  # safetensors has exception classes of its own for broken files
        problem = f"a record that cannot be read ({first_line(error)})"
        raise input_error(f"folder {folder}", problem, EXPECTED, "transfer again with this version") from error
    matrix = load_source(folder, trust_remote_code=trust_remote_code).input_rows
    if len(matrix) != len(arrays["origin"]):
        problem = f"{len(matrix):,} rows and a record of {len(arrays['origin']):,}"
        raise input_error(f"folder {folder}", problem, "one entry a row", "it was changed after the transfer")
    norms = np.concatenate([part.double().norm(dim=1).numpy() for part in matrix.split(NORM_ROWS)])
    tokens = load_tokens(folder)
    lacking = tuple(name for name, group in GROUPS.items() if set(group) <= missing)
    return Rows(folder, summary, arrays, norms, _texts(tokens, len(norms)), tokens, matrix, lacking)


def find_rows(rows: Rows, tokens: Sequence[str]) -> list[int]:
    """Rows of several tokens, each row once, in the order of the tokens.

    Raises:
        InputError: a token has no row.
    """
    return list(dict.fromkeys(row for token in tokens for row in rows.find(token)))


def spelled(data: bytes) -> str:
    r"""Canonical bytes of a token as one printable line: U+2581 for a space, ``\xNN`` for a byte that is not UTF-8.

    Example:
        >>> spelled(b" talo"), spelled(b"a\n"), spelled(b"\xc3")
        ('▁talo', 'a\\n', '\\xc3')
    """
    text = data.decode("utf-8", errors="backslashreplace").replace(" ", "▁")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _arrays(path: Path) -> tuple[dict[str, np.ndarray], frozenset[str]]:
    """The arrays of the record, and the names of those that stand for missing groups of an older version.

    Raises:
        ValueError: the first group is missing, or a part of a group.
    """
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        names = set(file.keys())
        arrays = {name: file.get_tensor(name) for name in TYPES if name in names}
    missing: set[str] = set()
    for group in list(GROUPS.values()):
        lacking = [name for name in group if name not in names]
        if lacking and (len(lacking) < len(group) or "origin" in group):
            raise ValueError(f"provenance.safetensors lacks {', '.join(lacking)}")
        missing.update(lacking)
    rows = len(arrays["origin"])
    lengths = {"rule_offsets": rows + 1, "rule_ids": 0, "rule_weights": 0, "source_bytes": 0, "source_offsets": 1}
    for name in missing:
        fill = 1 if name == "rule_kept" else 0
        arrays[name] = np.full(lengths.get(name, rows), fill, dtype=TYPES[name])
    return arrays, frozenset(missing)


def _check(summary: Summary, arrays: dict[str, np.ndarray], missing: frozenset[str]) -> None:
    """Check types, lengths, offsets and codes, so that the methods of :class:`Rows` cannot fail.

    Raises:
        ValueError: two arrays, or an array and the summary, contradict each other.
        KeyError: the summary lacks an entry.
        TypeError: an entry of the summary has another type.
    """
    rows = len(arrays["origin"])
    for name, dtype in TYPES.items():
        if arrays[name].dtype != np.dtype(dtype) or arrays[name].ndim != 1:
            raise ValueError(
                f"{name} is {arrays[name].dtype} {list(arrays[name].shape)}, expected {dtype} in one dimension"
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
    if "source_bytes" in missing:
        known = max(known, int(named.max(initial=-1)) + 1)
    if len(named) and not 0 <= int(named.min()) <= int(named.max()) < known:
        raise ValueError(f"rule_ids names a token beyond the source's {known}")
    _check_summary(summary, arrays)


def _check_summary(summary: Summary, arrays: dict[str, np.ndarray]) -> None:
    """Check the entries of the summary that :class:`Rows` reads, and that it names every code of the arrays.

    Raises:
        ValueError: the file is of a newer version, or lacks the name of a code.
        KeyError: the summary lacks an entry.
        TypeError: an entry of the summary has another type.
    """
    if schema_version_of(summary) > SCHEMA_VERSION:
        raise ValueError(
            f"schema_version {schema_version_of(summary)} of a newer saltlm, {SCHEMA_VERSION} is the newest known"
        )
    str(summary["method"])  # KeyError where the summary lacks it
    for name, codes in (("origin", summary["origins"]), ("rule", summary["rules"]), ("status", summary["statuses"])):
        if len(arrays[name]) and int(arrays[name].max()) >= len(codes):
            raise ValueError(f"{name} has a code that saltlm.json does not name")
    [entry["name"] for entry in summary["statuses"]]
    sum(summary["counts"].values())
    _blend_length(summary)


def _blend_length(summary: Summary) -> float:
    """Sum of the weights of the two sides of a blend; 1 where the transfer used no blend."""
    blend = summary.get("blend")
    return float(blend["length"]) if blend else 1.0


def _texts(tokens: Tokens, rows: int) -> list[str]:
    """The text of each row's token; empty for rows beyond the vocabulary."""
    data, offsets = tokens.vocabulary.token_bytes()
    joined, bounds = data.tobytes(), offsets.tolist()
    texts = [spelled(joined[bounds[i] : bounds[i + 1]]) for i in range(min(rows, len(bounds) - 1))]
    return texts + [""] * (rows - len(texts))


def _quantiles(values: np.ndarray) -> dict[str, float | None] | None:
    """Minimum, quartiles, 95th percentile and maximum; ``None`` for no values."""
    if not len(values):
        return None
    points = np.percentile(values.astype(np.float64), [0, 25, 50, 75, 95, 100])
    return dict(zip(("min", "p25", "median", "p75", "p95", "max"), map(_number, points), strict=True))


def _number(value: float) -> float | None:
    """A finite float; ``None`` for NaN and infinity, which JSON cannot hold."""
    return float(value) if np.isfinite(value) else None
