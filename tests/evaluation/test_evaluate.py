"""Bits per byte: exact where the answer is known, equal to stock transformers elsewhere, the same for any batch or order."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
import torch
from causal_lms import bytes_only, lm_of, uniform
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers_tiny import KINDS, TEXT, tiny
from transformers import PreTrainedTokenizerFast

from saltlm.cli.show_evaluation import evaluation_table
from saltlm.evaluation import score
from saltlm.evaluation.evaluate import Evaluation, evaluate, tokenize
from saltlm.model import body_and_head
from saltlm.model.causal_lm import load_causal_lm


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
    result = evaluate((uniform(256), bytes_only(**special)), documents=texts, stride=5)
    assert result.bits_per_byte == pytest.approx(8.0, rel=1e-14)
    assert result.tokens_per_byte == 1.0
    assert result.bytes == sum(len(text.encode()) for text in texts)
    assert result.document_bits == pytest.approx([8.0 * len(text.encode()) for text in texts], rel=1e-14)
    assert result.lossy_documents == result.unknown_tokens == 0


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "gemma2", "opt"])
def test_equals_stock_transformers(model_type: str) -> None:
    model, tokenizer = lm_of(model_type)
    result = evaluate((model, tokenizer), documents=TEXT, batch_tokens=300)
    expected = [stock_nats(model, tokenizer, text) for text in TEXT]
    assert result.document_nats == pytest.approx(expected, rel=1e-5)
    assert result.bits_per_byte == pytest.approx(sum(expected) / math.log(2) / result.bytes, rel=1e-5)
    assert result.tokens == sum(len(tokenizer(text)["input_ids"]) for text in TEXT)


@pytest.mark.parametrize("tokenizer_kind", KINDS)
def test_every_kind_of_tokenizer_and_its_start_token(tokenizer_kind: str) -> None:
    model, tokenizer = lm_of("llama", tokenizer_kind)
    result = evaluate((model, tokenizer), documents=TEXT)
    assert result.nats == pytest.approx(sum(stock_nats(model, tokenizer, text) for text in TEXT), rel=1e-5)
    assert (result.lossy_documents > 0) == (tokenizer_kind == "wordpiece"), "it loses the spaces around punctuation"


def test_without_a_start_token_the_first_token_costs_log2_of_the_vocabulary() -> None:
    model, _ = lm_of()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tiny("byte_level_bpe").backend_tokenizer)
    assert tokenizer.bos_token is tokenizer.eos_token is tokenizer.cls_token is None
    ids = torch.tensor([tokenizer(TEXT[0])["input_ids"]])
    with torch.no_grad():
        rest = model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
    result = evaluate((model, tokenizer), documents=TEXT[:1])
    assert result.nats == pytest.approx(rest + math.log(len(tokenizer)), rel=1e-5)


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
    windows = list(score.windows(length, max_length, stride))
    assert [position for window in windows for position in range(window.first, window.end)] == list(range(1, length))
    for window in windows:
        assert window.end - window.start <= max_length
        assert window.start == 0 or window.first - window.start >= max_length - stride
        assert window.first - window.start >= 1


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
    result = evaluate((model, tokenizer), documents=[text], max_length=max_length, stride=stride)
    assert result.nats == pytest.approx(expected, rel=1e-5)


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
    nats = score.score_tokens(
        lm, [tokens[i] for i in order], batch_tokens=batch_tokens, logit_floats=logit_floats, **common
    )
    assert nats == pytest.approx(np.concatenate([parts[i] for i in order]), rel=1e-5, abs=1e-5)


def test_whole_logits_of_a_model_without_a_body(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = evaluate(lm_of("gemma2"), documents=TEXT, max_length=40)
    monkeypatch.setattr(body_and_head, "_bodies", lambda model: [model.lm_head])  # takes no token ids: no body
    result = evaluate(lm_of("gemma2"), documents=TEXT, max_length=40, batch_tokens=77)
    assert result.document_nats == pytest.approx(expected.document_nats, rel=1e-5)


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "gemma2", "opt"])
def test_logits_in_pieces_never_exceed_the_budget(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = load_causal_lm(lm_of(model_type))
    tokens, width, largest = tokenize(lm, TEXT), lm.rows, []
    hook = lm.model.get_output_embeddings().register_forward_hook(lambda *a: largest.append(a[2].numel()))
    score.score_tokens(lm, tokens, max_length=64, stride=32, batch_tokens=1000, logit_floats=20 * width)
    hook.remove()
    assert max(largest) <= 20 * width < 1000 * width, "beyond the probe's few tokens the logits are computed in pieces"
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
    for dtype in (torch.float32, torch.float64):
        assert torch.allclose(score.token_nats(logits.to(dtype, copy=True), targets), expected, rtol=1e-5, atol=1e-6)


def test_an_empty_document_keeps_its_position_and_costs_nothing() -> None:
    result = evaluate(lm_of(), documents=["", TEXT[0], ""])
    alone = evaluate(lm_of(), documents=[TEXT[0]])
    assert result.document_nats == pytest.approx([0.0, alone.nats, 0.0])
    assert result.document_bytes.tolist() == [0, alone.bytes, 0] and result.documents == 3


# ------------------------------------------------------------------------------------------------ what is reported


def test_unknown_tokens_are_counted_and_noted() -> None:
    result = evaluate(lm_of("llama", "wordpiece"), documents=["the cat", "ᚠᚢ the ᚦ"])
    assert result.unknown_tokens == 2
    assert "2 unknown tokens hide bytes" in result.notes[0] and "lower bound" in result.notes[0]
    assert evaluate(lm_of(), documents=["ᚠᚢ the ᚦ"]).notes == []


def test_numbers_for_json_repr_and_table() -> None:
    from rich.console import Console

    result = evaluate(lm_of(), documents=TEXT)
    plain = json.loads(json.dumps(result.to_json(per_document=True)))
    assert {"bits_per_byte", "tokens_per_byte", "bytes", "tokens"} <= plain.keys()
    assert sum(plain["document_bits"]) / plain["bytes"] == pytest.approx(plain["bits_per_byte"])
    assert "document_bits" not in result.to_json()
    assert "array" not in repr(result) and f"bytes={result.bytes}" in repr(result)
    console = Console(record=True, width=120, file=io.StringIO())
    console.print(evaluation_table({"one": result, "two": result}))
    assert f"{result.bits_per_byte:.3f}" in console.export_text()
    with pytest.raises(ValueError, match="cannot have document arrays"):
        Evaluation(**{**vars(result), "document_bytes": result.document_bytes[1:]})


def test_progress_counts_every_token() -> None:
    seen = []
    result = evaluate(
        lm_of(), documents=TEXT, max_length=32, batch_tokens=64, progress=lambda *counts: seen.append(counts)
    )
    assert seen == sorted(seen) and len(seen) > 3
    assert seen[-1] == (result.tokens, result.tokens)


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
