"""Adapters: alone they are refused with the way to merge them, beside a model they are mentioned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from checkpoints_tiny import draw
from models_tiny import save_bert, save_llama
from safetensors.torch import save_file
from tokenizers_tiny import tiny

from saltlm import TransferConfig, evaluate, transfer
from saltlm.errors import InputError
from saltlm.model.checkpoint import load_donor, load_source

BPE = tiny("byte_level_bpe")


def add_adapter(folder: Path, base: object = "someone/base") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": base}))
    save_file({"base_model.model.lora_A.weight": draw(2, 2)}, folder / "adapter_model.safetensors")
    return folder


LOADERS = {
    "source": load_source,
    "target": load_donor,
    "evaluate": lambda folder: evaluate(folder, documents=["text"]),
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("base", ["someone/base", None, ["a"], "a\nb"], ids=["name", "null", "list", "two lines"])
def test_an_adapter_alone_is_refused_with_the_way_to_merge(tmp_path: Path, loader: str, base: object) -> None:
    add_adapter(tmp_path / "adapter", base)
    name = "someone/base" if base == "someone/base" else "BASE"
    with pytest.raises(InputError, match=rf"an adapter alone.*from_pretrained\('{name}'\).*merge_and_unload") as caught:
        LOADERS[loader](tmp_path / "adapter")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("loader", LOADERS)
def test_an_adapter_with_a_config_is_refused_too(tmp_path: Path, loader: str) -> None:
    folder = save_llama(tmp_path / "adapter", BPE)
    (folder / "model.safetensors").unlink()
    add_adapter(folder)
    with pytest.raises(InputError, match=r"no weights.*merge_and_unload"):
        LOADERS[loader](folder)


def test_an_adapter_beside_the_model_is_mentioned(tmp_path: Path) -> None:
    target = save_bert(tmp_path / "target", tiny("wordpiece"))
    source = add_adapter(save_llama(tmp_path / "source", BPE))
    result = transfer(source, target, None, tmp_path / "out", TransferConfig(method="subword-mean"))
    assert any(
        "adapter" in warning and "neither applied nor copied" in warning for warning in result.summary["warnings"]
    )
    assert not list((tmp_path / "out").glob("adapter*"))
