"""Coefficients kept from one transfer for the next: the same bits, used again only if all that they depend on is equal."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import torch
from models_tiny import save_llama
from tokenizers_tiny import tiny

from saltlm.config import TransferConfig
from saltlm.pipeline import run_transfer, transfer
from saltlm.shared import Shared

ROOM = 1 << 30
CASES = {
    "salt": {"ridge": 0.1, "center": True},
    "focus": {},
    "clp-plus": {"max_support": 5},
    "omp": {"max_support": 4},
    "blend": {"blend_with": "salt", "ridge": 0.1},
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Two models of different weights and widths under one tokenizer."""
    root = tmp_path_factory.mktemp("sources")
    return [
        save_llama(root / name, tiny("byte_level_bpe"), width=width, seed=seed)
        for name, width, seed in (("first", 32, 1), ("second", 48, 2))
    ]


def kept(shared: Shared) -> int:
    return sum(key[0] == "coefficients" for key in shared._kept)


@pytest.mark.parametrize("method", CASES)
def test_a_second_model_reuses_coefficients_bit_for_bit(method: str, sources, pair) -> None:
    config = TransferConfig(method=method, heldout=0.2, **CASES[method])
    shared = Shared(ROOM)
    for index, source in enumerate(sources):
        before = shared.hits
        done = run_transfer(source, pair.target, pair.vectors, None, config, shared=shared)
        alone = transfer(source, pair.target, pair.vectors, config=config)
        assert torch.equal(done.input_rows, alone.input_rows)
        seconds = {"seconds": None}
        assert done.summary | seconds == alone.summary | seconds
        assert kept(shared) == 2  # of the rows, and of the self-check
        assert index == 0 or shared.hits - before >= 2


def test_coefficients_of_other_inputs_or_options_are_not_reused(sources, pair, tmp_path) -> None:
    config = TransferConfig(method="salt", heldout=0.0)
    shared = Shared(ROOM)
    run_transfer(sources[0], pair.target, pair.vectors, None, config, shared=shared)
    vectors = tmp_path / "other.vec"
    vectors.write_text(pair.vectors.read_text(encoding="utf-8").replace("0.1", "0.3"), encoding="utf-8")
    assert vectors.read_text(encoding="utf-8") != pair.vectors.read_text(encoding="utf-8")
    target = shutil.copytree(pair.target, tmp_path / "target")
    count = 1
    for inputs, options in (
        ((pair.target, pair.vectors), {"ridge": 0.1}),
        ((pair.target, pair.vectors), {"center": True}),
        ((pair.target, pair.vectors), {"max_support": 3}),
        ((pair.target, pair.vectors), {"overlap": "case"}),
        ((pair.target, vectors), {}),
        ((target, pair.vectors), {}),
        ((pair.target, pair.vectors), {"method": "focus"}),
    ):
        changed = dataclasses.replace(config, **options)
        done = run_transfer(sources[0], *inputs, None, changed, shared=shared)
        count += 1
        assert kept(shared) == count, (inputs, options)
        assert torch.equal(done.input_rows, transfer(sources[0], *inputs, config=changed).input_rows)


def test_the_limit_holds_and_coefficients_above_it_are_not_kept(sources, pair) -> None:
    config = TransferConfig(method="salt", heldout=0.0)
    large = Shared(ROOM)
    run_transfer(sources[0], pair.target, pair.vectors, None, config, shared=large)
    size = next(size for key, (_, size, _) in large._kept.items() if key[0] == "coefficients")
    assert size > 0
    for limit, expected in ((size, 1), (size - 1, 0), (0, 0)):
        small = Shared(limit)
        done = run_transfer(sources[0], pair.target, pair.vectors, None, config, shared=small)
        assert small.bytes <= limit and kept(small) == expected
        assert torch.equal(done.input_rows, transfer(sources[0], pair.target, pair.vectors, config=config).input_rows)
