"""The folder of a comparison: what it compares, so that nothing else is mixed in, and each finished run, kept at once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import input_error
from ..files.file_errors import output_errors
from ..files.json_files import write_json_whole
from ..files.output_folder import check_output
from ..files.output_lock import lock_run

RECORD, RUNS, SCRATCH, RESULT, CHART = "comparison.json", "runs", ".scratch", "compare.json", "compare.png"
ADVICE = "make room or mend that; the same command goes on from the finished runs"
PARTS = {
    "version": "saltlm",
    "source": "the source model",
    "target": "the target model",
    "auxiliary": "the auxiliary vectors",
    "text": "the training text",
    "evaluation": "the held-out text",
    "options": "the options",
}


class CompareFolder:
    """Holds ``comparison.json``, ``runs/KEY.json`` and in the end ``compare.json`` and ``compare.png``."""

    def __init__(self, out: Path) -> None:
        self.out = Path(out).expanduser().resolve()
        self.scratch = self.out / SCRATCH
        self._lock: int | None = None
        self._made = False

    @property
    def exists(self) -> bool:
        """Whether a comparison lies there."""
        return (self.out / RECORD).is_file()

    @property
    def runs(self) -> int:
        """Number of finished runs."""
        return len(list((self.out / RUNS).glob("*.json")))

    def check(self, protected: Sequence[Path]) -> None:
        """Refuse a place that must not be written, before any work is done.

        Raises:
            InputError: it is something else, or lies in or holds an input.
        """
        if not self.exists:
            there = self.out.is_dir()
            with output_errors(self.out, 0, ADVICE):
                if there and any(self.out.iterdir()):
                    raise input_error(
                        f"output {self.out}",
                        "a folder that holds no comparison",
                        "a new folder, or a comparison to go on with",
                        "choose another name",
                    )
            check_output(self.out, protected=protected, force=there)
            return
        for folder in protected:
            other = folder.resolve()
            if self.out == other or self.out in other.parents or other in self.out.parents:
                raise input_error(f"output {self.out}", f"the input {other} in its way", "a folder apart", "choose one")

    def refuse_other(self, identity: Mapping[str, Any], *, force: bool) -> None:
        """Refuse a folder with the runs of another comparison.

        Raises:
            InputError: it holds one, and ``force`` is not given.
        """
        if not self.exists or force:
            return
        old, new = json.loads((self.out / RECORD).read_bytes())["identity"], json.loads(json.dumps(identity))
        for part, words in PARTS.items():
            if old.get(part) != new[part]:
                if part == "options":
                    names = [key for key, value in new[part].items() if old[part].get(key) != value]
                    words += (
                        f" ({', '.join(f'{key} was {old[part].get(key)!r}, is {new[part][key]!r}' for key in names)})"
                    )
                raise input_error(
                    f"output {self.out}",
                    f"a comparison that differs in {words}",
                    "this one, to go on with, or a new folder",
                    "choose another folder, or start over by --force",
                )

    @contextlib.contextmanager
    def opened(self, identity: Mapping[str, Any], *, force: bool) -> Iterator[None]:
        """Make the folder or take it over; a new one in which no run was finished is removed again.

        Raises:
            InputError: another process is at work in it, or it cannot be written.
        """
        self._made = not os.path.lexists(self.out)
        with output_errors(self.out, 0, ADVICE):
            if self.exists:
                self._take_lock()
            if force and self.exists:
                for name in (RUNS, RESULT, CHART):
                    shutil.rmtree(self.out / name) if (self.out / name).is_dir() else (self.out / name).unlink(
                        missing_ok=True
                    )
            (self.out / RUNS).mkdir(parents=True, exist_ok=True)
            if not self.exists or force:
                write_json_whole(self.out / RECORD, {"format": 1, "identity": identity})
                self._release()
            self._take_lock()
        try:
            yield
        finally:
            shutil.rmtree(self.scratch, ignore_errors=True)
            if self._made and not self.runs:
                shutil.rmtree(self.out, ignore_errors=True)
            self._release()

    def key(self, content: Mapping[str, Any]) -> str:
        """The name of a run: a hash of all that decides its result."""
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]

    def load(self, key: str) -> dict[str, Any] | None:
        """A finished run."""
        path = self.out / RUNS / f"{key}.json"
        return json.loads(path.read_bytes()) if path.is_file() else None

    def save(self, key: str, result: Mapping[str, Any]) -> None:
        """Keep a finished run, whole or not at all."""
        with output_errors(self.out, 0, ADVICE):
            write_json_whole(self.out / RUNS / f"{key}.json", result)

    @contextlib.contextmanager
    def empty_scratch(self) -> Iterator[Path]:
        """A folder for weights, empty at first and removed afterwards; a killed run's is cleared here."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        with output_errors(self.out, 0, ADVICE):
            self.scratch.mkdir()
        try:
            yield self.scratch
        finally:
            shutil.rmtree(self.scratch, ignore_errors=True)

    def _take_lock(self) -> None:
        if self._lock is not None:
            return
        self._lock = lock_run(self.out / RECORD, "comparing")

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
