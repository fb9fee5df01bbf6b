"""A GGUF source is converted once to a float16 folder in the cache, and is then used like any other source."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import gguf as gguf_package
import numpy as np
import pytest
import torch
from models_tiny import save_llama
from safetensors.torch import load_file
from tokenizers_tiny import TEXT, tiny
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, modeling_gguf_pytorch_utils

from saltlm.errors import InputError
from saltlm.files.hashing import sha256_file
from saltlm.folder.write import write_folder
from saltlm.model.causal_lm import load_causal_lm
from saltlm.model.checkpoint import load_source
from saltlm.rows.matrices import NewMatrices

BPE = tiny("byte_level_bpe")
HEADS, LAYERS, WIDTH = 4, 2, 32


def write_gguf(path: Path, content: dict[str, torch.Tensor], quantized: bool) -> None:
    """Write a Llama model as GGUF, with GGUF's tensor names and its order of the rows of q and k; matrices as Q8_0 if asked."""
    writer = gguf_package.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(2 * WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(len(BPE))
    model = json.loads(BPE.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    order = sorted(BPE.get_vocab().items(), key=lambda item: item[1])
    writer.add_token_list([token for token, _ in order])
    special = set(BPE.all_special_tokens)
    types = gguf_package.TokenType
    writer.add_token_types([types.CONTROL if token in special else types.NORMAL for token, _ in order])
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(BPE.bos_token_id)
    writer.add_eos_token_id(BPE.eos_token_id)
    writer.add_pad_token_id(BPE.pad_token_id)
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "model.layers.": "blk.",
    }
    for key, tensor in content.items():
        name = key
        for old, new in names.items():
            name = name.replace(old, new)
        if "q_proj" in key or "k_proj" in key:
            tensor = tensor.reshape(HEADS, 2, -1, WIDTH).transpose(1, 2).reshape(WIDTH, WIDTH)
        data = tensor.numpy().astype(np.float32)
        if quantized and data.ndim == 2:
            q8 = gguf_package.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf_package.quants.quantize(data, q8), raw_dtype=q8)
        else:
            writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return save_llama(tmp_path_factory.mktemp("plain") / "model", BPE, tied=True)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("SALTLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("quantized", [False, True], ids=["float32", "Q8_0"])
def test_a_gguf_file_is_a_source(tmp_path: Path, cache: Path, plain: Path, quantized: bool) -> None:
    original = load_file(plain / "model.safetensors")
    (tmp_path / "model").mkdir()
    write_gguf(tmp_path / "model" / "tiny.gguf", original, quantized)
    source = load_source(tmp_path / "model", gguf_file="tiny.gguf")
    assert source.given_folder == tmp_path / "model" and source.folder.parent == cache / "gguf"
    assert source.folder.name == source.files["tiny.gguf"] and "quantization_config" not in source.config
    assert source.tied and source.input_rows.dtype == torch.float16
    error = (source.input_rows.float() - original["model.embed_tokens.weight"]).abs().max()
    assert error < (0.02 if quantized else 0.002), "error of float16 and of Q8_0 for values up to 0.5"
    assert source.tokenizer(TEXT)["input_ids"] == BPE(TEXT)["input_ids"]
    converted = load_file(source.folder / "model.safetensors")
    assert converted.keys() == original.keys()
    for key, value in original.items():
        assert (converted[key].float() - value).abs().max() < (0.02 if quantized else 0.002), key
    written_at = (source.folder / "config.json").stat().st_mtime_ns
    again = load_source(tmp_path / "model", gguf_file="tiny.gguf")
    assert (again.folder / "config.json").stat().st_mtime_ns == written_at, "converted twice"
    assert [path.name for path in source.folder.parent.iterdir()] == [source.folder.name]
    out = tmp_path / "out"
    write_folder(out, source, NewMatrices(input_rows=source.input_rows), tokenizer=BPE, config_changes={})
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.float16
    assert AutoTokenizer.from_pretrained(out)(TEXT)["input_ids"] == BPE(TEXT)["input_ids"]


def test_converting_and_loading_print_nothing(tmp_path: Path, cache: Path, plain: Path, capfd) -> None:
    write_gguf(tmp_path / "tiny.gguf", load_file(plain / "model.safetensors"), False)
    capfd.readouterr()
    load_source(tmp_path, gguf_file="tiny.gguf")
    load_causal_lm(tmp_path, gguf_file="tiny.gguf")
    assert capfd.readouterr() == ("", "")
    assert modeling_gguf_pytorch_utils.tqdm is tqdm, "the library's progress bar is restored"


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path: Path, plain: Path, monkeypatch) -> None:
    write_gguf(tmp_path / "tiny.gguf", load_file(plain / "model.safetensors"), False)
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("SALTLM_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"a file where a folder is needed.*SALTLM_CACHE"):
        load_source(tmp_path, gguf_file="tiny.gguf")


def test_leftovers_of_a_killed_conversion_are_removed(tmp_path: Path, cache: Path, plain: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", load_file(plain / "model.safetensors"), False)
    leftover = cache / "gguf" / f".{sha256_file(tmp_path / 'tiny.gguf')}.saltlm-999999999-01234567"
    leftover.mkdir(parents=True)
    load_source(tmp_path, gguf_file="tiny.gguf")
    assert not leftover.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"GGUF" + bytes(40), "transformers cannot read"), (b"PK\x03\x04", "no GGUF file"), (b"", "no GGUF file")],
)
def test_broken_files_are_refused_and_leave_nothing(tmp_path: Path, cache: Path, content: bytes, message: str) -> None:
    (tmp_path / "tiny.gguf").write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_source(tmp_path, gguf_file="tiny.gguf")
    assert list(cache.glob("gguf/*")) == []


def test_missing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match=r"no other.gguf; expected one of the GGUF files there: tiny.gguf"):
        load_source(tmp_path, gguf_file="other.gguf")
    with pytest.raises(InputError, match="--gguf-file"):
        load_source(tmp_path)


def test_missing_packages_are_named(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    find_spec = importlib.util.find_spec
    for missing in ("gguf", "accelerate"):
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name, *rest, missing=missing: None if name == missing else find_spec(name, *rest),
        )
        with pytest.raises(InputError, match=rf"no {missing}; expected the package {missing}; .*saltlm\[gguf\]"):
            load_source(tmp_path, gguf_file="tiny.gguf")
