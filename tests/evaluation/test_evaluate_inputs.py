"""What ``evaluate`` reads: folders, files of text, options as keywords and as a config; and which inputs it refuses."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from causal_lms import SMALL, config_of, lm_of
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from tokenizers_tiny import TEXT, tiny
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

import saltlm
from saltlm.errors import InputError
from saltlm.evaluation.config import EvaluateConfig
from saltlm.evaluation.evaluate import evaluate
from saltlm.options import options_of
from saltlm.text.documents import read_documents, read_text, split_documents

# ------------------------------------------------------------------------------------------------ folders and files


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    model, tokenizer = lm_of()
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def copy_of(folder: Path, target: Path, **changes: object) -> Path:
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **changes}))
    return target


def test_a_folder_and_files_give_what_the_objects_give(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(TEXT[:3]) + "\n")
    (tmp_path / "b.txt").write_bytes(("\ufeff\n" + "\r\n \t\r\n\r\n".join(TEXT[3:]) + "\r\n").encode())
    result = evaluate(folder, [tmp_path / "a.txt", str(tmp_path / "b.txt")])
    assert result.document_nats == pytest.approx(evaluate(lm_of(), documents=TEXT).document_nats, rel=1e-6)
    assert result.heldout is None and result.dtype == "float32" and result.model == str(folder)
    half = evaluate(folder, tmp_path / "a.txt", dtype="bfloat16", device="cpu")
    assert half.dtype == "bfloat16"
    assert half.bits_per_byte == pytest.approx(evaluate(folder, tmp_path / "a.txt").bits_per_byte, rel=0.05)


def test_half_precision_weights_run_in_float32_on_a_cpu(folder: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    _, tokenizer = lm_of()
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(half)
    tokenizer.save_pretrained(half)
    assert evaluate(half, documents=TEXT[:1], device="cpu").dtype == "float32"


def test_the_self_check_of_a_transfer_is_read_from_the_folder(folder: Path, tmp_path: Path) -> None:
    path = copy_of(folder, tmp_path / "transfer")
    self_check = {"tokens": 5, "candidates": 9, "relative_error": 0.9, "cosine": 0.5, "rank": 2, "top1": 0.2}
    (path / "saltlm.json").write_text(json.dumps({"format": 1, "heldout": self_check}))
    assert evaluate(path, documents=["the cat"]).to_json()["heldout"] == self_check
    (path / "saltlm.json").write_text("{")
    with pytest.raises(InputError, match=r"saltlm.json: found a broken file"):
        evaluate(path, documents=["the cat"])


@given(
    blocks=st.lists(
        st.tuples(st.text("ab \t", max_size=4), st.sampled_from("ab"), st.text("ab \t", max_size=4)).map("".join),
        max_size=6,
    ),
    data=st.data(),
)
def test_documents_are_the_blocks_between_blank_lines(blocks: list[str], data: st.DataObject) -> None:
    end = data.draw(st.sampled_from(["\n", "\r\n"]))
    blank = st.lists(st.sampled_from(["", " ", "\t "]), min_size=1, max_size=3)
    text = "".join(line + end for line in data.draw(st.one_of(st.just([]), blank)))
    for block in blocks:
        text += block + end + "".join(line + end for line in data.draw(blank))
    assert split_documents(text) == blocks
    assert split_documents(text.rstrip("\r\n")) == blocks


# ------------------------------------------------------------------------------------------------ refusals


def refused(message: str, *args: object, **options: object) -> None:
    with pytest.raises(InputError, match=message) as caught:
        evaluate(*args, **options)
    assert "\n" not in str(caught.value), "one sentence"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "found no text"),
        (b" \n\t\n\r\n", "found no text"),
        (b"text\0text", "zero byte at offset 4"),
        ("gro\u00df".encode("latin-1"), "byte 0xdf at offset 3, which is not UTF-8"),
        (b"caf\xc3", "byte 0xc3 at offset 3"),
    ],
)
def test_bad_files(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(data)
    refused(f"text.txt.*{message}", lm_of(), [path])


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    refused("nowhere.txt.*no such file", lm_of(), tmp_path / "nowhere.txt")
    refused("found a folder; expected a regular file", lm_of(), tmp_path)
    refused("no file", lm_of(), [])
    assert read_documents([__file__])[0].startswith('"""What ``evaluate`` reads')
    assert read_text(__file__) == Path(__file__).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "found both or neither"),
        ({"texts": "a.txt", "documents": ["a"]}, "found both or neither"),
        ({"documents": []}, "found no text"),
        ({"documents": ["", ""]}, "found no text"),
        ({"documents": ["a\ud800"]}, r"lone surrogate U\+D800 at character 1"),
        ({"documents": ["a"], "max_length": 1}, "max_length: found 1"),
        ({"documents": ["a"], "stride": 0}, "stride: found 0"),
        ({"documents": ["a"], "stride": 1024}, "stride: found 1024"),
        ({"documents": ["a"], "stride": 500}, "stride: found 500; expected a whole number from 1 to 127"),
        ({"documents": ["a"], "batch_tokens": 0}, "batch_tokens: found 0"),
        ({"documents": ["a"], "dtype": "float32"}, "neither device nor dtype"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    refused(message, lm_of(), **options)


def test_bad_devices_and_dtypes(folder: Path) -> None:
    for device in ("gpu", "cuda:999", "meta"):
        refused(f"device: found '{device}'", folder, documents=["a"], device=device)
    refused("dtype: found 'int8'; expected one of float32", folder, documents=["a"], dtype="int8")


def test_folders_that_hold_no_model(folder: Path, tmp_path: Path) -> None:
    refused("no such folder", tmp_path / "nowhere", documents=["a"])
    refused("no readable config.json", tmp_path, documents=["a"])
    refused("found a file", folder / "config.json", documents=["a"])
    refused("no file 'x.gguf'", folder, documents=["a"], gguf_file="x.gguf")
    (tmp_path / "config.json").write_text("{")
    refused("broken config.json", tmp_path, documents=["a"])
    (tmp_path / "config.json").write_text("{}")
    refused("no weights", tmp_path, documents=["a"])
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    refused(r"pickled weights \(pytorch_model.bin\)", tmp_path, documents=["a"])


def test_broken_folders(folder: Path, tmp_path: Path) -> None:
    cut = copy_of(folder, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    refused(r"model\.safetensors: found a truncated or corrupt", cut, documents=["a"])
    deeper = copy_of(folder, tmp_path / "deeper", num_hidden_layers=3)
    refused(r"missing tensors \(model.layers.2", deeper, documents=["a"])
    other = copy_of(folder, tmp_path / "other", model_type="no-such-type")
    refused("no-such-type", other, documents=["a"])
    torn = copy_of(folder, tmp_path / "torn")
    (torn / "tokenizer.json").write_text('{"model":')
    refused("tokenizer of model", torn, documents=["a"])
    bare = copy_of(folder, tmp_path / "bare")
    for file in bare.glob("*token*"):
        file.unlink()
    refused("tokenizer of model", bare, documents=["a"])


def test_code_of_a_checkpoint_is_not_run_by_default(folder: Path, tmp_path: Path) -> None:
    classes = {"AutoConfig": "custom.Config", "AutoModelForCausalLM": "custom.LM"}
    path = copy_of(folder, tmp_path / "custom", model_type="custom", auto_map=classes)
    (path / "custom.py").write_text("raise SystemExit('ran')")
    refused("code of its own", path, documents=["a"])


def test_a_tokenizer_that_disagrees_with_the_rows() -> None:
    model = AutoModelForCausalLM.from_config(config_of("llama", 300))
    refused(
        r"tokenizer of model.*found id 419 .*below the model's 300 rows",
        (model, tiny("byte_level_bpe")),
        documents=TEXT,
    )
    empty = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({}, [])))
    refused("empty vocabulary", (model, empty), documents=TEXT)


