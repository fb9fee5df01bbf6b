"""Quantised checkpoints: a transfer takes a quantised body over untouched; what would compute without the scales refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import adapt_tiny
import pytest
import torch
from checkpoints_tiny import add_tensors, all_tensors, bits, change_config, change_tensors, draw
from models_tiny import save_bert, save_llama
from tokenizers_tiny import tiny

from saltlm import AdaptConfig, TransferConfig, adapt, evaluate, transfer
from saltlm.errors import InputError
from saltlm.model.checkpoint import load_donor, load_source
from saltlm.model.quantization import packed_keys

BPE, UNIGRAM = tiny("byte_level_bpe"), tiny("sentencepiece_unigram")
METHOD = TransferConfig(method="subword-mean")
Tensors = dict[str, torch.Tensor]


def body(content: Tensors) -> list[str]:
    return [key for key in content if key.endswith("proj.weight")]


def fp8(content: Tensors, keys: list[str]) -> None:
    """Blocks of float8 with inverse scales, as in DeepSeek-V3."""
    for key in keys:
        content[key] = content[key].to(torch.float8_e4m3fn)
        content[f"{key}_scale_inv"] = torch.ones(1, 1)


def modelopt(content: Tensors, keys: list[str]) -> None:
    fp8(content, keys)
    for key in keys:
        content[f"{key}_scale"] = content.pop(f"{key}_scale_inv")[0, 0]
        content[key.replace("weight", "input_scale")] = torch.tensor(0.5)


def mxfp4(content: Tensors, keys: list[str]) -> None:
    for key in keys:
        weight = content.pop(key)
        content[f"{key}_blocks"] = torch.zeros(len(weight), weight.shape[1] // 2, dtype=torch.uint8)
        content[f"{key}_scales"] = torch.zeros(len(weight), dtype=torch.uint8)


def gptq(content: Tensors, keys: list[str]) -> None:
    for key in keys:
        stem = key.removesuffix("weight")
        rows, width = content.pop(key).shape
        content[stem + "qweight"] = torch.zeros(width // 8, rows, dtype=torch.int32)
        content[stem + "qzeros"] = torch.zeros(1, rows // 8 + 1, dtype=torch.int32)
        content[stem + "scales"] = torch.ones(1, rows, dtype=torch.float16)
        content[stem + "g_idx"] = torch.zeros(width, dtype=torch.int32)


def awq(content: Tensors, keys: list[str]) -> None:
    gptq(content, keys)
    for key in keys:
        del content[key.removesuffix("weight") + "g_idx"]


def compressed(content: Tensors, keys: list[str]) -> None:
    for key in keys:
        weight = content.pop(key)
        content[f"{key}_packed"] = torch.zeros(len(weight), weight.shape[1] // 8, dtype=torch.int32)
        content[f"{key}_scale"] = torch.ones(len(weight), 1)
        content[f"{key}_shape"] = torch.tensor(weight.shape)


def bnb8(content: Tensors, keys: list[str]) -> None:
    for key in keys:
        content[key] = content[key].to(torch.int8)
        content[key.replace("weight", "SCB")] = torch.ones(len(content[key]))


def bnb4(content: Tensors, keys: list[str]) -> None:
    for key in keys:
        count = content[key].numel()
        content[key] = torch.zeros(count // 2, 1, dtype=torch.uint8)
        content[f"{key}.absmax"] = torch.ones(count // 64 + 1)
        content[f"{key}.quant_map"] = torch.ones(16)
        content[f"{key}.quant_state.bitsandbytes__nf4"] = torch.zeros(8, dtype=torch.uint8)


KINDS = {
    "fp8": (fp8, {"quant_method": "fp8", "weight_block_size": [128, 128]}),
    "modelopt": (modelopt, {"quant_method": "modelopt"}),
    "mxfp4": (mxfp4, {"quant_method": "mxfp4"}),
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4}),
    "awq": (awq, {"quant_method": "awq", "bits": 4}),
    "compressed-tensors": (compressed, {"quant_method": "compressed-tensors", "format": "pack-quantized"}),
    "LLM.int8": (bnb8, {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    "nf4": (bnb4, {"quant_method": "bitsandbytes", "load_in_4bit": True}),
}


def quantized(folder: Path, kind: str, declared: bool = True, keys: Any = body) -> Path:
    """A tiny Llama whose body, or the tensors that ``keys`` names, are quantised."""
    change, config = KINDS[kind]
    save_llama(folder, BPE, tied=False, dtype=torch.bfloat16)
    change_tensors(folder, lambda content: change(content, keys(content)))
    if declared:
        change_config(folder, quantization_config=config)
    return folder


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> Path:
    return save_bert(tmp_path_factory.mktemp("donor") / "bert", UNIGRAM)


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "not declared"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_quantized_body_passes_through_untouched(tmp_path: Path, target: Path, kind: str, declared: bool) -> None:
    folder = quantized(tmp_path / "source", kind, declared)
    (folder / "hf_quant_config.json").write_text('{"quantization": {}}')
    result = transfer(folder, target, None, tmp_path / "out", METHOD)
    old, new = all_tensors(folder), all_tensors(tmp_path / "out")
    assert old.keys() == new.keys()
    for key in old:
        if key not in ("model.embed_tokens.weight", "lm_head.weight"):
            assert bits(old[key]) == bits(new[key]), key
    assert torch.equal(new["model.embed_tokens.weight"], result.input_rows)
    before, after = (json.loads((f / "config.json").read_text()) for f in (folder, tmp_path / "out"))
    assert after.get("quantization_config") == before.get("quantization_config")
    assert (after.get("quantization_config") is not None) == declared
    assert after["dtype"] == before["dtype"] == "bfloat16"
    assert (tmp_path / "out" / "hf_quant_config.json").read_text() == '{"quantization": {}}'
    warned = any(
        "quantised weights" in warning and "hf_quant_config.json" in warning for warning in result.summary["warnings"]
    )
    assert warned != declared


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "lm_head.weight"])
@pytest.mark.parametrize("kind", KINDS)
def test_quantized_vocabulary_rows_are_refused(tmp_path: Path, kind: str, name: str) -> None:
    for declared in (True, False):
        folder = quantized(tmp_path / str(declared), kind, declared, keys=lambda content: [name])
        with pytest.raises(InputError, match=rf"quantized vocabulary rows .{name.removesuffix('weight')}"):
            load_source(folder)


def test_scales_beside_plain_rows_are_refused(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "source", BPE, tied=False)
    add_tensors(folder, {"lm_head.weight_scale": torch.ones(1)})
    with pytest.raises(InputError, match=r"quantized vocabulary rows"):
        load_source(folder)


@pytest.mark.parametrize("kind", ["fp8", "gptq"])
def test_a_donor_needs_plain_input_rows_alone(tmp_path: Path, kind: str) -> None:
    folder = quantized(tmp_path / "donor", kind, keys=lambda content: [*body(content), "lm_head.weight"])
    assert load_donor(folder).input_rows.dtype == torch.bfloat16
    folder = quantized(tmp_path / "other", kind, keys=lambda content: ["model.embed_tokens.weight"])
    with pytest.raises(InputError, match=r"quantized vocabulary rows"):
        load_donor(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_undeclared_scales_are_not_ignored(tmp_path: Path, kind: str) -> None:
    folder = quantized(tmp_path / "model", kind, declared=False)
    with pytest.raises(InputError, match=r"quantized weights that config.json does not declare"):
        evaluate(folder, documents=["text"])
    text = adapt_tiny.text_file(tmp_path / "text.txt", 20)
    with pytest.raises(InputError, match=r"quantized weights that config.json does not declare"):
        adapt(folder, text, tmp_path / "out", AdaptConfig(phases="all:1", seq_length=16, device="cpu"))
    assert not (tmp_path / "out").exists()


def test_scales_alone_are_not_ignored(tmp_path: Path) -> None:
    """Float weights with scales beside them: only the names tell."""
    folder = save_llama(tmp_path / "model", BPE, tied=False)
    add_tensors(folder, {"model.layers.0.mlp.up_proj.weight_scale": torch.ones(1)})
    with pytest.raises(InputError, match=r"does not declare .*up_proj.weight_scale"):
        evaluate(folder, documents=["text"])


def test_a_declared_quantization_is_not_trained(tmp_path: Path) -> None:
    folder = quantized(tmp_path / "model", "fp8")
    text = adapt_tiny.text_file(tmp_path / "text.txt", 20)
    with pytest.raises(InputError, match=r"a quantized checkpoint .*'fp8'.*to train"):
        adapt(folder, text, tmp_path / "out", AdaptConfig(phases="all:1", seq_length=16, device="cpu"))


def test_names_that_look_alike_are_no_scales() -> None:
    plain = [
        "model.logit_scale",
        "a.layer_scale",
        "a.attn.k_scale",
        "a.norm.weight",
        "a.eh_proj.weight",
        "a.rescale.bias",
    ]
    assert packed_keys(plain) == []
    assert packed_keys(["mtp.layers.0.self_attn.q_proj.weight_scale_inv"]) != []


def test_unknown_tensors_of_other_kinds_are_no_quantization(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "model", BPE, tied=False)
    expected = evaluate(folder, documents=["a text"]).bits_per_byte
    add_tensors(folder, {"mtp.eh_proj.weight": draw(4, 4)})
    assert evaluate(folder, documents=["a text"]).bits_per_byte == expected
