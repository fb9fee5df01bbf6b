"""Loading only what a transfer needs: the right tensors of every model family, and errors for damaged models."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from models_tiny import (
    WIDTH,
    save_bert,
    save_gpt2,
    save_llama,
    save_phi,
    save_qwen2,
    save_t5,
    save_xlm_roberta,
)
from safetensors.torch import load_file, save_file
from tokenizers_tiny import TEXT, tiny
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from saltlm.errors import InputError
from saltlm.model.checkpoint import load_donor, load_source

BPE, UNIGRAM, PIECES = tiny("byte_level_bpe"), tiny("sentencepiece_unigram"), tiny("wordpiece")

SOURCES = {
    "llama tied": lambda folder, **o: save_llama(folder, BPE, tied=True, **o),
    "llama untied": lambda folder, **o: save_llama(folder, BPE, tied=False, **o),
    "gpt2": lambda folder, **o: save_gpt2(folder, BPE, **o),
    "phi": lambda folder, **o: save_phi(folder, BPE, **o),
    "qwen2": lambda folder, **o: save_qwen2(folder, BPE, **o),
}
DONORS = {
    "bert": lambda folder, **o: save_bert(folder, PIECES, **o),
    "bert masked lm": lambda folder, **o: save_bert(folder, PIECES, masked_lm=True, **o),
    "xlm-roberta": lambda folder, **o: save_xlm_roberta(folder, UNIGRAM, **o),
    "t5": lambda folder, **o: save_t5(folder, UNIGRAM, **o),
    "mt5": lambda folder, **o: save_t5(folder, UNIGRAM, multilingual=True, **o),
    "gpt2": lambda folder, **o: save_gpt2(folder, BPE, **o),
    "llama": lambda folder, **o: save_llama(folder, BPE, **o),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", SOURCES)
def test_a_sources_rows_are_those_of_the_loaded_model(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    folder = SOURCES[family](tmp_path / "model", dtype=dtype)
    source, model = load_source(folder), AutoModelForCausalLM.from_pretrained(folder)
    head = model.get_output_embeddings()
    assert source.architecture == type(model).__name__
    assert source.input_rows.dtype == dtype
    assert torch.equal(source.input_rows, model.get_input_embeddings().weight)
    assert source.tied == (head.weight is model.get_input_embeddings().weight)
    assert source.tied or torch.equal(source.output_rows, head.weight)
    assert (source.output_bias is None) == (head.bias is None)
    assert head.bias is None or torch.equal(source.output_bias, head.bias)
    assert source.tokenizer(TEXT)["input_ids"] == AutoTokenizer.from_pretrained(folder)(TEXT)["input_ids"]
    assert source.config == json.loads((folder / "config.json").read_text())
    assert source.generation_config == json.loads((folder / "generation_config.json").read_text())


@pytest.mark.parametrize("family", DONORS)
def test_a_donors_rows_are_those_of_the_loaded_model(tmp_path: Path, family: str) -> None:
    folder = DONORS[family](tmp_path / "model")
    donor, model = load_donor(folder), AutoModel.from_pretrained(folder)
    assert donor.architecture == type(model).__name__
    assert torch.equal(donor.input_rows, model.get_input_embeddings().weight)
    assert len(donor.input_rows) == len(donor.tokenizer)


@pytest.mark.parametrize("family", ["llama tied", "llama untied", "gpt2", "phi"])
def test_sharded_and_whole_load_the_same(tmp_path: Path, family: str) -> None:
    whole = load_source(SOURCES[family](tmp_path / "whole"))
    parts = load_source(SOURCES[family](tmp_path / "parts", max_shard_size=20_000))
    assert len(set(parts.shards.values())) > 1 == len(set(whole.shards.values()))
    assert parts.shards.keys() == whole.shards.keys()
    assert (parts.input_name, parts.output_name, parts.bias_name) == (
        whole.input_name,
        whole.output_name,
        whole.bias_name,
    )
    assert torch.equal(parts.input_rows, whole.input_rows)
    hashes = [{key.split("#")[-1]: value for key, value in s.files.items() if "#" in key} for s in (whole, parts)]
    assert hashes[0] == hashes[1], "hashes of rows do not depend on the file that holds them"


def test_keys_without_the_models_prefix_are_found(tmp_path: Path) -> None:
    """The oldest GPT-2 checkpoints were saved from the model without a head."""
    folder = save_gpt2(tmp_path / "model", BPE)
    content = load_file(folder / "model.safetensors")
    bare = {key.removeprefix("transformer."): value for key, value in content.items()}
    save_file(bare, folder / "model.safetensors", metadata={"format": "pt"})
    source = load_source(folder)
    assert source.input_name == "wte.weight"
    assert torch.equal(source.input_rows, content["transformer.wte.weight"])


def test_rows_are_mapped_not_read(tmp_path: Path) -> None:
    source = load_source(save_llama(tmp_path / "model", BPE))
    path = str(source.folder / "model.safetensors")
    maps = Path("/proc/self/maps").read_text()
    address = source.input_rows.data_ptr()
    inside = [
        line
        for line in maps.splitlines()
        if int(line.split("-")[0], 16) <= address < int(line.split("-")[1].split()[0], 16)
    ]
    assert len(inside) == 1 and inside[0].endswith(path)
    before = Path(path).read_bytes()
    source.input_rows.zero_()
    assert Path(path).read_bytes() == before, "writing to the rows must not change the checkpoint"


def test_hashes_of_files_and_rows(tmp_path: Path) -> None:
    source = load_source(save_llama(tmp_path / "model", BPE))
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert source.files[name] == hashlib.sha256((source.folder / name).read_bytes()).hexdigest()
    rows = source.input_rows.numpy().tobytes()
    assert source.files["model.safetensors#model.embed_tokens.weight"] == hashlib.sha256(rows).hexdigest()
    assert source.files["model.safetensors"].startswith("not hashed: ")
    assert source.revision is None and source.folder == (tmp_path / "model").resolve()


def test_more_rows_than_tokens_are_all_kept(tmp_path: Path) -> None:
    source = load_source(save_llama(tmp_path / "model", BPE, rows=448))
    assert len(source.input_rows) == 448 and len(source.tokenizer) == 420 and source.tokens_without_row == {}


def test_added_tokens_without_a_row_are_listed(tmp_path: Path) -> None:
    from tokenizers_tiny import byte_level_bpe

    tokenizer = byte_level_bpe()
    save_llama(tmp_path / "model", tokenizer)
    tokenizer.add_tokens(["<extra>", "<more>"])
    tokenizer.save_pretrained(tmp_path / "model")
    size = len(tokenizer) - 2
    assert load_source(tmp_path / "model").tokens_without_row == {"<extra>": size, "<more>": size + 1}
    assert load_donor(tmp_path / "model").tokens_without_row == {"<extra>": size, "<more>": size + 1}


def test_a_slow_vocabulary_is_converted(tmp_path: Path) -> None:
    folder = save_bert(tmp_path / "model", PIECES)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": False})
    )
    order = sorted(PIECES.get_vocab().items(), key=lambda item: item[1])
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token, _ in order))
    donor = load_donor(folder)
    assert donor.tokenizer.is_fast and donor.tokenizer.get_vocab() == PIECES.get_vocab()
    assert "vocab.txt" in donor.files


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Valid models, which tests copy and damage."""
    root = tmp_path_factory.mktemp("models")
    save_llama(root / "llama", BPE, tied=False)
    save_llama(root / "sharded", BPE, tied=False, max_shard_size=20_000)
    save_bert(root / "bert", PIECES)
    return root