def test_a_head_with_too_few_rows() -> None:
    model = AutoModelForCausalLM.from_config(config_of("llama", len(tiny("byte_level_bpe")))).eval()
    model.lm_head = torch.nn.Linear(32, 300, bias=False)
    refused("found 300 logits", (model, tiny("byte_level_bpe")), documents=TEXT)


def test_a_tokenizer_that_yields_no_token() -> None:
    refused("no token for the whole text", lm_of("llama", "wordpiece"), documents=[" ", "\n"])


@pytest.mark.parametrize("where", ["everywhere", "one token"])
def test_predictions_that_are_not_finite(where: str) -> None:
    model = AutoModelForCausalLM.from_config(config_of("llama", len(tiny("byte_level_bpe")))).eval()
    rows = model.get_input_embeddings().weight.data
    if where == "everywhere":
        rows.fill_(math.nan)
        refused("NaN or infinite logits at the first tokens", (model, tiny("byte_level_bpe")), documents=TEXT)
        return
    rows[tiny("byte_level_bpe")("q")["input_ids"][0]] = math.nan
    refused(
        "NaN or infinite logits at token . of document 1", (model, tiny("byte_level_bpe")), documents=[TEXT[0], "qz"]
    )


def test_models_that_are_not_causal() -> None:
    size = len(tiny("wordpiece"))
    torch.manual_seed(0)
    encoder = BertLMHeadModel(BertConfig(**SMALL, intermediate_size=48, vocab_size=size))
    refused("change with a token to their right", (encoder, tiny("wordpiece")), documents=TEXT)
    config = T5Config(vocab_size=size, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    refused("encoder-decoder", (T5ForConditionalGeneration(config), tiny("wordpiece")), documents=TEXT)


# ------------------------------------------------------------ options as keywords and as a config


OPTIONS = [
    {},
    {"max_length": 40},
    {"max_length": 40, "stride": 7},
    {"batch_tokens": 100},
    {"max_length": 64, "batch_tokens": 77},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_config_and_keywords_are_equivalent(options: dict) -> None:
    results = [
        evaluate(lm_of(), documents=TEXT, **options),
        evaluate(lm_of(), config=EvaluateConfig(**options), documents=TEXT),
        evaluate(lm_of(), None, EvaluateConfig(**options), documents=TEXT),
    ]
    for other in results[1:]:
        np.testing.assert_array_equal(other.document_nats, results[0].document_nats)
        assert (other.max_length, other.stride) == (results[0].max_length, results[0].stride)


def test_a_keyword_replaces_the_value_of_the_config() -> None:
    config = EvaluateConfig(max_length=40, stride=7)
    result = evaluate(lm_of(), config=config, documents=TEXT[:1], stride=9)
    assert (result.max_length, result.stride) == (40, 9) and config.stride == 7


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_length": 1}, "max_length: found 1"),
        ({"max_length": 9.5}, "max_length: found 9.5"),
        ({"stride": 0}, "stride: found 0"),
        ({"max_length": 8, "stride": 8}, "less than the window"),
        ({"batch_tokens": 0}, "batch_tokens: found 0"),
        ({"device": "cpu"}, "with neither device nor dtype"),
        ({"dtype": "float32"}, "with neither device nor dtype"),
    ],
)
def test_bad_options_are_refused_as_config_and_as_keywords(options: dict, words: str) -> None:
    """Options of loading are refused for a loaded model."""
    with pytest.raises(InputError, match=words):
        evaluate(lm_of(), documents=TEXT, **options)
    with pytest.raises(InputError, match=words):
        evaluate(lm_of(), config=EvaluateConfig(**options), documents=TEXT)


