"""A causal LM taken apart: the body that makes hidden states, and the head that makes logits of as many of them as wanted.

Models do more than multiply by the output matrix (scales, soft caps, biases), and say so nowhere. So the parts are found by
trying: only what gives the model's own logits is taken.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

# Relative difference that counts as equal when the same logits are computed in two ways, by dtype of the model.
NOISE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
# A soft cap bends large logits and leaves small ones as they are: states are tried at their own size, and enlarged until the
# largest logit is beyond those of any real text.
LARGEST_LOGIT = 1e3
# What a module raises that is no body: it fails on the call or has other outputs.
NO_BODY = (ArithmeticError, AttributeError, TypeError, ValueError, RuntimeError, IndexError)
Head = Callable[[torch.Tensor], torch.Tensor]


class Parts(NamedTuple):
    """A body (a module with ``last_hidden_state`` in its output) and a head, states [n, D] -> logits [n, V]."""

    body: Any
    head: Head


def take_apart(
    model: Any, inputs: Mapping[str, torch.Tensor], logits: torch.Tensor, *, forward: Callable[..., Any] | None = None
) -> Parts | None:
    """Find the body of a causal LM, and the head that turns its states into the model's own logits.

    The head is the model's own forward whose body hands the states through.

    Args:
        model: a transformers causal LM.
        inputs: of the forward, a batch of one sequence of n tokens.
        logits: [n, V] that the model gives for them.
        forward: the model's own; ``None`` calls the model.

    Returns:
        The parts, or ``None`` where no module proves to be such a body.
    """
    for body in _bodies(model):
        with contextlib.suppress(*NO_BODY):
            output = body(**inputs, use_cache=False)
            head = _handing_through(forward or model, body, type(output))
            rows = output.last_hidden_state[0].split(1)
            if close(torch.cat([head(row) for row in rows]), logits):
                return Parts(body, head)
    return None


def simplest_head(model: Any, parts: Parts, inputs: Mapping[str, torch.Tensor]) -> Head:
    """The output layer alone where it is all that the head does, else the head; the layer takes the shorter way."""
    layer = model.get_output_embeddings()
    states = parts.body(**inputs, use_cache=False).last_hidden_state[0]
    with contextlib.suppress(*NO_BODY):
        top, room = float(layer(states).abs().max()), torch.finfo(states.dtype).max / (8 * float(states.abs().max()))
        enlarged = min(max(1.0, LARGEST_LOGIT / top), room)
        if all(close(layer(part), parts.head(part)) for part in (states, enlarged * states)):
            return layer
    return parts.head


def close(found: torch.Tensor, logits: torch.Tensor) -> bool:
    """Whether logits are those of the model up to rounding."""
    if found.shape != logits.shape:
        return False
    finite = logits[logits.isfinite()]
    noise = NOISE.get(found.dtype, 3e-2) * (float(finite.abs().max()) if len(finite) else 0.0)
    return bool((found.double() - logits.double()).abs().nan_to_num(0.0).le(noise).all())


def _bodies(model: Any) -> list[Any]:
    found = [getattr(model, "base_model", None)]
    with contextlib.suppress(AttributeError):
        found.append(model.get_decoder())
    return [body for body in found if body is not None and body is not model]


def _handing_through(forward: Callable[..., Any], body: Any, kind: type) -> Head:
    """States [n, D] -> logits [n, V] by a forward whose body returns these states."""

    def head(states: torch.Tensor) -> torch.Tensor:
        own = body.__dict__.get("forward")
        body.forward = lambda *args, **kwargs: kind(last_hidden_state=states[None])
        try:
            placeholder = torch.zeros(1, len(states), dtype=torch.int64, device=states.device)
            return forward(input_ids=placeholder, use_cache=False).logits[0]
        finally:
            if own is None:
                del body.forward
            else:
                body.forward = own

    return head
