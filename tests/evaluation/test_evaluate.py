"""Bits per byte: exact where the answer is known, equal to stock transformers elsewhere, the same for any batch or order."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers_tiny import KINDS, TEXT, tiny
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    Gemma2Config,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

import saltlm
from saltlm.cli.show_evaluation import evaluation_table
from saltlm.errors import InputError
from saltlm.evaluation import score
from saltlm.evaluation.config import EvaluateConfig
from saltlm.evaluation.evaluate import Evaluation, evaluate, tokenize
from saltlm.evaluation.generate import continuations
from saltlm.model import body_and_head
from saltlm.model.causal_lm import load_causal_lm
from saltlm.options import options_of
from saltlm.text.documents import read_documents, read_text, split_documents

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 128}


def config_of(kind: str, size: int) -> AutoConfig:
    ids = {"vocab_size": size, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    if kind == "gpt2":
        return GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=128, **ids)
    if kind == "opt":  # its head hangs on an inner decoder and projects
        return OPTConfig(**SMALL, ffn_dim=48, word_embed_proj_dim=16, max_position_embeddings=128, **ids)
    if kind == "gemma2":  # caps its logits after the head
        return Gemma2Config(**LLAMA, head_dim=8, final_logit_softcapping=0.5, **ids)
    return LlamaConfig(**LLAMA, tie_word_embeddings=False, **ids)


@functools.cache
def lm_of(kind: str = "llama", tokenizer: str = "byte_level_bpe") -> tuple:
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config_of(kind, len(tiny(tokenizer)))).eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data.mul_(5)  # far from uniform, so that a wrong token or position shows
    return model, tiny(tokenizer)


def uniform(size: int) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=size, n_embd=8, n_layer=1, n_head=1, n_positions=32, bos_token_id=None, eos_token_id=None
    )
    model = GPT2LMHeadModel(config).eval()
    model.transformer.wte.weight.data.zero_()
    return model


def bytes_only(**special: str) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def stock_nats(model, tokenizer, text: str) -> float:
    """The costs by transformers alone, with the whole text in one forward pass."""
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
    ids = torch.tensor([[start, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
    with torch.no_grad():
        logp = model(input_ids=ids).logits.double().log_softmax(-1)
    return -logp[0, :-1].gather(-1, ids[0, 1:, None]).sum().item()


# ------------------------------------------------------------------------------------------------ known answers


_texts = st.lists(st.text(max_size=60), max_size=2)


@pytest.mark.parametrize("special", [{}, {"bos_token": "!"}], ids=["no start token", "start token"])
@given(before=_texts, text=st.text(min_size=1, max_size=60), after=_texts)
@settings(max_examples=15, deadline=None)
def test_a_uniform_byte_model_scores_exactly_8_bits(
    special: dict, before: list[str], text: str, after: list[str]
) -> None:
    texts = [*before, text, *after]  # some are empty, one is not
    found = evaluate((uniform(256), bytes_only(**special)), documents=texts, stride=5)
    assert found.bits_per_byte == pytest.approx(8.0, rel=1e-14)
    assert found.tokens_per_byte == 1.0
    assert found.bytes == sum(len(text.encode()) for text in texts)
    assert found.document_bits == pytest.approx([8.0 * len(text.encode()) for text in texts], rel=1e-14)
    assert found.lossy_documents == found.unknown_tokens == 0


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2", "opt"])
def test_equals_stock_transformers(kind: str) -> None:
    model, tokenizer = lm_of(kind)
    found = evaluate((model, tokenizer), documents=TEXT, batch_tokens=300)
    expected = [stock_nats(model, tokenizer, text) for text in TEXT]
    assert found.document_nats == pytest.approx(expected, rel=1e-5)
    assert found.bits_per_byte == pytest.approx(sum(expected) / math.log(2) / found.bytes, rel=1e-5)
    assert found.tokens == sum(len(tokenizer(text)["input_ids"]) for text in TEXT)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_tokenizer_and_its_start_token(kind: str) -> None:
    model, tokenizer = lm_of("llama", kind)
    found = evaluate((model, tokenizer), documents=TEXT)
    assert found.nats == pytest.approx(sum(stock_nats(model, tokenizer, text) for text in TEXT), rel=1e-5)
    assert (found.lossy_documents > 0) == (kind == "wordpiece"), "it loses the spaces around punctuation"


def test_without_a_start_token_the_first_token_costs_log2_of_the_vocabulary() -> None:
    model, _ = lm_of()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tiny("byte_level_bpe").backend_tokenizer)
    assert tokenizer.bos_token is tokenizer.eos_token is tokenizer.cls_token is None
    ids = torch.tensor([tokenizer(TEXT[0])["input_ids"]])
    with torch.no_grad():
        rest = model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
    found = evaluate((model, tokenizer), documents=TEXT[:1])
    assert found.nats == pytest.approx(rest + math.log(len(tokenizer)), rel=1e-5)


def test_text_that_spells_a_special_token_is_plain_text() -> None:
    model, tokenizer = lm_of()
    whole = evaluate((model, tokenizer), documents=["a<|end|>b"])
    assert whole.tokens > 3 and whole.lossy_documents == 0, "spelled out with ordinary tokens"
    assert tokenizer("a<|end|>b")["input_ids"][1] == tokenizer.eos_token_id, "the tokenizer is left as it was"
    assert not tokenizer.backend_tokenizer.encode_special_tokens


# ------------------------------------------------------------------------------------------------ laws


@given(length=st.integers(0, 200), max_length=st.integers(2, 50), data=st.data())
def test_windows_score_each_position_once_with_enough_context(
    length: int, max_length: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, max_length - 1))
    found = list(score.windows(length, max_length, stride))
    assert [p for w in found for p in range(w.first, w.end)] == list(range(1, length))
    for w in found:
        assert w.end - w.start <= max_length
        assert w.start == 0 or w.first - w.start >= max_length - stride
        assert w.first - w.start >= 1


@given(max_length=st.integers(2, 40), data=st.data())
@settings(max_examples=15, deadline=None)
def test_windows_equal_a_plain_loop_over_them(max_length: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, max_length - 1))
    model, tokenizer = lm_of()
    text = TEXT[0]
    ids = [tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]
    expected, done = 0.0, 1
    while done < len(ids):
        start = 0 if done == 1 else done - (max_length - stride)
        end = min(start + max_length, len(ids))
        with torch.no_grad():
            logp = model(input_ids=torch.tensor([ids[start:end]])).logits[0].double().log_softmax(-1)
        expected -= sum(logp[p - start - 1, ids[p]].item() for p in range(done, end))
        done = end
    found = evaluate((model, tokenizer), documents=[text], max_length=max_length, stride=stride)
    assert found.nats == pytest.approx(expected, rel=1e-5)


@given(
    order=st.permutations(range(len(TEXT))),
    batch_tokens=st.integers(1, 400),
    max_length=st.sampled_from([16, 33, 128]),
    logit_floats=st.sampled_from([1, 5_000, 2**25]),
)
@settings(max_examples=12, deadline=None)
def test_batches_order_and_pieces_do_not_matter(order, batch_tokens: int, max_length: int, logit_floats: int) -> None:
    lm = load_causal_lm(lm_of())
    tokens = tokenize(lm, TEXT)
    common = {"max_length": max_length, "stride": max_length // 2}
    whole = score.score_tokens(lm, tokens, batch_tokens=10_000, **common)
    parts = np.split(whole, np.cumsum([len(ids) for ids in tokens])[:-1])
    found = score.score_tokens(
        lm, [tokens[i] for i in order], batch_tokens=batch_tokens, logit_floats=logit_floats, **common
    )
    assert found == pytest.approx(np.concatenate([parts[i] for i in order]), rel=1e-5, abs=1e-5)


def test_whole_logits_where_no_body_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = evaluate(lm_of("gemma2"), documents=TEXT, max_length=40)
    monkeypatch.setattr(body_and_head, "_bodies", lambda model: [model.lm_head])  # takes no token ids: no body
    found = evaluate(lm_of("gemma2"), documents=TEXT, max_length=40, batch_tokens=77)
    assert found.document_nats == pytest.approx(expected.document_nats, rel=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2", "opt"])
def test_logits_in_pieces_never_exceed_the_budget(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = load_causal_lm(lm_of(kind))
    tokens, width, largest = tokenize(lm, TEXT), lm.rows, []
    hook = lm.model.get_output_embeddings().register_forward_hook(lambda *a: largest.append(a[2].numel()))
    score.score_tokens(lm, tokens, max_length=64, stride=32, batch_tokens=1000, logit_floats=20 * width)
    hook.remove()
    assert max(largest) <= 20 * width < 1000 * width, "beyond the probe's few tokens only pieces are made"
    assert "forward" not in lm.model.base_model.__dict__, "the model's forward is put back"


def test_documents_add() -> None:
    whole = evaluate(lm_of(), documents=TEXT)
    parts = [evaluate(lm_of(), documents=[text]) for text in TEXT]
    assert whole.nats == pytest.approx(sum(part.nats for part in parts), rel=1e-6)
    for name in ("bytes", "tokens", "documents", "unknown_tokens"):
        assert getattr(whole, name) == sum(getattr(part, name) for part in parts)


@given(
    rows=st.integers(1, 6),
    width=st.integers(1, 40),
    scale=st.sampled_from([0.0, 1.0, 30.0, 1e4]),
    seed=st.integers(0, 99),
)
def test_token_nats_equal_log_softmax(rows: int, width: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, width, generator=generator) * scale
    targets = torch.randint(width, (rows,), generator=generator)
    expected = -logits.double().log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    for kind in (torch.float32, torch.float64):
        assert torch.allclose(score.token_nats(logits.to(kind, copy=True), targets), expected, rtol=1e-5, atol=1e-6)


def test_an_empty_document_keeps_its_place_and_costs_nothing() -> None:
    found = evaluate(lm_of(), documents=["", TEXT[0], ""])
    alone = evaluate(lm_of(), documents=[TEXT[0]])
    assert found.document_nats == pytest.approx([0.0, alone.nats, 0.0])
    assert found.document_bytes.tolist() == [0, alone.bytes, 0] and found.documents == 3


# ------------------------------------------------------------------------------------------------ what is reported


def test_unknown_tokens_are_counted_and_noted() -> None:
    found = evaluate(lm_of("llama", "wordpiece"), documents=["the cat", "ᚠᚢ the ᚦ"])
    assert found.unknown_tokens == 2
    assert "2 unknown tokens hide bytes" in found.notes[0] and "lower bound" in found.notes[0]
    assert evaluate(lm_of(), documents=["ᚠᚢ the ᚦ"]).notes == []


def test_numbers_for_json_repr_and_table() -> None:
    from rich.console import Console

    found = evaluate(lm_of(), documents=TEXT)
    plain = json.loads(json.dumps(found.to_json(per_document=True)))
    assert {"bits_per_byte", "tokens_per_byte", "bytes", "tokens"} <= plain.keys()
    assert sum(plain["document_bits"]) / plain["bytes"] == pytest.approx(plain["bits_per_byte"])
    assert "document_bits" not in found.to_json()
    assert "array" not in repr(found) and f"bytes={found.bytes}" in repr(found)
    console = Console(record=True, width=120, file=io.StringIO())
    console.print(evaluation_table({"one": found, "two": found}))
    assert f"{found.bits_per_byte:.3f}" in console.export_text()
    with pytest.raises(ValueError, match="cannot have document arrays"):
        Evaluation(**{**vars(found), "document_bytes": found.document_bytes[1:]})


def test_progress_counts_every_token() -> None:
    seen = []
    found = evaluate(
        lm_of(), documents=TEXT, max_length=32, batch_tokens=64, progress=lambda *counts: seen.append(counts)
    )
    assert seen == sorted(seen) and len(seen) > 3
    assert seen[-1] == (found.tokens, found.tokens)


def test_a_model_in_training_is_evaluated_without_dropout_and_left_in_training() -> None:
    model, tokenizer = lm_of("gpt2")
    expected = evaluate((model, tokenizer), documents=TEXT).nats
    model.train()
    model.lm_head.eval()
    try:
        assert evaluate((model, tokenizer), documents=TEXT).nats == pytest.approx(expected, rel=1e-9)
        assert model.training and model.transformer.training and not model.lm_head.training
    finally:
        model.eval()


def test_the_window_is_never_longer_than_the_models_positions() -> None:
    assert evaluate(lm_of(), documents=TEXT, max_length=100_000).max_length == 128
    text = " ".join(TEXT * 4)  # longer than the positions, and than what the tokenizer would warn about
    assert np.isfinite(evaluate(lm_of(), documents=[text]).bits_per_byte)


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
    found = evaluate(folder, [tmp_path / "a.txt", str(tmp_path / "b.txt")])
    assert found.document_nats == pytest.approx(evaluate(lm_of(), documents=TEXT).document_nats, rel=1e-6)
    assert found.heldout is None and found.dtype == "float32" and found.model == str(folder)
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
    held = {"tokens": 5, "candidates": 9, "relative_error": 0.9, "cosine": 0.5, "rank": 2, "top1": 0.2}
    (path / "saltlm.json").write_text(json.dumps({"format": 1, "heldout": held}))
    assert evaluate(path, documents=["the cat"]).to_json()["heldout"] == held
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
    refused("is a directory", lm_of(), tmp_path)
    refused("no file", lm_of(), [])
    assert read_documents([__file__])[0].startswith('"""Bits per byte')
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


