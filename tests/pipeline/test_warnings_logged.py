"""Warnings reach a program through the logger ``saltlm``, once each; the command line prints them itself, once each."""

from __future__ import annotations

import io
import logging
import subprocess
import sys

import pytest

from saltlm.cli.main import main
from saltlm.config import TransferConfig
from saltlm.errors import InputError
from saltlm.pipeline import transfer

# Options -> words of warnings that a transfer of the tiny pair with vectors then has.
CASES = {
    "vectors that are not read": ({"method": "auto"}, ["does not read auxiliary"]),
    "a revision of a local folder": ({"method": "salt", "source_revision": "main"}, ["source_revision has no effect"]),
    "three at once": (
        {"method": "zero", "target_revision": "main"},
        ["does not read auxiliary", "broken start", "target_revision"],
    ),
    "a tokenizer that drops line breaks": ({"method": "salt"}, ["does not keep line breaks"]),
    "none": ({"method": "salt", "keep_source_vocabulary": True}, []),
}


def logged(caplog) -> list[str]:
    """Messages of saltlm's warnings, all from one logger."""
    records = [record for record in caplog.records if record.name.split(".")[0] == "saltlm"]
    assert all((record.name, record.levelno) == ("saltlm", logging.WARNING) for record in records)
    return [record.getMessage() for record in records]


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_each_warning_of_a_transfer_is_logged_once(pair, tmp_path, caplog, case: str, dry_run: bool) -> None:
    options, words = CASES[case]
    out = None if case == "none" else tmp_path / "out"
    done = transfer(pair.source, pair.target, pair.vectors, out, TransferConfig(**options), dry_run=dry_run)
    assert logged(caplog) == done.summary["warnings"]
    for word in words:
        if not (dry_run and word == "broken start"):  # which shows once rows are built
            assert sum(word in message for message in logged(caplog)) == 1
    assert bool(words) == bool(logged(caplog))


def test_a_percent_sign_in_a_warning_is_no_format(pair, tmp_path, caplog) -> None:
    auxiliary = tmp_path / "100%s.vec"
    transfer(pair.source, pair.target, auxiliary, config=TransferConfig(method="mean"), dry_run=True)
    assert sum(str(auxiliary) in message for message in logged(caplog)) == 1


@pytest.mark.parametrize("options", [{"method": "salt", "ridge": 0.1}, {"method": "mean", "chat_template": "source"}])
def test_a_transfer_that_fails_logs_nothing(pair, tmp_path, caplog, options: dict) -> None:
    auxiliary = tmp_path / "missing.vec"
    with pytest.raises(InputError):
        transfer(pair.source, pair.target, auxiliary, config=TransferConfig(source_revision="main", **options))
    assert not logged(caplog)


@pytest.mark.parametrize("more", [(), ("--json",), ("--quiet",), ("--dry-run",)])
def test_the_command_prints_each_warning_once_whatever_handlers_there_are(pair, tmp_path, capsys, more) -> None:
    """A library that configures the root logger must not make saltlm speak twice."""
    words = ["transfer", "--source", pair.source, "--target", pair.target, "--auxiliary", pair.vectors]
    words += ["--method", "zero", "--source-revision", "main", "--out", tmp_path / "out", *more]
    logger, handler = logging.getLogger("saltlm"), logging.StreamHandler(io.StringIO())
    handlers, propagates = list(logger.handlers), logger.propagate
    logging.getLogger().addHandler(handler)
    try:
        assert main(list(map(str, words))) == 0
    finally:
        logging.getLogger().removeHandler(handler)
    err = capsys.readouterr().err
    for warning in ("does not read auxiliary vectors", "source_revision has no effect"):
        assert err.count(warning) == 1
    assert not handler.stream.getvalue()
    assert (logger.handlers, logger.propagate) == (handlers, propagates)


def test_processes_of_their_own_print_once_or_not_at_all(pair) -> None:
    """The command once; a program that has configured no logging nothing, which Python's last resort would print."""
    words = [
        "--source",
        pair.source,
        "--target",
        pair.target,
        "--auxiliary",
        pair.vectors,
        "--method",
        "mean",
        "--dry-run",
    ]
    program = (
        "import saltlm\n"
        f"config = saltlm.TransferConfig(method='mean')\n"
        f"saltlm.transfer({str(pair.source)!r}, {str(pair.target)!r}, {str(pair.vectors)!r}, config=config, dry_run=True)\n"
    )
    for command, count in ((["-m", "saltlm", "transfer", *words, "--quiet"], 1), (["-c", program], 0)):
        done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("does not read auxiliary vectors") == count, done.stderr