def test_an_unknown_option_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="max_lenght"):
        evaluate(lm_of(), documents=TEXT, max_lenght=40)


def test_a_config_loads_a_folder_as_keywords_do(folder: Path) -> None:
    options = {"device": "cpu", "dtype": "bfloat16", "trust_remote_code": False, "revision": None}
    result = evaluate(folder, config=EvaluateConfig(**options), documents=TEXT[:2])
    assert result.dtype == "bfloat16" and result.nats == evaluate(folder, documents=TEXT[:2], **options).nats
    with pytest.raises(InputError, match=r"no file 'none\.gguf'"):
        evaluate(folder, config=EvaluateConfig(gguf_file="none.gguf"), documents=TEXT[:2])


def test_a_config_is_frozen_documented_and_named_by_the_package() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        EvaluateConfig().max_length = 3
    with pytest.raises(TypeError):
        EvaluateConfig(40)
    assert all(entry.text for entry in options_of(EvaluateConfig))
    assert saltlm.EvaluateConfig is EvaluateConfig and "EvaluateConfig" in saltlm.__all__


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"documents": "one string"}, "one string"),
        ({"documents": ["a", 1]}, "int"),
        ({"max_length": 9.5}, "9.5"),
        ({"stride": 1.5}, "1.5"),
        ({"batch_tokens": 0.5}, "0.5"),
    ],
)
def test_values_of_a_wrong_type_are_named(options: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        evaluate("not-looked-at", **{"documents": ["a"], **options})
