"""Continuations of prompts, greedy or drawn with a seed: what a model writes, beside what it costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import input_error

if TYPE_CHECKING:
    from ..model.causal_lm import CausalLM


def continuations(
    model: str | Path | tuple[Any, Any] | CausalLM,
    prompts: Sequence[str],
    max_new_tokens: int = 40,
    *,
    shorten: bool = False,
    seed: int | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    device: str = "auto",
    dtype: str | None = None,
    gguf_file: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Continue each prompt with a causal language model.

    A prompt is read as evaluation reads a document: after the start token (bos, else eos, else cls), as plain text.

    Args:
        model: a folder or hub name; or a pair ``(model, tokenizer)`` that is loaded.
        prompts: the texts to go on with; each must give a token, or the tokenizer must have a start token.
        max_new_tokens: the longest continuation in tokens, in [1, inf); never more than the model's positions leave after the
            prompt.
        shorten: read only the end of a prompt that leaves too little of the model's positions, rather than refuse it: room
            is then kept for ``max_new_tokens``, or for half of the positions.
        seed: ``None`` takes the likeliest token at each step; a number in [0, 2**63) draws, the same for the same seed, and
            for each prompt independently of those before it.
        temperature: of drawn tokens, in (0, inf).
        top_p: draw from the likeliest tokens that reach this share, in (0, 1].
        device: ``auto``, ``cpu`` or ``cuda[:index]``.
        dtype: as for :func:`saltlm.evaluate`.
        gguf_file: name of the GGUF file inside the folder, for a model that is one.
        revision: revision on the hub.
        trust_remote_code: let transformers run code that the checkpoint brings along.
        progress: called with (finished prompts, all prompts) after each.

    Returns:
        What follows each prompt, without special tokens; up to the model's end token or ``max_new_tokens``.

    Raises:
        InputError: no causal language model of that name, a prompt without tokens or longer than the model takes, or an
            option out of range.
    """
    if max_new_tokens < 1:
        raise input_error("max_new_tokens", repr(max_new_tokens), "a whole number >= 1", "ask for at least one token")
    if not (temperature > 0 and 0 < top_p <= 1):
        found = f"temperature {temperature!r}, top_p {top_p!r}"
        raise input_error(
            "sampling", found, "a temperature > 0 and a share in (0, 1]", "leave them out for 1.0 and 1.0"
        )
    if seed is not None and not 0 <= seed < 2**63:
        raise input_error("seed", repr(seed), "a whole number in [0, 2**63)", "choose another seed")
    import torch
    from transformers import GenerationConfig

    from ..model.causal_lm import load_causal_lm, same_mode
    from .evaluate import tokenize

    written = []
    with same_mode(model), torch.inference_mode():
        lm = load_causal_lm(
            model,
            device=device,
            dtype=dtype,
            gguf_file=gguf_file,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
        sampling = {} if seed is None else {"temperature": temperature, "top_p": top_p, "top_k": 0}
        config = GenerationConfig(
            do_sample=seed is not None,
            eos_token_id=_first(getattr(lm.model.generation_config, "eos_token_id", None), lm.tokenizer.eos_token_id),
            pad_token_id=_first(lm.tokenizer.pad_token_id, lm.start_id, 0),
            **sampling,
        )
        for done, (prompt, ids) in enumerate(zip(prompts, tokenize(lm, prompts), strict=True), 1):
            start = ([] if lm.start_id is None else [lm.start_id]) + ids.tolist()
            if not start:
                expected = "a token, or a start token before it"
                raise input_error(f"prompt {prompt!r}", "no token", expected, "give a longer prompt")
            if shorten:
                start = shortened_prompt(lm, start, max_new_tokens)
            config.max_new_tokens = room_after(lm, prompt, start, max_new_tokens)
            inputs = torch.tensor([start], device=lm.device)
            with torch.random.fork_rng(devices=[lm.device] if lm.device.type == "cuda" else []):
                if seed is not None:
                    torch.manual_seed(seed)
                output = lm.model.generate(inputs, attention_mask=torch.ones_like(inputs), generation_config=config)
            written.append(_text_after(lm.tokenizer, start, output[0].tolist()))
            if progress is not None:
                progress(done, len(prompts))
    return written


def room_after(lm: CausalLM, prompt: str, start: list[int], max_new_tokens: int) -> int:
    """New tokens that the model's positions leave after these; the last one of them is not read and takes no position."""
    if lm.max_positions is None:
        return max_new_tokens
    room = lm.max_positions - len(start) + 1
    if room < 1:
        expected = f"at most the {lm.max_positions} positions of model {lm.name!r}"
        raise input_error(f"prompt {prompt[:40]!r}", f"{len(start)} tokens", expected, "give a shorter prompt")
    return min(max_new_tokens, room)


def shortened_prompt(lm: CausalLM, start: list[int], max_new_tokens: int) -> list[int]:
    """The start token and the last tokens of a prompt, so many that a continuation has room."""
    if lm.max_positions is None:
        return start
    kept = max(1, lm.max_positions + 1 - min(max_new_tokens, lm.max_positions // 2))
    first = 0 if lm.start_id is None else 1
    return start if len(start) <= kept else start[:first] + start[len(start) - kept + first :]


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _text_after(tokenizer: Any, start: list[int], whole: list[int]) -> str:
    """The text that the new tokens add; decoding them alone would lose the space before a first word."""
    before, after = (
        tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) for ids in (start, whole)
    )
    return after[len(before) :]
