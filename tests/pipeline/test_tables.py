"""Vocabulary rows outside the model class, as multi-token-prediction layers have: rebuilt like the model's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checkpoints_tiny import add_tensors, all_tensors, bits, change_tensors, draw, keys_by_file
from models_tiny import WIDTH, save_bert, save_llama
from pairs import write_vectors
from safetensors.torch import load_file, save_file
from tokenizers_tiny import tiny
from transformers import AutoModelForCausalLM

from saltlm import TransferConfig, transfer
from saltlm.errors import InputError
from saltlm.model.checkpoint import load_source

BPE, UNIGRAM = tiny("byte_level_bpe"), tiny("sentencepiece_unigram")
ROWS = len(BPE)
LAYER = "model.layers.2"  # the class has layers 0 and 1


def layer(
    input_rows: torch.Tensor | None, output_rows: torch.Tensor | None, prefix: str = LAYER
) -> dict[str, torch.Tensor]:
    """A multi-token-prediction layer as DeepSeek-V3 names it, with tensors that have other shapes."""
    tensors = {
        f"{prefix}.eh_proj.weight": draw(WIDTH, 2 * WIDTH),
        f"{prefix}.enorm.weight": draw(WIDTH),
        f"{prefix}.mlp.up_proj.weight": draw(2 * WIDTH, WIDTH),
    }
    if input_rows is not None:
        tensors[f"{prefix}.embed_tokens.weight"] = input_rows
    if output_rows is not None:
        tensors[f"{prefix}.shared_head.head.weight"] = output_rows
    return tensors


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> Path:
    return save_bert(tmp_path_factory.mktemp("donor") / "bert", UNIGRAM)


@pytest.fixture(scope="module")
def vectors(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("vectors") / "v.vec"
    write_vectors(path, UNIGRAM, drop=9)
    return path


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_copies_of_the_models_rows_stay_copies(tmp_path: Path, target: Path, tied: bool) -> None:
    """DeepSeek-V3, GLM-4.5: the layer repeats input matrix and head."""
    folder = save_llama(tmp_path / "source", BPE, tied=tied)
    rows = load_file(folder / "model.safetensors")
    head = rows["model.embed_tokens.weight"] if tied else rows["lm_head.weight"]
    add_tensors(folder, layer(rows["model.embed_tokens.weight"].clone(), head.clone()))
    result = transfer(folder, target, None, tmp_path / "out", TransferConfig(method="subword-mean"))
    new, old = all_tensors(tmp_path / "out"), all_tensors(folder)
    assert torch.equal(new[f"{LAYER}.embed_tokens.weight"], result.input_rows)
    written_head = result.input_rows if tied else result.output_rows
    assert torch.equal(new[f"{LAYER}.shared_head.head.weight"], written_head)
    for name in ("eh_proj", "enorm", "mlp.up_proj"):
        assert bits(new[f"{LAYER}.{name}.weight"]) == bits(old[f"{LAYER}.{name}.weight"])
    assert any(
        "outside the model class" in warning and "2 equal rows" in warning for warning in result.summary["warnings"]
    )


# Methods that take other ways to the head: coefficients, pieces with another rule for the head, maps, covariances, draws.
METHODS = {
    "salt": {},
    "subword-mean": {},
    "subword-asymmetric": {},
    "ridge-map": {},
    "sava-orthogonal": {},
    "omp": {},
    "auto": {},
    "blend": {"blend_weight": "precision"},
    "mean": {},
    "normal": {},
    "multivariate": {},
}


@pytest.mark.parametrize("method", METHODS)
def test_other_tables_are_built_as_the_models_own_rows_are(
    tmp_path: Path, target: Path, vectors: Path, method: str
) -> None:
    """A model whose own input matrix and head are those of the tables gets the same new rows."""
    config = TransferConfig(method=method, norm_guard="shrink", **METHODS[method])
    auxiliary = vectors if method == "salt" else None
    plain = save_llama(tmp_path / "plain", BPE, tied=False)
    embed, head = draw(ROWS, WIDTH, seed=1), draw(ROWS, WIDTH, seed=2)
    source = save_llama(tmp_path / "source", BPE, tied=False)
    add_tensors(source, layer(embed, head))
    result = transfer(source, target, auxiliary, tmp_path / "out", config)
    new = all_tensors(tmp_path / "out")
    alone = transfer(plain, target, auxiliary, None, config)
    assert torch.equal(result.input_rows, alone.input_rows), "tables do not change the model's own rows"
    assert torch.equal(result.output_rows, alone.output_rows)

    change_tensors(plain, lambda content: content.update({"lm_head.weight": head}))
    expected = transfer(plain, target, auxiliary, None, config)
    assert torch.equal(new[f"{LAYER}.shared_head.head.weight"], expected.output_rows)
    if method == "blend":  # its weights are measured on the input rows
        return
    tied = save_llama(tmp_path / "tied", BPE, tied=True)
    change_tensors(tied, lambda content: content.update({"model.embed_tokens.weight": embed}))
    expected = transfer(tied, target, auxiliary, None, config)
    assert torch.equal(new[f"{LAYER}.embed_tokens.weight"], expected.input_rows)


NAMES = {
    "Qwen3-Next": ("mtp.embed_tokens.weight", "mtp.lm_head.weight"),
    "MiMo": ("model.mtp_layers.0.token_embedding.weight", "model.mtp_layers.0.output.weight"),
    "GPT-2 kind": ("mtp.wte.weight", "mtp.embed_out.weight"),
    "Medusa": (None, "medusa_head.0.1.lm_head.weight"),
}


@pytest.mark.parametrize("kind", NAMES)
def test_names_tell_input_from_output_rows(tmp_path: Path, kind: str) -> None:
    folder = save_llama(tmp_path / "source", BPE)
    names = dict(zip(NAMES[kind], ("input", "output"), strict=True))
    names.pop(None, None)
    add_tensors(folder, {name: draw(ROWS, WIDTH, seed=i) for i, name in enumerate(names)})
    assert {table.key: table.role for table in load_source(folder).tables} == names


def test_a_bias_and_another_width_are_rebuilt_too(tmp_path: Path, target: Path) -> None:
    folder = save_llama(tmp_path / "source", BPE)
    bias, wide = draw(ROWS), draw(ROWS, 3 * WIDTH)
    add_tensors(folder, {"mtp.head.bias": bias, "mtp.head.weight": wide})
    result = transfer(folder, target, None, tmp_path / "out", TransferConfig(method="subword-mean"))
    new = all_tensors(tmp_path / "out")
    copied = torch.from_numpy(result.origin == 0).nonzero()[:, 0]
    source_ids = torch.from_numpy(result.alignment.source_id.astype("int64"))[copied]
    assert len(copied) > 50
    assert torch.equal(new["mtp.head.bias"][copied], bias[source_ids])
    assert torch.equal(new["mtp.head.weight"][copied], wide[source_ids])


REFUSED = {
    "no telling name": {"mtp.proj.weight": draw(ROWS, WIDTH)},
    "a map of ids": {"d2t": torch.arange(ROWS)},
    "a cube": {"mtp.embed_tokens.weight": draw(ROWS, 2, 3)},
    "integers": {"mtp.lm_head.weight": torch.ones(ROWS, WIDTH, dtype=torch.int32)},
    "NaN": {"mtp.lm_head.weight": torch.full((ROWS, WIDTH), float("nan"))},
}


@pytest.mark.parametrize("kind", REFUSED)
def test_tensors_with_a_row_for_each_token_are_rebuilt_or_refused(tmp_path: Path, kind: str) -> None:
    folder = save_llama(tmp_path / "source", BPE)
    add_tensors(folder, REFUSED[kind])
    with pytest.raises(InputError, match=next(iter(REFUSED[kind]))):
        load_source(folder)


def test_a_body_tensor_with_as_many_rows_is_no_table(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "source", BPE)
    add_tensors(folder, {f"{LAYER}.mlp.up_proj.weight": draw(ROWS, WIDTH)})
    assert load_source(folder).tables == ()


@pytest.mark.parametrize("shards", ["1GB", 20_000], ids=["one file", "sharded"])
def test_files_beside_the_models_own_are_taken_along(tmp_path: Path, target: Path, shards) -> None:
    folder = save_llama(tmp_path / "source", BPE, tied=False, max_shard_size=shards)
    embed = all_tensors(folder)["model.embed_tokens.weight"].clone()
    save_file(layer(embed, draw(ROWS, WIDTH)), folder / "mtp.safetensors", metadata={"format": "pt"})
    save_file({"tok_embeddings.weight": embed}, folder / "consolidated.safetensors")  # the same model, other names
    result = transfer(folder, target, None, tmp_path / "out", TransferConfig(method="subword-mean"))
    keys, new = keys_by_file(tmp_path / "out"), load_file(tmp_path / "out" / "mtp.safetensors")
    assert keys["mtp.safetensors"] == keys_by_file(folder)["mtp.safetensors"] and "consolidated.safetensors" not in keys
    assert torch.equal(new[f"{LAYER}.embed_tokens.weight"], result.input_rows)
    assert len(new[f"{LAYER}.shared_head.head.weight"]) == len(result.input_rows)
    if shards != "1GB":
        index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
        assert "mtp.safetensors" not in index["weight_map"].values()
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        again.save_pretrained(tmp_path / "again", max_shard_size=20_000)
        other = json.loads((tmp_path / "again" / "model.safetensors.index.json").read_text())
        assert index["metadata"] == other["metadata"]
