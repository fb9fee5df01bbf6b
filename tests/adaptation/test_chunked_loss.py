"""The chunked loss equals the loss of the whole batch, and a document in a block gets the states that it gets alone."""

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
def test_loss_and_gradients_equal_those_of_the_whole_batch(n, chunk, seed, frozen):
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, 6, generator=draw, dtype=torch.float64).requires_grad_(frozen != "states")
    head = torch.nn.Linear(6, 11, dtype=torch.float64)
    torch.nn.init.normal_(head.weight, generator=draw)
    head.requires_grad_(frozen != "head")
    targets = torch.randint(0, 11, (n,), generator=draw)
    targets[torch.rand(n, generator=draw) < 0.3] = -100
    trained = [tensor for tensor in (hidden, *head.parameters()) if tensor.requires_grad]
    whole = torch.nn.functional.cross_entropy(head(hidden), targets, ignore_index=-100, reduction="sum")
    parts = chunked_cross_entropy(hidden, targets, head, list(head.parameters()), chunk)
    torch.testing.assert_close(parts, whole)
    gradients = torch.autograd.grad(0.7 * parts, trained)
    for gradient, expected in zip(gradients, torch.autograd.grad(0.7 * whole, trained), strict=True):
        torch.testing.assert_close(gradient, expected)


def models(tmp_path):
    for name in ("llama", "gpt2", "phi"):
        yield name, load_causal_lm(adapt_tiny.transferred(tmp_path / name, name), device="cpu").model
    cohere = transformers.CohereConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        logit_scale=0.3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    yield "cohere (scaled logits)", transformers.CohereForCausalLM(cohere)
    gemma = transformers.Gemma2Config(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        head_dim=8,
        num_key_value_heads=2,
        final_logit_softcapping=2.0,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    yield "gemma2 (soft cap)", transformers.Gemma2ForCausalLM(gemma)


def packed(rows: int):
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(0, rows, (2, 24), generator=draw)
    positions = torch.cat([torch.arange(9), torch.arange(15)])[None].repeat(2, 1)
    return ids, positions, torch.where(positions == 0, -100, ids)


def test_loss_and_gradients_of_models_equal_those_of_their_own_forward(tmp_path):
    for name, model in models(tmp_path):
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.double()  # in float32, the gradients of key biases, which cancel, consist of rounding errors
        other = copy.deepcopy(model)
        ids, positions, labels = packed(model.get_input_embeddings().weight.shape[0])
        stock = model(input_ids=ids, position_ids=positions, labels=labels, use_cache=False).loss
        stock.backward()
        chunked = ChunkedLM(other, 5)
        assert chunked.chunked, name
        loss = other(input_ids=ids, position_ids=positions, labels=labels)["loss"]
        loss.backward()
        assert loss.item() == pytest.approx(stock.item(), rel=1e-6), name
        for (key, expected), parameter in zip(model.named_parameters(), other.parameters(), strict=True):
            scale = max(float(expected.grad.abs().max()), 1e-6)
            assert float((parameter.grad - expected.grad).abs().max()) < 2e-6 * scale, (name, key)


def test_a_document_after_another_gets_the_logits_that_it_gets_alone(tmp_path):
    for name, model in models(tmp_path):
        model.eval()
        ids, positions, _ = packed(model.get_input_embeddings().weight.shape[0])
        with torch.no_grad():
            together = model(input_ids=ids, position_ids=positions, use_cache=False).logits
            for part in (slice(0, 9), slice(9, 24)):
                alone = model(input_ids=ids[:, part]).logits
                torch.testing.assert_close(together[:, part], alone, rtol=1e-4, atol=1e-4, msg=name)


def test_without_labels_the_logits_are_those_of_the_models_own_forward(tmp_path):
    model = load_causal_lm(adapt_tiny.transferred(tmp_path / "m"), device="cpu").model
    ids = torch.arange(7)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        ChunkedLM(model)
        assert torch.equal(model(input_ids=ids).logits, before)


def test_logits_of_the_whole_batch_are_never_computed(tmp_path):
    model = load_causal_lm(adapt_tiny.transferred(tmp_path / "m"), device="cpu").model
    chunked = ChunkedLM(model, 5)
    sizes = []
    head = chunked.head
    chunked.head = lambda states: (sizes.append(len(states)), head(states))[1]
    ids, positions, labels = packed(300)
    model(input_ids=ids, position_ids=positions, labels=labels)["loss"].backward()
    assert max(sizes) == 5 and sum(sizes) == 46  # each state once: no logits are computed twice


@pytest.mark.parametrize("cap", [None, 30.0])
def test_a_soft_cap_is_detected_although_the_logits_are_small(cap):
    config = transformers.Gemma2Config(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        head_dim=8,
        num_key_value_heads=2,
        final_logit_softcapping=cap,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = transformers.Gemma2ForCausalLM(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1e-2)  # logits so small that the cap does not change them
    head = ChunkedLM(model).head
    assert (head is model.get_output_embeddings()) == (cap is None)
