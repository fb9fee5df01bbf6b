"""The command line: results on stdout, one error message and exit code 2 for bad input, no unfinished folder after a signal."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from models_tiny import save_bert, save_llama
from pairs import Pair
from safetensors.numpy import load_file, save_file
from tokenizers_tiny import tiny

from saltlm.cli.main import main
from saltlm.errors import InputError

TEXT = "Die Katze saß auf der Matte.\n\nkissa istui matolla kun muut kissat nukkuivat talossa\n"


def run(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "saltlm", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def refused(capsys, *arguments: object) -> str:
    """Run a command that must refuse its input; returns its message."""
    try:
        code = main([str(a) for a in arguments])
    except SystemExit as exit_:
        code = exit_.code
    out, err = capsys.readouterr()
    assert code == 2 and not out, err
    assert "Traceback" not in err
    return err


def copied(pair: Pair, root: Path) -> Pair:
    """Copy the inputs of a pair into a folder."""
    shutil.copytree(pair.source, root / "source")
    shutil.copytree(pair.target, root / "target")
    shutil.copy(pair.vectors, root / "v.vec")
    return Pair(root / "source", root / "target", root / "v.vec")


def test_transfer_evaluate_and_status_from_the_shell(pair, tmp_path) -> None:
    done = run(*pair.arguments(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "solved" in done.stdout and "neighbours" in done.stdout and "rows" in done.stderr
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    scored = run("evaluate", tmp_path / "out", "--text", tmp_path / "text.txt", "--json")
    result = json.loads(scored.stdout)
    assert result["bytes"] == sum(len(part.encode()) for part in TEXT.strip().split("\n\n"))
    assert 0 < result["bits_per_byte"] < 20 and 0 < result["tokens_per_byte"] <= 1.5
    strided = ["--json", "--max-length", 20, "--stride", 5, "--device", "cpu"]
    result = json.loads(run("evaluate", tmp_path / "out", "--text", tmp_path / "text.txt", *strided).stdout)
    assert (result["max_length"], result["stride"]) == (20, 5)
    assert json.loads(run("status", "--json").stdout)["operators"]["cpu"]["name"] in ("compiled", "reference")


def test_json_is_one_object_and_nothing_else(pair, tmp_path) -> None:
    done = run(*pair.arguments(tmp_path / "out", "--json", "--method", "salt"))
    summary = json.loads(done.stdout)
    assert summary["counts"]["copied"] > 0
    assert done.stderr.splitlines() == [f"note: {warning}" for warning in summary["warnings"]]


def test_quiet_leaves_nothing_but_warnings_on_stderr(pair, tmp_path) -> None:
    stderr = run(*pair.arguments(tmp_path / "out", "--quiet", "--method", "salt")).stderr
    warnings = json.loads((tmp_path / "out" / "saltlm.json").read_text())["warnings"]
    assert stderr.splitlines() == [f"note: {warning}" for warning in warnings]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stride", "0"], "stride"),
        (["--stride", "64", "--max-length", "64"], "from 1 to 63, less than the window"),
        (["--gguf-file", "none.gguf"], "no file 'none.gguf'"),
        (["--revision", "main", "--stride", "x"], "--stride"),
    ],
)
def test_evaluate_refuses_bad_windows_and_files(pair, tmp_path, capsys, words: list[str], message: str) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    assert message in refused(capsys, "evaluate", pair.source, "--text", tmp_path / "text.txt", *words)


def test_an_error_without_a_file_name_does_not_name_stdout(monkeypatch, capsys) -> None:
    def lose_connection(arguments) -> int:
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr("saltlm.cli.main.run_status", lose_connection)
    assert main(["status"]) == 1
    message = capsys.readouterr().err
    assert message == "saltlm: a connection: Connection reset by peer; fix this and run the command again\n"


@pytest.mark.parametrize(("form", "buffered"), [([], "1"), (["--json"], "")])
def test_a_stdout_that_cannot_be_written(form: list[str], buffered: str) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": buffered}
    command = [sys.executable, "-m", "saltlm", "status", *form]
    read, write = os.pipe()
    os.close(read)
    try:
        closed = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False, text=True, env=environment)
    finally:
        os.close(write)
    assert (closed.returncode, closed.stderr) == (0, ""), "a reader that has exited is not an error"
    with open("/dev/full", "w") as disk:
        full = subprocess.run(command, stdout=disk, stderr=subprocess.PIPE, check=False, text=True, env=environment)
    assert full.returncode == 1 and full.stderr.startswith("saltlm: standard output: No space left"), full.stderr
    assert full.stderr.count("\n") == 1, full.stderr


def test_a_closed_stdout_is_not_an_error() -> None:
    done = subprocess.run(["sh", "-c", 'exec "$0" -m saltlm status --json >&-', sys.executable], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


def test_an_interrupt_that_a_library_turns_into_an_error_exits_with_130(monkeypatch, capsys) -> None:
    def replace_interrupt(arguments: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except KeyboardInterrupt:
            raise InputError("import failed") from None

    monkeypatch.setattr("saltlm.cli.main.run_status", replace_interrupt)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    try:
        assert main(["status"]) == 130
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])
    assert "interrupted" in capsys.readouterr().err


SIGNALLED = """
import os, re, runpy, sys
expected, pattern, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
sent = False
def hook(event, arguments):
    global sent
    if not sent and event == expected and re.search(pattern, str(arguments[0])):
        sent = True
        os.kill(os.getpid(), number)
