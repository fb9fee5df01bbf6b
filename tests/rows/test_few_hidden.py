"""The self-check with few hidden tokens: no figures below the least number, and sane ones from there on."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
from pairs import Pair
from safetensors.torch import load_file, save_file

from saltlm import TransferConfig, transfer
from saltlm.rows.hidden import MIN_TOKENS


def shares(pair: Pair) -> dict[int, float]:
    """Number of hidden tokens -> the option that hides so many of a pair's anchors."""
    anchors = transfer(pair.source, pair.target, dry_run=True).summary["anchors"]
    return {count: (count + 0.5) / anchors for count in (1, MIN_TOKENS - 1, MIN_TOKENS, 2 * MIN_TOKENS)}


@pytest.mark.parametrize("method", ["auto", "salt"])
def test_few_hidden_tokens_are_no_check_and_more_give_a_score(pair, method: str) -> None:
    for count, share in shares(pair).items():
        config = TransferConfig(method=method, heldout=share)
        summary = transfer(pair.source, pair.target, pair.vectors, config=config).summary
        told = [warning for warning in summary["warnings"] if "there is no self-check" in warning]
        if count < MIN_TOKENS:
            assert summary["heldout"] is None
            assert len(told) == 1 and f"at least {MIN_TOKENS} hidden ones" in told[0] and f"{share:g}" in told[0]
            assert not any("broken" in warning for warning in summary["warnings"])
        else:
            assert MIN_TOKENS <= summary["heldout"]["tokens"] <= count and not told
            assert math.isfinite(summary["heldout"]["score"]) and abs(summary["heldout"]["score"]) < 10


def test_hidden_tokens_with_equal_rows_are_no_check(pair, tmp_path) -> None:
    source = Path(shutil.copytree(pair.source, tmp_path / "source"))
    tensors = load_file(source / "model.safetensors")
    rows = tensors["model.embed_tokens.weight"]
    rows[:] = rows[0]
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    summary = transfer(source, pair.target, config=TransferConfig(method="subword-mean", heldout=0.3)).summary
    assert summary["heldout"] is None and any("there is no self-check" in text for text in summary["warnings"])


def test_nothing_is_told_where_the_self_check_was_switched_off(pair) -> None:
    summary = transfer(pair.source, pair.target, config=TransferConfig(method="mean", heldout=0.0)).summary
    assert summary["heldout"] is None and not any("self-check" in warning for warning in summary["warnings"])


def test_tuning_with_few_hidden_tokens_says_that_nothing_was_tuned(pair) -> None:
    config = TransferConfig(method="salt", tune=True, heldout=shares(pair)[1])
    summary = transfer(pair.source, pair.target, pair.vectors, config=config).summary
    assert summary["tuning"] is None and sum("nothing was tuned" in warning for warning in summary["warnings"]) == 1
