"""Entry point of the command line: runs one command, and turns errors and signals into exit codes.

Results are written to stdout, as tables or as one JSON object; progress and messages are written to stderr.
"""

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
from ..errors import InputError, SaltlmError, input_error, printable
from ..evaluation.side_by_side import MeasureConfig
from ..export.config import ExportConfig
from ..verification.config import VerifyConfig
from .options import config_from, parser

EXIT_DONE, EXIT_ERROR, EXIT_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130


def run_transfer(arguments: argparse.Namespace) -> None:
    """Run ``saltlm transfer``."""
    from ..pipeline import transfer
    from . import show

    config = config_from(arguments, TransferConfig)
    if arguments.out is None and not arguments.dry_run:
        raise input_error("--out", "nothing", "a folder to write", "name one, or add --dry-run to write nothing")
    with show.progress(arguments.quiet or arguments.json) as report:
        done = transfer(
            arguments.source,
            arguments.target,
            arguments.auxiliary,
            arguments.out,
            config,
            progress=report,
            dry_run=arguments.dry_run,
        )
    _write_notes(done.summary["warnings"])
    if arguments.json:
        estimate = {} if done.estimate is None else {"estimate": done.estimate.to_json()}
        _write_json({**done.summary, "out": None if done.out is None else str(done.out), **estimate})
    else:
        show.transfer(done, dry_run=arguments.dry_run)


def run_evaluate(arguments: argparse.Namespace) -> None:
    """Run ``saltlm evaluate``."""
    from ..evaluation.side_by_side import evaluate_models
    from . import show

    config = config_from(arguments, MeasureConfig)
    with show.progress(arguments.quiet or arguments.json) as report:
        result = evaluate_models(
            arguments.model,
            arguments.text,
            config,
            retention=arguments.retention,
            prompts=arguments.prompt,
            tasks=arguments.tasks,
            device=arguments.device,
            dtype=arguments.dtype,
            gguf_file=arguments.gguf_file,
            revision=arguments.revision,
            trust_remote_code=arguments.trust_remote_code,
            progress=report,
        )
    for measured in result.models.values():
        _write_notes(measured.text.notes)
    if arguments.json:
        plain = result.to_json()
        _write_json(next(iter(plain.values())) if len(plain) == 1 else plain)
    else:
        show.evaluations(result)


def run_adapt(arguments: argparse.Namespace) -> None:
    """Run ``saltlm adapt``."""
    from ..adaptation.run import adapt
    from . import show_adapt

    config = config_from(arguments, AdaptConfig)
    replay: dict[str | Path, float] = dict(_ratio(entry) for entry in arguments.replay)
    with show_adapt.adapting(arguments.quiet or arguments.json) as report:
        done = adapt(
            arguments.model,
            arguments.text,
            arguments.out,
            config,
            eval_texts=arguments.eval_text,
            source_eval_texts=arguments.source_eval_text,
            replay=replay,
            resume=arguments.resume,
            progress=report,
        )
    if done.main:
        _write_notes(done.warnings)
    if done.main and arguments.json:
        _write_json(done.to_json())
    elif done.main:
        show_adapt.adaptation(done)


def run_batch(arguments: argparse.Namespace) -> int:
    """Run ``saltlm batch``."""
    from ..batches.run import batch
    from . import show_batch

    config = config_from(arguments, BatchConfig)
    with show_batch.watching(arguments.quiet or arguments.json) as watcher:
        done = batch(arguments.jobs, config, watcher=watcher, dry_run=arguments.dry_run)
    if arguments.json:
        _write_json(done.to_json())
    else:
        show_batch.batch(done, dry_run=arguments.dry_run)
    return EXIT_ERROR if done.failed else EXIT_DONE


def _ratio(entry: str) -> tuple[str, float]:
    """Split FILE:RATIO."""
    path, colon, ratio = entry.rpartition(":")
    try:
        if path and colon:
            return path, float(ratio)
    except ValueError:
        pass
    raise input_error("replay", repr(entry), "FILE:RATIO", "write e.g. --replay english.txt:0.1")


