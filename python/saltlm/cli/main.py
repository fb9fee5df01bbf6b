"""The command line: options in, a table or one JSON object on stdout, progress and messages on stderr."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..adaptation.config import AdaptConfig
from ..batches.config import BatchConfig
from ..comparison.config import OWN_ADAPT, OWN_TRANSFER, CompareConfig
from ..config import TransferConfig
from ..environment import silence_libraries
from ..errors import InputError, SaltlmError, input_error
from ..evaluation.side_by_side import MeasureConfig
from .options import config_from, parser

EXIT_DONE, EXIT_UNFORESEEN, EXIT_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130


def run_transfer(arguments: argparse.Namespace) -> None:
    """``saltlm transfer``."""
    from ..pipeline import transfer
    from . import show

    config = config_from(arguments, TransferConfig)
    if arguments.out is None and not arguments.dry_run:
        raise input_error("--out", "nothing", "a folder to write", "name one, or add --dry-run to write nothing")
    with show.progress(arguments.quiet or arguments.json) as report:
        done = transfer(
            arguments.source, arguments.target, arguments.auxiliary, arguments.out, config,
            progress=report, dry_run=arguments.dry_run,
        )  # fmt: skip
    _tell(done.summary["warnings"])
    if arguments.json:
        _json({**done.summary, "out": None if done.out is None else str(done.out)})
    else:
        show.transfer(done, dry_run=arguments.dry_run)


def run_evaluate(arguments: argparse.Namespace) -> None:
    """``saltlm evaluate``."""
    from ..evaluation.side_by_side import evaluate_models
    from . import show

    config = config_from(arguments, MeasureConfig)
    with show.progress(arguments.quiet or arguments.json) as report:
        found = evaluate_models(
            arguments.model, arguments.text, config, retention=arguments.retention, prompts=arguments.prompt,
            tasks=arguments.tasks, device=arguments.device, dtype=arguments.dtype, gguf_file=arguments.gguf_file,
            revision=arguments.revision, trust_remote_code=arguments.trust_remote_code, progress=report,
        )  # fmt: skip
    for measured in found.models.values():
        _tell(measured.text.notes)
    if arguments.json:
        plain = found.to_json()
        _json(next(iter(plain.values())) if len(plain) == 1 else plain)
    else:
        show.evaluations(found)


def run_adapt(arguments: argparse.Namespace) -> None:
    """``saltlm adapt``."""
    from ..adaptation.run import adapt
    from . import show_adapt as adapt_show

    config = config_from(arguments, AdaptConfig)
    replay: dict[str | Path, float] = dict(_ratio(entry) for entry in arguments.replay)
    with adapt_show.adapting(arguments.quiet or arguments.json) as report:
        done = adapt(
            arguments.model, arguments.text, arguments.out, config, eval_texts=arguments.eval_text,
            source_eval_texts=arguments.source_eval_text, replay=replay, resume=arguments.resume, progress=report,
        )  # fmt: skip
    if done.main and arguments.json:
        _json(done.to_json())
    elif done.main:
        adapt_show.adaptation(done)


def run_batch(arguments: argparse.Namespace) -> int:
    """``saltlm batch``."""
    from ..batches.run import batch
    from . import show_batch as batch_show

    config = config_from(arguments, BatchConfig)
    with batch_show.watching(arguments.quiet or arguments.json) as watcher:
        done = batch(arguments.jobs, config, watcher=watcher, dry_run=arguments.dry_run)
    if arguments.json:
        _json(done.to_json())
    else:
        batch_show.batch(done, dry_run=arguments.dry_run)
    return EXIT_UNFORESEEN if done.failed else EXIT_DONE


def _ratio(entry: str) -> tuple[str, float]:
    path, mark, ratio = entry.rpartition(":")
    try:
        if path and mark:
            return path, float(ratio)
    except ValueError:
        pass
    raise input_error("replay", repr(entry), "FILE:RATIO", "write e.g. --replay english.txt:0.1")


def run_inspect(arguments: argparse.Namespace) -> None:
    """``saltlm inspect``."""
    from ..inspection import rows as inspect_rows
    from . import show_inspect as inspect_show

    rows = inspect_rows.inspect(arguments.folder)
    asked = inspect_rows.find_rows(rows, arguments.token)
    if arguments.html:
        inspect_show.write_page(rows, arguments.html)
    if arguments.json:
        _json({"tokens": [rows.detail(row) for row in asked]} if asked else rows.overview())
    elif asked:
        for row in asked:
            inspect_show.detail(rows.detail(row))
    else:
        inspect_show.overview(rows.overview())
    if arguments.html and not (arguments.quiet or arguments.json):
        sys.stderr.write(f"written: {arguments.html}\n")


def run_compare(arguments: argparse.Namespace) -> None:
    """``saltlm compare``."""
    from ..comparison.run import compare
    from . import show_compare as compare_show

    common = {"trust_remote_code": arguments.trust_remote_code}
    with compare_show.comparing(arguments.quiet or arguments.json) as report:
        done = compare(
            arguments.source, arguments.target, arguments.auxiliary,
            [name for part in arguments.methods for name in part.split(",") if name], arguments.text, arguments.out,
            config_from(arguments, CompareConfig), eval_texts=arguments.eval_text,
            source_eval_texts=arguments.source_eval_text, progress=report,
            transfer_config=config_from(arguments, TransferConfig, OWN_TRANSFER, device=arguments.device, **common),
            adapt_config=config_from(arguments, AdaptConfig, OWN_ADAPT),
        )  # fmt: skip
    _tell(done.content["warnings"])
    if arguments.json:
        _json({**done.content, "out": str(done.out)})
    else:
        compare_show.comparison(done)


def run_methods(arguments: argparse.Namespace) -> None:
    """``saltlm methods``."""
    from ..rows.methods import describe_methods
    from . import show

    described = describe_methods()
    if arguments.json:
        _json({"methods": described})
    else:
        show.methods(described)


def run_status(arguments: argparse.Namespace) -> None:
    """``saltlm status``."""
    from ..environment import status
    from . import show

    found = status()
    if arguments.json:
        _json(found)
    else:
        show.status(found)


def _tell(warnings: Sequence[str]) -> None:
    """Write warnings to stderr, one a line; ``--quiet`` silences progress alone, and with ``--json`` stdout has them too."""
    for warning in warnings:
        sys.stderr.write(f"note: {warning}\n")


def _json(content: Any) -> None:
    sys.stdout.write(json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n")


class _Interrupt:
    """Signal handler: an interrupt, or a polite end, unwinds the run so that half-written folders are cleared.

    While torch is imported nothing is there to be cleared, and an exception would be lost, or become another, in C code that
    imports Python modules: the process ends on the spot.
    """

    def __init__(self) -> None:
        self.seen = False
        self.loading = False

    def __call__(self, number: int, frame: Any) -> NoReturn:
        self.seen = True
        if self.loading:
            os.write(2, b"saltlm: interrupted; nothing half-written was left behind\n")
            os._exit(EXIT_INTERRUPTED)
        raise KeyboardInterrupt

    def load(self, module: str) -> None:
        """Import a module of this package, with torch."""
        self.loading = True
        try:
            importlib.import_module(module, __package__.partition(".")[0])
        finally:
            self.loading = False


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # the caller has closed it
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
    interrupt = _Interrupt()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    arguments = parser().parse_args(argv)
    silence_libraries()
    module, run = {
        "transfer": (".pipeline", run_transfer),
        "evaluate": (".evaluation.score", run_evaluate),
        "adapt": (".adaptation.packing", run_adapt),
        "batch": (".batches.run", run_batch),
        "inspect": (".inspection.rows", run_inspect),
        "compare": (".comparison.run", run_compare),
        "methods": (".rows.methods", run_methods),
        "status": (".environment", run_status),
    }[arguments.command]
    try:
        interrupt.load(module)
        with _unlogged():
            code = run(arguments) or EXIT_DONE
        sys.stdout.flush()
    except KeyboardInterrupt as stopped:
        return _interrupted(str(stopped))
    except SaltlmError as error:
        if interrupt.seen:  # a library took the interrupt for a fault of its own
            return _interrupted()
        return _fail(str(error), EXIT_INPUT if isinstance(error, InputError) else EXIT_UNFORESEEN)
    except BrokenPipeError:
        _drop_stdout()  # its reader has left, as head does
        code = EXIT_DONE
    except OSError as error:
        _drop_stdout()
        return _fail(f"{_at_fault(error)}: {error.strerror or error}; mend that and run it again", EXIT_UNFORESEEN)
    return code


def _interrupted(how: str = "") -> int:
    return _fail(f"interrupted; {how or 'nothing half-written was left behind'}", EXIT_INTERRUPTED)


def _at_fault(error: OSError) -> str:
    """The file of an error; without one it is a connection's, or standard output's."""
    if error.filename is not None:
        return repr(error.filename)
    return "a connection" if isinstance(error, ConnectionError) or error.errno is None else "standard output"


def _drop_stdout() -> None:
    """What stdout still holds cannot be written; the interpreter would complain of it once more on its way out."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


@contextlib.contextmanager
def _unlogged() -> Iterator[None]:
    """Keep saltlm's log records from handlers that a library may have given the root logger: :func:`_tell` prints them."""
    logger = logging.getLogger("saltlm")
    before, logger.propagate = logger.propagate, False
    try:
        yield
    finally:
        logger.propagate = before


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"saltlm: {message}\n")
    return code