def change_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def change_tensors(folder: Path, change) -> None:
    content = load_file(folder / "model.safetensors")
    change(content)
    save_file(content, folder / "model.safetensors", metadata={"format": "pt"})


def cut(path: Path, count: int) -> None:
    os.truncate(path, path.stat().st_size - count)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"PK")


def lfs(name: str):
    return lambda folder: (folder / name).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    )


def not_finite(value: float, rows: list[int], key: str = "model.embed_tokens.weight"):
    def change(content: dict[str, torch.Tensor]) -> None:
        content[key][rows, 1] = value

    return lambda folder: change_tensors(folder, change)


def quantized_rows(folder: Path) -> None:
    def change(content: dict[str, torch.Tensor]) -> None:
        content["model.embed_tokens.qweight"] = content.pop("model.embed_tokens.weight").int()

    change_tensors(folder, change)
    change_config(folder, quantization_config={"quant_method": "gptq"})


def index_without(folder: Path) -> None:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["ghost.weight"] = next(iter(index["weight_map"].values()))
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def index_outside(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "../llama/model.safetensors"}})
    )


DAMAGE = {
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "config not JSON": (lambda f: (f / "config.json").write_text("{ broken"), "config.json: found a broken file"),
    "config no object": (lambda f: (f / "config.json").write_text("[1]"), "expected a JSON object"),
    "config binary": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), "found a broken file"),
    "config LFS": (lfs("config.json"), "git-LFS pointer"),
    "no model type": (lambda f: (f / "config.json").write_text("{}"), "model_type None"),
    "unknown model type": (lambda f: change_config(f, model_type="lama"), "model_type 'lama'"),
    "contradictory config": (lambda f: change_config(f, num_attention_heads=7, head_dim=None), "config"),
    "config of wrong types": (lambda f: change_config(f, vocab_size="many"), "config"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no weights"),
    "pickled": (pickled, r"pickled weights.*saltlm convert"),
    "truncated": (lambda f: cut(f / "model.safetensors", 100), "truncated or corrupt"),
    "cut in the header": (lambda f: os.truncate(f / "model.safetensors", 50), "ends inside the header"),
    "empty weights": (lambda f: os.truncate(f / "model.safetensors", 0), "truncated or corrupt"),
    "weights LFS": (lfs("model.safetensors"), "git-LFS pointer"),
    "no input matrix": (
        lambda f: change_tensors(f, lambda c: c.pop("model.embed_tokens.weight")),
        "input matrix.*no tensor",
    ),
    "no head": (lambda f: change_tensors(f, lambda c: c.pop("lm_head.weight")), "head.*no tensor lm_head.weight"),
    "other width": (lambda f: change_config(f, hidden_size=64), r"shape \[420, 32\]; expected \[420, 64\]"),
    "other vocabulary": (lambda f: change_config(f, vocab_size=500), r"shape \[420, 32\]; expected \[500, 32\]"),
    "integer rows": (
        lambda f: change_tensors(f, lambda c: c.update({"lm_head.weight": c["lm_head.weight"].int()})),
        "dtype I32",
    ),
    "NaN": (not_finite(float("nan"), [7, 300]), r"NaN or infinity in rows 7 \('.+'\), 300 \('.+'\);"),
    "inf in many": (not_finite(float("inf"), list(range(9)), "lm_head.weight"), r"lm_head.*rows 0 \('<.*and 4 more"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer"),
    "broken tokenizer": (
        lambda f: (f / "tokenizer.json").write_text('{"model": {}}'),
        "tokenizer that transformers cannot",
    ),
    "tokenizer LFS": (lfs("tokenizer.json"), "git-LFS pointer"),
    "quantized": (quantized_rows, "quantized vocabulary rows .*embed_tokens.qweight.*'gptq'"),
    "remote code": (
        lambda f: change_config(
            f, model_type="own", auto_map={"AutoModelForCausalLM": "own.Own", "AutoConfig": "own.C"}
        ),
        "needs its own code.*--trust-remote-code",
    ),
    "adapter": (
        lambda f: [(f / "model.safetensors").unlink(), (f / "adapter_config.json").write_text("{}")],
        "merge it into its base model.*merge_and_unload",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_sources_are_refused(tmp_path: Path, models: Path, name: str) -> None:
    damage, message = DAMAGE[name]
    shutil.copytree(models / "llama", tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(InputError, match=message) as caught:
        load_source(tmp_path / "model")
    assert "\n" not in str(caught.value)


DONOR_DAMAGE = (
    "no config",
    "config not JSON",
    "pickled",
    "truncated",
    "no input matrix",
    "NaN",
    "no tokenizer",
    "quantized",
    "remote code",
    "other width",
)


@pytest.mark.parametrize("name", DONOR_DAMAGE)
def test_damaged_donors_are_refused(tmp_path: Path, models: Path, name: str) -> None:
    damage, message = DAMAGE[name]
    shutil.copytree(models / "llama", tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(InputError, match=message):
        load_donor(tmp_path / "model")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model-00002-of-00007.safetensors").unlink(), "no model-00002-of-00007.safetensors"),
        (lambda f: cut(f / "model-00002-of-00007.safetensors", 1), "truncated or corrupt"),
        (index_without, "no tensor 'ghost.weight'"),
        (index_outside, "the name of a file in the folder"),
        (lambda f: (f / "model.safetensors.index.json").write_text("{}"), "no weight_map"),
        (lambda f: (f / "model.safetensors.index.json").write_text("{"), "a broken file"),
    ],
    ids=["missing shard", "cut shard", "missing tensor", "outside", "no map", "broken index"],
)
def test_damaged_shards_are_refused(tmp_path: Path, models: Path, damage, message: str) -> None:
    shutil.copytree(models / "sharded", tmp_path / "model")
    assert (tmp_path / "model" / "model-00002-of-00007.safetensors").is_file()
    damage(tmp_path / "model")
    with pytest.raises(InputError, match=message):
        load_source(tmp_path / "model")


@pytest.mark.parametrize("family", ["bert", "bert masked lm", "xlm-roberta", "t5", "mt5"])
def test_no_causal_lm_is_refused_as_a_source(tmp_path: Path, family: str) -> None:
    with pytest.raises(InputError, match=r"which is no causal LM.*swap source and target"):
        load_source(DONORS[family](tmp_path / "model"))


def test_an_encoder_made_a_decoder_is_a_source(tmp_path: Path) -> None:
    import transformers
    from models_tiny import save

    config = transformers.BertConfig(
        vocab_size=len(PIECES),
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        is_decoder=True,
    )
    source = load_source(save(tmp_path / "model", "BertLMHeadModel", config, PIECES, dtype=torch.float32))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert source.tied and torch.equal(source.output_bias, model.get_output_embeddings().bias)


@pytest.mark.parametrize("load", [load_source, load_donor])
def test_models_of_several_text_parts_are_refused(tmp_path: Path, models: Path, load) -> None:
    import transformers

    shutil.copytree(models / "llama", tmp_path / "model")
    parts = {name: getattr(transformers, name)() for name in ("T5Config", "EncodecConfig", "MusicgenDecoderConfig")}
    config = transformers.MusicgenConfig(
        text_encoder=parts["T5Config"], audio_encoder=parts["EncodecConfig"], decoder=parts["MusicgenDecoderConfig"]
    )
    config.save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match="a model with several text parts"):
        load(tmp_path / "model")


def test_a_vision_model_is_refused_as_a_donor(tmp_path: Path, models: Path) -> None:
    import transformers

    shutil.copytree(models / "llama", tmp_path / "model")
    transformers.ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4).save_pretrained(
        tmp_path / "model"
    )
    with pytest.raises(InputError, match="no matrix of token rows"):
        load_donor(tmp_path / "model")


@pytest.mark.parametrize("load", [load_source, load_donor])
def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path, models: Path, load) -> None:
    from tokenizers_tiny import byte_level_bpe

    shutil.copytree(models / "llama", tmp_path / "model")
    byte_level_bpe(440).save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match=r"20 tokens that have no row, such as .* \(id 420\)"):
        load(tmp_path / "model")


