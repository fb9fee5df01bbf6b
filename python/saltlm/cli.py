"""The command line: options in, a table or one JSON object on stdout, progress and messages on stderr."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import json
import os
import re
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from .adapt_config import PRECISIONS, SCHEDULES, SHARDINGS, SPLITS, AdaptConfig
from .batch_config import BatchConfig
from .compare_config import OWN_ADAPT, OWN_TRANSFER, PROBES, CompareConfig
from .config import (
    CHAT_TEMPLATES,
    DTYPES,
    LINKS,
    METHODS,
    NORM_GUARDS,
    OVERLAPS,
    REGRESSIONS,
    SUPPORT_RULES,
    TransferConfig,
)
from .errors import InputError, SaltlmError, input_error
from .side_by_side import MeasureConfig

EXIT_DONE, EXIT_UNFORESEEN, EXIT_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130
CHOICES = {"method": METHODS, "overlap": OVERLAPS, "chat_template": CHAT_TEMPLATES, "dtype": DTYPES}
CHOICES |= {"blend_with": REGRESSIONS, "support_rule": SUPPORT_RULES, "norm_guard": NORM_GUARDS}
CHOICES |= {"link": LINKS, "schedule": SCHEDULES, "precision": PRECISIONS, "split_at": SPLITS, "sharding": SHARDINGS}
CHOICES |= {"probe": PROBES}


def documented(config: type) -> dict[str, str]:
    """Field -> what its class docstring says of it, so that each option is documented in one place."""
    text = re.split(r"\n\s+Raises:", (config.__doc__ or "").split("Attributes:")[1])[0]
    entries = re.findall(r"^ {8}(\w+): (.*?)(?=^ {8}\w+: |\Z)", text, re.MULTILINE | re.DOTALL)
    return {name: re.sub(r"\s+", " ", words).replace("``", "").replace("%", "%%").strip() for name, words in entries}


def add_config(parser: argparse.ArgumentParser, config: type, leave_out: Sequence[str] = ()) -> None:
    """One option a field of ``config``, with the field's own words and default."""
    words = documented(config)
    for field in dataclasses.fields(config):
        if field.name in leave_out:
            continue
        text = (
            words[field.name]
            .replace(":data:`METHODS`", ", ".join(METHODS))
            .replace(":data:`DTYPES`", ", ".join(DTYPES))
            .replace(":data:`REGRESSIONS`", ", ".join(REGRESSIONS))
        )
        flag = "--" + field.name.replace("_", "-")
        kind = str(field.type)
        if kind == "bool":
            parser.add_argument(flag, action="store_true", help=text)
            continue
        if kind.startswith("Mapping"):
            parser.add_argument(
                flag, action="append", metavar="TARGET=SOURCE", default=[], help=f"{text} (may be repeated)"
            )
            continue
        number = (
            number_or_rule if "float | str" in kind else int if "int" in kind else float if "float" in kind else str
        )
        default = "" if field.default is None else f" (default: {field.default})"
        metavar = (
            "{" + ",".join(CHOICES[field.name]) + "}"
            if field.name in CHOICES
            else number.__name__.upper().replace("STR", "NAME").replace("_", "-")
        )
        parser.add_argument(flag, type=number, default=field.default, metavar=metavar, help=text + default)


def number_or_rule(text: str) -> float | str:
    """A number where it is one, else the name of a rule, which the configuration checks."""
    try:
        return float(text)
    except ValueError:
        return text


def config_from(arguments: argparse.Namespace, config: type, leave_out: Sequence[str] = (), **given: Any) -> Any:
    """Build ``config`` from parsed options, and from others given; its own checks name what is out of range."""
    names = [field.name for field in dataclasses.fields(config) if field.name not in leave_out]
    values = {**{name: getattr(arguments, name) for name in names}, **given}
    if "special_overrides" in values:
        values["special_overrides"] = _pairs(values["special_overrides"])
    return config(**values)


