"""Tensors that the model class does not have: adapt writes them back as they were."""

from __future__ import annotations

import json
from pathlib import Path

import adapt_tiny
import pytest
import torch
from checkpoints_tiny import add_tensors, all_tensors, bits, draw, keys_by_file, rename_keys
from models_tiny import WIDTH
from safetensors.torch import save_file
from tokenizers_tiny import tiny
from transformers import AutoModelForCausalLM

from saltlm import AdaptConfig, adapt
from saltlm.errors import InputError

ROWS = len(tiny("byte_level_bpe"))
CONFIG = AdaptConfig(phases="all:2", seq_length=32, batch_size=2, device="cpu", heldout=0.2, eval_bytes=500)
LAYER = {
    "model.layers.2.embed_tokens.weight": draw(ROWS, WIDTH),
    "model.layers.2.shared_head.head.weight": draw(ROWS, WIDTH, seed=1).half(),
    "model.layers.2.eh_proj.weight": draw(WIDTH, 2 * WIDTH).bfloat16(),
    "mtp.steps": torch.arange(3),
}


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    return adapt_tiny.text_file(tmp_path_factory.mktemp("text") / "text.txt", 40)


@pytest.mark.parametrize("shards", ["1GB", 20_000], ids=["one file", "sharded"])
def test_tensors_outside_the_class_are_written_back(tmp_path: Path, text: Path, caplog, shards) -> None:
    folder = adapt_tiny.transferred(tmp_path / "model", tied=False, max_shard_size=shards)
    if shards == "1GB":
        add_tensors(folder, LAYER)
    else:
        save_file(LAYER, folder / "model-extra.safetensors", metadata={"format": "pt"})
        index = folder / "model.safetensors.index.json"
        content = json.loads(index.read_text())
        content["weight_map"] |= dict.fromkeys(LAYER, "model-extra.safetensors")
        index.write_text(json.dumps(content))
    save_file({"mtp.1.embed_tokens.weight": draw(ROWS, WIDTH)}, folder / "mtp.safetensors", metadata={"format": "pt"})
    with caplog.at_level("WARNING", "saltlm"):
        adapt(folder, text, tmp_path / "out", CONFIG)
    assert "5 tensors outside the model class" in caplog.text
    old, new = all_tensors(folder), all_tensors(tmp_path / "out")
    assert old.keys() == new.keys()
    for key in (*LAYER, "mtp.1.embed_tokens.weight"):
        assert bits(old[key]) == bits(new[key]), key
    assert not torch.equal(old["model.embed_tokens.weight"], new["model.embed_tokens.weight"])
    files = keys_by_file(tmp_path / "out")
    del files["provenance.safetensors"]
    assert files.pop("mtp.safetensors") == {"mtp.1.embed_tokens.weight"}
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {key: file for file, keys in files.items() for key in keys}
    assert index["metadata"]["total_size"] == sum(
        value.numel() * value.element_size() for key, value in new.items() if key != "mtp.1.embed_tokens.weight"
    )
    assert [name.split("-of-")[1] for name in files] == [f"{len(files):05d}.safetensors"] * len(files)
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and set(info["unexpected_keys"]) == set(LAYER)
    assert torch.equal(model.model.embed_tokens.weight, new["model.embed_tokens.weight"])
    record = json.loads((tmp_path / "out" / "saltlm.json").read_text())["adapted"]
    assert set(record["untrained"]) == {*LAYER, "mtp.safetensors"}


def test_keys_that_transformers_renames_keep_their_dtypes(tmp_path: Path, text: Path) -> None:
    """Without the prefix of the base model in the file, a float16 tensor among float32 ones stays float16."""
    folder = adapt_tiny.transferred(tmp_path / "model", family="gpt2")
    rename_keys(folder, lambda key: key.removeprefix("transformer."))
    add_tensors(folder, {"wte.weight": all_tensors(folder)["wte.weight"].half()})
    adapt(folder, text, tmp_path / "out", CONFIG)
    new = all_tensors(tmp_path / "out")
    dtypes = {key.removeprefix("transformer."): value.dtype for key, value in new.items()}
    assert dtypes["wte.weight"] == torch.float16 and dtypes["ln_f.weight"] == torch.float32
    assert "untrained" not in json.loads((tmp_path / "out" / "saltlm.json").read_text())["adapted"]


def test_wrapped_keys_are_refused(tmp_path: Path, text: Path) -> None:
    folder = adapt_tiny.transferred(tmp_path / "model")
    rename_keys(folder, lambda key: f"_orig_mod.{key}" if key != "origin" else key)
    with pytest.raises(InputError, match="keys of a wrapped or compiled model"):
        adapt(folder, text, tmp_path / "out", CONFIG)
    assert not (tmp_path / "out").exists()
