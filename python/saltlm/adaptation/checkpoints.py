"""A run that never loses work: what it is (so that nothing else goes on in its place), and its checkpoints, each whole."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import BackendError, SaltlmError, input_error
from ..files.file_errors import FULL_DISK, os_error_code
from ..files.json_files import write_json_whole
from ..files.output_folder import check_output, sync_path
from ..files.output_lock import lock_run

RECORD, METRICS, CHECKPOINTS, STATE = "run.json", "metrics.jsonl", "checkpoints", "adapt.json"
NAME = re.compile(r"step-(\d+)")
# These may change between a run and the one that goes on with it: they do not touch what is computed. A changed loss_chunk
# moves last bits alone; whoever ran out of memory has to lower it.
FREE = ("save_steps", "keep_checkpoints", "force", "dtype", "loss_chunk")


class RunFolder:
    """The output folder while a run goes on: ``run.json``, ``metrics.jsonl`` and ``checkpoints/step-N``."""

    def __init__(self, out: Path, *, main: bool, barrier: Callable[[], None]) -> None:
        """Args: the folder, whether this process is the one that writes, what makes the processes wait for each other."""
        self.out, self.main, self.barrier = Path(out), main, barrier
        self.checkpoints = self.out / CHECKPOINTS
        self.metrics = self.out / METRICS
        self._lock: int | None = None
        self._replaces = False

    def check(self, *, resume: bool, force: bool, protected: list[Path]) -> None:
        """Refuse a place that must not be written, before any work is done."""
        self._replaces = self.out.is_dir()
        run = (self.out / RECORD).is_file()
        if resume and self._replaces and not run:  # killed before its record was whole
            run = {path.name for path in self.out.iterdir()} <= {f".{RECORD}.writing"}
        if not run:
            check_output(self.out, protected=protected, force=force)
            return
        if not (resume or force):
            raise input_error(
                f"output {self.out}", "an adaptation", "a new folder",
                "go on with it by --resume, or start over by --force",
            )  # fmt: skip
        for folder in protected:
            other, out = folder.resolve(), self.out.resolve()
            if out == other or out in other.parents or other in out.parents:
                raise input_error(
                    f"output {self.out}", f"the input folder {other} in its way", "a folder apart", "choose one"
                )

    def find(self, identity: Mapping[str, Any]) -> Path | None:
        """The checkpoint to go on from; ``None`` to start at the beginning.

        Args:
            identity: what the run is; plain JSON values.

        Raises:
            InputError: the run in the folder is another one.
        """
        record = self.out / RECORD
        if not record.is_file():
            return None
        try:
            old = dict(json.loads(record.read_bytes())["identity"])
        except (ValueError, KeyError, TypeError) as error:
            raise input_error(
                f"output {self.out}", f"a {RECORD} that is no record of an adaptation", "the folder of a run to go on with",
                "choose another folder, or start over by --force without --resume",
            ) from error  # fmt: skip
        self._refuse_other(old, identity)
        return self.last()

    def start(self, identity: Mapping[str, Any], checkpoint: Path | None) -> None:
        """Make the folder, or take it over as it is where there is a checkpoint.

        Raises:
            InputError: another process is writing in it, or the place cannot be written.
        """
        self._take_lock()
        if self.main and checkpoint is None:
            with checkpoint_errors(self.out, None):
                self._set_aside()
                # The record comes first: by it the folder is known as a run's, whenever this one is killed.
                self.out.resolve().mkdir(parents=True, exist_ok=True)
                write_json_whole(self.out / RECORD, {"format": 1, "identity": identity, "finished": False})
                self.checkpoints.mkdir()
            self.release()
            self._take_lock()
        elif self.main:
            self.clear()
        self.barrier()

    def _set_aside(self) -> None:
        """Remove what the run replaces; first by its name, so that a kill leaves no half of it in the place of the run."""
        if not self.out.is_dir():
            return
        if not self._replaces:
            raise input_error(f"output {self.out}", "a folder made meanwhile", "a new one", "choose another name")
        out = self.out.resolve()
        gone = out.with_name(f".{out.name}.saltlm-{os.getpid()}-{secrets.token_hex(4)}")
        out.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def last(self) -> Path | None:
        """The newest whole checkpoint."""
        found = self._steps()
        return found[-1] if found else None

    def state(self, checkpoint: Path) -> dict[str, Any]:
        """What :meth:`save` was given with a checkpoint."""
        return json.loads((checkpoint / STATE).read_bytes())

    @property
    def finished(self) -> bool:
        """Whether the final model has been written."""
        record = self.out / RECORD
        return record.is_file() and bool(json.loads(record.read_bytes()).get("finished"))

    def save(
        self, step: int, state: Mapping[str, Any], write: Callable[[Path], Path], *, keep: int, best: int | None
    ) -> Path:
        """Write a checkpoint: whole or not at all.

        Args:
            step: number of steps done.
            state: plain JSON values, to be had back by :meth:`state`.
            write: writes into the folder it is given and returns the folder within it that is the checkpoint; called in
                every process.
            keep: newest checkpoints to keep.
            best: step of a checkpoint to keep besides.

        Returns:
            The checkpoint's folder.

        Raises:
            InputError: the disk is full; the earlier checkpoints are untouched.
        """
        temporary = self.checkpoints / f".step-{step}.writing"
        final = self.checkpoints / f"step-{step}"
        with checkpoint_errors(self.out, self.last()):
            try:
                if self.main:
                    self.clear()
                    temporary.mkdir(parents=True)
                self.barrier()
                written = write(temporary)
                self.barrier()
                if self.main:
                    (written / STATE).write_text(json.dumps(state), encoding="utf-8")
                    for path in sorted(written.rglob("*")):
                        sync_path(path)
                    sync_path(written)
                    if final.exists():
                        shutil.rmtree(final)
                    written.rename(final)
                    sync_path(self.checkpoints)
            finally:
                if self.main:
                    shutil.rmtree(temporary, ignore_errors=True)
        if self.main:
            for old in self._steps()[:-keep]:
                if int(NAME.fullmatch(old.name)[1]) != best:
                    # Renamed first: a folder that is half removed must not look like a checkpoint.
                    gone = old.with_name(f".{old.name}.writing")
                    old.rename(gone)
                    shutil.rmtree(gone, ignore_errors=True)
        self.barrier()
        return final

    def clear(self) -> None:
        """Remove what a killed run left half-written or half-removed."""
        for path in self.checkpoints.glob(".step-*.writing"):
            shutil.rmtree(path, ignore_errors=True)

    def cut_metrics(self, step: int) -> list[dict[str, Any]]:
        """Drop the lines beyond a step, and one that was torn; returns those kept."""
        kept = read_metrics(self.metrics, step)
        if self.main and self.metrics.exists():
            lines = "".join(json.dumps(line, allow_nan=False) + "\n" for line in kept)
            temporary = self.metrics.with_name(f".{METRICS}.writing")
            with checkpoint_errors(self.out, self.last()):
                temporary.write_text(lines, encoding="utf-8")
                temporary.replace(self.metrics)
        self.barrier()
        return kept

    def release(self) -> None:
        """Let other processes have the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _take_lock(self) -> None:
        if not self.main or self._lock is not None or not (self.out / RECORD).is_file():
            return
        self._lock = lock_run(self.out / RECORD, "adapting")

    def _steps(self) -> list[Path]:
        if not self.checkpoints.is_dir():
            return []
        found = [
            (int(m[1]), p)
            for p in self.checkpoints.iterdir()
            if (m := NAME.fullmatch(p.name)) and (p / STATE).is_file()
        ]
        return [path for _, path in sorted(found)]

    def _refuse_other(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        plain = json.loads(json.dumps(new))
        for part, advice in (
            ("model", "give the model that the run began with"),
            ("text", "give the text that the run began with"),
            ("replay", "give the replay text that the run began with"),
            ("evaluation", "give the held-out text that the run began with"),
            ("config", "give the options that the run began with"),
            ("processes", "start as many processes as the run began with"),
        ):
            if old.get(part) != plain.get(part):
                differing = ""
                if part == "processes":
                    differing = f" (their number was {old.get(part)}, is {plain[part]})"
                if part == "config":
                    names = [key for key, value in plain[part].items() if old[part].get(key) != value]
                    if not names:
                        continue
                    differing = " (" + ", ".join(
                        f"{key} was {old[part].get(key)!r}, is {plain[part][key]!r}" for key in names
                    ) + ")"  # fmt: skip
                raise input_error(
                    f"output {self.out}", f"the checkpoint of another {part}{differing}", "one of this run",
                    f"{advice}, or start over by --force without --resume",
                )  # fmt: skip


def config_identity(config: Any) -> dict[str, Any]:
    """The options that decide what is computed."""
    return {name: value for name, value in config.to_json().items() if name not in FREE}


def read_metrics(path: Path, step: int | None = None) -> list[dict[str, Any]]:
    """Lines of ``metrics.jsonl`` up to a step; a torn last line is left out."""
    lines: list[dict[str, Any]] = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                break
            if step is not None and entry["step"] > step:
                break
            lines.append(entry)
    return lines


@contextlib.contextmanager
def checkpoint_errors(out: Path, last: Path | None) -> Iterator[None]:
    """Turn failures of the file system into errors that name the last checkpoint."""
    try:
        yield
    except SaltlmError:
        raise
    except Exception as error:
        code = os_error_code(error)
        safe = f"the last checkpoint, {last.name}, is safe" if last else "no checkpoint had been written"
        if code in FULL_DISK or "No space left" in str(error) or "file write failed" in str(error):
            raise input_error(
                f"output {out}", "a full disk", "room for a checkpoint", f"make room and go on by --resume: {safe}"
            ) from error
        if isinstance(error, OSError) or code is not None:
            raise BackendError(f"output {out}: writing failed ({error}); {safe}") from error
        raise