def _pairs(entries: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for entry in entries:
        target, mark, source = entry.partition("=")
        if not (target and mark and source):
            raise input_error(
                "special-overrides", repr(entry), "TARGET=SOURCE", "spell both tokens, e.g. '</s>=<|end|>'"
            )
        pairs[target] = source
    return pairs


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    from . import __version__

    top = argparse.ArgumentParser(
        prog="saltlm",
        description="Give a causal language model the tokenizer of a target-language PLM.",
        epilog="Exit codes: 0 done, 2 bad input or usage, 130 interrupted, 1 anything unforeseen (batch: a job failed).",
    )
    top.add_argument("--version", action="version", version=f"saltlm {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    transfer = commands.add_parser("transfer", help="source LM + target PLM + vectors -> model folder")
    _add_pair(transfer)
    transfer.add_argument("--out", metavar="DIR", help="folder to write; needed unless --dry-run")
    add_config(transfer, TransferConfig)
    transfer.add_argument(
        "--dry-run", action="store_true", help="read and align, tell what would be done, write nothing"
    )

    evaluate = commands.add_parser("evaluate", help="bits per byte and more of models on text, side by side")
    evaluate.add_argument("model", nargs="+", metavar="MODEL", help="model folders or hub names, side by side")
    evaluate.add_argument(
        "--text", nargs="+", required=True, metavar="FILE", help="UTF-8 text; blank lines part documents"
    )
    evaluate.add_argument(
        "--retention",
        nargs="+",
        default=[],
        metavar="FILE",
        help="UTF-8 text of the source language: what is left of it",
    )
    evaluate.add_argument(
        "--prompt", nargs="+", default=[], metavar="TEXT", help="show how each model continues these texts"
    )
    evaluate.add_argument(
        "--tasks", nargs="+", default=[], metavar="TASK",
        help="tasks of lm-evaluation-harness (needs saltlm[eval]): their names, 'paper:LANGUAGE' for the SALT paper's suite in "
        "that language, or folders with task files, whose data may be local",
    )  # fmt: skip
    add_config(evaluate, MeasureConfig)
    evaluate.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu or cuda[:index] (default: auto)")
    evaluate.add_argument(
        "--dtype",
        default=None,
        metavar="{" + ",".join(DTYPES) + "}",
        help="dtype to run in (default: float32 on the CPU, the model's own elsewhere)",
    )
    evaluate.add_argument("--gguf-file", metavar="NAME", help="GGUF file inside the folders, for models that are one")
    evaluate.add_argument("--revision", metavar="NAME", help="revision of the models on the hub")
    evaluate.add_argument(
        "--trust-remote-code", action="store_true", help="let transformers run code that a model brings along"
    )

    adapt = commands.add_parser("adapt", help="continual pre-training of a model on text")
    adapt.add_argument("model", metavar="MODEL", help="causal LM: a local folder or a hub name")
    sources = (
        "text, .jsonl (both also .gz), .parquet, a folder of datasets.save_to_disk, or dataset:NAME[,CONFIG][,SPLIT]"
    )
    adapt.add_argument("--text", nargs="+", required=True, metavar="FILE", help=f"what to train on: {sources}")
    adapt.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    adapt.add_argument("--eval-text", nargs="+", metavar="FILE", help="held-out text of the target language")
    adapt.add_argument("--source-eval-text", nargs="+", metavar="FILE", help="held-out text of the source language")
    adapt.add_argument(
        "--replay", action="append", default=[], metavar="FILE:RATIO",
        help="source-language text to mix in, and its share of all blocks in (0, 1) (may be repeated)",
    )  # fmt: skip
    adapt.add_argument("--resume", action="store_true", help="go on with the run in --out, or start one")
    add_config(adapt, AdaptConfig)

    inspect = commands.add_parser("inspect", help="where each row of a transferred model came from")
    inspect.add_argument("folder", metavar="DIR", help="folder written by transfer or adapt")
    inspect.add_argument(
        "token",
        nargs="*",
        metavar="TOKEN",
        help="a token's text, with or without its word start, or '#123' for an id; none: all",
    )
    inspect.add_argument("--html", metavar="FILE", help="write one page with all rows, to search in a browser")

    compare = commands.add_parser("compare", help="several methods, one probe, one table and chart")
    _add_pair(compare)
    compare.add_argument(
        "--methods", nargs="+", required=True, metavar="METHOD[:OPTION=VALUE...]",
        help="ways to start, parted by commas or blanks, each with options of its own, e.g. salt:center=true:ridge=0.01; the "
        "original model with its own tokenizer is always compared too",
    )  # fmt: skip
    compare.add_argument(
        "--text", nargs="+", required=True, metavar="FILE", help=f"what the probes train on: {sources}"
    )
    compare.add_argument(
        "--out", required=True, metavar="DIR", help="folder of the results; goes on with what is there"
    )
    compare.add_argument("--eval-text", nargs="+", metavar="FILE", help="held-out text of the target language")
    compare.add_argument(
        "--source-eval-text", nargs="+", metavar="FILE", help="text of the source language, measured before and after"
    )
    add_config(compare, CompareConfig)
    add_config(compare, TransferConfig, OWN_TRANSFER)
    add_config(compare, AdaptConfig, OWN_ADAPT)

    batch = commands.add_parser("batch", help="many transfers from a jobs file, shared work done once")
    batch.add_argument(
        "jobs", metavar="JOBS.toml",
        help="[[job]] tables with the options of saltlm transfer, and [defaults] for all; paths are relative to the current "
        "folder",
    )  # fmt: skip
    add_config(batch, BatchConfig)
    batch.add_argument("--dry-run", action="store_true", help="check every job, tell what would run, run nothing")

    status = commands.add_parser("status", help="versions, operators that run and why, devices")
    for command in (transfer, evaluate, adapt, inspect, compare, batch, status):
        command.add_argument("--json", action="store_true", help="one JSON object on stdout and nothing else")
        command.add_argument("--quiet", action="store_true", help="no progress on stderr")
    return top


def _add_pair(parser: argparse.ArgumentParser) -> None:
    """The inputs of a transfer."""
    parser.add_argument("--source", required=True, metavar="MODEL", help="causal LM: a local folder or a hub name")
    parser.add_argument("--target", required=True, metavar="MODEL", help="target-language PLM (BERT, GPT or T5 kind)")
    parser.add_argument(
        "--auxiliary", metavar="VECTORS",
        help="static vectors of the target language: a fastText .bin, a .vec or word2vec text file (also .gz), a spaCy vectors "
        "folder, 'plm' (the PLM's own rows) or 'train:FILE[,FILE...]' (fastText trained on that text)",
    )  # fmt: skip


def run_transfer(arguments: argparse.Namespace) -> None:
    """``saltlm transfer``."""
    from . import show
    from .transfer import transfer

    config = config_from(arguments, TransferConfig)
    if arguments.out is None and not arguments.dry_run:
        raise input_error("--out", "nothing", "a folder to write", "name one, or add --dry-run to write nothing")
    with show.progress(arguments.quiet or arguments.json) as report:
        done = transfer(
            arguments.source, arguments.target, arguments.auxiliary, arguments.out, config,
            progress=report, dry_run=arguments.dry_run,
        )  # fmt: skip
    if arguments.json:
        _json({**done.summary, "out": None if done.out is None else str(done.out)})
    else:
        show.transfer(done, dry_run=arguments.dry_run)


def run_evaluate(arguments: argparse.Namespace) -> None:
    """``saltlm evaluate``."""
    from . import show
    from .side_by_side import side_by_side

    config = config_from(arguments, MeasureConfig)
    with show.progress(arguments.quiet or arguments.json) as report:
        found = side_by_side(
            arguments.model, arguments.text, config, retention=arguments.retention, prompts=arguments.prompt,
            tasks=arguments.tasks, device=arguments.device, dtype=arguments.dtype, gguf_file=arguments.gguf_file,
            revision=arguments.revision, trust_remote_code=arguments.trust_remote_code, progress=report,
        )  # fmt: skip
    for measured in found.models.values():
        for note in measured.text.notes:
            sys.stderr.write(f"note: {note}\n")
    if arguments.json:
        plain = found.to_json()
        _json(next(iter(plain.values())) if len(plain) == 1 else plain)
    else:
        show.evaluations(found)


def run_adapt(arguments: argparse.Namespace) -> None:
    """``saltlm adapt``."""
    from . import adapt_show
    from .adapt import adapt

    config = config_from(arguments, AdaptConfig)
    replay = dict(_ratio(entry) for entry in arguments.replay)
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
    from . import batch, batch_show

    config = config_from(arguments, BatchConfig)
    with batch_show.watching(arguments.quiet or arguments.json) as watcher:
        done = batch.run(arguments.jobs, config, watcher=watcher, dry_run=arguments.dry_run)
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
    from . import inspect_rows, inspect_show

    rows = inspect_rows.read_rows(arguments.folder)
    asked = inspect_rows.found(rows, arguments.token)
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
    from . import compare_show
    from .compare import compare

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
    if arguments.json:
        _json({**done.content, "out": str(done.out)})
    else:
        compare_show.comparison(done)


def run_status(arguments: argparse.Namespace) -> None:
    """``saltlm status``."""
    from . import show
    from .status import status

    found = status()
    if arguments.json:
        _json(found)
    else:
        show.status(found)


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
            importlib.import_module(module, __package__)
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
    silence()
    module, run = {
        "transfer": (".transfer", run_transfer), "evaluate": (".score", run_evaluate), "adapt": (".packing", run_adapt),
        "batch": (".batch", run_batch),
        "inspect": (".inspect_rows", run_inspect), "compare": (".compare", run_compare), "status": (".status", run_status),
    }[arguments.command]  # fmt: skip
    try:
        interrupt.load(module)
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
        where = "standard output" if error.filename is None else repr(error.filename)
        return _fail(f"{where}: {error.strerror or error}; mend that and run it again", EXIT_UNFORESEEN)
    return code


def _interrupted(how: str = "") -> int:
    return _fail(f"interrupted; {how or 'nothing half-written was left behind'}", EXIT_INTERRUPTED)


def _drop_stdout() -> None:
    """What stdout still holds cannot be written; the interpreter would complain of it once more on its way out."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def silence() -> None:
    """Libraries' own progress bars and advice would mix with ours."""
    import logging

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    logging.getLogger("transformers").setLevel(logging.ERROR)


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"saltlm: {message}\n")
    return code
