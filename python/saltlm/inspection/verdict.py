"""The verdict on a transfer in plain words, for the terminal, the page and notebooks."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ..config import TransferConfig
from ..options import options_of

Level = Literal["good", "fair", "poor", "unknown"]
# Keys of saltlm.json that the verdict reads -> their names for the user. A record of an older version may lack some.
READ = {
    "heldout": "the self-check",
    "inputs": "the models and vectors that were read",
    "config": "the options",
    "environment": "the versions of the packages",
    "warnings": "the warnings of the transfer",
}
# Scores of the self-check on its scale: 1.5 for exact rows, 0 for one row for all tokens, about -0.5 for random rows. The best
# methods reach 0.1 to 0.2 without any training.
GOOD_SCORE, FAIR_SCORE = 0.1, 0.0
# Above this share of new tokens, rows that were drawn at random are the first thing to mend.
MANY_DRAWN = 0.05
# Below this number of shared tokens, a regression learns from too little.
FEW_ANCHORS = 100


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the figures of a transfer mean, and what to do next.

    Attributes:
        level: ``good``, ``fair`` or ``poor`` start; ``unknown`` without a self-check.
        rows: a sentence about shared, built and drawn rows.
        start: a sentence about the self-check or, before a transfer, about the cost.
        advice: a sentence that says what to do next, and why.
        command: the next command to type.
        warnings: sentences with remedies.
        missing: names of what the record lacks.
    """

    level: Level
    rows: str
    start: str
    advice: str
    command: str
    warnings: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def lines(self) -> tuple[str, str, str]:
        """The three sentences."""
        return self.rows, self.start, self.advice

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "warnings": list(self.warnings), "missing": list(self.missing)}


def verdict_of(
    summary: Mapping[str, Any],
    folder: str | Path | None = None,
    *,
    missing: Sequence[str] = (),
    cost: str | None = None,
) -> Verdict:
    """Judge a transfer by its summary.

    Args:
        summary: content of ``saltlm.json``; only ``method`` and ``counts`` are required.
        folder: the written folder; ``None`` if nothing was written.
        missing: names of what the record lacks besides keys of the summary.
        cost: a sentence about memory, time and disk. It marks a transfer that was only planned.

    Returns:
        The verdict.
    """
    lacking = [name for key, name in READ.items() if key not in summary]
    name = "DIR" if folder is None else str(folder)
    warnings = tuple(map(str, summary.get("warnings", ())))
    if cost is not None:
        advice, command = _plan(summary)
        level: Level = "unknown" if summary.get("anchors", 0) >= FEW_ANCHORS else "poor"
        return Verdict(level, _planned_rows(summary), cost, advice, command, warnings, (*lacking, *missing))
    level, start = _start(summary)
    advice, command = _next(summary, name, level)
    return Verdict(level, _rows(summary), start, advice, command, warnings, (*lacking, *missing))


def transfer_command(summary: Mapping[str, Any], out: str) -> str:
    """The command that makes a transfer again.

    Args:
        summary: content of ``saltlm.json``; a record without models gives a command with ``MODEL``.
        out: the folder to write.
    """
    inputs = summary.get("inputs", {})
    words = ["saltlm", "transfer"]
    for side in ("source", "target"):
        words += [f"--{side}", str(inputs.get(side, {}).get("path", "MODEL"))]
    if auxiliary := inputs.get("auxiliary"):
        words += ["--auxiliary", str(auxiliary.get("path") or auxiliary.get("kind", "FILE"))]
    config = summary.get("config", {"method": summary.get("method", "auto")})
    for entry in options_of(TransferConfig):
        value = config.get(entry.name, entry.default)
        if value == entry.default or value is None:
            continue
        if isinstance(value, Mapping):
            words += [word for key, item in value.items() for word in (entry.flag, f"{key}={item}")]
        else:
            words += [entry.flag] if value is True else [entry.flag, str(value)]
    return shlex.join([*words, "--out", out])


