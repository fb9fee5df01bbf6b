"""Checks of the folder alone: its record against the schema, itself and the matrices, and its files against their digests."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from ..files.schema import faults
from ..files.summary_file import AdaptationRecord, Summary
from ..inspection.rows import BUILT, Rows
from ..model.checkpoint import Source
from ..model.stored_rows import lengths_of
from ..model.written_files import file_digest, tensor_digest
from .results import Check, RowDifference, judged, unchecked

COPIES = ("copied", "role")  # origins of rows that equal a source row
NORM_ROUNDING = 1e-6  # of a median or largest norm, as a share of it: sums of float64 values in another order
_SIZE = re.compile(r"\d+ bytes")


def schema_faults(summary: Summary) -> list[str]:
    """Where saltlm.json does not fit its types; keys that this version does not know are accepted."""
    content: dict[str, object] = {**summary}
    adapted = content.pop("adapted", None)
    problems = faults(content, Summary, "saltlm.json", allow_unknown=True)
    if adapted is not None:
        problems += faults(adapted, AdaptationRecord, "saltlm.json/adapted", allow_unknown=True)
    return problems


def check_record(rows: Rows, model: Source, problems: Sequence[str]) -> Check:
    """Compare saltlm.json with its schema, with provenance.safetensors and with the norms of the matrices.

    Args:
        rows: the record.
        model: the folder.
        problems: from :func:`schema_faults`.
    """
    name = "record"
    if problems:
        return judged(name, "schema of saltlm.json", names=problems)
    summary, arrays = rows.summary, rows.arrays
    origins = np.array(summary["origins"], dtype=object)[arrays["origin"]]
    differences = _count_differences(rows, origins)
    adapted = "adapted" in summary
    if not adapted:
        differences += _norm_differences(rows, model, origins)
    copied, known = np.isin(origins, COPIES), arrays["source_id"] >= 0
    rule = np.array(summary["rules"], dtype=object)[arrays["rule"]] == "copy"
    wrong = np.flatnonzero((copied != known) | (copied != rule))
    named = [RowDifference(id=int(row), token=rows.texts[row], tensor="record") for row in wrong]
    figures = "counts and statuses" if adapted else "counts, statuses and norms"
    return judged(name, f"schema, {figures} of {len(origins):,} rows", named, differences)


def _count_differences(rows: Rows, origins: np.ndarray) -> list[str]:
    summary, arrays = rows.summary, rows.arrays
    counts = {name: int((origins == name).sum()) for name in summary["origins"]}
    differences = [
        f"{summary['counts'].get(name, 0):,} {name} rows, {count:,} by provenance"
        for name, count in counts.items()
        if summary["counts"].get(name, 0) != count
    ]
    differences += [f"counts of the unknown origin {name!r:.40}" for name in summary["counts"].keys() - counts.keys()]
    for code, entry in enumerate(summary["statuses"]):
        count = int((arrays["status"] == code).sum())
        if entry["count"] != count:
            differences.append(f"{entry['count']:,} rows of status {entry['name']}, {count:,} by provenance")
    built = sum(counts.get(name, 0) for name in BUILT)
    if summary["new_tokens"] != built:
        differences.append(f"{summary['new_tokens']:,} new tokens, {built:,} built rows by provenance")
    return differences


def _norm_differences(rows: Rows, model: Source, origins: np.ndarray) -> list[str]:
    norms, recorded = lengths_of(model.input_rows, torch.arange(len(model.input_rows))), rows.summary["norms"]
    present = {name for name in rows.summary["origins"] if (origins == name).any()}
    differences = [f"norms of {name} rows in one of the two alone" for name in sorted(present ^ recorded.keys())]
    for name in sorted(present & recorded.keys()):
        here = norms[origins == name]
        for figure, value in (("median", float(np.median(here))), ("max", float(here.max()))):
            stated = recorded[name][figure]  # type: ignore[literal-required]
            if not abs(stated - value) <= NORM_ROUNDING * abs(value):
                differences.append(f"{figure} norm {stated:.6g} of {name} rows, {value:.6g} by the matrix")
    return differences


def check_files(folder: Path, model: Source, files: object) -> Check:
    """Compare the files of the folder with the digests in saltlm.json.

    Args:
        folder: the folder.
        model: the folder, loaded.
        files: the entry ``files`` of saltlm.json; ``None`` where there is none.
    """
    name = "files"
    if files is None:
        return unchecked(name, "saltlm.json holds no digests: an earlier version wrote it")
    if not isinstance(files, Mapping) or not files:
        return judged(name, "digests", names=["saltlm.json: files is no list of digests"])
    file_of = model.weights.files_of()
    wrong = []
    for entry, digest in files.items():
        file, _, key = entry.partition("#")
        if not _inside(folder, file):
            wrong.append(f"{entry!r:.80} is missing")
        elif key:
            if file_of.get(key) != file:
                wrong.append(f"{entry!r:.80} is missing")
            elif tensor_digest(model.weights.tensor(key)) != digest:
                wrong.append(f"{entry!r:.80} was changed")
        elif (file in model.weights.headers) != bool(_SIZE.fullmatch(str(digest))):
            wrong.append(f"{entry!r:.80} was changed")
        elif file_digest(folder, file, model.weights) != digest:
            wrong.append(f"{entry!r:.80} was changed")
    return judged(name, f"digests of {len(files):,} files and tensors", names=wrong)


def _inside(folder: Path, name: str) -> bool:
    """Whether a name of saltlm.json is a regular file below the folder, reached without a link."""
    parts = PurePosixPath(name)
    if not name or parts.is_absolute() or ".." in parts.parts or "\0" in name:
        return False
    path = folder / name
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return False
    except OSError:
        return False
    return path.resolve() == folder.resolve() / name
