"""A model folder as a GGUF file: settings, tensors, options, and what is refused. tests/real has llama.cpp read such files."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from export_tiny import save_architecture
from models_tiny import save_llama, save_phi
from safetensors.torch import load_file, save_file
from tokenizers_tiny import byte_level_bpe, sentencepiece_bpe, tiny, wordpiece

import saltlm
from saltlm.cli.main import main
from saltlm.errors import InputError
from saltlm.export.config import ExportConfig
from saltlm.export.gguf_file import export_gguf

BPE = tiny("byte_level_bpe")
LLAMA = "llama, grouped, biased, wide heads"


def read(path: Path) -> tuple[dict[str, object], dict[str, gguf.ReaderTensor]]:
    reader = gguf.GGUFReader(path)
    settings = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    return settings, {tensor.name: tensor for tensor in reader.tensors}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_architecture(tmp_path / "model", LLAMA, BPE)


def test_settings_and_tensors_of_a_llama(model: Path, tmp_path: Path) -> None:
    done = export_gguf(model, tmp_path / "out.gguf")
    assert done.bytes == (tmp_path / "out.gguf").stat().st_size and done.rows == len(BPE) and not done.notes
    settings, tensors = read(tmp_path / "out.gguf")
    assert settings["general.architecture"] == "llama" and settings["llama.rope.freq_base"] == 5000.0
    assert settings["llama.attention.head_count_kv"] == 2 and settings["llama.attention.key_length"] == 32
    assert settings["llama.vocab_size"] == len(settings["tokenizer.ggml.tokens"]) == len(BPE)
    stored = load_file(model / "model.safetensors")
    assert len(tensors) == len(stored)
    assert np.array_equal(tensors["token_embd.weight"].data, stored["model.embed_tokens.weight"].numpy())
    query = stored["model.layers.1.self_attn.q_proj.weight"].reshape(4, 2, 16, 64)
    assert np.array_equal(tensors["blk.1.attn_q.weight"].data.reshape(4, 16, 2, 64), query.transpose(1, 2).numpy())
    assert tensors["blk.1.attn_q.bias"].data.shape == (128,)


@pytest.mark.parametrize("weights", ["auto", "f32", "f16", "bf16", "q8_0"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_types_of_weights(tmp_path: Path, stored: torch.dtype, weights: str) -> None:
    folder = save_architecture(tmp_path / "model", LLAMA, BPE, dtype=stored)
    export_gguf(folder, tmp_path / "out.gguf", ExportConfig(weights=weights))
    settings, tensors = read(tmp_path / "out.gguf")
    kept = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}[stored]
    expected = kept if weights == "auto" else weights.upper()
    assert {t.tensor_type.name for t in tensors.values() if len(t.shape) > 1} == {expected}
    assert {t.tensor_type.name for t in tensors.values() if len(t.shape) == 1} == {"F32"}
    rows = gguf.quants.dequantize(tensors["token_embd.weight"].data, tensors["token_embd.weight"].tensor_type)
    original = load_file(folder / "model.safetensors")["model.embed_tokens.weight"].float().numpy()
    error = {"F32": 0, "F16": 2e-3, "BF16": 2e-2, "Q8_0": 2e-2}[expected] if expected != kept else 0
    assert np.abs(rows - original).max() <= error
    names = {"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7}
    assert settings["general.file_type"] == names[expected]


def test_roles_template_and_several_ends(tmp_path: Path) -> None:
    tokenizer = byte_level_bpe()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    folder = save_llama(tmp_path / "model", tokenizer, rows=len(tokenizer) + 4)
    path = folder / "generation_config.json"
    other = tokenizer.convert_tokens_to_ids("<|pad|>")
    path.write_text(json.dumps({"eos_token_id": [tokenizer.eos_token_id, other]}))
    export_gguf(folder, tmp_path / "out.gguf")
    settings, _ = read(tmp_path / "out.gguf")
    assert settings["tokenizer.ggml.bos_token_id"] == tokenizer.bos_token_id
    assert settings["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    assert settings["tokenizer.ggml.eot_token_id"] == other
    assert settings["tokenizer.ggml.padding_token_id"] == tokenizer.pad_token_id
    assert settings["tokenizer.ggml.add_bos_token"] is False and settings["tokenizer.ggml.add_eos_token"] is False
    assert settings["tokenizer.chat_template"] == tokenizer.chat_template
    assert settings["tokenizer.ggml.tokens"][-1] == f"[PAD{len(tokenizer) + 3}]"


def test_bos_before_a_text_is_told(tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_level_bpe()
    begin = [("<|begin|>", tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<|begin|> $A", special_tokens=begin)
    export_gguf(save_llama(tmp_path / "model", tokenizer), tmp_path / "out.gguf")
    settings, _ = read(tmp_path / "out.gguf")
    assert settings["tokenizer.ggml.add_bos_token"] is True and settings["tokenizer.ggml.add_eos_token"] is False


def test_an_untied_head_and_a_tied_one(tmp_path: Path) -> None:
    for tied in (True, False):
        folder = save_llama(tmp_path / f"model {tied}", BPE, tied=tied)
        export_gguf(folder, tmp_path / f"{tied}.gguf")
        assert ("output.weight" in read(tmp_path / f"{tied}.gguf")[1]) == (not tied)


def test_a_wordpiece_tokenizer_comes_with_a_warning(tmp_path: Path) -> None:
    tokenizer = wordpiece()
    tokenizer.eos_token = "[SEP]"
    done = export_gguf(save_llama(tmp_path / "model", tokenizer), tmp_path / "out.gguf")
    assert any("around every text" in note for note in done.notes)


# Layers and settings from a GGUF file of the source.


@pytest.fixture
def transferred(tmp_path: Path) -> tuple[Path, Path]:
    """A source's GGUF file in Q8_0, and the folder of a transfer from the source."""
    source = save_llama(tmp_path / "source", byte_level_bpe(), tied=False)
    donor = save_llama(tmp_path / "donor", sentencepiece_bpe())
    export_gguf(source, tmp_path / "source.gguf", ExportConfig(weights="q8_0"))
    saltlm.transfer(source, donor, out=tmp_path / "out", config=saltlm.TransferConfig(method="mean"))
    return tmp_path / "source.gguf", tmp_path / "out"


