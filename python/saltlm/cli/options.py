"""The parser of the command line: its commands and their options."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from ..adaptation.config import AdaptConfig
from ..batches.config import BatchConfig
from ..comparison.config import OWN_ADAPT, OWN_TRANSFER, CompareConfig
from ..config import DTYPES, INPUTS, OUTPUT, OVERLAPS, RUN, TOKENS, TransferConfig
from ..errors import input_error
from ..evaluation.side_by_side import CONTINUATIONS, TASKS, MeasureConfig
from ..export.config import ExportConfig
from ..options import options_of
from ..verification.config import VerifyConfig
from .command import Command, HelpFormatter, choices_metavar

TEXT_FORMS = (
    "text or .jsonl (both also .gz), .parquet, a folder of datasets.save_to_disk, or dataset:NAME[,CONFIG][,SPLIT]"
)


def config_from(arguments: argparse.Namespace, config: type, leave_out: Sequence[str] = (), **extra: Any) -> Any:
    """Build a configuration from parsed options.

    Args:
        arguments: the parsed options.
        config: the configuration class.
        leave_out: names of fields that are not read from ``arguments``.
        extra: values of further fields.

    Raises:
        InputError: a value is out of range, or a special token is not paired with another.
    """
    names = [entry.name for entry in options_of(config) if entry.name not in leave_out]
    values = {**{name: getattr(arguments, name) for name in names}, **extra}
    if "special_overrides" in values:
        values["special_overrides"] = _pairs(values["special_overrides"])
    return config(**values)


def _pairs(entries: Sequence[str]) -> dict[str, str]:
    """Split each TARGET=SOURCE."""
    pairs = {}
    for entry in entries:
        target, equals, source = entry.partition("=")
        if not (target and equals and source):
            raise input_error(
                "special-overrides", repr(entry), "TARGET=SOURCE", "spell both tokens, e.g. '</s>=<|end|>'"
            )
        pairs[target] = source
    return pairs


def parser() -> argparse.ArgumentParser:
    """The parser of the command line with all commands."""
    from .. import __version__

    top = argparse.ArgumentParser(
        prog="saltlm",
        description="Give a causal language model the tokenizer of a target-language PLM.",
        epilog="'saltlm COMMAND --help' explains the options of a command. Exit codes: 0 done, 2 bad input or usage, 130 "
        "interrupted, 1 any other error (for batch: a job failed; for verify: a check failed).",
        formatter_class=HelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"saltlm {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    adders = (
        _transfer,
        _evaluate,
        _adapt,
        _inspect,
        _verify,
        _align,
        _compare,
        _batch,
        _convert,
        _export,
        _methods,
        _status,
    )
    for add in adders:
        command = add(commands)
        command.add_flag(OUTPUT, "--json", "Print one JSON object to standard output, and nothing else.")
        command.add_flag(RUN, "--quiet", "Print no progress to standard error.")
    return top


def _transfer(commands: Any) -> Command:
    command = Command(
        commands,
        "transfer",
        "Transfer a source model to the tokenizer of a target PLM, and write the new model's folder.",
        "--source MODEL --target MODEL --out DIR [options]",
    )
    _add_pair(command)
    command.add(OUTPUT, "--out", metavar="DIR", help="Folder to write. Required, except with --dry-run.")
    command.add_config(TransferConfig)
    command.add_flag(
        RUN, "--dry-run", "Read the inputs, align the tokenizers and report what would be built; write nothing."
    )
    return command


def _evaluate(commands: Any) -> Command:
    command = Command(
        commands,
        "evaluate",
        "Measure bits per byte and more of one or several models on the same text.",
        "MODEL [MODEL ...] --text FILE [FILE ...] [options]",
    )
    command.add(
        INPUTS, "model", nargs="+", metavar="MODEL", help="Local folders or hub names of causal LMs to compare."
    )
    command.add_files(INPUTS, "--text", "UTF-8 text files to score. Blank lines separate documents.", required=True)
    command.add_files(
        INPUTS,
        "--retention",
        "UTF-8 text files of the source language, to measure how much of it the model retains. Default: not measured.",
        default=[],
    )
    command.add(
        INPUTS,
        "--gguf-file",
        metavar="NAME",
        help="Name of the GGUF file inside the model folders. Default: their safetensors files are read.",
    )
    command.add(
        INPUTS,
        "--revision",
        metavar="NAME",
        help="Revision of the models on the hub: a branch, tag or commit. Default: the default branch.",
    )
    command.add_flag(INPUTS, "--trust-remote-code", "Allow transformers to run Python code that comes with a model.")
    command.add(
        CONTINUATIONS,
        "--prompt",
        nargs="+",
        default=[],
        metavar="TEXT",
        help="Show how each model continues these texts. Default: no texts.",
    )
    command.add(
        TASKS,
        "--tasks",
        nargs="+",
        default=[],
        metavar="TASK",
        help="Tasks of lm-evaluation-harness to run (needs saltlm[eval]): names of tasks, paper:LANGUAGE for the task suite of "
        "the SALT paper in this language, or folders with task files, whose data may be local. Default: no tasks.",
    )
    command.add_config(MeasureConfig)
    command.add(
        RUN,
        "--device",
        default="auto",
        metavar="NAME",
        help="Device that runs the models: auto, cpu or cuda[:INDEX]. Default: auto.",
    )
    command.add(
        RUN,
        "--dtype",
        metavar=choices_metavar(DTYPES),
        help="Data type of the computation. Default: float32 on the CPU, the checkpoint's data type on other devices.",
    )
    return command


def _adapt(commands: Any) -> Command:
    command = Command(
        commands,
        "adapt",
        "Train a model further on text (continual pre-training), and write the adapted model's folder.",
        "MODEL --text FILE [FILE ...] --out DIR [options]",
    )
    command.add(INPUTS, "model", metavar="MODEL", help="Causal LM to train: a local folder or a hub name.")
    command.add_files(INPUTS, "--text", f"Text to train on: {TEXT_FORMS}.", required=True)
    command.add(
        INPUTS,
        "--replay",
        action="append",
        default=[],
        metavar="FILE:RATIO",
        help="Source-language text to mix into the training, and its share of all blocks, a number in (0, 1). May be repeated. "
        "Default: no replay.",
    )
    command.add_files(
        INPUTS,
        "--eval-text",
        "Held-out text of the target language. Default: a share of the training text (--heldout).",
    )
    command.add_files(
        INPUTS, "--source-eval-text", "Held-out text of the source language, evaluated too. Default: not evaluated."
    )
    command.add(OUTPUT, "--out", required=True, metavar="DIR", help="Folder to write.")
    command.add_flag(
        OUTPUT, "--resume", "Continue from the last checkpoint in --out; start a new run where there is none."
    )
    command.add_config(AdaptConfig)
    return command


def _inspect(commands: Any) -> Command:
    command = Command(
        commands, "inspect", "Show where each row of a transferred model came from.", "DIR [TOKEN ...] [options]"
    )
    command.add(INPUTS, "folder", metavar="DIR", help="Folder written by saltlm transfer or saltlm adapt.")
    command.add(
        INPUTS,
        "token",
        nargs="*",
        metavar="TOKEN",
        help="Tokens to show: the text of a token, with or without its word start mark, or '#123' for a token id. "
        "Default: an overview of all rows.",
    )
    command.add(OUTPUT, "--html", metavar="FILE", help="Write an HTML page that lists all rows and can be searched.")
    return command


def _align(commands: Any) -> Command:
    command = Command(
        commands,
        "align",
        "Compare two vocabularies: shared tokens, tokens with the same id, and what speculative decoding may expect.",
        "SOURCE TARGET [options]",
    )
    for name in ("source", "target"):
        command.add(
            INPUTS,
            name,
            metavar=name.upper(),
            help="Tokenizer: a model folder, a hub name, or a tokenizer.json, .tiktoken or tekken.json file.",
        )
    command.add(
        TOKENS,
        "--overlap",
        default="exact",
        metavar=choices_metavar(OVERLAPS),
        help="Loosest match that makes a target token a shared token: exact (same bytes and same word start), word-start (the "
        "word start may differ) or case (upper and lower case may differ too). Default: exact.",
    )
    return command


def _verify(commands: Any) -> Command:
    command = Command(
        commands,
        "verify",
        "Check a transferred folder: its record, its files, and its rows against the models that it was made from. "
        "Exit code 1 if a check failed.",
        "DIR [options]",
    )
    command.add(INPUTS, "folder", metavar="DIR", help="Folder written by saltlm transfer or saltlm adapt.")
    for name, what in (("--source", "Source"), ("--target", "Target")):
        command.add(
            INPUTS,
            name,
            metavar="MODEL",
            help=f"{what} of the transfer: a local folder or a hub name. Default: the recorded one, where it is on this "
            "machine.",
        )
    command.add(
        INPUTS,
        "--auxiliary",
        metavar="VECTORS",
        help="Static vectors that the transfer read. Default: the recorded ones, where they are on this machine.",
    )
    command.add_config(VerifyConfig)
    return command


def _compare(commands: Any) -> Command:
    command = Command(
        commands,
        "compare",
        "Compare methods: transfer with each, train each result for the same few steps, and write a table and a chart.",
        "--source MODEL --target MODEL --methods METHOD ...\n                      --text FILE ... --out DIR [options]",
    )
    _add_pair(command)
    command.add(
        INPUTS,
        "--methods",
        nargs="+",
        required=True,
        metavar="METHOD[:OPTION=VALUE...]",
        help="Methods to compare, separated by commas or blanks, each with options of its own, such as "
        "salt:center=true:ridge=0.01, or focus:auxiliary=PATH for vectors of its own. The text of the probes tunes auto; "
        "auto:tune-text=none switches this off. The original model with its own tokenizer is always compared too.",
    )
    command.add_files(INPUTS, "--text", f"Text that the probes train on: {TEXT_FORMS}.", required=True)
    command.add_files(
        INPUTS,
        "--eval-text",
        "Held-out text of the target language. Default: a share of the training text (--heldout).",
    )
    command.add_files(
        INPUTS,
        "--source-eval-text",
        "Text of the source language, evaluated before and after each probe. Default: not evaluated.",
    )
    command.add(
        OUTPUT,
        "--out",
        required=True,
        metavar="DIR",
        help="Folder of the results. A comparison that it already holds is continued.",
    )
    command.add_config(CompareConfig)
    command.add_config(TransferConfig, OWN_TRANSFER)
    command.add_config(AdaptConfig, OWN_ADAPT)
    return command


def _batch(commands: Any) -> Command:
    command = Command(
        commands,
        "batch",
        "Run the transfers of a jobs file; work that jobs share is done once.",
        "JOBS.toml [options]",
    )
    command.add(
        INPUTS,
        "jobs",
        metavar="JOBS.toml",
        help="Jobs file: a [[job]] table with the options of saltlm transfer for each transfer, and a [defaults] table for all "
        "of them. Paths are relative to the current folder.",
    )
    command.add_config(BatchConfig)
    command.add_flag(RUN, "--dry-run", "Check every job and report what would run; run nothing.")
    return command


def _convert(commands: Any) -> Command:
    command = Command(
        commands,
        "convert",
        "Write a copy of a model whose files saltlm cannot read: pickled weights become safetensors, read without running "
        "their code, and a slow BPE tokenizer (PhoBERT kind) gets a tokenizer.json with the same ids.",
        "MODEL --out DIR [options]",
    )
    command.add(INPUTS, "model", metavar="MODEL", help="Model or tokenizer to convert: a local folder or a hub name.")
    command.add(
        INPUTS,
        "--revision",
        metavar="NAME",
        help="Revision of the model on the hub: a branch, tag or commit. Default: the default branch.",
    )
    command.add(OUTPUT, "--out", required=True, metavar="DIR", help="Folder to write.")
    command.add_flag(OUTPUT, "--force", "Replace an existing model folder.")
    return command


def _export(commands: Any) -> Command:
    command = Command(
        commands,
        "export",
        "Write a model folder as a GGUF file for llama.cpp, Ollama and other programs built on it.",
        "MODEL --out FILE.gguf [options]",
    )
    command.add(
        INPUTS,
        "model",
        metavar="MODEL",
        help="Folder written by saltlm transfer or saltlm adapt, or another causal LM.",
    )
    command.add(OUTPUT, "--out", required=True, metavar="FILE.gguf", help="File to write.")
    command.add_config(ExportConfig)
    return command


def _methods(commands: Any) -> Command:
    summary = "List the methods that build rows of new tokens: what each needs, its options and its source."
    return Command(commands, "methods", summary, "[options]")


def _status(commands: Any) -> Command:
    summary = "Show versions, devices, and which implementation of the operators runs and why."
    return Command(commands, "status", summary, "[options]")


def _add_pair(command: Command) -> None:
    """Add the inputs of a transfer."""
    command.add(
        INPUTS,
        "--source",
        required=True,
        metavar="MODEL",
        help="Causal LM that gets the new tokenizer: a local folder or a hub name.",
    )
    command.add(
        INPUTS,
        "--target",
        required=True,
        metavar="MODEL",
        help="Target-language PLM (a BERT, GPT or T5 model) that gives the tokenizer: a local folder or a hub name. Or a "
        "tokenizer alone, for methods that read no PLM rows: a folder without weights, or a tokenizer.json.",
    )
    command.add(
        INPUTS,
        "--auxiliary",
        metavar="VECTORS",
        help="Static vectors of the target language: a fastText .bin file, a .vec or word2vec file (all also .gz or .zip), a "
        "spaCy vectors folder, plm (the PLM's own embedding rows) or train:FILE[,FILE...] (fastText trained on these files). "
        "Default: no vectors; the methods that need them are listed by 'saltlm methods'.",
    )
