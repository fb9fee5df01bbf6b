"""The folder of a comparison: its identity, and the finished runs, each of which is written as soon as it ends."""

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
from ..files.json_files import read_json, write_json_whole
from ..files.output_folder import check_output
from ..files.output_lock import lock_run

RECORD, RUNS, SCRATCH, RESULT, CHART = "comparison.json", "runs", ".scratch", "compare.json", "compare.png"
ADVICE = "make room or mend that; the same command goes on from the finished runs"
# Part of the identity -> its name in messages.
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
    """A folder with ``comparison.json``, ``runs/KEY.json`` and, at the end, ``compare.json`` and ``compare.png``.

    Attributes:
        out: absolute path of the folder.
        scratch: subfolder for weights.
    """

    def __init__(self, out: Path) -> None:
        """Name the folder; nothing is read or written yet.

        Args:
            out: the folder; it may be missing.
        """
        self.out = Path(out).expanduser().resolve()
        self.scratch = self.out / SCRATCH
        self._lock: int | None = None
        self._is_new = False

    @property
    def exists(self) -> bool:
        """Whether the folder contains a comparison."""
        return (self.out / RECORD).is_file()

    @property
    def runs(self) -> int:
        """Number of finished runs."""
        return len(list((self.out / RUNS).glob("*.json")))

    def check(self, protected: Sequence[Path]) -> None:
        """Check that the folder may be written, before any work is done.

        Args:
            protected: input folders and files.

        Raises:
            InputError: the folder contains something else than a comparison, is inside an input folder, or contains an
                input.
        """
        if not self.exists:
            is_folder = self.out.is_dir()
            with output_errors(self.out, 0, ADVICE):
                if is_folder and any(self.out.iterdir()):
                    raise input_error(
                        f"output {self.out}",
                        "a folder that holds no comparison",
                        "a new folder, or a comparison to go on with",
                        "choose another name",
                    )
            check_output(self.out, protected=protected, force=is_folder)
            return
        for folder in protected:
            other = folder.resolve()
            if self.out == other or self.out in other.parents or other in self.out.parents:
                raise input_error(f"output {self.out}", f"the input {other} in its way", "a folder apart", "choose one")

    def refuse_other(self, identity: Mapping[str, Any], *, force: bool) -> None:
        """Check that the folder contains no other comparison.

        Args:
            identity: what must be equal for runs to be comparable; plain JSON values.
            force: another comparison may be replaced.

        Raises:
            InputError: the folder contains another comparison, and ``force`` is not set.
        """
        if not self.exists or force:
            return
        old, new = read_json(self.out / RECORD).get("identity"), json.loads(json.dumps(identity))
        if not isinstance(old, dict) or not isinstance(old.get("options", {}), dict):
            raise input_error(
                f"output {self.out}",
                f"a {RECORD} that is no record of a comparison",
                "a new folder, or a comparison to go on with",
                "choose another name, or start over by --force",
            )
        for part, description in PARTS.items():
            if old.get(part) != new[part]:
                if part == "options":
                    changes = [
                        f"{key} was {old[part].get(key)!r}, is {value!r}"
                        for key, value in new[part].items()
                        if old[part].get(key) != value
                    ]
                    description += f" ({', '.join(changes)})"
                raise input_error(
                    f"output {self.out}",
                    f"a comparison that differs in {description}",
                    "this one, to go on with, or a new folder",
                    "choose another folder, or start over by --force",
                )

    @contextlib.contextmanager
    def opened(self, identity: Mapping[str, Any], *, force: bool) -> Iterator[None]:
        """Create or continue the folder and lock it. A new folder without a finished run is removed at the end.

        Args:
            identity: what must be equal for runs to be comparable; plain JSON values.
            force: remove the runs of the comparison that the folder contains.

        Yields:
            Nothing.

        Raises:
            InputError: another process writes in the folder, or the folder cannot be written.
        """
        self._is_new = not os.path.lexists(self.out)
        with output_errors(self.out, 0, ADVICE):
            if self.exists:
                self._take_lock()
            if force and self.exists:
                for path in (self.out / RUNS, self.out / RESULT, self.out / CHART):
                    if path.is_dir():
                        shutil.rmtree(path)
                    else:
                        path.unlink(missing_ok=True)
            (self.out / RUNS).mkdir(parents=True, exist_ok=True)
            if not self.exists or force:
                write_json_whole(self.out / RECORD, {"format": 1, "identity": identity})
                self._release()
            self._take_lock()
        try:
            yield
        finally:
            shutil.rmtree(self.scratch, ignore_errors=True)
            if self._is_new and not self.runs:
                shutil.rmtree(self.out, ignore_errors=True)
            self._release()

    def key(self, content: Mapping[str, Any]) -> str:
        """The name of a run: a hash of everything that its result depends on, given as plain JSON values."""
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]

    def load(self, key: str) -> dict[str, Any] | None:
        """The result of a finished run; ``None`` if the run has not finished."""
        path = self.out / RUNS / f"{key}.json"
        return read_json(path) if path.is_file() else None

    def save(self, key: str, result: Mapping[str, Any]) -> None:
        """Write the result of a finished run atomically."""
        with output_errors(self.out, 0, ADVICE):
            write_json_whole(self.out / RUNS / f"{key}.json", result)

    @contextlib.contextmanager
    def empty_scratch(self) -> Iterator[Path]:
        """Create an empty folder for weights and remove it at the end; remains of a killed run are removed first."""
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
