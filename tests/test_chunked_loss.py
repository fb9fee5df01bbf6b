"""The chunked loss is the stock loss, and documents in a block are as if alone."""

from __future__ import annotations

import copy

import adapt_tiny
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from saltlm.adaptation.chunked_loss import ChunkedLM, chunked_cross_entropy
from saltlm.model.causal_lm import load_causal_lm


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 30),
    chunk=st.integers(1, 40),
    seed=st.integers(0, 99),
    frozen=st.sampled_from(["", "head", "states"]),
)
def test_loss_and_gradients_are_those_of_the_whole(n, chunk, seed, frozen):
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, 6, generator=draw, dtype=torch.float64).requires_grad_(frozen != "states")
    head = torch.nn.Linear(6, 11, dtype=torch.float64)
    torch.nn.init.normal_(head.weight, generator=draw)
    head.requires_grad_(frozen != "head")
    targets = torch.randint(0, 11, (n,), generator=draw)
    targets[torch.rand(n, generator=draw) < 0.3] = -100
    wanted = [tensor for tensor in (hidden, *head.parameters()) if tensor.requires_grad]
    whole = torch.nn.functional.cross_entropy(head(hidden), targets, ignore_index=-100, reduction="sum")
    parts = chunked_cross_entropy(hidden, targets, head, list(head.parameters()), chunk)
    torch.testing.assert_close(parts, whole)
    for found, expected in zip(
        torch.autograd.grad(0.7 * parts, wanted), torch.autograd.grad(0.7 * whole, wanted), strict=True
    ):
        torch.testing.assert_close(found, expected)


def models(tmp_path):
    for kind in ("llama", "gpt2", "phi"):
        yield kind, load_causal_lm(adapt_tiny.transferred(tmp_path / kind, kind), device="cpu").model
    cohere = transformers.CohereConfig(
        vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4, logit_scale=0.3,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    yield "cohere (scaled logits)", transformers.CohereForCausalLM(cohere)
    gemma = transformers.Gemma2Config(
        vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, head_dim=8,
        num_key_value_heads=2, final_logit_softcapping=2.0, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    yield "gemma2 (soft cap)", transformers.Gemma2ForCausalLM(gemma)


def packed(rows: int):
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(0, rows, (2, 24), generator=draw)
    places = torch.cat([torch.arange(9), torch.arange(15)])[None].repeat(2, 1)
    return ids, places, torch.where(places == 0, -100, ids)


def test_models_lose_nothing_by_chunks(tmp_path):
    for kind, model in models(tmp_path):
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.double()  # or rounding in the body, where a key bias's gradients cancel, would be all that is seen
        other = copy.deepcopy(model)
        ids, places, labels = packed(model.get_input_embeddings().weight.shape[0])
        stock = model(input_ids=ids, position_ids=places, labels=labels, use_cache=False).loss
        stock.backward()
        chunked = ChunkedLM(other, 5)
        assert chunked.chunked, kind
        loss = other(input_ids=ids, position_ids=places, labels=labels)["loss"]
        loss.backward()
        assert loss.item() == pytest.approx(stock.item(), rel=1e-6), kind
        for (name, expected), found in zip(model.named_parameters(), other.parameters(), strict=True):
            scale = max(float(expected.grad.abs().max()), 1e-6)
            assert float((found.grad - expected.grad).abs().max()) < 2e-6 * scale, (kind, name)


def test_a_document_behind_another_is_as_if_alone(tmp_path):
    for kind, model in models(tmp_path):
        model.eval()
        ids, places, _ = packed(model.get_input_embeddings().weight.shape[0])
        with torch.no_grad():
            together = model(input_ids=ids, position_ids=places, use_cache=False).logits
            for part in (slice(0, 9), slice(9, 24)):
                alone = model(input_ids=ids[:, part]).logits
                torch.testing.assert_close(together[:, part], alone, rtol=1e-4, atol=1e-4, msg=kind)


def test_without_labels_the_forward_is_the_stock_one(tmp_path):
    model = load_causal_lm(adapt_tiny.transferred(tmp_path / "m"), device="cpu").model
    ids = torch.arange(7)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        ChunkedLM(model)
        assert torch.equal(model(input_ids=ids).logits, before)


def test_no_logits_of_the_whole_batch_are_made(tmp_path):
    model = load_causal_lm(adapt_tiny.transferred(tmp_path / "m"), device="cpu").model
    chunked = ChunkedLM(model, 5)
    sizes = []
    stock = chunked.head
    chunked.head = lambda states: (sizes.append(len(states)), stock(states))[1]
    ids, places, labels = packed(300)
    model(input_ids=ids, position_ids=places, labels=labels)["loss"].backward()
    assert max(sizes) == 5 and sum(sizes) == 46  # each state once: nothing is computed again


@pytest.mark.parametrize("cap", [None, 30.0])
def test_a_soft_cap_is_found_however_small_the_logits(cap):
    config = transformers.Gemma2Config(
        vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4, head_dim=8,
        num_key_value_heads=2, final_logit_softcapping=cap, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = transformers.Gemma2ForCausalLM(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1e-2)  # logits where the cap bends nothing yet
    head = ChunkedLM(model).head
    assert (head is model.get_output_embeddings()) == (cap is None)
