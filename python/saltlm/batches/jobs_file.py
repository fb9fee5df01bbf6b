"""Reads a jobs file and builds its jobs, or lists every fault of the file with its line before anything runs."""

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
from ..files.open_file import FileKind, read_file
from ..options import options_of
from .toml_lines import KeyPath, parse, toml_lines

INPUTS = {"source": True, "target": True, "auxiliary": False, "out": True}  # input -> whether a job must name it
OPTIONS = {entry.name: entry.types for entry in options_of(TransferConfig)}
COMPANIONS = {"unigram_text": {"unigram_shift": 1.0}}  # option -> other options that it requires
# Type of an option -> (accepted types of the TOML value, their name in messages).
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
        number: position of the job in the file, from 1.
        source: source model, as in :func:`~saltlm.transfer`.
        target: target model, as in :func:`~saltlm.transfer`.
        auxiliary: auxiliary vectors, as in :func:`~saltlm.transfer`.
        out: folder to write; an absolute path without links.
        config: options of the transfer.
        memory: estimated peak memory of the job's process, in bytes.
        shared: key of each input that jobs can share -> its size in memory, in bytes. Jobs with equal keys run one after
            another.
        prepares: inputs that the first job using them converts or trains. Two jobs that prepare the same input do not run at
            the same time.
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
    """A job as the file describes it, before it is checked.

    Attributes:
        number: position of the job in the file, from 1.
        values: option -> value, from ``[defaults]`` and from the job, which takes precedence; ``None`` for a refused value.
        lines: option -> line of the file.
        line: line of the job's table header.
    """

    number: int
    values: Mapping[str, Any]
    lines: Mapping[str, int]
    line: int

    def at(self, name: str) -> int:
        """Line of an option; the line of the job's header if the file does not set the option."""
        return self.lines.get(name, self.line)


class Faults:
    """The faults of a jobs file, by line. A fault that several jobs have at the same line is listed once."""

    def __init__(self, path: Path) -> None:
        """Create an empty list of faults.

        Args:
            path: the jobs file, for the message.
        """
        self.path = path
        self._jobs: dict[tuple[int, str], list[int]] = {}

    def add(self, line: int, message: object, job: int | None = None) -> None:
        """Add a fault.

        Args:
            line: line of the file.
            message: an exception or a text.
            job: number of the job that has the fault; ``None`` for a fault of the file.
        """
        jobs = self._jobs.setdefault((line, str(message)), [])
        if job is not None:
            jobs.append(job)

    def of(self, job: int) -> bool:
        """Whether the job with this number has a fault."""
        return any(job in jobs for jobs in self._jobs.values())

    def check(self) -> None:
        """Raise an :class:`InputError` that lists all faults by line; do nothing if there is no fault."""
        if not self._jobs:
            return
        lines = []
        for (line, message), jobs in sorted(self._jobs.items()):
            prefix = f"job{'s' * (len(jobs) > 1)} {', '.join(map(str, jobs))}: " if jobs else ""
            lines.append(f"\n  line {line}: {prefix}{message}")
        count = f"{len(lines)} fault{'s' * (len(lines) > 1)}"
        raise InputError(f"{self.path}: {count}; nothing was run{''.join(lines)}")


def read_drafts(path: Path) -> tuple[list[Draft], Faults]:
    """Read the file and check each key and value separately.

    Args:
        path: a TOML file with a ``[[job]]`` table for each transfer and a ``[defaults]`` table for all of them. Keys are the
            options of ``saltlm transfer``, spelled with dashes or underscores.

    Returns:
        All jobs, including those with faults, and the faults.

    Raises:
        InputError: the file cannot be read or is not TOML. The message then holds the first fault that the parser found.
    """
    content, lines = _read(path)
    faults = Faults(path)
    for name in content:
        if name not in ("defaults", "job"):
            faults.add(lines.get((name,), 1), _unknown("table", name, ("defaults", "job")))
    tables, defaults = content.get("job", []), content.get("defaults", {})
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        value = "[job]" if isinstance(tables, dict) else repr(tables)
        faults.add(lines.get(("job",), 1), input_error("job", value, "[[job]] tables", "use double brackets"))
        tables = []
    elif not tables:
        faults.add(1, input_error("jobs file", "no [[job]]", "at least one", "write a [[job]] table for each transfer"))
    if not isinstance(defaults, dict):
        error = input_error("defaults", repr(defaults), "a [defaults] table", "write a table")
        faults.add(lines.get(("defaults",), 1), error)
        defaults = {}
    default_values, default_lines = _values(defaults, ("defaults",), lines, faults, None)
    drafts = []
    for index, table in enumerate(tables):
        path_of_table: KeyPath = ("job", index)
        values, value_lines = _values(table, path_of_table, lines, faults, index + 1)
        line = lines.get(path_of_table) or lines.get(("job",), 1)
        draft = Draft(index + 1, {**default_values, **values}, {**default_lines, **value_lines}, line)
        for name, required in INPUTS.items():
            if required and name not in draft.values:
                advice = f'write {name} = "..." in the job{" or in [defaults]" * (name != "out")}'
                faults.add(line, input_error(name, "nothing", EXPECTED[name], advice), draft.number)
        drafts.append(draft)
    return drafts, faults