def test_body_from_a_file_of_the_source(transferred, tmp_path: Path) -> None:
    body, folder = transferred
    export_gguf(folder, tmp_path / "x.gguf", ExportConfig(body=str(body)))
    settings, tensors = read(tmp_path / "x.gguf")
    old, layers = read(body)
    rows = load_file(folder / "model.safetensors")
    assert np.array_equal(tensors["token_embd.weight"].data, rows["model.embed_tokens.weight"].numpy())
    assert np.array_equal(tensors["output.weight"].data, rows["lm_head.weight"].numpy())
    assert tensors.keys() == layers.keys()
    for name, tensor in layers.items():
        if name not in ("token_embd.weight", "output.weight"):
            assert np.array_equal(tensor.data, tensors[name].data) and tensor.tensor_type == tensors[name].tensor_type
    assert settings["llama.vocab_size"] == len(rows["lm_head.weight"]) != old["llama.vocab_size"]
    changed = {key for key in old if key.startswith(("llama.", "general.")) and old[key] != settings[key]}
    assert changed == {"llama.vocab_size"}
    assert settings["tokenizer.ggml.model"] == "llama" and old["tokenizer.ggml.model"] == "gpt2"


def test_a_body_of_another_model_is_refused(transferred, tmp_path: Path) -> None:
    _, folder = transferred
    for name, options, message in (
        ("narrow", {"width": 64}, "rows of 64"),
        ("tied", {"tied": True}, "no head of its own"),
    ):
        other = save_llama(tmp_path / name, BPE, **{"tied": False, **options})
        export_gguf(other, tmp_path / f"{name}.gguf")
        with pytest.raises(InputError, match=message):
            export_gguf(folder, tmp_path / "x.gguf", ExportConfig(body=str(tmp_path / f"{name}.gguf")))
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    for name, message in (("broken.gguf", "cannot read"), ("none.gguf", "no file")):
        with pytest.raises(InputError, match=message):
            export_gguf(folder, tmp_path / "x.gguf", ExportConfig(body=str(tmp_path / name)))
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize(("phases", "refused"), [("rows:2,embeddings:1", False), ("rows:2,all:1", True)])
def test_trained_layers_are_not_replaced_by_the_sources(
    transferred, tmp_path: Path, phases: str, refused: bool
) -> None:
    body, folder = transferred
    summary = json.loads((folder / "saltlm.json").read_text())
    later = {"phases": "rows:1", "before": [{"phases": phases, "before": []}]}
    (folder / "saltlm.json").write_text(json.dumps({**summary, "adapted": later}))
    config = ExportConfig(body=str(body))
    if refused:
        with pytest.raises(InputError, match="layers that were trained"):
            export_gguf(folder, tmp_path / "x.gguf", config)
    else:
        assert export_gguf(folder, tmp_path / "x.gguf", config).architecture == "llama"


# What is refused, and what then lies there.


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 5.0, "factor": 2.0}}, "rope_type"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantized"),
    ],
    ids=["activation", "rope", "quantized"],
)
def test_settings_that_llama_cpp_does_not_compute_are_refused(
    model: Path, tmp_path: Path, changes, message: str
) -> None:
    edit_config(model, **changes)
    with pytest.raises(InputError, match=message):
        export_gguf(model, tmp_path / "out.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_architecture_without_a_writer_names_the_way(tmp_path: Path) -> None:
    folder = save_phi(tmp_path / "model", BPE)
    with pytest.raises(InputError, match=r"PhiForCausalLM.*convert_hf_to_gguf\.py.*--body"):
        export_gguf(folder, tmp_path / "out.gguf")


def test_a_tensor_that_llama_cpp_lacks_is_refused(model: Path, tmp_path: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    save_file({**tensors, "model.layers.0.extra.weight": torch.zeros(3)}, model / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.layers\.0\.extra\.weight"):
        export_gguf(model, tmp_path / "out.gguf")


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "model", tiny("wordpiece"))
    with pytest.raises(InputError, match="no eos token"):
        export_gguf(folder, tmp_path / "out.gguf")


def test_an_existing_file_is_replaced_only_on_demand(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    out.write_bytes(b"old")
    with pytest.raises(InputError, match="existing file"):
        export_gguf(model, out)
    assert out.read_bytes() == b"old"
    export_gguf(model, out, ExportConfig(force=True))
    assert out.read_bytes()[:4] == b"GGUF"
    with pytest.raises(InputError, match="a folder"):
        export_gguf(model, tmp_path)


def test_an_interrupted_export_leaves_nothing(model: Path, tmp_path: Path) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_gguf(model, tmp_path / "new" / "out.gguf", progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_command(model: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out.gguf"
    assert main(["export", str(model), "--out", str(out), "--weights", "f16", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["out"] == str(out) and told["tokenizer"] == ["gpt2", "gpt-2"] and told["different"] == 0
    assert main(["export", str(model), "--out", str(out)]) == 2
    assert "existing file" in capsys.readouterr().err
    assert main(["export", str(model), "--out", str(out), "--force", "--quiet"]) == 0
    assert "architecture" in capsys.readouterr().out
    assert main(["export", str(model), "--out", str(tmp_path / "y"), "--weights", "q3"]) == 2
    assert "one of auto, f32" in capsys.readouterr().err
