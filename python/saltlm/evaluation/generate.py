"""Continuations of prompts, by greedy decoding or by sampling with a seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import input_error
from ..progress import Progress

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
    progress: Progress | None = None,
) -> list[str]:
    """Continue each prompt with a causal language model.

    A prompt is plain text after the start token (bos, else eos, else cls), like a document of :func:`saltlm.evaluate`.

    Args:
        model: a folder or hub name; or a loaded model, as a pair ``(model, tokenizer)`` or a
            :class:`~saltlm.model.causal_lm.CausalLM`.
        prompts: the texts to continue. A prompt must have a token, or the tokenizer a start token.
        max_new_tokens: maximum length of a continuation in tokens, in [1, inf). The positions of the model limit it too.
        shorten: drop the beginning of a prompt that leaves fewer positions than ``max_new_tokens`` or half of all positions,
            whichever is less. By default no prompt is shortened, and a prompt longer than the positions is refused.
        seed: ``None`` takes the most probable token at each step. A number in [0, 2**63) samples; the continuation of a
            prompt depends on the seed but not on the other prompts.
        temperature: sampling temperature, in (0, inf).
        top_p: sample from the most probable tokens whose probabilities sum up to this share, in (0, 1].
        device: ``auto``, ``cpu`` or ``cuda[:index]``.
        dtype: as for :func:`saltlm.evaluate`.
        gguf_file: name of the GGUF file in the model folder; ``None`` for safetensors weights.
        revision: revision of a hub model.
        trust_remote_code: let transformers run code that the checkpoint contains.
        progress: called with (finished prompts, all prompts) after each prompt.

    Returns:
        The continuation of each prompt without special tokens. It ends before the end token of the model, or after
        ``max_new_tokens`` tokens.

    Raises:
        InputError: the name is none of a causal language model, a prompt has no token or is longer than the model takes, or
            an option is out of range.
    """
    if max_new_tokens < 1:
        raise input_error("max_new_tokens", repr(max_new_tokens), "a whole number >= 1", "ask for at least one token")
    if not (temperature > 0 and 0 < top_p <= 1):
        raise input_error(
            "sampling",
            f"temperature {temperature!r}, top_p {top_p!r}",
            "a temperature > 0 and a share in (0, 1]",
            "leave them out for 1.0 and 1.0",
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
    """Number of new tokens for which the model has positions after a prompt.

    Args:
        lm: the model.
        prompt: the prompt, for the message.
        start: its tokens with the start token.
        max_new_tokens: maximum length of the continuation.

    Returns:
        A number in [1, max_new_tokens]. The last new token takes no position, because the model does not read it.

    Raises:
        InputError: the prompt is longer than the model takes.
    """
    if lm.max_positions is None:
        return max_new_tokens
    room = lm.max_positions - len(start) + 1
    if room < 1:
        expected = f"at most the {lm.max_positions} positions of model {lm.name!r}"
        raise input_error(f"prompt {prompt[:40]!r}", f"{len(start)} tokens", expected, "give a shorter prompt")
    return min(max_new_tokens, room)


def shortened_prompt(lm: CausalLM, start: list[int], max_new_tokens: int) -> list[int]:
    """The start token and the last tokens of a prompt, such that positions are left for a continuation.

    Args:
        lm: the model.
        start: the tokens of the prompt with the start token.
        max_new_tokens: positions to leave, but at most half of all positions.

    Returns:
        All tokens if they leave enough positions; else as many of the last tokens as do.
    """
    if lm.max_positions is None:
        return start
    length = max(1, lm.max_positions + 1 - min(max_new_tokens, lm.max_positions // 2))
    first = 0 if lm.start_id is None else 1
    return start if len(start) <= length else start[:first] + start[len(start) - length + first :]


def _first(*values: Any) -> Any:
    """The first value that is not ``None``; ``None`` if there is none."""
    return next((value for value in values if value is not None), None)


def _text_after(tokenizer: Any, start: list[int], whole: list[int]) -> str:
    """The text of the new tokens. All tokens are decoded, because tokens alone lose the space before the first word."""
    before, after = (
        tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) for ids in (start, whole)
    )
    return after[len(before) :]