EXPECTED = {
    "source": "a model folder or hub name",
    "target": "a model folder or hub name",
    "out": "a folder to write",
}


def _read(path: Path) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """Parse the file; returns its values and the line of each key path.

    Raises:
        InputError: the file cannot be read, is not UTF-8 or is not TOML.
    """
    advice = "check the path"
    try:
        text = read_file(path, FileKind.JOBS, what=f"jobs file {path}").decode("utf-8")
        return parse(text), toml_lines(text)
    except OSError as error:
        raise input_error(f"jobs file {path}", error.strerror or str(error), "a TOML file", advice) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        message = f"{path}: line {line}: found bytes that are not UTF-8; expected TOML; convert the file"
        raise InputError(message) from None
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        at = re.search(r"\(at line (\d+)", str(error))
        line = int(at[1]) if at else text.count("\n") + 1
        reason = re.sub(r" \(at (line|end).*\)", "", str(error))
        raise InputError(
            f"{path}: 1 fault; nothing was run\n  line {line}: {reason}; not valid TOML; the lines after it were not checked"
        ) from None


def _values(
    table: Mapping[str, Any], path: KeyPath, lines: Mapping[KeyPath, int], faults: Faults, job: int | None
) -> tuple[dict[str, Any], dict[str, int]]:
    """The known options of a table and the line of each; the value is ``None`` where it was refused."""
    values: dict[str, Any] = {}
    value_lines: dict[str, int] = {}
    for key, value in table.items():
        line = lines.get((*path, key)) or lines.get(path) or lines.get(path[:1], 1)
        name = key.replace("-", "_")
        if name not in INPUTS and name not in OPTIONS:
            faults.add(line, _unknown("option", key, (*INPUTS, *OPTIONS)), job)
            continue
        if name in value_lines:
            faults.add(line, input_error(name, "the option twice", "it once", "keep one spelling of it"), job)
            continue
        value_lines[name] = line
        fault = _fault(name, value)
        if fault is None:
            values[name] = value
        else:
            faults.add(line, fault, job)
            values[name] = None
    return values, value_lines


def _unknown(what: str, name: str, known: Sequence[str]) -> InputError:
    """The fault of an unknown name, with the most similar known name."""
    similar = difflib.get_close_matches(name.replace("-", "_"), known, n=1, cutoff=0.5)
    hint = f"did you mean {similar[0]!r}?" if similar else "remove it"
    return input_error(f"{what} {name!r}", "no such", "one of " + ", ".join(known), hint)


def _fault(name: str, value: Any) -> InputError | None:
    """The fault of a single value, ``None`` if it has none: a wrong type, or a value that :class:`TransferConfig` refuses."""
    accepted = OPTIONS.get(name, (str,))
    if isinstance(value, bool):
        has_type = bool in accepted
    else:
        has_type = any(isinstance(value, _TYPES[entry][0]) for entry in accepted)
    if not has_type:
        expected = " or ".join(_TYPES[entry][1] for entry in accepted)
        return input_error(name, repr(value), expected, "change the value")
    if name in INPUTS:
        return None if value else input_error(name, "an empty name", "a folder, a file or a hub name", "write one")
    # Each process checks for itself that the device exists: jobs may run on another machine.
    if name == "device" and not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        return input_error(name, repr(value), "auto, cpu or cuda[:index]", "choose one of these")
    try:
        TransferConfig(**{name: value, **COMPANIONS.get(name, {})})
    except InputError as error:
        return error
    return None


def build(draft: Draft, faults: Faults) -> BatchJob | None:
    """Build the job of a draft, after checking that its options fit together.

    Args:
        draft: the job as the file describes it.
        faults: faults that are found are added.

    Returns:
        The job; ``None`` if it has faults.
    """
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
            if _sound(draft, name):  # a refused value has a fault already
                faults.add(draft.at(name if name in draft.lines else "method"), fault, draft.number)
    if faults.of(draft.number) or not all(_sound(draft, name) for name in draft.values):
        return None
    values: dict[str, Any] = {name: draft.values.get(name) for name in INPUTS}
    out = Path(values.pop("out")).expanduser()
    return BatchJob(number=draft.number, out=Path(os.path.realpath(out)), config=config, **values)


def _sound(draft: Draft, name: str) -> bool:
    return name not in draft.values or draft.values[name] is not None
