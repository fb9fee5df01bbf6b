"""Every argument that names a file, with every kind of thing that is no file: one message, exit code 2, nothing written."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from models_tiny import save_bert, save_llama
from pairs import Pair
from strange_files import IN_FOLDER, SPECIAL, put, time_limit, tree
from test_cli import copied, refused
from tokenizers_tiny import tiny

from saltlm.cli.main import main

SECONDS = 60
TEXT = "".join(f"kissa {number} istuu matolla kun muut kissat nukkuivat talossa\n\n" for number in range(40))

TRANSFER = ("transfer", "--source", "source", "--target", "target", "--out", "out")
ADAPT = ("adapt", "source", "--text", "text.txt", "--out", "out", "--steps", "1", "--heldout", "0.5")
COMPARE = (
    *("compare", "--source", "source", "--target", "target", "--methods", "mean"),
    *("--text", "text.txt", "--out", "out", "--heldout", "0.5"),
)
WECHSEL = (
    *TRANSFER,
    "--method",
    "wechsel",
    "--auxiliary",
    "v.vec",
    "--source-auxiliary",
    "v.vec",
    "--dictionary",
    "d.txt",
)

# Name of a file argument -> the command with BAD in its place.
ARGUMENTS = {
    "transfer source": ("transfer", "--source", "BAD", "--target", "target", "--out", "out"),
    "transfer target": ("transfer", "--source", "source", "--target", "BAD", "--out", "out"),
    "transfer auxiliary": (*TRANSFER, "--method", "salt", "--auxiliary", "BAD"),
    "transfer train": (*TRANSFER, "--method", "salt", "--auxiliary", "train:text.txt,BAD"),
    "transfer ofa": (*TRANSFER, "--method", "ofa", "--auxiliary", "BAD"),
    "transfer source auxiliary": tuple("BAD" if i == 12 else word for i, word in enumerate(WECHSEL)),
    "transfer dictionary": tuple("BAD" if word == "d.txt" else word for word in WECHSEL),
    "transfer tune text": (*TRANSFER, "--tune-text", "BAD"),
    "transfer unigram text": (*TRANSFER, "--unigram-shift", "1", "--unigram-text", "BAD"),
    "transfer gguf": (*TRANSFER, "--gguf-file", "BAD"),
    "evaluate model": ("evaluate", "BAD", "--text", "text.txt"),
    "evaluate text": ("evaluate", "source", "--text", "text.txt", "BAD"),
    "evaluate retention": ("evaluate", "source", "--text", "text.txt", "--retention", "BAD"),
    "adapt model": ("adapt", "BAD", "--text", "text.txt", "--out", "out"),
    "adapt text": (*ADAPT[:2], "--text", "BAD", *ADAPT[4:]),
    "adapt eval text": (*ADAPT, "--eval-text", "BAD"),
    "adapt source eval text": (*ADAPT, "--source-eval-text", "BAD"),
    "adapt replay": (*ADAPT, "--replay", "BAD:0.1"),
    "compare source": tuple("BAD" if word == "source" else word for word in COMPARE),
    "compare text": tuple("BAD" if word == "text.txt" else word for word in COMPARE),
    "compare eval text": (*COMPARE, "--eval-text", "BAD"),
    "batch jobs": ("batch", "BAD"),
    "align source": ("align", "BAD", "target"),
    "align target": ("align", "source", "BAD"),
    "inspect folder": ("inspect", "BAD"),
}


@pytest.fixture
def inputs(pair: Pair, tmp_path: Path, monkeypatch) -> Path:
    """Good inputs of every kind in the current folder."""
    copied(pair, tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "d.txt").write_text("cat\tkissa\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SALTLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("argument", ARGUMENTS)
def test_what_is_no_file_is_refused(inputs: Path, capsys, argument: str, kind: str) -> None:
    bad = inputs / ("source/bad.gguf" if argument == "transfer gguf" else "bad")
    put(bad, kind)
    before = tree(inputs)
    words = [
        word.replace("BAD", "bad.gguf" if argument == "transfer gguf" else "./bad") for word in ARGUMENTS[argument]
    ]
    with time_limit(SECONDS):
        message = refused(capsys, *words)
    errors = [line for line in message.splitlines() if line.startswith("saltlm: ")]
    assert len(errors) == 1 and "bad" in errors[0], message
    assert "expected" in errors[0] or "fault" in errors[0], message
    assert tree(inputs) == before


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
@pytest.mark.parametrize("kind", IN_FOLDER)
@pytest.mark.parametrize("side", ["source", "target"])
def test_strange_files_in_a_model_folder(inputs: Path, capsys, side: str, kind: str, name: str) -> None:
    put(inputs / side / name, kind)
    before = tree(inputs)
    commands = [TRANSFER, ("align", side, side), COMPARE]
    if side == "source":
        commands += [("evaluate", "source", "--text", "text.txt"), ADAPT]
    for words in commands:
        if words[0] == "align" and (name, kind) == ("model.safetensors", "giant"):
            continue  # a comparison of tokenizers does not open the weights
        with time_limit(SECONDS):
            message = refused(capsys, *words)
        errors = [line for line in message.splitlines() if line.startswith("saltlm: ")]
        assert len(errors) == 1 and name in errors[0] and "expected" in errors[0], (words, message)
        assert tree(inputs) == before, words


@pytest.mark.parametrize(
    "name", ["LICENSE", "NOTICE.txt", "README.md", "generation_config.json", "chat_template.jinja", "vocab.x"]
)
@pytest.mark.parametrize("kind", ["outside", "giant"])
def test_files_that_are_copied_or_read_beside_the_weights(inputs: Path, capsys, kind: str, name: str) -> None:
    put(inputs / "source" / name, kind)
    before = tree(inputs)
    for words in (TRANSFER, ADAPT):
        with time_limit(SECONDS):
            message = refused(capsys, *words)
        assert name in message and message.count("saltlm: ") == 1, message
        assert tree(inputs) == before


def test_a_secret_behind_a_link_never_reaches_the_output(inputs: Path, capsys) -> None:
    (inputs / "secret").write_text("the secret")
    (inputs / "source" / "LICENSE").symlink_to(inputs / "secret")
    assert "outside of the folder" in refused(capsys, *TRANSFER)
    assert not (inputs / "out").exists()


@pytest.mark.parametrize("name", ["saltlm.json", "provenance.safetensors"])
@pytest.mark.parametrize("kind", IN_FOLDER)
def test_strange_files_in_a_transferred_folder(inputs: Path, capsys, kind: str, name: str) -> None:
    assert main([*TRANSFER, "--method", "mean", "--quiet", "--json"]) == 0
    capsys.readouterr()
    put(inputs / "out" / name, kind)
    with time_limit(SECONDS):
        assert name in refused(capsys, "inspect", "out")


@pytest.mark.parametrize("kind", ["pipe", "zero", "giant", "folder", "socket"])
def test_strange_inputs_of_a_job_are_faults_of_the_jobs_file(inputs: Path, capsys, kind: str) -> None:
    put(inputs / "bad", kind)
    (inputs / "jobs.toml").write_text(
        '[[job]]\nsource = "source"\ntarget = "target"\nout = "out"\ntune_text = "bad"\n'
        '[[job]]\nsource = "source"\ntarget = "target"\nout = "out2"\nmethod = "salt"\nauxiliary = "bad"\n'
    )
    before = tree(inputs)
    with time_limit(SECONDS):
        message = refused(capsys, "batch", "jobs.toml")
    assert "2 faults; nothing was run" in message and tree(inputs) == before, message


@pytest.mark.parametrize(
    "name", ["provenance.safetensors", "saltlm.json", "README.md", "config.json", ".weights.safetensors", "w"]
)
def test_a_shard_with_the_name_of_another_file_is_refused(inputs: Path, capsys, name: str) -> None:
    shutil.rmtree(inputs / "source")
    save_llama(inputs / "source", tiny("byte_level_bpe"), max_shard_size="20KB")
    index = inputs / "source" / "model.safetensors.index.json"
    shard = sorted((inputs / "source").glob("model-*.safetensors"))[1]
    content = index.read_text().replace(shard.name, name)
    shard.replace(inputs / "source" / name)
    index.write_text(content)
    before = tree(inputs)
    message = refused(capsys, *TRANSFER)
    assert message.count("saltlm: ") == 1 and "expected" in message, message
    assert name in ("config.json",) or f"shard '{name}'" in message
    assert tree(inputs) == before


def test_text_from_a_pipe_is_refused_and_from_a_redirected_file_is_read(inputs: Path, capsys) -> None:
    import os
    import subprocess
    import sys

    command = [sys.executable, "-m", "saltlm", *TRANSFER, "--tune-text", "/dev/stdin", "--dry-run"]
    piped = subprocess.run(command, input=TEXT, capture_output=True, text=True, check=False)
    assert piped.returncode == 2 and "a pipe (FIFO); expected a regular file" in piped.stderr, piped.stderr
    with (inputs / "text.txt").open() as file:
        done = subprocess.run(command, stdin=file, capture_output=True, text=True, check=False, env={**os.environ})
    assert done.returncode == 0, done.stderr


def test_escape_sequences_of_a_file_do_not_reach_the_terminal(inputs: Path, capsys) -> None:
    (inputs / "source" / "config.json").write_text('{"model_type": "\\u001b]0;title\\u0007\\u001b[31m"}')
    assert not re.search("[\x07\x1b]", refused(capsys, *TRANSFER))
    (inputs / "jobs.toml").write_text('[[job]]\nsource = "\\u001b[31m"\ntarget = "x"\nout = "y"\n"\\u001b[2J" = 1\n')
    assert not re.search("[\x07\x1b]", refused(capsys, "batch", "jobs.toml"))
    (inputs / "v.vec").write_text("\x1b[31m\x07 1 2\n")
    assert not re.search("[\x07\x1b]", refused(capsys, *TRANSFER, "--method", "salt", "--auxiliary", "v.vec"))


def test_align_shows_the_overlap_and_what_drafting_may_expect(inputs: Path, capsys) -> None:
    import json

    save_bert(inputs / "other", tiny("sentencepiece_unigram"))
    assert main(["align", "source", "target", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["drafting"] == "other tokenizer" and 0 < result["share_of_target"] < 1
    assert result["shared"] == sum(count for name, count in result["matches"].items() if name != "none")
    assert main(["align", "target", "other"]) == 0
    assert "can draft for the source" in capsys.readouterr().out
    assert main([*TRANSFER, "--method", "mean", "--rows", str(result["target_tokens"] + 37), "--quiet"]) == 0
    capsys.readouterr()
    assert main(["align", "out", "out", "--json"]) == 0
    same = json.loads(capsys.readouterr().out)
    assert same["drafting"] == "same" and same["source_rows"] == result["target_tokens"] + 37
    assert same["same_id"] == same["source_tokens"] == same["target_tokens"] == same["shared"]
