"""Options: documented once, checked on construction, the same on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saltlm.cli.options import config_from, parser
from saltlm.config import METHODS, TransferConfig
from saltlm.errors import InputError

BAD = [
    ("method", "salty", "did you mean 'salt'"),
    ("method", "word-mean", "did you mean"),
    ("overlap", "fuzzy", "one of exact"),
    ("chat_template", "keep", "one of target"),
    ("dtype", "float64", "one of float32"),
    ("ridge", -0.1, ">= 0"),
    ("ridge", float("nan"), "finite"),
    ("ridge", float("inf"), "finite"),
    ("max_support", 0, ">= 1"),
    ("rows", 0, "a whole number >= 1"),
    ("rows", 1.5, "a whole number >= 1"),
    ("pad_to_multiple_of", -8, r"in \[1, 65536\]"),
    ("seed", -1, "2\\*\\*63"),
    ("heldout", 0.6, "0.5"),
]


@pytest.mark.parametrize(("name", "value", "words"), BAD)
def test_bad_values_are_named_with_what_is_expected(name: str, value: object, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        TransferConfig(**{name: value})
    assert str(caught.value).startswith(f"{name}: found {value!r}")


@given(
    method=st.sampled_from(METHODS),
    ridge=st.none() | st.floats(0, 1e6),
    center=st.booleans(),
    max_support=st.none() | st.integers(1, 10**6),
    seed=st.integers(0, 2**63 - 1),
    heldout=st.floats(0, 0.5),
)
def test_the_command_line_makes_the_same_options(method, ridge, center, max_support, seed, heldout) -> None:
    config = TransferConfig(
        method=method,
        ridge=ridge,
        center=center,
        max_support=max_support,
        seed=seed,
        heldout=heldout,
        special_overrides={"</s>": "<|end|>"} if center else {},
    )
    argv = ["transfer", "--source", "s", "--target", "t", "--method", method, "--seed", str(seed)]
    argv += ["--heldout", repr(heldout)]
    argv += [] if ridge is None else ["--ridge", repr(ridge)]
    argv += [] if max_support is None else ["--max-support", str(max_support)]
    argv += ["--center", "--special-overrides", "</s>=<|end|>"] if center else []
    parsed = config_from(parser().parse_args(argv), TransferConfig)
    assert parsed == config
    assert json.loads(json.dumps(parsed.to_json()))["method"] == method


@pytest.mark.parametrize("name", ["unigram_text", "source_auxiliary", "dictionary", "gguf_file"])
def test_files_may_be_paths_and_are_saved_as_text(name: str) -> None:
    other = {"unigram_shift": 1.0} if name == "unigram_text" else {}
    config = TransferConfig(**{name: Path("some") / "file", **other})
    assert config == TransferConfig(**{name: "some/file", **other})
    assert json.loads(json.dumps(config.to_json()))[name] == "some/file"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_support", 2.5),
        ("max_support", True),
        ("seed", 1.0),
        ("pad_to_multiple_of", 65537),
        ("pad_to_multiple_of", 10**30),
        ("ridge", "0.1"),
        ("special_overrides", None),
        ("special_overrides", {1: 2}),
        ("heldout", None),
    ],
)
def test_values_of_another_kind_are_named(name: str, value: object) -> None:
    with pytest.raises(InputError, match=name):
        TransferConfig(**{name: value})


@pytest.mark.parametrize("entry", ["nope", "=x", "x="])
def test_a_malformed_override_is_named(entry: str) -> None:
    arguments = parser().parse_args(["transfer", "--source", "s", "--target", "t", "--special-overrides", entry])
    with pytest.raises(InputError, match="TARGET=SOURCE"):
        config_from(arguments, TransferConfig)
