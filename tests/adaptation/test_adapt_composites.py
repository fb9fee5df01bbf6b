"""Adaptation of models of several parts: the text part is trained, everything else is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from adapt_tiny import text_file
from composites_tiny import KINDS, save_composite
from safetensors.torch import load_file

import saltlm
from saltlm.errors import InputError
from saltlm.model.portable import with_rope_keys

CONFIG = saltlm.AdaptConfig(
    phases="embeddings:1,all:2", seq_length=32, batch_size=2, heldout=0, save_steps=1, device="cpu"
)
# Parts of the keys of tensors that text does not reach.
OTHER_PARTS = ("vision", "visual", "projector", "connector", "merger")


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    return text_file(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.mark.parametrize("kind", ["gemma3", "smolvlm", "gemma4"])
def test_the_text_part_is_trained_and_the_rest_is_kept(kind: str, tmp_path: Path, text: Path) -> None:
    source = save_composite(tmp_path / "source", kind)
    (source / "preprocessor_config.json").write_text("{}")
    out = saltlm.adapt(source, text, tmp_path / "out", CONFIG).out
    before, after = (load_file(folder / "model.safetensors") for folder in (source, out))
    assert before.keys() == after.keys()
    kept = {key for key in before if any(part in key for part in OTHER_PARTS)}
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert not changed & kept and len(changed) > 15 and (kept or kind == "gemma4")
    config = json.loads((source / "config.json").read_text())
    assert json.loads((out / "config.json").read_text()) == with_rope_keys(config)
    assert (out / "preprocessor_config.json").is_file()
    _, report = getattr(transformers, KINDS[kind].model_class).from_pretrained(out, output_loading_info=True)
    assert not any(report.values()), report


def test_a_run_resumes_to_the_same_weights(tmp_path: Path, text: Path) -> None:
    """The keys of a checkpoint of this class differ from the names in the model."""
    source = save_composite(tmp_path / "source", "gemma3")
    saltlm.adapt(source, text, tmp_path / "whole", CONFIG)
    for stop in (1, 2):

        def interrupt(progress: Any, stop: int = stop) -> None:
            if progress.step == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            saltlm.adapt(source, text, tmp_path / "parts", CONFIG, resume=True, progress=interrupt)
    saltlm.adapt(source, text, tmp_path / "parts", CONFIG, resume=True)
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_a_class_that_fails_on_text_alone_is_refused(tmp_path: Path, text: Path, monkeypatch) -> None:
    source = save_composite(tmp_path / "source", "llava")

    def forward(self: Any, pixel_values: torch.Tensor, **inputs: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(transformers.LlavaForConditionalGeneration, "forward", forward)
    with pytest.raises(InputError, match="fails on text without an image"):
        saltlm.adapt(source, text, tmp_path / "out", CONFIG)
    assert not (tmp_path / "out").exists()
