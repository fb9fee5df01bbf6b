"""The folder of a run: what the run is, its metrics, and its checkpoints, each of which is written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..errors import BackendError, SaltlmError, input_error
from ..files.file_errors import FULL_DISK, os_error_code
from ..files.json_files import read_json, write_json_whole
from ..files.open_file import FileKind, read_file
from ..files.output_folder import check_output, sync_path
from ..files.output_lock import lock_run
from .config import AdaptConfig
from .manifest import STATE, checkpoint_fault, write_manifest

RECORD, METRICS, CHECKPOINTS = "run.json", "metrics.jsonl", "checkpoints"
_LOGGER = logging.getLogger("saltlm")
_CHECKPOINT = re.compile(r"step-(\d+)")
# Options that may differ when a run is resumed, because they change no result. A different loss_chunk changes the last bits of
# the loss, but a run that ran out of memory must be able to lower it.
MAY_CHANGE = ("save_steps", "keep_checkpoints", "force", "dtype", "loss_chunk")
# The parts of a run's identity, and what to do where a part differs.
_IDENTITY_ADVICE = {
    "model": "give the model that the run began with",
    "text": "give the text that the run began with",
    "replay": "give the replay text that the run began with",
    "evaluation": "give the held-out text that the run began with",
    "config": "give the options that the run began with",
    "processes": "start as many processes as the run began with",
}


class CheckpointFolder(Protocol):
    """What the training needs of a folder of checkpoints."""

    @property
    def checkpoints(self) -> Path:
        """The folder that holds the checkpoints."""
        ...

    def last(self) -> Path | None:
        """The newest checkpoint."""
        ...

    def save(
        self, step: int, state: Mapping[str, Any], write: Callable[[Path], Path], *, keep: int, best: int | None
    ) -> Any:
        """Write a checkpoint; see :meth:`RunFolder.save`."""
        ...


class RunFolder:
    """The output folder while a run trains: ``run.json``, ``metrics.jsonl`` and ``checkpoints/step-N``.

    Attributes:
        out: the folder.
        main: whether this process writes.
        checkpoints: the folder of the checkpoints.
        metrics: the file of the metrics.
        warnings: sentences on damaged checkpoints that were passed over.
    """

    def __init__(self, out: Path, *, main: bool, barrier: Callable[[], None]) -> None:
        """Name the folder; nothing is read or written yet.

        Args:
            out: the output folder.
            main: whether this process writes.
            barrier: waits until all processes have called it.
        """
        self.out, self.main, self.barrier = Path(out), main, barrier
        self.checkpoints = self.out / CHECKPOINTS
        self.metrics = self.out / METRICS
        self.warnings: list[str] = []
        self._lock: int | None = None  # file descriptor
        self._replaces = False  # whether the folder existed at check()

    def check(self, *, resume: bool, force: bool, protected: Sequence[Path]) -> None:
        """Refuse an output path that must not be written, before any work is done.

        Args:
            resume: whether a run in the folder is to be resumed.
            force: whether an existing folder may be replaced.
            protected: input folders.

        Raises:
            InputError: the folder exists and is neither resumed nor replaced, or it overlaps an input folder.
        """
        self._replaces = self.out.is_dir()
        is_run = (self.out / RECORD).is_file()
        if resume and self._replaces and not is_run:  # a run that was killed before its record was whole
            is_run = {path.name for path in self.out.iterdir()} <= {f".{RECORD}.writing"}
        if not is_run:
            check_output(self.out, protected=list(protected), force=force)
            return
        if not (resume or force):
            raise input_error(
                f"output {self.out}",
                "an adaptation",
                "a new folder",
                "go on with it by --resume, or start over by --force",
            )
        for folder in protected:
            other, out = folder.resolve(), self.out.resolve()
            if out == other or out in other.parents or other in out.parents:
                raise input_error(
                    f"output {self.out}", f"the input folder {other} in its way", "a folder apart", "choose one"
                )

    def find(self, identity: Mapping[str, Any]) -> Path | None:
        """The checkpoint to resume from; ``None`` to start at the beginning.

        Args:
            identity: what the run is, as plain JSON values.

        Raises:
            InputError: the run in the folder has another identity, or it has checkpoints and none of them is whole.
        """
        record = self.out / RECORD
        if not record.is_file():
            return None
        try:
            old = dict(read_json(record)["identity"])
        except (ValueError, KeyError, TypeError) as error:
            raise input_error(
                f"output {self.out}",
                f"a {RECORD} that is no record of an adaptation",
                "the folder of a run to go on with",
                "choose another folder, or start over by --force without --resume",
            ) from error
        self._refuse_other(old, identity)
        return self._newest_undamaged(early_stop=dict(identity["config"]).get("early_stop") is not None)

    def _newest_undamaged(self, *, early_stop: bool) -> Path | None:
        """The newest checkpoint that agrees with its manifest.

        Args:
            early_stop: whether the run may write the weights of its best checkpoint, which must be whole then, too.

        Raises:
            InputError: there are checkpoints, and none of them can be used.
        """
        found: list[str] = []
        for step, checkpoint in reversed(self._by_step()):
            fault = checkpoint_fault(checkpoint, step) or (self._best_fault(checkpoint, step) if early_stop else None)
            if fault is None:
                if found:
                    self.warnings.append(
                        f"damaged checkpoints are passed over, {checkpoint.name} is used: {'; '.join(found)}"
                    )
                    _LOGGER.warning("%s", self.warnings[-1])
                return checkpoint
            found.append(f"{checkpoint.name} has {fault}")
        if found:
            raise input_error(
                f"output {self.out}",
                f"no checkpoint that is whole: {'; '.join(found)}",
                "a checkpoint with all files of its manifest",
                "restore these files, or start over by --force without --resume",
            )
        return None

    def _best_fault(self, checkpoint: Path, step: int) -> str | None:
        """Why the checkpoint whose weights early stopping would write cannot be used; ``None`` if it can."""
        best = self.state(checkpoint).get("best_step")
        path = self.checkpoints / f"step-{best}"
        if best is None or best == step:
            return None
        fault = checkpoint_fault(path, best)
        return None if fault is None else f"a damaged best checkpoint ({path.name} has {fault})"

    def start(self, identity: Mapping[str, Any], checkpoint: Path | None) -> None:
        """Create the folder, or take over the one that holds the checkpoint; lock it against other processes.

        Args:
            identity: what the run is, as plain JSON values.
            checkpoint: where the run resumes; ``None`` for a new run.

        Raises:
            InputError: another process writes into the folder, or it cannot be written.
        """
        self._take_lock()
        if self.main and checkpoint is None:
            with checkpoint_errors(self.out, None):
                self._remove_old()
                # The record is written first, so that the folder can be resumed whenever this run is killed.
                self.out.resolve().mkdir(parents=True, exist_ok=True)
                write_json_whole(self.out / RECORD, {"format": 1, "identity": identity, "finished": False})
                self.checkpoints.mkdir()
            self.release()
            self._take_lock()
        elif self.main:
            self.clear()
            # Later checkpoints are damaged; they would count as the newest ones when old ones are removed.
            for step, path in self._by_step():
                if checkpoint is not None and step > self.state(checkpoint)["step"]:
                    self._remove(path)
        self.barrier()

    def _remove_old(self) -> None:
        """Remove the folder that the run replaces; rename it first, so that a kill leaves no half of it at the output path."""
        if not self.out.is_dir():
            return
        if not self._replaces:
            raise input_error(f"output {self.out}", "a folder made meanwhile", "a new one", "choose another name")
        out = self.out.resolve()
        removed = out.with_name(f".{out.name}.saltlm-{os.getpid()}-{secrets.token_hex(4)}")
        out.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)

    def last(self) -> Path | None:
        """The newest whole checkpoint; ``None`` if there is none."""
        checkpoints = self._whole_checkpoints()
        return checkpoints[-1] if checkpoints else None

    def state(self, checkpoint: Path) -> dict[str, Any]:
        """The ``state`` that :meth:`save` was given with a checkpoint."""
        return read_json(checkpoint / STATE)

    @property
    def finished(self) -> bool:
        """Whether the folder holds the final model."""
        record = self.out / RECORD
        return record.is_file() and bool(read_json(record).get("finished"))

    def save(
        self, step: int, state: Mapping[str, Any], write: Callable[[Path], Path], *, keep: int, best: int | None
    ) -> Path:
        """Write a checkpoint, whole or not at all. All processes must call this together.

        Args:
            step: number of finished steps.
            state: plain JSON values, which :meth:`state` returns.
            write: writes into the folder that it is given and returns the folder within it that becomes the checkpoint;
                called in every process.
            keep: number of newest checkpoints to keep, in [1, inf).
            best: step of a checkpoint to keep in addition; ``None`` for no such checkpoint.

        Returns:
            The checkpoint's folder.

        Raises:
            InputError: the disk is full; the earlier checkpoints are unchanged.
            BackendError: another failure of the file system.
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
                    write_manifest(written, step)
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
            for old in self._whole_checkpoints()[:-keep]:
                if old.name != f"step-{best}":
                    self._remove(old)
        self.barrier()
        return final

    def _remove(self, checkpoint: Path) -> None:
        """Remove a checkpoint; rename it first, because a folder that is half removed must not look like a checkpoint."""
        removed = checkpoint.with_name(f".{checkpoint.name}.writing")
        checkpoint.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)

    def clear(self) -> None:
        """Remove checkpoints that a killed run left half-written or half-removed."""
        for path in self.checkpoints.glob(".step-*.writing"):
            shutil.rmtree(path, ignore_errors=True)

    def cut_metrics(self, step: int) -> list[dict[str, Any]]:
        """Remove the lines of metrics.jsonl after a step, and a last line that was not written whole.

        Args:
            step: the last step to keep; -1 removes all lines.

        Returns:
            The lines that are kept.

        Raises:
            InputError: the disk is full.
            BackendError: another failure of the file system.
        """
        kept = read_metrics(self.metrics, step)
        if self.main and self.metrics.exists():
            lines = "".join(json.dumps(line, allow_nan=False) + "\n" for line in kept)
            temporary = self.metrics.with_name(f".{METRICS}.writing")
            with checkpoint_errors(self.out, self.last()):
                temporary.unlink(missing_ok=True)
                with temporary.open("x", encoding="utf-8") as file:  # not through a link that stands at this name
                    file.write(lines)
                temporary.replace(self.metrics)
        self.barrier()
        return kept

    def release(self) -> None:
        """Release the lock of the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _take_lock(self) -> None:
        if not self.main or self._lock is not None or not (self.out / RECORD).is_file():
            return
        self._lock = lock_run(self.out / RECORD, "adapting")

    def _whole_checkpoints(self) -> list[Path]:
        """Folders of the checkpoints that were written whole, by step; damage after that is not noticed here."""
        return [path for _, path in self._by_step() if (path / STATE).is_file()]

    def _by_step(self) -> list[tuple[int, Path]]:
        """Step and folder of each checkpoint, whole or damaged, by step."""
        if not self.checkpoints.is_dir():
            return []
        named = ((_CHECKPOINT.fullmatch(path.name), path) for path in self.checkpoints.iterdir())
        return sorted((int(match[1]), path) for match, path in named if match)

    def _refuse_other(self, old: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
        """Raise InputError if two identities differ; options that a later version has added do not count."""
        new = json.loads(json.dumps(identity))
        for part, advice in _IDENTITY_ADVICE.items():
            if old.get(part) == new.get(part):
                continue
            difference = ""
            if part == "processes":
                difference = f" (their number was {old.get(part)}, is {new[part]})"
            if part == "config":
                values = {key: (old[part].get(key), value) for key, value in new[part].items()}
                changes = [f"{key} was {was!r}, is {value!r}" for key, (was, value) in values.items() if was != value]
                if not changes:
                    continue
                difference = f" ({', '.join(changes)})"
            raise input_error(
                f"output {self.out}",
                f"the checkpoint of another {part}{difference}",
                "one of this run",
                f"{advice}, or start over by --force without --resume",
            )


def config_identity(config: AdaptConfig) -> dict[str, Any]:
    """The options that change the result of a run, as plain JSON values."""
    return {name: value for name, value in config.to_json().items() if name not in MAY_CHANGE}


def read_metrics(path: Path, step: int | None = None) -> list[dict[str, Any]]:
    """Read metrics.jsonl.

    Args:
        path: the file; it may be missing.
        step: the last step to read; ``None`` reads all.

    Returns:
        One dictionary per line, without lines from the first one on that was not written whole.
    """
    lines: list[dict[str, Any]] = []
    if path.is_file():
        for line in read_file(path, FileKind.TEXT).decode(errors="replace").splitlines():
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
    """Turn failures of the file system inside the ``with`` block into errors that name the last checkpoint.

    Args:
        out: the output folder, for the message.
        last: the last checkpoint; ``None`` if there is none.

    Raises:
        InputError: the disk is full. Libraries report that as an OSError or as text.
        BackendError: another failure of the file system.
    """
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