def _rows(summary: Mapping[str, Any]) -> str:
    counts = summary["counts"]
    total = max(1, sum(counts.values()))
    amounts = {
        "shared": counts.get("copied", 0) + counts.get("role", 0),
        "built": counts.get("solved", 0) + counts.get("composed", 0),
        "drawn": counts.get("drawn", 0),
    }
    return f"{total:,} rows: " + ", ".join(f"{n:,} ({n / total:.1%}) {name}" for name, n in amounts.items()) + "."


def _planned_rows(summary: Mapping[str, Any]) -> str:
    shared, new = sum(v for k, v in summary["counts"].items() if k in ("copied", "role")), summary.get("new_tokens", 0)
    total = max(1, shared + new)
    return (
        f"Shared: {shared:,} of {total:,} tokens ({shared / total:.1%}), to build {new:,},"
        f" anchors {summary.get('anchors', 0):,}."
    )


def _start(summary: Mapping[str, Any]) -> tuple[Level, str]:
    """How good the built rows are by the self-check, as a level and a sentence."""
    check = summary.get("heldout")
    if not check or "score" not in check:
        return "unknown", "The built rows were not checked: there is no self-check."
    score = float(check["score"])
    scale = f"score {score:.2f} (1.5 exact rows, 0 one mean row, -0.5 random rows)."
    if check.get("broken"):
        return "poor", f"Broken start: {scale} {check['broken']}."
    if score >= GOOD_SCORE:
        return "good", f"Good start: {scale}"
    return ("fair", f"Fair start: {scale}") if score >= FAIR_SCORE else ("poor", f"Weak start: {scale}")


def _next(summary: Mapping[str, Any], folder: str, level: Level) -> tuple[str, str]:
    """What to do next, as a sentence and a command."""
    quoted = shlex.quote(folder)
    if "adapted" in summary:
        source = summary.get("inputs", {}).get("source", {}).get("path", "SOURCE")
        advice = "It was trained after the transfer: measure it beside the source."
        return advice, f"saltlm evaluate {shlex.quote(str(source))} {quoted} --text HELD-OUT.txt"
    config = summary.get("config", {})
    drawn = summary["counts"].get("drawn", 0) / max(1, summary.get("new_tokens", 0))
    again = f"{folder}-2"
    if summary["method"] not in ("normal", "multivariate") and drawn > MANY_DRAWN:
        advice = f"{drawn:.0%} of new tokens have random rows: use better vectors, or --method auto."
        return advice, _changed(summary, again, method="auto")
    if level == "poor" and summary["method"] != "auto":
        return "Try the default method before any training.", _changed(summary, again, method="auto")
    if summary["method"] == "auto" and not config.get("tune_text") and "config" in summary:
        advice = "A little text of the language chooses better options: --tune-text."
        return advice, _changed(summary, again, tune_text="TEXT.txt")
    advice = "Train it on text; a few hundred steps show how good the start is."
    return advice, f"saltlm adapt {quoted} --text TEXT.txt --out {shlex.quote(folder + '-adapted')}"


def _changed(summary: Mapping[str, Any], out: str, **options: Any) -> str:
    """The command of the transfer with some options changed; another method drops the options of the old one."""
    method = options.get("method")
    kept = {"method", "source_revision", "target_revision", "trust_remote_code", "dtype", "device", "seed"}
    config = {k: v for k, v in summary.get("config", {}).items() if method is None or k in kept}
    inputs = {k: v for k, v in summary.get("inputs", {}).items() if method is None or k in ("source", "target")}
    return transfer_command({**summary, "inputs": inputs, "config": {**config, **options}}, out)


def _plan(summary: Mapping[str, Any]) -> tuple[str, str]:
    """Whether the transfer is worth doing, as a sentence and a command."""
    command = transfer_command(summary, "DIR")
    anchors = summary.get("anchors", 0)
    if anchors < FEW_ANCHORS:
        return f"Only {anchors:,} anchors: choose a PLM that shares more tokens.", command
    return "The tokenizers share enough tokens to learn from.", command
