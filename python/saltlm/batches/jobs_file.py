"""A jobs file -> jobs, or every fault in it with its line, before anything runs."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config import TransferConfig
from ..errors import InputError, input_error
from ..options import options_of
from .toml_lines import Place, parse, toml_lines

INPUTS = {"source": True, "target": True, "auxiliary": False, "out": True}  # whether a job must name it
OPTIONS = {entry.name: entry.types for entry in options_of(TransferConfig)}
COMPANIONS = {"unigram_text": {"unigram_shift": 1.0}}  # options that no other value is allowed without
# Type of an option -> the types that TOML values of it have, and their name.
_TYPES: dict[type, tuple[tuple[type, ...], str]] = {
    str: ((str,), "text in quotes"),
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    Mapping: ((dict,), "a table of text"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchJob:
    """One transfer of a batch.

    Attributes:
        number: its place in the file, from 1.
        source: as in :func:`~saltlm.transfer`; likewise ``target`` and ``auxiliary``.
        out: the folder to write, resolved.
        config: its options.
        memory: bytes that its process is expected to need at most.
        shared: what it reads, with the bytes that each takes in memory: jobs with the same belong together.
        prepares: inputs that the first job to need them converts or trains, so that no two do so at once.
    """

    number: int
    source: str
    target: str
    auxiliary: str | None
    out: Path
    config: TransferConfig
    memory: int = 0
    shared: Mapping[str, int] = dataclasses.field(default_factory=dict)
    prepares: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"job {self.number} ({self.out.name})"


@dataclasses.dataclass(frozen=True)
class Draft:
    """A job as the file has it: the values of ``[defaults]`` under its own, and the line of each."""

    number: int
    values: Mapping[str, Any]
    lines: Mapping[str, int]
    line: int

    def at(self, name: str) -> int:
        """The line of an option; the job's own where it does not have it."""
        return self.lines.get(name, self.line)


