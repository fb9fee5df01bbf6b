"""Continuations: greedy ones follow the likeliest token, drawn ones repeat with their seed, bad options are refused."""

from __future__ import annotations

import pytest
import torch
from causal_lms import bytes_only, lm_of
from tokenizers_tiny import TEXT

from saltlm.errors import InputError
from saltlm.evaluation.generate import continuations


def test_greedy_continuations_follow_the_likeliest_token() -> None:
    model, tokenizer = lm_of()
    texts = continuations((model, tokenizer), [TEXT[0], TEXT[1]], 5)
    ids = [tokenizer.bos_token_id, *tokenizer(TEXT[0])["input_ids"]]
    prompt = len(ids)
    for _ in range(5):
        with torch.no_grad():
            ids.append(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item())
        if ids[-1] == 1:
            break
    assert texts[0] == tokenizer.decode(ids[prompt:], skip_special_tokens=True)
    assert continuations((model, tokenizer), [TEXT[1]], 5) == texts[1:]


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
