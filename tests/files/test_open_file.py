"""The opening function: regular files within a size limit, no links that lead out of a folder, and it never waits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from strange_files import IN_FOLDER, SPECIAL, put, time_limit

from saltlm.errors import InputError, input_error, printable
from saltlm.files import output_folder
from saltlm.files.copy import copy_file
from saltlm.files.hashing import sampled_digest, sha256_file
from saltlm.files.json_files import parse_json, read_json, write_json_whole
from saltlm.files.open_file import FileKind, check_file, check_model_folder, check_tree, file_kind, open_file, read_file
from saltlm.files.output_folder import clear_leftovers, whole_folder
from saltlm.files.output_lock import locked_output, refuse_written

WORDS = {
    "pipe": r"a pipe \(FIFO\)",
    "socket": "a socket",
    "folder": "a folder",
    "zero": "a character device",
    "outside": "outside of the folder",
    "giant": r"1,099,511,627,776 bytes; expected at most",
    "dangling": "does not exist",
}


@pytest.mark.parametrize("kind", [kind for kind in SPECIAL if kind not in ("dangling", "loop")])
@pytest.mark.parametrize("read", [open_file, check_file, sha256_file, lambda path: read_file(path, FileKind.SETTINGS)])
def test_only_regular_files_are_opened(tmp_path: Path, kind: str, read) -> None:
    put(tmp_path / "file", kind)
    with time_limit(10), pytest.raises(InputError, match=WORDS[kind]) as caught:
        read(tmp_path / "file")
    assert str(tmp_path / "file") in str(caught.value)


@pytest.mark.parametrize("kind", ["dangling", "loop"])
def test_what_is_missing_is_an_os_error_as_from_open(tmp_path: Path, kind: str) -> None:
    put(tmp_path / "file", kind)
    with pytest.raises(OSError):
        open_file(tmp_path / "file")


def test_a_regular_file_and_a_link_to_one_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for name in ("file", "link"):
        assert read_file(tmp_path / name, FileKind.LOCK) == b"content"
        with open_file(tmp_path / name) as file:
            assert file.read() == b"content"


@pytest.mark.parametrize("kind", [kind for kind in FileKind if kind.limit is not None])
def test_every_kind_has_a_limit_that_a_sparse_file_cannot_pass(tmp_path: Path, kind: FileKind) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.truncate(kind.limit + 1)
    for read in (open_file, read_file, check_file):
        with time_limit(10), pytest.raises(InputError, match=f"expected at most {kind.limit:,} bytes"):
            read(tmp_path / "file", kind)


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(FileKind.LOCK.limit))
    assert len(read_file(tmp_path / "file", FileKind.LOCK)) == FileKind.LOCK.limit
    with pytest.raises(ValueError, match="needs a kind with a limit"):
        read_file(tmp_path / "file", FileKind.STREAM)
    with pytest.raises(InputError, match="a name that no file can have"):
        open_file("a\0b")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("config.json", FileKind.SETTINGS),
        ("model.safetensors.index.json", FileKind.INDEX),
        ("tokenizer.json", FileKind.TOKENIZER),
        ("tokenizer.model", FileKind.TOKENIZER),
        ("chat_template.jinja", FileKind.SETTINGS),
        ("LICENSE-2.0", FileKind.TERMS),
        ("modeling.py", FileKind.TERMS),
        ("model-00001-of-00002.safetensors", FileKind.STREAM),
        ("pytorch_model.bin", None),
        ("notes", None),
    ],
)
def test_the_name_tells_the_kind(name: str, kind: FileKind | None) -> None:
    assert file_kind(name) == kind


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "config.json", "LICENSE", "chat_template.jinja", "model.safetensors"]
)
@pytest.mark.parametrize("kind", IN_FOLDER)
def test_strange_files_in_a_model_folder_are_refused(tmp_path: Path, name: str, kind: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    put(folder / name, kind)
    if (name, kind) == ("model.safetensors", "giant"):  # its header is checked by its reader
        check_model_folder(folder, "source x")
        return
    words = WORDS["outside" if kind == "zero" else kind]  # the device is reached by a link
    with time_limit(10), pytest.raises(InputError, match=words) as caught:
        check_model_folder(folder, "source x")
    assert str(caught.value).startswith("source x, ") and name in str(caught.value)


def test_files_that_nothing_opens_may_be_anything_but_a_link_out_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    put(folder / "events", "pipe")
    put(folder / ".hidden.json", "zero")
    put(folder / "weights.h5", "giant")
    check_model_folder(folder, "x")
    put(folder / "weights.h5", "outside")
    with pytest.raises(InputError, match="outside of the folder"):
        check_model_folder(folder, "x")


def test_links_may_lead_inside_the_folder_and_to_the_blobs_of_the_hub_cache(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0123", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "abcd").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/abcd")
    (snapshot / "real.json").write_text("{}")
    (snapshot / "generation_config.json").symlink_to("real.json")
    check_model_folder(snapshot, "x")
    assert read_file(snapshot / "config.json", FileKind.SETTINGS, inside=snapshot) == b"{}"
    for other in (tmp_path / "blobs", tmp_path / "models--c--d" / "blobs"):
        other.mkdir(parents=True)
        (other / "abcd").write_text("{}")
        (snapshot / "config.json").unlink()
        (snapshot / "config.json").symlink_to(other / "abcd")
        with pytest.raises(InputError, match="outside of the folder"):
            check_model_folder(snapshot, "x")
        with pytest.raises(InputError, match="outside of the folder"):
            open_file(snapshot / "config.json", inside=snapshot)


def test_further_chat_templates_are_checked(tmp_path: Path) -> None:
    folder = tmp_path / "model" / "additional_chat_templates"
    folder.mkdir(parents=True)
    put(folder / "tool.jinja", "pipe")
    with time_limit(10), pytest.raises(InputError, match=WORDS["pipe"]):
        check_model_folder(folder.parent, "x")
    (folder / "tool.jinja").unlink()
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="outside of the folder"):
        check_model_folder(folder.parent, "x")


@pytest.mark.parametrize("kind", [kind for kind in IN_FOLDER if kind != "giant"])
def test_all_files_below_a_folder_are_checked(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "data" / "sub"
    folder.mkdir(parents=True)
    (folder / "good").write_text("x")
    check_tree(tmp_path / "data", "text x")
    if kind == "outside":
        (tmp_path / "secret").write_text("x")
        (folder / "bad").symlink_to(tmp_path / "secret")
    else:
        put(folder / "bad", kind)
    with time_limit(10), pytest.raises(InputError, match=r"text x, .*bad"):
        check_tree(tmp_path / "data", "text x")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read every file")
def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "config.json").chmod(0)
    with pytest.raises(InputError, match=r"config\.json: found Permission denied"):
        check_model_folder(tmp_path, "x")


def test_copies_and_digests_go_through_the_opening_function(tmp_path: Path) -> None:
    put(tmp_path / "pipe", "pipe")
    with time_limit(10):
        with pytest.raises(InputError, match="a pipe"):
            copy_file(tmp_path / "pipe", tmp_path / "copy")
        with pytest.raises(InputError, match="a pipe"):
            sampled_digest(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("text", "words"),
    [("[" * 200_000, "nested"), ("9" * 5000, "digits"), ("{", "Expecting"), ('"\ud800', "Unterminated|Invalid")],
    ids=["nesting", "digits", "cut", "surrogate"],
)
def test_every_broken_json_text_is_a_value_error(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_json(text)
    (tmp_path / "config.json").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(InputError, match="a broken file"):
        read_json(tmp_path / "config.json")


def test_a_record_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / ".run.json.writing").symlink_to(tmp_path / "precious")
    write_json_whole(tmp_path / "run.json", {"a": 1})
    assert (tmp_path / "precious").read_text() == "precious" and read_json(tmp_path / "run.json") == {"a": 1}


@pytest.mark.parametrize("kind", ["link", "hard link", "pipe", "socket", "folder", "dangling"])
def test_a_lock_file_of_another_kind_is_refused_and_its_target_stays(tmp_path: Path, kind: str) -> None:
    lock, precious = tmp_path / ".out.saltlm-lock", tmp_path / "precious"
    precious.write_text("precious")
    if kind == "link":
        lock.symlink_to(precious)
    elif kind == "hard link":
        lock.hardlink_to(precious)
    else:
        put(lock, kind)
    with time_limit(10), pytest.raises(InputError, match="expected a lock file that saltlm has written"):
        with locked_output(tmp_path / "out"):
            raise AssertionError
    if kind != "hard link":  # nothing is read from a second name that no process has locked
        with time_limit(10), pytest.raises(InputError, match="expected a lock file that saltlm has written"):
            refuse_written(tmp_path / "out")
    assert precious.read_text() == "precious" and os.path.lexists(lock) and not (tmp_path / "out").exists()


def test_a_stray_folder_of_the_name_of_an_old_output_is_left_alone(tmp_path: Path) -> None:
    stray = tmp_path / ".out.saltlm-1-00000000.old"
    stray.mkdir()
    (stray / "config.json").write_text("stray")
    for identity in (None, b"1 2", b"", b"x" * 10_000):
        if identity is not None:
            stray.with_name(stray.name + ".id").write_bytes(identity)
        clear_leftovers(tmp_path / "out")
        assert not (tmp_path / "out").exists() and (stray / "config.json").read_text() == "stray"
    put(stray.with_name(stray.name + ".id"), "pipe")
    with time_limit(10), whole_folder(tmp_path / "out") as folder:
        (folder / "new").write_text("")
    assert (tmp_path / "out" / "new").exists() and (stray / "config.json").read_text() == "stray"


def test_a_kill_between_two_renames_loses_nothing(tmp_path: Path, monkeypatch) -> None:
    """The file system cannot exchange folders, and the process ends after each step of the replacement in turn."""
    monkeypatch.setattr(output_folder, "_rename", lambda old, new, flags: False)
    rename, out, states = Path.rename, tmp_path / "out", []

    class Killed(BaseException):
        pass

    for steps in (0, 1, 2):
        out.mkdir()
        (out / "config.json").write_text("old")
        done = []

        def stop(path: Path, target: Path, done=done, steps=steps) -> Path:
            if len(done) == steps:
                raise Killed
            done.append(path)
            return rename(path, target)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", stop)
            # What a killed process leaves: the cleaning after an error does not run.
            patched.setattr(output_folder.shutil, "rmtree", lambda *_, **__: (_ for _ in ()).throw(Killed()))
            with pytest.raises(Killed), whole_folder(out, force=True) as folder:
                (folder / "config.json").write_text("new")
        monkeypatch.setattr(output_folder, "_is_running", lambda process: False)
        clear_leftovers(out)
        states.append((out / "config.json").read_text())
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
        output_folder.shutil.rmtree(out)
    assert states == ["old", "old", "new"]


def test_messages_escape_what_a_terminal_would_obey() -> None:
    message = str(input_error("a\x1b[31m", "b\x9b\x07", "c\u202e", "d\udcff\n"))
    assert message == "a\\x1b[31m: found b\\x9b\\x07; expected c\\u202e; d\\udcff\n"
    assert printable("käärme 語 \U0001f40d") == "käärme 語 \U0001f40d"