def test_folders_that_are_no_model(folder: Path, tmp_path: Path) -> None:
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
    refused("SafetensorError", cut, documents=["a"])
    deeper = copy_of(folder, tmp_path / "deeper", num_hidden_layers=3)
    refused(r"missing tensors \(model.layers.2", deeper, documents=["a"])
    other = copy_of(folder, tmp_path / "other", model_type="no-such-kind")
    refused("no-such-kind", other, documents=["a"])
    torn = copy_of(folder, tmp_path / "torn")
    (torn / "tokenizer.json").write_text('{"model":')
    refused("tokenizer of model", torn, documents=["a"])
    bare = copy_of(folder, tmp_path / "bare")
    for file in bare.glob("*token*"):
        file.unlink()
    refused("tokenizer of model", bare, documents=["a"])


def test_code_of_a_checkpoint_is_not_run_by_default(folder: Path, tmp_path: Path) -> None:
    path = copy_of(
        folder, tmp_path / "own", model_type="own", auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.LM"}
    )
    (path / "own.py").write_text("raise SystemExit('ran')")
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


# ------------------------------------------------------------------------------------------------ continuations


def test_greedy_continuations_follow_the_likeliest_token() -> None:
    model, tokenizer = lm_of()
    found = continuations((model, tokenizer), [TEXT[0], TEXT[1]], 5)
    ids = [tokenizer.bos_token_id, *tokenizer(TEXT[0])["input_ids"]]
    prompt = len(ids)
    for _ in range(5):
        with torch.no_grad():
            ids.append(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item())
        if ids[-1] == 1:
            break
    assert found[0] == tokenizer.decode(ids[prompt:], skip_special_tokens=True)
    assert continuations((model, tokenizer), [TEXT[1]], 5) == found[1:]


