"""Split a causal LM into a body that computes hidden states and a head that computes logits of any number of them.

Many models do more than multiply by the output matrix (scales, soft caps, biases) and have no common interface for it. So
candidates for the body are tried: one is accepted only if body and head give the model's own logits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from ..protocols import LanguageModel

# Relative difference up to which logits that are computed in two ways count as equal, by dtype of the model.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
# A soft cap changes only large logits. So heads are compared on the states as they are, and on states that are scaled up until
# the largest logit has this size, which no real text reaches.
LARGE_LOGIT = 1e3
# Errors of a candidate that is not the body: it fails on the inputs or has other outputs.
NOT_A_BODY = (ArithmeticError, AttributeError, TypeError, ValueError, RuntimeError, IndexError)
# Hidden states [n, D] -> logits [n, V].
LogitsFunction = Callable[[torch.Tensor], torch.Tensor]


class BodyAndHead(NamedTuple):
    """A causal LM in two parts.

    Attributes:
        body: module whose output has ``last_hidden_state``, [batch, n, D].
        head: hidden states [n, D] -> logits [n, V].
    """

    body: Any
    head: LogitsFunction


def split_head(
    model: LanguageModel,
    inputs: Mapping[str, torch.Tensor],
    logits: torch.Tensor,
    *,
    forward: Callable[..., Any] | None = None,
) -> BodyAndHead | None:
    """Find the body of a causal LM, and a head that computes the model's own logits from its hidden states.

    The head is the model's forward, called while the body's forward is replaced by one that returns the given states.

    Args:
        model: a transformers causal LM.
        inputs: arguments of its forward: a batch of one sequence of n tokens.
        logits: [n, V], the model's logits of these inputs.
        forward: the model's forward; ``None`` calls the model.

    Returns:
        Body and head, or ``None`` if no candidate gives these logits.
    """
    for body in _bodies(model):
        with contextlib.suppress(*NOT_A_BODY):
            output = body(**inputs, use_cache=False)
            head = _head_through(forward or model, body, type(output))
            rows = output.last_hidden_state[0].split(1)
            if close(torch.cat([head(row) for row in rows]), logits):
                return BodyAndHead(body, head)
    return None


def simplest_head(model: LanguageModel, parts: BodyAndHead, inputs: Mapping[str, torch.Tensor]) -> LogitsFunction:
    """The model's output layer if it gives the same logits as the head, else the head; calling the layer is cheaper.

    Args:
        model: a transformers causal LM.
        parts: its body and head.
        inputs: arguments of its forward, a batch of one sequence, on which layer and head are compared.
    """
    layer = model.get_output_embeddings()
    states = parts.body(**inputs, use_cache=False).last_hidden_state[0]
    with contextlib.suppress(*NOT_A_BODY):
        top = float(layer(states).abs().max())
        max_scale = torch.finfo(states.dtype).max / (8 * float(states.abs().max()))
        scale = min(max(1.0, LARGE_LOGIT / top), max_scale)
        if all(close(layer(part), parts.head(part)) for part in (states, scale * states)):
            return layer
    return parts.head


def close(result: torch.Tensor, logits: torch.Tensor) -> bool:
    """Whether two tensors of logits are equal up to rounding (:data:`TOLERANCE`).

    Args:
        result: logits that were computed in another way.
        logits: the model's own; the tolerance is relative to the largest of them.
    """
    if result.shape != logits.shape:
        return False
    finite = logits[logits.isfinite()]
    tolerance = TOLERANCE.get(result.dtype, 3e-2) * (float(finite.abs().max()) if len(finite) else 0.0)
    return bool((result.double() - logits.double()).abs().nan_to_num(0.0).le(tolerance).all())


def _bodies(model: Any) -> list[Any]:
    """Candidates for the body."""
    candidates = [getattr(model, "base_model", None)]
    with contextlib.suppress(AttributeError):
        candidates.append(model.get_decoder())
    return [body for body in candidates if body is not None and body is not model]


def _head_through(forward: Callable[..., Any], body: Any, output_type: type) -> LogitsFunction:
    """A head that calls the model's forward while the body returns given states instead of computing them."""

    def head(states: torch.Tensor) -> torch.Tensor:
        instance_forward = body.__dict__.get("forward")
        body.forward = lambda *args, **kwargs: output_type(last_hidden_state=states[None])
        try:
            placeholder = torch.zeros(1, len(states), dtype=torch.int64, device=states.device)
            return forward(input_ids=placeholder, use_cache=False).logits[0]
        finally:
            if instance_forward is None:
                del body.forward
            else:
                body.forward = instance_forward

    return head
