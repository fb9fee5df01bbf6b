"""Options: the fields of the configuration classes hold texts, types, choices and defaults; everything agrees with them."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import inspect
import json
import os
import re
import subprocess
import sys
import typing

import pytest

from saltlm.adaptation.config import AdaptConfig
from saltlm.batches.config import BatchConfig
from saltlm.cli.command import HEADINGS
from saltlm.cli.main import main
from saltlm.cli.options import config_from, parser
from saltlm.comparison.config import CompareConfig
from saltlm.config import METHODS, REGRESSIONS, TransferConfig
from saltlm.errors import InputError
from saltlm.evaluation.side_by_side import MeasureConfig
from saltlm.options import check_choice, documented, is_number, is_whole_number, option, options_of
from saltlm.rows.methods import METHODS as REGISTRY
from saltlm.verification.config import VerifyConfig

CONFIGS = [TransferConfig, AdaptConfig, CompareConfig, BatchConfig, MeasureConfig, VerifyConfig]
ENTRIES = [
    pytest.param(config, entry, id=f"{config.__name__}-{entry.name}")
    for config in CONFIGS
    for entry in options_of(config)
]
# Command -> its options and arguments with their defaults. Users' scripts rely on all of them.
SURFACE = {
    "transfer": """
        --source=None --target=None --auxiliary=None --out=None --method='auto' --ridge=None --center=False
        --max-support=None --support-rule=None --map-ridge=None --blend-with=None --blend-weight=None
        --blend-length=None --clean-anchors=0.0 --unigram-shift=None --unigram-text=None --norm-guard='warn'
        --tune=False --tune-text=None --source-auxiliary=None --dictionary=None --overlap='exact'
        --special-overrides=[] --keep-source-vocabulary=False --chat-template='target'
        --pad-to-multiple-of=None --rows=None --seed=0 --heldout=0.05 --device='auto' --dtype=None --link='copy'
        --reload-check='auto' --gguf-file=None --source-revision=None --target-revision=None
        --trust-remote-code=False --force=False --dry-run=False --json=False --quiet=False
    """,
    "evaluate": """
        model=None --text=None --retention=[] --prompt=[] --tasks=[] --confidence=0.95 --seed=0 --samples=0
        --new-tokens=40 --temperature=0.0 --shots=None --limit=None --max-length=1024 --stride=None
        --device='auto' --dtype=None --gguf-file=None --revision=None --trust-remote-code=False --json=False
        --quiet=False
    """,
    "adapt": """
        model=None --text=None --out=None --eval-text=None --source-eval-text=None --replay=[]
        --resume=False --steps=1000 --phases=None --seq-length=None --batch-size=1 --accumulate=1
        --learning-rate=0.0001 --embedding-learning-rate=0.001 --schedule='cosine' --warmup-steps=None
        --decay-share=0.2 --weight-decay=0.0 --adam-beta2=0.95 --max-grad-norm=1.0 --precision='auto'
        --gradient-checkpointing=False --compile=False --loss-chunk=None --heldout=0.01 --eval-steps=None
        --eval-bytes=100000 --early-stop=None --save-steps=200 --keep-checkpoints=2 --text-column='text'
        --split-at='blank-line' --shuffle-documents=10000 --drop-overlap=False --cross-documents=False
        --seed=0 --device='auto' --sharding='none' --distill-rows=False --distill-steps=200
        --distill-source=None --dtype=None --trust-remote-code=False --force=False --json=False
        --quiet=False
    """,
    "inspect": """
        folder=None token=None --html=None --json=False --quiet=False
    """,
    "align": """
        source=None target=None --overlap='exact' --json=False --quiet=False
    """,
    "verify": """
        folder=None --source=None --target=None --auxiliary=None --sample=256 --seed=0 --full=False
        --trust-remote-code=False --json=False --quiet=False
    """,
    "compare": """
        --source=None --target=None --auxiliary=None --methods=None --text=None --out=None --eval-text=None
        --source-eval-text=None --probe='embeddings' --probe-steps=50 --seeds=3 --seed=0 --eval-steps=None
        --confidence=0.95 --force=False --ridge=None --center=False --max-support=None --support-rule=None
        --map-ridge=None --blend-with=None --blend-weight=None --blend-length=None --clean-anchors=0.0
        --unigram-shift=None --unigram-text=None --norm-guard='warn' --tune=False --tune-text=None
        --source-auxiliary=None --dictionary=None --overlap='exact' --special-overrides=[]
        --keep-source-vocabulary=False --chat-template='target' --pad-to-multiple-of=None --rows=None --dtype=None
        --link='copy' --gguf-file=None --source-revision=None --target-revision=None --seq-length=None
        --batch-size=1 --accumulate=1 --learning-rate=0.0001 --embedding-learning-rate=0.001
        --schedule='cosine' --warmup-steps=None --decay-share=0.2 --weight-decay=0.0 --adam-beta2=0.95
        --max-grad-norm=1.0 --precision='auto' --gradient-checkpointing=False --loss-chunk=None
        --heldout=0.01 --eval-bytes=100000 --text-column='text' --split-at='blank-line'
        --shuffle-documents=10000 --drop-overlap=False --cross-documents=False --device='auto'
        --sharding='none' --trust-remote-code=False --json=False --quiet=False
    """,
    "batch": """
        jobs=None --workers=None --memory=None --ray=None --dry-run=False --json=False --quiet=False
    """,
    "export": """
        model=None --out=None --weights='auto' --body=None --allow-differences=False --force=False --json=False
        --quiet=False
    """,
    "status": """
        --json=False --quiet=False
    """,
    "convert": "model=None --revision=None --out=None --force=False --json=False --quiet=False",
    "methods": "--json=False --quiet=False",
}


@functools.cache
def actions() -> dict[str, dict[str, argparse.Action]]:
    """Command -> flag (name of a positional argument) -> argparse action."""
    commands = next(entry for entry in parser()._actions if isinstance(entry, argparse._SubParsersAction))
    return {
        name: {(action.option_strings or [action.dest])[-1]: action for action in command._actions}
        for name, command in commands.choices.items()
    }


def test_options_and_defaults_of_every_command_are_the_known_ones() -> None:
    known = {name: dict(word.split("=", 1) for word in words.split()) for name, words in SURFACE.items()}
    present = {
        name: {flag: repr(action.default) for flag, action in entries.items() if flag != "--help"}
        for name, entries in actions().items()
    }
    assert present == known


@pytest.mark.parametrize("flags", [[], ["-OO"]], ids=["plain", "OO"])
@pytest.mark.parametrize("command", ["", *SURFACE])
def test_help_fits_80_columns_and_speaks_plain_english(command: str, flags: list[str]) -> None:
    words = [sys.executable, *flags, "-m", "saltlm", *filter(None, [command]), "--help"]
    environment = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert not [line for line in done.stdout.splitlines() if len(line) > 80]
    for leaked in ("None", "``", "%%", ":data:", "{choices}", "inf)"):
        assert leaked not in done.stdout, leaked
    # Option names are never broken at the end of a line.
    assert not re.search(r"(--[a-z-]*|[a-z])-$", done.stdout, re.MULTILINE)
    for name, action in actions().get(command, {}).items():
        assert (name if name.startswith("--") else str(action.metavar)) in done.stdout


def test_every_option_has_a_sentence() -> None:
    for name, entries in actions().items():
        for flag, action in entries.items():
            assert action.help, (name, flag)
            assert flag == "--help" or (action.help[0].isupper() and action.help.endswith(".")), (name, flag)


@pytest.mark.parametrize(("config", "entry"), ENTRIES)
def test_every_field_is_documented_and_agrees_with_its_annotation(config, entry) -> None:
    assert len(entry.text) > 20 and entry.text.endswith(".") and entry.text[0].isupper()
    assert entry.group in HEADINGS
    assert entry.optional or entry.default is not None
    if entry.default is None:
        assert "Default: " in entry.text, "what happens without the option must be said in words"
    else:
        assert isinstance(entry.default, entry.types)
    annotation = typing.get_type_hints(config)[entry.name]
    literals = [
        part for part in (annotation, *typing.get_args(annotation)) if typing.get_origin(part) is typing.Literal
    ]
    assert entry.choices == tuple(name for literal in literals for name in typing.get_args(literal))
    assert not entry.choices or entry.types != (str,) or entry.default is None or entry.default in entry.choices
    line = re.search(rf"^    {entry.name}: (.*?)(?=^    \w+: |^\w|\Z)", config.__doc__, re.MULTILINE | re.DOTALL)
    assert line, "the class docstring has it"
    said = " ".join(line[1].split())
    assert "Default: " in said and all(choice in said for choice in entry.choices)
    for action in (entries[entry.flag] for entries in actions().values() if entry.flag in entries):
        shown = f"{action.metavar} {action.help}"
        assert entry.name == "method" or all(choice in shown for choice in entry.choices)


@pytest.mark.parametrize(("config", "entry"), [param for param in ENTRIES if param.values[1].choices])
def test_a_name_that_is_not_among_the_choices_is_refused(config, entry) -> None:
    with pytest.raises(InputError, match=re.escape(f"{entry.name}: found 'no-such-name'; expected one of ")) as caught:
        config(**{entry.name: "no-such-name"})
    assert all(choice in str(caught.value) for choice in entry.choices)
    if not entry.optional:
        with pytest.raises(InputError, match=f"{entry.name}: found None"):
            config(**{entry.name: None})
    for choice in entry.choices:
        assert getattr(config(**{entry.name: choice}), entry.name) == choice


@pytest.mark.parametrize(
    ("command", "config"),
    [
        ("transfer", TransferConfig),
        ("adapt", AdaptConfig),
        ("batch", BatchConfig),
        ("evaluate", MeasureConfig),
        ("compare", CompareConfig),
    ],
)
def test_the_command_line_without_options_is_the_default_configuration(command: str, config: type) -> None:
    required = []
    for flag, action in actions()[command].items():
        if action.required:
            required += [flag, "x"] if flag.startswith("--") else ["x"]
    parsed = config_from(parser().parse_args([command, *required]), config)
    assert parsed == config()


def test_documented_lists_options_between_the_summary_and_what_is_raised() -> None:
    @documented
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Small:
        """A summary.

        Raises:
            InputError: never.
        """

        some_size: int = option(3, "Use this many things, next to --other-size.", group="run")
        other_size: int | None = option(
            None, "Another size, in bytes. Default: no limit.", group="run", metavar="BYTES"
        )
        pairs: dict = option({}, "Pairs of names. Default: no pairs.", group="run")

    assert inspect.getdoc(Small) == (
        "A summary.\n\nAttributes:\n    some_size: Use this many things, next to ``other_size``. Default: 3.\n"
        "    other_size: Another size, in bytes. Default: no limit.\n    pairs: Pairs of names. Default: no pairs.\n\n"
        "Raises:\n    InputError: never."
    )
    first, second, _ = options_of(Small)
    assert (first.flag, first.default, first.types, first.optional) == ("--some-size", 3, (int,), False)
    assert (second.types, second.optional, second.metavar) == ((int,), True, "BYTES")
    assert Small().pairs == {} and Small().pairs is not Small().pairs


@pytest.mark.parametrize("value", [True, 1.0, "1", None, 0, 11])
def test_what_is_no_whole_number(value: object) -> None:
    assert not is_whole_number(value, 1, 10)
    assert is_whole_number(10, 1, 10) and is_whole_number(10**30, 1)


@pytest.mark.parametrize("value", [True, "1", None, float("nan"), float("inf")])
def test_what_is_no_number(value: object) -> None:
    assert not is_number(value)
    assert is_number(1) and is_number(0.5)


def test_the_nearest_name_is_offered() -> None:
    with pytest.raises(InputError, match=r"fruit: found 'aple'; expected one of apple, pear; did you mean 'apple'\?"):
        check_choice("fruit", "aple", ("apple", "pear"))


def test_the_registries_hold_the_same_names() -> None:
    assert tuple(REGISTRY) == METHODS
    assert {name for name, method in REGISTRY.items() if method.regression} == set(REGRESSIONS)


def test_methods_lists_every_method(capsys) -> None:
    assert main(["methods", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["methods"]
    assert [entry["name"] for entry in listed] == list(METHODS)
    assert [entry["name"] for entry in listed if entry["default"]] == [TransferConfig().method]
    fields = {entry.name for entry in options_of(TransferConfig)}
    for entry in listed:
        assert entry["summary"].endswith(".") and entry["source"], entry["name"]
        assert set(entry["options"]) <= fields
    needs = {entry["name"]: " ".join(entry["needs"]) for entry in listed}
    assert {name for name in METHODS if "--auxiliary" in needs[name]} == {"salt", "focus", "wechsel", "ofa"}
    assert "--source-auxiliary" in needs["wechsel"] and "--dictionary" in needs["wechsel"]
    assert not needs["auto"] and not needs["zero"] and needs["clp"] == "shared tokens"
    assert main(["methods"]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in METHODS) and "Lee et al. 2025" in table
