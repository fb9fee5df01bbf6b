"""Checkpoints whose keys differ from the names in the model class: found, and written back under the same keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoints_tiny import all_tensors, bits, change_tensors, keys_by_file, rename_keys
from models_tiny import WIDTH, roles, save, save_bert, save_gpt2, save_llama, save_xlm_roberta
from tokenizers_tiny import tiny
from transformers import AutoModel, AutoModelForCausalLM

from saltlm import TransferConfig, evaluate, transfer
from saltlm.errors import InputError
from saltlm.model.checkpoint import load_donor, load_source

BPE, UNIGRAM = tiny("byte_level_bpe"), tiny("sentencepiece_unigram")
SIZES = {
    "vocab_size": len(BPE),
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    **roles(BPE),
}
METHOD = TransferConfig(method="subword-mean")


def save_class(name: str, config: str, **more: Any):
    """A function that saves a tiny model of a class; the installed transformers may not have it."""

    def make(folder: Path) -> Path:
        if not hasattr(transformers, name):
            pytest.skip(f"this transformers has no {name}")
        return save(folder, name, getattr(transformers, config)(**{**SIZES, **more}), BPE, dtype=torch.float32)

    return make


def bare_gpt2(folder: Path) -> Path:
    """As the oldest GPT-2 checkpoints, saved from the model without a head."""
    save_gpt2(folder, BPE)
    rename_keys(folder, lambda key: key.removeprefix("transformer."))
    return folder


def bare_llama(folder: Path) -> Path:
    save_llama(folder, BPE, tied=True)
    rename_keys(folder, lambda key: key.removeprefix("model."))
    return folder


# Maker of a checkpoint, and the keys of its vocabulary tensors; an older class may have these names itself.
SOURCES = {
    "GPT-NeoX": (save_class("GPTNeoXForCausalLM", "GPTNeoXConfig"), "gpt_neox.embed_in.weight", "embed_out.weight"),
    "Nemotron-H": (
        save_class("NemotronHForCausalLM", "NemotronHConfig"),
        "backbone.embeddings.weight",
        "lm_head.weight",
    ),
    "Mamba": (save_class("MambaForCausalLM", "MambaConfig"), "backbone.embeddings.weight", None),
    "Bailing": (
        save_class("BailingHybridForCausalLM", "BailingHybridConfig"),
        "model.word_embeddings.weight",
        "lm_head.weight",
    ),
    "GPT-2 without prefix": (bare_gpt2, "wte.weight", None),
    "Llama without prefix": (bare_llama, "embed_tokens.weight", None),
}


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> Path:
    return save_bert(tmp_path_factory.mktemp("donor") / "bert", UNIGRAM)


@pytest.mark.parametrize("kind", SOURCES)
def test_renamed_sources_are_read_and_written_under_their_keys(tmp_path: Path, target: Path, kind: str) -> None:
    make, input_name, output_name = SOURCES[kind]
    folder = make(tmp_path / "source")
    source, model = load_source(folder), AutoModelForCausalLM.from_pretrained(folder)
    if "lm_head.weight" in source.shards:  # an older class may not tie its head
        output_name = "lm_head.weight"
    assert (source.input_name, source.output_name) == (input_name, output_name)
    assert torch.equal(source.input_rows, model.get_input_embeddings().weight)
    if output_name:
        assert torch.equal(source.output_rows, model.get_output_embeddings().weight)
    result = transfer(folder, target, None, tmp_path / "out", METHOD)
    assert keys_by_file(tmp_path / "out").pop("model.safetensors") == keys_by_file(folder)["model.safetensors"]
    new, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    assert torch.equal(new.get_input_embeddings().weight, result.input_rows)
    head = result.input_rows if result.output_rows is None else result.output_rows
    assert torch.equal(new.get_output_embeddings().weight, head)
    old, written = all_tensors(folder), all_tensors(tmp_path / "out")
    for key in old.keys() - {input_name, output_name}:
        assert bits(old[key]) == bits(written[key]), key


def test_an_unknown_prefix_is_refused_in_a_source(tmp_path: Path) -> None:
    """transformers would leave the whole body at random values."""
    folder = save_llama(tmp_path / "model", BPE)
    rename_keys(folder, lambda key: f"student.{key}")
    with pytest.raises(InputError, match=r"input matrix.*nor one that transformers loads.*student.model.embed_tokens"):
        load_source(folder)


@pytest.mark.parametrize("prefix", ["roberta.", "auto_model.", "0.auto_model."])
def test_a_donors_rows_are_found_behind_any_prefix(tmp_path: Path, prefix: str) -> None:
    folder = save_xlm_roberta(tmp_path / "model", UNIGRAM)
    rows = AutoModel.from_pretrained(folder).get_input_embeddings().weight
    rename_keys(folder, lambda key: prefix + key)
    assert torch.equal(load_donor(folder).input_rows, rows)


def test_two_tensors_of_one_name_are_refused_unless_they_are_equal(tmp_path: Path) -> None:
    folder = save_gpt2(tmp_path / "model", BPE)
    change_tensors(folder, lambda content: content.update({"wte.weight": content["transformer.wte.weight"].clone()}))
    source = load_source(folder)
    assert {source.input_name, *source.copies} == {"transformer.wte.weight", "wte.weight"}
    change_tensors(folder, lambda content: content["wte.weight"].add_(1))
    with pytest.raises(InputError, match=r"two different tensors that transformers loads as transformer\.wte\.weight"):
        load_source(folder)


WRAPPED = {
    "compiled": lambda key: f"_orig_mod.{key}",
    "data parallel": lambda key: f"module.{key}",
    "both": lambda key: f"module._orig_mod.{key}",
    "compiled layers": lambda key: key.replace("layers.0.", "layers.0._orig_mod."),
    "FSDP": lambda key: f"_fsdp_wrapped_module.{key}".replace("mlp.", "_checkpoint_wrapped_module.mlp."),
}


@pytest.mark.parametrize("shards", ["1GB", 20_000], ids=["one file", "sharded"])
@pytest.mark.parametrize("kind", WRAPPED)
def test_names_of_wrappers_are_left_out_of_the_written_keys(tmp_path: Path, target: Path, kind: str, shards) -> None:
    plain = save_llama(tmp_path / "plain", BPE, tied=False, max_shard_size=shards)
    wrapped = save_llama(tmp_path / "wrapped", BPE, tied=False, max_shard_size=shards)
    rename_keys(wrapped, WRAPPED[kind])
    transfer(plain, target, None, tmp_path / "plain out", METHOD)
    result = transfer(wrapped, target, None, tmp_path / "out", METHOD)
    assert any("wrapped or compiled model" in warning for warning in result.summary["warnings"])
    old, new = all_tensors(tmp_path / "plain out"), all_tensors(tmp_path / "out")
    assert old.keys() == new.keys() and all(torch.equal(old[key], new[key]) for key in old)
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with pytest.raises(InputError, match="keys of a wrapped or compiled model"):
        evaluate(wrapped, documents=["text"])


def test_a_donors_wrappers_are_left_out(tmp_path: Path) -> None:
    folder = save_bert(tmp_path / "model", UNIGRAM)
    rows = load_donor(folder).input_rows.clone()
    rename_keys(folder, lambda key: f"_orig_mod.{key}")
    assert torch.equal(load_donor(folder).input_rows, rows)


def test_keys_that_are_equal_without_wrappers_are_refused(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "model", BPE)
    change_tensors(folder, lambda c: c.update({"_orig_mod.model.norm.weight": c["model.norm.weight"].clone()}))
    with pytest.raises(InputError, match=r"one tensor model\.norm\.weight"):
        load_source(folder)