def run_inspect(arguments: argparse.Namespace) -> None:
    """Run ``saltlm inspect``."""
    from ..inspection import page as inspect_page
    from ..inspection import rows as inspect_rows
    from . import show_inspect

    rows = inspect_rows.inspect(arguments.folder)
    selected = inspect_rows.find_rows(rows, arguments.token)
    if arguments.html:
        inspect_page.write_page(rows, arguments.html)
    if arguments.json:
        _write_json({"tokens": [rows.detail(row) for row in selected]} if selected else rows.overview())
    elif selected:
        for row in selected:
            show_inspect.detail(rows.detail(row))
    else:
        show_inspect.overview(rows.overview(), rows.verdict)
    if arguments.html and not (arguments.quiet or arguments.json):
        sys.stderr.write(f"written: {arguments.html}\n")


def run_align(arguments: argparse.Namespace) -> None:
    """Run ``saltlm align``."""
    from ..inspection.overlap import vocabulary_overlap
    from . import show_inspect

    result = vocabulary_overlap(arguments.source, arguments.target, arguments.overlap)
    if arguments.json:
        _write_json(result.to_json())
    else:
        show_inspect.overlap(result)


def run_verify(arguments: argparse.Namespace) -> int:
    """Run ``saltlm verify``."""
    from ..verification.run import verify
    from . import show, show_verify

    config = config_from(arguments, VerifyConfig)
    with show.progress(arguments.quiet or arguments.json) as report:
        result = verify(
            arguments.folder, arguments.source, arguments.target, arguments.auxiliary, config, progress=report
        )
    if arguments.json:
        _write_json(result.to_json())
    else:
        show_verify.verification(result)
    return EXIT_ERROR if result.failed else EXIT_DONE


def run_compare(arguments: argparse.Namespace) -> None:
    """Run ``saltlm compare``."""
    from ..comparison.run import compare
    from . import show_compare

    common = {"trust_remote_code": arguments.trust_remote_code}
    with show_compare.comparing(arguments.quiet or arguments.json) as report:
        done = compare(
            arguments.source,
            arguments.target,
            arguments.auxiliary,
            [name for part in arguments.methods for name in part.split(",") if name],
            arguments.text,
            arguments.out,
            config_from(arguments, CompareConfig),
            eval_texts=arguments.eval_text,
            source_eval_texts=arguments.source_eval_text,
            progress=report,
            transfer_config=config_from(arguments, TransferConfig, OWN_TRANSFER, device=arguments.device, **common),
            adapt_config=config_from(arguments, AdaptConfig, OWN_ADAPT),
        )
    _write_notes(done.content["warnings"])
    if arguments.json:
        _write_json({**done.content, "out": str(done.out)})
    else:
        show_compare.comparison(done)


def run_convert(arguments: argparse.Namespace) -> None:
    """Run ``saltlm convert``."""
    from ..model.convert import convert
    from . import show

    done = convert(arguments.model, arguments.out, revision=arguments.revision, force=arguments.force)
    if arguments.json:
        _write_json(done.to_json())
    else:
        show.conversion(done)


def run_export(arguments: argparse.Namespace) -> None:
    """Run ``saltlm export``."""
    from ..export.gguf_file import export_gguf
    from . import show

    config = config_from(arguments, ExportConfig)
    with show.progress(arguments.quiet or arguments.json) as report:
        done = export_gguf(arguments.model, arguments.out, config, progress=report)
    _write_notes(done.notes)
    if arguments.json:
        _write_json(done.to_json())
    else:
        show.export(done)


def run_methods(arguments: argparse.Namespace) -> None:
    """Run ``saltlm methods``."""
    from ..rows.methods import describe_methods
    from . import show

    descriptions = describe_methods()
    if arguments.json:
        _write_json({"methods": descriptions})
    else:
        show.methods(descriptions)


def run_status(arguments: argparse.Namespace) -> None:
    """Run ``saltlm status``."""
    from ..environment import status
    from . import show

    result = status()
    if arguments.json:
        _write_json(result)
    else:
        show.status(result)


def _write_notes(warnings: Sequence[str]) -> None:
    """Write each warning to stderr. ``--quiet`` does not suppress them; with ``--json``, stdout has them too."""
    for warning in warnings:
        sys.stderr.write(f"note: {printable(warning)}\n")


