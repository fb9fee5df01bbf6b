"""An output folder appears complete or not at all, whatever stops its writer, and leftovers are removed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from saltlm.errors import BackendError, InputError
from saltlm.files import output_folder
from saltlm.files.output_folder import check_output, clear_leftovers, whole_folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fill(folder: Path, text: str = "new") -> None:
    (folder / "config.json").write_text(text)
    (folder / "more").mkdir()
    (folder / "more" / "file").write_text(text)


def test_the_folder_appears_when_the_block_ends(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "er" / "out"
    with whole_folder(out) as folder:
        fill(folder)
        assert not out.exists()
    assert names(out) == ["config.json", "more"]
    assert names(out.parent) == ["out"]


def test_files_have_the_usual_permissions(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with whole_folder(tmp_path / "out") as folder:
            fill(folder)
            (folder / "config.json").chmod(0o600)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").rglob("*") if path.is_file()} == {0o640}


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError("mine"), SystemExit(3)])
def test_an_error_leaves_nothing_not_even_new_parents(tmp_path: Path, error) -> None:
    with pytest.raises(error if isinstance(error, type) else type(error)), whole_folder(tmp_path / "a" / "b") as folder:
        fill(folder)
        raise error
    assert names(tmp_path) == []


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
def test_force_replaces_the_old_folder(tmp_path: Path, monkeypatch, exchange: bool) -> None:
    if not exchange:
        monkeypatch.setattr(output_folder, "_rename", lambda old, new, flags: False)
    out = tmp_path / "out"
    out.mkdir()
    fill(out, "old")
    with whole_folder(out, force=True) as folder:
        fill(folder)
        assert (out / "config.json").read_text() == "old"
    assert (out / "config.json").read_text() == "new"
    assert names(tmp_path) == ["out"]


def test_an_error_under_force_keeps_the_old_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    fill(out, "old")
    with pytest.raises(ValueError), whole_folder(out, force=True):
        raise ValueError
    assert (out / "config.json").read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_a_folder_made_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match="created meanwhile"), whole_folder(out) as folder:
        fill(folder)
        out.mkdir()
        (out / "theirs").write_text("x")
    assert names(tmp_path) == ["out"] and names(out) == ["theirs"]


@pytest.mark.parametrize(
    ("out", "protected", "message"),
    [
        ("model", "model", "that it is the input folder"),
        ("model/out", "model", "that it lies in the input folder"),
        (".", "model", "that it holds the input folder"),
        ("link/out", "model", "that it lies in the input folder"),
    ],
)
def test_input_folders_are_out_of_bounds(tmp_path: Path, out: str, protected: str, message: str) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "model")
    with pytest.raises(InputError, match=message):
        check_output(tmp_path / out, protected=[tmp_path / protected], force=True)


def test_what_may_be_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert check_output(out) == out.resolve()
    out.mkdir()
    with pytest.raises(InputError, match="--force"):
        check_output(out)
    assert check_output(out, force=True) == out
    (out / "thesis.doc").write_text("years of work")
    with pytest.raises(InputError, match="holds no model"):
        check_output(out, force=True)
    (out / "config.json").write_text("{}")  # of another kind of project
    with pytest.raises(InputError, match="holds no model"):
        check_output(out, force=True)
    (out / "model.safetensors").touch()
    assert check_output(out, force=True) == out
    (out / "model.safetensors").rename(out / "saltlm.json")
    assert check_output(out, force=True) == out
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="a file of that name"):
        check_output(tmp_path / "file", force=True)


def test_a_full_disk_is_an_error_before_writing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no space left.*about 1000000000\.00 GB"):
        with whole_folder(tmp_path / "out", needed=10**18):
            raise AssertionError
    assert names(tmp_path) == []


@pytest.mark.parametrize("text", ["I/O error: No space left on device (os error 28)", "(os error 122)"])
def test_full_disks_are_recognised_in_the_messages_of_rust_libraries(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="disk"), whole_folder(tmp_path / "out"):
        raise Exception(text)
    assert names(tmp_path) == []


def test_other_failures_of_the_system_are_backend_errors(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="nothing was written"), whole_folder(tmp_path / "out"):
        raise OSError(5, "Input/output error")
    assert names(tmp_path) == []


def test_a_parent_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError), whole_folder(tmp_path / "file" / "out"):
        raise AssertionError


def test_too_long_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="too long"), whole_folder(tmp_path / ("x" * 250)):
        raise AssertionError


HOLD = """
import signal, sys
from pathlib import Path
from saltlm.files.output_folder import whole_folder
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell inherits that SIGINT is ignored
with whole_folder(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("half")
    print(folder.name, flush=True)
    signal.pause()
"""


def hold(out: Path) -> tuple[subprocess.Popen, str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE, text=True, env=environment
    )
    return process, process.stdout.readline().strip()


def test_only_leftovers_of_ended_processes_are_removed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process, name = hold(out)
    try:
        others = [".other.saltlm-1-00000000", ".out.saltlm-note", "out.saltlm-1-00000000"]
        for other in others:
            (tmp_path / other).mkdir()
        assert name in names(tmp_path) and f"-{process.pid}-" in name
        assert clear_leftovers(out) == []
        assert name in names(tmp_path), "its writer still runs"
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert name in names(tmp_path) and not out.exists()
        with whole_folder(out) as folder:
            fill(folder)
        assert names(tmp_path) == sorted([*others, "out"])
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_ctrl_c_cleans_up(tmp_path: Path) -> None:
    process, name = hold(tmp_path / "sub" / "out")
    assert names(tmp_path / "sub") == [name]
    process.send_signal(signal.SIGINT)
    process.wait(timeout=60)
    process.stdout.close()
    assert names(tmp_path) == []


def test_without_locks_the_process_id_decides(tmp_path: Path, monkeypatch) -> None:
    def refuse(*arguments) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(output_folder.fcntl, "flock", refuse)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    running, ended = f".out.saltlm-{os.getpid()}-00000000", f".out.saltlm-{dead.pid}-00000000"
    (tmp_path / running).mkdir()
    (tmp_path / ended).mkdir()
    with whole_folder(tmp_path / "out") as folder:
        fill(folder)
    assert names(tmp_path) == [running, "out"]


def test_an_old_folder_set_aside_by_a_killed_run_is_restored(tmp_path: Path) -> None:
    out, aside = tmp_path / "out", tmp_path / ".out.saltlm-1-00000000.old"
    identity = aside.with_name(aside.name + ".id")
    aside.mkdir()
    identity.write_text(f"{aside.stat().st_dev} {aside.stat().st_ino}")
    fill(aside, "old")
    clear_leftovers(out)
    assert (out / "config.json").read_text() == "old" and names(tmp_path) == ["out"]
    aside.mkdir()
    identity.write_text(f"{aside.stat().st_dev} {aside.stat().st_ino}")
    clear_leftovers(out)
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("moment", ["open", "fcntl.flock"])
def test_a_new_temporary_folder_may_be_removed_as_a_leftover_before_it_is_locked(tmp_path: Path, moment: str) -> None:
    """Another process that clears leftovers can remove it between mkdir and flock; the writer then takes another name."""
    removed = []
    state = {"active": True}

    def hook(event: str, arguments: tuple) -> None:  # An audit hook stays until the process ends.
        if not state["active"] or event != moment:
            return
        state["active"] = False  # The calls below raise events, too.
        removed.extend(path for path in tmp_path.iterdir() if path.name.startswith(".out.saltlm-"))
        for path in removed:
            path.rmdir()
        state["active"] = not removed

    sys.addaudithook(hook)
    try:
        with whole_folder(tmp_path / "out") as folder:
            fill(folder)
    finally:
        state["active"] = False
    assert names(tmp_path) == ["out"]
    assert len(removed) == 1


def test_many_writers_of_one_folder_leave_one_whole(tmp_path: Path) -> None:
    """Threads instead of processes: a lock belongs to an open file, and each writer opens its own."""
    out, errors = tmp_path / "out", []
    together = threading.Barrier(12, timeout=60)

    def write(text: str) -> None:
        try:
            with whole_folder(out, force=True) as folder:
                fill(folder, text)
                together.wait()  # all have written before the first one leaves the block
        except (InputError, BackendError) as error:
            errors.append(error)

    writers = [threading.Thread(target=write, args=(str(number),)) for number in range(12)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert names(tmp_path) == ["out"]
    assert (out / "config.json").read_text() == (out / "more" / "file").read_text()
    assert len(errors) < len(writers)