class Faults:
    """What is wrong with a jobs file, by line; the same fault of several jobs is one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: dict[tuple[int, str], list[int]] = {}

    def add(self, line: int, message: object, job: int | None = None) -> None:
        """Note a fault."""
        jobs = self._found.setdefault((line, str(message)), [])
        if job is not None:
            jobs.append(job)

    def of(self, job: int) -> bool:
        """Whether this job has one."""
        return any(job in jobs for jobs in self._found.values())

    def check(self) -> None:
        """Raise one InputError that lists all, in the order of their lines; none where there are none."""
        if not self._found:
            return
        lines = []
        for (line, message), jobs in sorted(self._found.items()):
            whose = f"job{'s' * (len(jobs) > 1)} {', '.join(map(str, jobs))}: " if jobs else ""
            lines.append(f"\n  line {line}: {whose}{message}")
        count = f"{len(lines)} fault{'s' * (len(lines) > 1)}"
        raise InputError(f"{self.path}: {count}; nothing was run{''.join(lines)}")


def read_drafts(path: Path) -> tuple[list[Draft], Faults]:
    """Read the file and check every key and value by itself.

    Args:
        path: TOML with a ``[[job]]`` table for each transfer, and ``[defaults]`` for all; keys are the options of ``saltlm
            transfer``, with dashes or underscores.

    Returns:
        All jobs, faulty ones included, and the faults.

    Raises:
        InputError: the file cannot be read, or is no TOML: then the parser's first fault is all that can be told.
    """
    content, lines = _read(path)
    faults = Faults(path)
    for name in content:
        if name not in ("defaults", "job"):
            faults.add(lines.get((name,), 1), _unknown("table", name, ("defaults", "job")))
    tables, defaults = content.get("job", []), content.get("defaults", {})
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        found = "[job]" if isinstance(tables, dict) else repr(tables)
        faults.add(lines.get(("job",), 1), input_error("job", found, "[[job]] tables", "write it in double brackets"))
        tables = []
    elif not tables:
        faults.add(1, input_error("jobs file", "no [[job]]", "at least one", "write a [[job]] table for each transfer"))
    if not isinstance(defaults, dict):
        found = repr(defaults)
        faults.add(lines.get(("defaults",), 1), input_error("defaults", found, "a [defaults] table", "write it so"))
        defaults = {}
    base, base_lines = _values(defaults, ("defaults",), lines, faults, None)
    drafts = []
    for index, table in enumerate(tables):
        place: Place = ("job", index)
        own, own_lines = _values(table, place, lines, faults, index + 1)
        line = lines.get(place) or lines.get(("job",), 1)
        draft = Draft(index + 1, {**base, **own}, {**base_lines, **own_lines}, line)
        for name, needed in INPUTS.items():
            if needed and name not in draft.values:
                advice = f'write {name} = "..." in the job{" or in [defaults]" * (name != "out")}'
                faults.add(line, input_error(name, "nothing", _WHAT[name], advice), draft.number)
        drafts.append(draft)
    return drafts, faults


_WHAT = {
    "source": "a model folder or hub name", "target": "a model folder or hub name", "out": "a folder to write",
}  # fmt: skip


def _read(path: Path) -> tuple[dict[str, Any], dict[Place, int]]:
    advice = "check the path"
    try:
        text = path.read_bytes().decode("utf-8")
        return parse(text), toml_lines(text)
    except OSError as error:
        raise input_error(f"jobs file {path}", error.strerror or str(error), "a TOML file", advice) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        message = f"{path}: line {line}: found bytes that are not UTF-8; expected TOML; convert the file"
        raise InputError(message) from None
    except (ValueError, RecursionError) as error:
        at = re.search(r"\(at line (\d+)", str(error))
        line = int(at[1]) if at else text.count("\n") + 1
        reason = re.sub(r" \(at (line|end).*\)", "", str(error))
        raise InputError(
            f"{path}: 1 fault; nothing was run\n  line {line}: {reason}; no TOML, what follows was not looked at"
        ) from None


def _values(
    table: Mapping[str, Any], place: Place, lines: Mapping[Place, int], faults: Faults, job: int | None
) -> tuple[dict[str, Any], dict[str, int]]:
    """The known options of a table, those with a wrong value left out, and the line of each."""
    values: dict[str, Any] = {}
    found: dict[str, int] = {}
    for key, value in table.items():
        line = lines.get((*place, key)) or lines.get(place) or lines.get(place[:1], 1)
        name = key.replace("-", "_")
        if name not in INPUTS and name not in OPTIONS:
            faults.add(line, _unknown("option", key, (*INPUTS, *OPTIONS)), job)
            continue
        if name in found:
            faults.add(line, input_error(name, "it twice", "it once", "keep one spelling of it"), job)
            continue
        found[name] = line
        fault = _fault(name, value)
        if fault is None:
            values[name] = value
        else:
            faults.add(line, fault, job)
            values[name] = None
    return values, found


def _unknown(what: str, name: str, known: Sequence[str]) -> InputError:
    near = difflib.get_close_matches(name.replace("-", "_"), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else "remove it"
    return input_error(f"{what} {name!r}", "no such", "one of " + ", ".join(known), hint)


def _fault(name: str, value: Any) -> InputError | None:
    """What is wrong with a value by itself: its type, then its range, by the check that every transfer makes."""
    accepted = OPTIONS.get(name, (str,))
    if isinstance(value, bool):
        right = bool in accepted
    else:
        right = any(isinstance(value, _TYPES[entry][0]) for entry in accepted)
    if not right:
        expected = " or ".join(_TYPES[entry][1] for entry in accepted)
        return input_error(name, repr(value), expected, "change the value")
    if name in INPUTS:
        return None if value else input_error(name, "an empty name", "a folder, a file or a hub name", "write one")
    if name == "device" and not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):  # whether it is there, each process finds
        return input_error(name, repr(value), "auto, cpu or cuda[:index]", "choose one of these")
    try:
        TransferConfig(**{name: value, **COMPANIONS.get(name, {})})
    except InputError as error:
        return error
    return None


def build(draft: Draft, faults: Faults) -> BatchJob | None:
    """The job of a draft, ``None`` where it has faults; options that do not go together are among them."""
    from ..rows.rules import method_faults

    given = {name: value for name, value in draft.values.items() if name in OPTIONS and value is not None}
    try:
        config = TransferConfig(**given)
    except InputError as error:
        if not faults.of(draft.number):
            faults.add(draft.at(str(error).split(":")[0]), error, draft.number)
        return None
    if _sound(draft, "method"):
        for name, fault in method_faults(config, draft.values.get("auxiliary")):
            if _sound(draft, name):  # a value that was refused already is not missing
                faults.add(draft.at(name if name in draft.lines else "method"), fault, draft.number)
    if faults.of(draft.number) or not all(_sound(draft, name) for name in draft.values):
        return None
    values: dict[str, Any] = {name: draft.values.get(name) for name in INPUTS}
    out = Path(values.pop("out")).expanduser()
    return BatchJob(number=draft.number, out=Path(os.path.realpath(out)), config=config, **values)


def _sound(draft: Draft, name: str) -> bool:
    return name not in draft.values or draft.values[name] is not None