def _write_json(content: Any) -> None:
    """Write one JSON object and a line break to stdout."""
    sys.stdout.write(json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n")


class _SignalHandler:
    """Handler of SIGINT and SIGTERM: raises KeyboardInterrupt, which unwinds the run and removes unfinished folders.

    While torch is being imported, the process exits at once instead: nothing has been written yet, and C code that imports
    Python modules may drop the exception or replace it by another one.

    Attributes:
        received: whether a signal has been received.
        importing: whether torch is being imported.
    """

    def __init__(self) -> None:
        """Create a handler that has not received a signal."""
        self.received = False
        self.importing = False

    def __call__(self, number: int, frame: Any) -> NoReturn:
        """Handle a signal."""
        self.received = True
        if self.importing:
            os.write(2, b"saltlm: interrupted; nothing half-written was left behind\n")
            os._exit(EXIT_INTERRUPTED)
        raise KeyboardInterrupt

    def import_module(self, module: str) -> None:
        """Import a module of this package that imports torch.

        Args:
            module: relative name of the module, such as ``.pipeline``.
        """
        self.importing = True
        try:
            importlib.import_module(module, __package__.partition(".")[0])
        finally:
            self.importing = False


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments of the command line; ``None`` for those of the process.

    Returns:
        The exit code: 0 done, 1 an error, a failed job of a batch or a failed check of a folder, 2 bad input, 130 interrupted.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # the calling process has closed the stream
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
    handler = _SignalHandler()
    previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return _run_command(argv, handler)
    finally:  # a program that calls this function keeps its own handlers
        for number, action in previous.items():
            signal.signal(number, signal.SIG_DFL if action is None else action)


def _run_command(argv: Sequence[str] | None, handler: _SignalHandler) -> int:
    arguments = parser().parse_args(argv)
    silence_libraries()
    module, run = {
        "transfer": (".pipeline", run_transfer),
        "evaluate": (".evaluation.score", run_evaluate),
        "adapt": (".adaptation.packing", run_adapt),
        "batch": (".batches.run", run_batch),
        "inspect": (".inspection.rows", run_inspect),
        "align": (".inspection.overlap", run_align),
        "verify": (".verification.run", run_verify),
        "compare": (".comparison.run", run_compare),
        "convert": (".model.convert", run_convert),
        "export": (".export.gguf_file", run_export),
        "methods": (".rows.methods", run_methods),
        "status": (".environment", run_status),
    }[arguments.command]
    try:
        handler.import_module(module)
        with _without_log_records():
            code = run(arguments) or EXIT_DONE
        sys.stdout.flush()
    except KeyboardInterrupt as interrupt:
        return _interrupted(str(interrupt))
    except SaltlmError as error:
        if handler.received:  # a library has turned the interrupt into another exception
            return _interrupted()
        return _fail(str(error), EXIT_INPUT if isinstance(error, InputError) else EXIT_ERROR)
    except BrokenPipeError:
        _drop_stdout()  # the reader of stdout has exited, as `head` does
        code = EXIT_DONE
    except OSError as error:
        _drop_stdout()
        return _fail(
            f"{_failed_file(error)}: {error.strerror or error}; fix this and run the command again", EXIT_ERROR
        )
    return code


def _interrupted(details: str = "") -> int:
    return _fail(f"interrupted; {details or 'nothing half-written was left behind'}", EXIT_INTERRUPTED)


def _failed_file(error: OSError) -> str:
    """The file that an error is about; an error without a file name is about a connection or standard output."""
    if error.filename is not None:
        return repr(error.filename)
    return "a connection" if isinstance(error, ConnectionError) or error.errno is None else "standard output"


def _drop_stdout() -> None:
    """Redirect stdout to the null device; else the interpreter would report the unwritten buffer again when it exits."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


@contextlib.contextmanager
def _without_log_records() -> Iterator[None]:
    """Stop saltlm's log records from reaching handlers of the root logger, which a library may have added.

    The records are also in the results, and :func:`_write_notes` prints them.
    """
    logger = logging.getLogger("saltlm")
    before, logger.propagate = logger.propagate, False
    try:
        yield
    finally:
        logger.propagate = before


def _fail(message: str, code: int) -> int:
    """Write an error message to stderr; returns ``code``."""
    sys.stderr.write(f"saltlm: {printable(message)}\n")
    return code
