"""The options of the command line, each documented once, by the field of the configuration that it sets."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from ..adaptation.config import PRECISIONS, SCHEDULES, SHARDINGS, SPLITS, AdaptConfig
from ..batches.config import BatchConfig
from ..comparison.config import OWN_ADAPT, OWN_TRANSFER, PROBES, CompareConfig
from ..config import (
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
from ..errors import input_error
from ..evaluation.side_by_side import MeasureConfig

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
    from .. import __version__

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
        help="ways to start, parted by commas or blanks, each with options of its own, e.g. salt:center=true:ridge=0.01, or "
        "focus:auxiliary=PATH with vectors of its own; auto is tuned by the probes' text, auto:tune-text=none is not; the "
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