def test_seeded_continuations_repeat_and_leave_the_generator_alone() -> None:
    state = torch.random.get_rng_state()
    one = continuations(lm_of(), [TEXT[0], TEXT[1]], 12, seed=7)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert continuations(lm_of(), [TEXT[1]], 12, seed=7) == one[1:]
    assert continuations(lm_of(), TEXT[:2], 12, seed=8) != one
    assert continuations(lm_of(), [""], 3, seed=0)[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"seed": -1}, "seed"),
        ({"temperature": 0.0}, "sampling"),
        ({"top_p": 1.5}, "sampling"),
    ],
)
def test_bad_continuations(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        continuations(lm_of(), ["a"], **options)


def test_a_prompt_without_tokens_needs_a_start_token() -> None:
    with pytest.raises(InputError, match="prompt ''"):
        continuations((lm_of()[0], bytes_only()), [""])


OPTIONS = [
    {},
    {"max_length": 40},
    {"max_length": 40, "stride": 7},
    {"batch_tokens": 100},
    {"max_length": 64, "batch_tokens": 77},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_config_and_keywords_are_equivalent(options: dict) -> None:
    found = [
        evaluate(lm_of(), documents=TEXT, **options),
        evaluate(lm_of(), config=EvaluateConfig(**options), documents=TEXT),
        evaluate(lm_of(), None, EvaluateConfig(**options), documents=TEXT),
    ]
    for other in found[1:]:
        np.testing.assert_array_equal(other.document_nats, found[0].document_nats)
        assert (other.max_length, other.stride) == (found[0].max_length, found[0].stride)


def test_a_keyword_replaces_the_value_of_the_config() -> None:
    config = EvaluateConfig(max_length=40, stride=7)
    found = evaluate(lm_of(), config=config, documents=TEXT[:1], stride=9)
    assert (found.max_length, found.stride) == (40, 9) and config.stride == 7


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
    found = evaluate(folder, config=EvaluateConfig(**options), documents=TEXT[:2])
    assert found.dtype == "bfloat16" and found.nats == evaluate(folder, documents=TEXT[:2], **options).nats
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