@pytest.mark.parametrize("load", [load_source, load_donor])
@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c", "not a name", "weights.gguf"])
def test_missing_folders_are_refused(tmp_path: Path, monkeypatch, load, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("weights.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match=r"no such folder|found a file.*--gguf-file"):
        load(name)


def test_code_of_a_checkpoint_runs_only_when_trusted(tmp_path: Path, models: Path, monkeypatch) -> None:
    """A model type whose code writes a file when it runs."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "model"
    shutil.copytree(models / "llama", folder)
    mark = tmp_path / "ran"
    (folder / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        f"open({str(mark)!r}, 'w').close()\n"
        "class C(LlamaConfig):\n    model_type = 'own'\n"
        "class Own(LlamaForCausalLM):\n    config_class = C\n"
    )
    change_config(folder, model_type="own", auto_map={"AutoModelForCausalLM": "own.Own", "AutoConfig": "own.C"})
    with pytest.raises(InputError, match="needs its own code"):
        load_source(folder)
    assert not mark.exists()
    source = load_source(folder, trust_remote_code=True)
    assert mark.exists() and source.architecture == "Own" and source.trust_remote_code


def test_hub_names_work_offline_from_the_cache(tmp_path: Path, models: Path, monkeypatch) -> None:
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "hub" / "models--someone--llama"
    shutil.copytree(models / "llama", cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    for name in ("main", "v1"):
        (cached / "refs" / name).write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    source, donor = load_source("someone/llama"), load_donor("someone/llama", revision="v1")
    assert (source.name, source.folder) == ("someone/llama", cached / "snapshots" / commit)
    assert source.revision == donor.revision == commit
    assert torch.equal(source.input_rows, load_source(models / "llama").input_rows)
    with pytest.raises(InputError, match=r"source someone/other: found no such folder, and the hub gives none"):
        load_source("someone/other")
    with pytest.raises(InputError, match=r"the hub gives none"):
        load_donor("someone/llama", revision="v2")
    (cached / "snapshots" / commit / "model.safetensors").unlink()  # as for a model that has only pickled weights
    with pytest.raises(InputError, match=r"no weights.*if the hub has pickled weights.*saltlm convert NAME"):
        load_source("someone/llama")


def test_model_card_and_licence_are_fetched_from_the_hub(tmp_path: Path, models: Path, monkeypatch) -> None:
    import huggingface_hub

    options_given = {}
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, **options: options_given.update(options) or str(models / "llama"),
    )
    load_source("someone/llama")
    names = ["README.md", "LICENSE.txt", "NOTICE", "USE_POLICY.md", "config.json", "tokenizer.json"]
    names += ["model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    fetched = huggingface_hub.utils.filter_repo_objects(
        [*names, "pytorch_model.bin", "onnx/model.safetensors"],
        allow_patterns=options_given["allow_patterns"],
        ignore_patterns=options_given["ignore_patterns"],
    )
    assert list(fetched) == names