sys.addaudithook(hook)
sys.argv = ["saltlm", *sys.argv[4:]]
runpy.run_module("saltlm", run_name="__main__")
"""


def signalled(event: str, pattern: str, how: int, *words: object, **options) -> subprocess.CompletedProcess:
    """Run a command that sends itself a signal.

    Args:
        event: name of the audit event at which the signal is sent.
        pattern: regular expression that the first argument of the event must match.
        how: number of the signal.
        words: the command and its arguments.
        options: arguments of ``subprocess.run``.
    """
    command = [sys.executable, "-c", SIGNALLED, event, pattern, str(int(how)), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, **options)


@pytest.mark.parametrize(
    ("command", "module"), [("transfer", r"^torch\._C$"), ("evaluate", r"^torch\.nn$"), ("adapt", r"^torch\._C$")]
)
def test_an_interrupt_during_the_import_of_torch_writes_one_line(command: str, module: str, tmp_path) -> None:
    words = {
        "transfer": ["--source", "a", "--target", "b", "--auxiliary", "plm", "--out", "c"],
        "evaluate": ["a", "--text", "b"],
        "adapt": ["a", "--text", "b", "--out", "c"],
    }[command]
    done = signalled("import", module, signal.SIGINT, command, *words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (130, ""), done.stderr
    assert done.stderr == "saltlm: interrupted; nothing half-written was left behind\n"


def test_an_existing_model_needs_force(pair, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    shutil.copytree(pair.target, out)
    (out / "old.txt").write_text("a file of the old model")
    message = refused(capsys, *pair.arguments(out))
    assert "--force" in message and (out / "old.txt").is_file()
    assert main(pair.arguments(out, "--force", "--quiet")) == 0
    assert (out / "saltlm.json").is_file() and not (out / "old.txt").exists()


def test_force_does_not_replace_a_folder_that_is_not_a_model(pair, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("keep me")
    for more in ((), ("--force",)):
        refused(capsys, *pair.arguments(out, *more))
    assert (out / "precious.txt").read_text() == "keep me"


def test_usage_errors(pair, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    cases = {
        ("--method", "slat"): "did you mean 'salt'",
        ("--ridge", "-1"): "ridge",
        ("--ridge", "nan"): "finite",
        ("--max-support", "0"): ">= 1",
        ("--max-support", "many"): "invalid int",
        ("--overlap", "fuzzy"): "one of exact",
        ("--device", "tpu"): "auto, cpu or one of",
        ("--device", "cuda:99"): "CUDA devices",
        ("--special-overrides", "[NO]=<|end|>"): "no such token",
        ("--chat-template", "source"): "has none",
        ("--nonsense",): "unrecognized",
    }
    for more, words in cases.items():
        assert words in refused(capsys, *pair.arguments(out, *more)), more
    assert "a folder to write" in refused(capsys, *[a for a in pair.arguments(out) if a not in ("--out", str(out))])
    assert not out.exists() and not list(tmp_path.iterdir())


def test_missing_inputs(pair, tmp_path, capsys) -> None:
    for side in ("source", "target", "auxiliary"):
        for name in (str(tmp_path / "nowhere"), "x" * 300, ""):
            arguments = pair.arguments(tmp_path / "out", "--method", "salt")
            arguments[arguments.index(f"--{side}") + 1] = name
            assert (name or f"{side}: found an empty name") in refused(capsys, *arguments)
    assert "x" * 300 in refused(capsys, *pair.arguments(tmp_path / "out", "--gguf-file", "x" * 300))
    assert "empty" in refused(capsys, *pair.arguments("", "--force"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["nowhere/at/all", "x" * 300, ""])
def test_a_missing_model_to_evaluate(name: str, tmp_path, capsys) -> None:
    (tmp_path / "t.txt").write_text(TEXT)
    assert name in refused(capsys, "evaluate", name, "--text", tmp_path / "t.txt")


@pytest.mark.parametrize("report", ["[]", "{", '{"heldout": 3}', '{"heldout": {"rank": 1}}'])
def test_a_broken_report_is_refused_before_the_scoring(report: str, pair, tmp_path, capsys) -> None:
    folder = shutil.copytree(pair.source, tmp_path / "m")
    (folder / "saltlm.json").write_text(report)
    (tmp_path / "t.txt").write_text(TEXT)
    (folder / "model.safetensors").unlink()  # loading the model would fail with another message
    assert "saltlm.json" in refused(capsys, "evaluate", folder, "--text", tmp_path / "t.txt")


def test_names_with_markup_are_printed_unchanged(pair, tmp_path, capsys) -> None:
    (tmp_path / "t.txt").write_text(TEXT)
    folder = shutil.copytree(pair.source, tmp_path / "a[" / "bold]b[" / "x]long-long-name")
    assert main(["evaluate", str(folder), "--text", str(tmp_path / "t.txt"), "--quiet"]) == 0
    cells = [line.split("│")[1] for line in capsys.readouterr().out.splitlines() if line.count("│") > 3]
    assert str(folder) in "".join(cell.strip() for cell in cells)
    out = tmp_path / ("long" * 30)
    assert main(pair.arguments(out, "--quiet", "--method", "zero")) == 0
    assert f"written to {out}\n" in capsys.readouterr().out


def truncate_weights(case: Pair) -> None:
    path = case.source / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def truncate_vectors(case: Pair) -> None:
    lines = case.vectors.read_text().splitlines()
    case.vectors.write_text("\n".join(lines[:-3]) + "\n")


def break_tokenizer(case: Pair) -> None:
    path = case.target / "tokenizer.json"
    path.write_text(path.read_text()[:500])


def drop_config(case: Pair) -> None:
    (case.source / "config.json").unlink()


def plant(value: float):
    """A function that writes a value into row 7 of the embedding matrix."""

    def change(case: Pair) -> None:
        path = case.source / "model.safetensors"
        tensors = load_file(path)
        tensors["model.embed_tokens.weight"][7, 3] = value
        save_file(tensors, path, metadata={"format": "pt"})

    return change


def pickle_weights(case: Pair) -> None:
    (case.source / "model.safetensors").rename(case.source / "pytorch_model.bin")


def cut_matrix(case: Pair) -> None:
    path = case.target / "model.safetensors"
    tensors = load_file(path)
    name = "embeddings.word_embeddings.weight"
    tensors[name] = tensors[name][:50].copy()
    save_file(tensors, path, metadata={"format": "pt"})


def other_script(case: Pair) -> None:
    words = [chr(0x4E00 + i) for i in range(40)]
    lines = [f"{word} 1 2 {i}" for i, word in enumerate(words)]
    case.vectors.write_text(f"{len(lines)} 3\n" + "\n".join(lines) + "\n", encoding="utf-8")


def remote_code(case: Pair) -> None:
    path = case.source / "config.json"
    config = json.loads(path.read_text())
    config["model_type"] = "unheard_of"
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Evil", "AutoConfig": "evil.EvilConfig"}
    path.write_text(json.dumps(config))
    (case.source / "evil.py").write_text("raise SystemExit('remote code ran')\n")


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (truncate_weights, ["model.safetensors", "truncated"]),
        (truncate_vectors, ["v.vec", "truncated"]),
        (break_tokenizer, ["tokenizer"]),
        (drop_config, ["config.json"]),
        (plant(np.nan), ["model.embed_tokens.weight", "NaN", "rows 7"]),
        (plant(np.inf), ["model.embed_tokens.weight", "inf", "rows 7"]),
        (pickle_weights, ["pytorch_model.bin", "safetensors"]),
        (cut_matrix, ["[50, 32]", "config.json"]),
        (other_script, ["a vector for none"]),
        (remote_code, ["trust-remote-code"]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_broken_inputs_are_named_and_nothing_is_written(pair, tmp_path, capsys, break_it, words: list[str]) -> None:
    case = copied(pair, tmp_path)
    break_it(case)
    before = sorted(path.name for path in tmp_path.iterdir())
    message = refused(capsys, *case.arguments(tmp_path / "out", "--method", "salt"))
    assert all(word in message for word in words), message
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_an_encoder_is_refused_as_source(pair, tmp_path, capsys) -> None:
    arguments = pair.arguments(tmp_path / "out")
    arguments[arguments.index("--source") + 1] = str(pair.target)
    assert "causal" in refused(capsys, *arguments)


def test_an_output_in_an_input_folder_is_refused(pair, capsys) -> None:
    before = sorted(path.name for path in pair.source.iterdir())
    refused(capsys, *pair.arguments(pair.source, "--force"))
    refused(capsys, *pair.arguments(pair.source / "inner", "--force"))
    assert sorted(path.name for path in pair.source.iterdir()) == before


@pytest.fixture(scope="module")
def heavy(tmp_path_factory) -> Pair:
    """A pair whose source is larger than the small disk of the test below."""
    root = tmp_path_factory.mktemp("heavy")
    save_llama(root / "source", tiny("byte_level_bpe"), width=2048)
    save_bert(root / "target", tiny("sentencepiece_unigram"))
    from pairs import write_vectors

    write_vectors(root / "v.vec", tiny("sentencepiece_unigram"))
    return Pair(root / "source", root / "target", root / "v.vec")


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_run_leaves_no_unfinished_output(heavy: Pair, tmp_path, how: int) -> None:
    out = tmp_path / "out"
    done = signalled("open", r"/\.out\.saltlm-[^/]+/model\.safetensors", how, *heavy.arguments(out, "--quiet"))
    remaining = names_in(tmp_path)
    if how == signal.SIGKILL:
        assert done.returncode == -how and len(remaining) == 1 and remaining[0].startswith(".out.saltlm-")
    else:
        assert done.returncode == 130 and remaining == []
    subprocess.run([sys.executable, "-m", "saltlm", *heavy.arguments(out, "--quiet")], check=True)
    assert names_in(tmp_path) == ["out"], "the next run removes the temporary folder of the killed run"
    assert (out / "saltlm.json").is_file()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to mount a small file system")
def test_a_full_disk_is_reported_and_nothing_is_left(heavy: Pair, tmp_path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=False).returncode:
        pytest.skip("mount is not allowed here")
    try:
        done = run(*heavy.arguments(disk / "out", "--quiet"))
        assert done.returncode == 2 and "space" in done.stderr and "Traceback" not in done.stderr
        assert names_in(disk) == []
    finally:
        subprocess.run(["umount", disk], check=True)
