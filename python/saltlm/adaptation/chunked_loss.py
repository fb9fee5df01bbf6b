"""Cross-entropy over a large vocabulary without the logits of the whole batch.

Logits are computed for a chunk of a few hundred tokens at a time. Their gradients are computed while the chunk's logits are in
memory, and only the results are kept: one gradient for the hidden states and one for the head. So no logits are computed twice,
and memory holds ``chunk x V`` floats instead of ``tokens x V``.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from ..model.body_and_head import LogitsFunction, simplest_head, split_head
from ..protocols import LanguageModel
from .distillation import state_error
from .packing import IGNORED

# Number of logits in memory at once where the user gives no chunk.
DEFAULT_LOGITS = 2**25
# Number of tokens on which the model is split into body and head.
PROBE_TOKENS = 5


class _ChunkedLoss(torch.autograd.Function):
    """Summed cross-entropy; see :func:`chunked_cross_entropy`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        head: LogitsFunction,
        chunk: int,
        *parameters: torch.Tensor,
    ) -> torch.Tensor:
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        hidden_gradient = torch.empty_like(hidden) if hidden.requires_grad else None
        sums: list[torch.Tensor | None] = [None] * len(trained)
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        total = torch.zeros((), dtype=dtype, device=hidden.device)
        for start in range(0, len(hidden), chunk):
            with torch.enable_grad():
                states = hidden[start : start + chunk].detach().requires_grad_(hidden_gradient is not None)
                loss = _summed_cross_entropy(head(states), targets[start : start + chunk])
            inputs = ([] if hidden_gradient is None else [states]) + trained
            if inputs:
                gradients = list(torch.autograd.grad(loss, inputs, allow_unused=True))
                if hidden_gradient is not None:
                    hidden_gradient[start : start + chunk] = gradients.pop(0)
                for index, gradient in enumerate(gradients):
                    previous = sums[index]
                    if gradient is not None:
                        # The first gradient is kept as it is: a sum that starts at zero costs three passes over V x D floats.
                        sums[index] = gradient if previous is None else previous.add_(gradient)
            total += loss.detach()
        remaining = iter(sums)
        # Not ctx.save_for_backward: its second reference to the tensors would make the autograd engine copy them.
        ctx.gradients = [
            hidden_gradient,
            *(next(remaining) if parameter.requires_grad else None for parameter in parameters),
        ]
        return total

    @staticmethod
    def backward(ctx: Any, factor: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_gradient, *parameter_gradients = ctx.gradients
        ctx.gradients = None
        scaled = (_scaled(gradient, factor) for gradient in parameter_gradients)
        return (_scaled(hidden_gradient, factor), None, None, None, *scaled)


def _scaled(gradient: torch.Tensor | None, factor: torch.Tensor) -> torch.Tensor | None:
    return None if gradient is None else gradient.mul_(factor)


def _summed_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")


def chunked_cross_entropy(
    hidden: torch.Tensor, targets: torch.Tensor, head: LogitsFunction, parameters: Sequence[torch.Tensor], chunk: int
) -> torch.Tensor:
    """Summed cross-entropy of next-token predictions, computed one chunk of tokens at a time.

    Args:
        hidden: [n, D], last hidden states.
        targets: int64 [n], ids of the predicted tokens; -100 leaves a token out of the sum.
        head: [m, D] -> logits [m, V], for any m.
        parameters: the parameters of the head; those with ``requires_grad`` get gradients.
        chunk: number of tokens whose logits are in memory at once, in [1, inf).

    Returns:
        [], float32 (float64 for float64 states). Its backward pass can run once.
    """
    return _ChunkedLoss.apply(hidden, targets, head, chunk, *parameters)


class ChunkedLM:
    """Replaces the forward of a causal LM: with labels it returns the chunked loss alone, and no logits.

    :func:`~saltlm.model.body_and_head.split_head` splits the model into body and head. Where it cannot, the model's own forward
    stays and computes the logits of the whole batch; :attr:`chunked` tells which of the two happened.
    """

    def __init__(self, model: LanguageModel, chunk: int | None = None) -> None:
        """Replace the model's forward.

        Args:
            model: a transformers causal LM, changed in place.
            chunk: number of tokens per chunk, in [1, inf); ``None`` takes as many as fit :data:`DEFAULT_LOGITS` logits.
        """
        self.model = model
        self.original_forward = model.forward
        self.body: Any = None
        self.head: LogitsFunction | None = None
        self._split_model()
        # The body that training calls: compiled after compile().
        self._training_body: Any = self.body
        vocabulary = model.get_output_embeddings().weight.shape[0]
        self.chunk = chunk or max(1, DEFAULT_LOGITS // vocabulary)
        # A partial, because accelerate takes a bound method apart and binds its function to the model.
        self.chunked_forward = functools.partial(self.forward)
        if self.chunked:
            model.forward = self.chunked_forward

    @contextlib.contextmanager
    def unwrapped(self) -> Iterator[None]:
        """Inside the ``with`` block, remove accelerate's wrapper of the model's forward, such as autocast."""
        wrapper = self.model.__dict__.get("forward")
        if self.chunked:
            self.model.forward = self.chunked_forward
        elif wrapper is not None:
            del self.model.forward
        try:
            yield
        finally:
            if wrapper is not None:
                self.model.forward = wrapper

    def unwrap(self) -> None:
        """Remove accelerate's wrapper and its marks for good, so that accelerate prepares the model anew for the next phase."""
        for mark in ("_original_forward", "_is_accelerate_prepared"):
            self.model.__dict__.pop(mark, None)
        if self.chunked:
            self.model.forward = self.chunked_forward
        else:
            self.model.__dict__.pop("forward", None)

    def compile(self) -> None:
        """Compile the body for training.

        Evaluation keeps the uncompiled body: training blocks all have one length, but evaluation would compile the body again
        for each length of a document.
        """
        if self.body is not None:
            self._training_body = torch.compile(self.body, dynamic=False)

    @property
    def chunked(self) -> bool:
        """Whether logits are computed chunk by chunk."""
        return self.head is not None

    @property
    def parameters(self) -> list[torch.Tensor]:
        """The parameters of the head, read on each call, because a sharded model has new tensors after each gathering."""
        in_body = {id(parameter) for parameter in self.body.parameters()}
        parameters: list[torch.Tensor] = [p for p in self.model.parameters() if id(p) not in in_body]
        matrix = self.model.get_output_embeddings().weight
        # A matrix that is tied to the input rows belongs to the body's parameters.
        return parameters if any(p is matrix for p in parameters) else [*parameters, matrix]

    def forward(
        self, input_ids: torch.Tensor, labels: torch.Tensor | None = None, num_items_in_batch: Any = None, **rest: Any
    ) -> dict[str, torch.Tensor] | Any:
        """The model's forward.

        Args:
            input_ids: int64 [B, L].
            labels: int64 [B, L], token ids or -100; ``None`` computes no loss.
            num_items_in_batch: what the summed loss is divided by; ``None`` is the number of predicted tokens.
            rest: more arguments of the model's own forward; or, for row distillation, ``teacher_states`` [M, D] and
                ``positions`` int64 [M], indices into the flattened batch [B * L].

        Returns:
            ``{"loss": []}`` with labels (mean cross-entropy) or with ``teacher_states``
            (:func:`~saltlm.adaptation.distillation.state_error`), else the output of the model's own forward.
        """
        if "teacher_states" in rest:
            states = self.body(input_ids=input_ids, use_cache=False).last_hidden_state.flatten(0, 1)
            return {"loss": state_error(states[rest["positions"]], rest["teacher_states"])}
        if labels is None or self.head is None:
            return self.original_forward(input_ids=input_ids, **rest)
        # transformers isolates packed documents by their position ids only where there is no cache.
        rest.pop("use_cache", None)
        hidden = self._training_body(input_ids=input_ids, use_cache=False, **rest).last_hidden_state
        targets = labels[:, 1:].flatten()
        total = chunked_cross_entropy(hidden[:, :-1].flatten(0, 1), targets, self.head, self.parameters, self.chunk)
        items = (targets != IGNORED).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        return {"loss": total / items}

    def _split_model(self) -> None:
        model = self.model
        if getattr(model.config, "output_router_logits", False):
            return  # the loss has a second term, which only the model's own forward computes
        inputs = {"input_ids": torch.arange(PROBE_TOKENS, device=model.get_input_embeddings().weight.device)[None]}
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad():
                logits = self.original_forward(**inputs, use_cache=False).logits[0]
                parts = split_head(model, inputs, logits, forward=self.original_forward)
                if parts is not None:
                    self.body, self.head = parts.body, simplest_head(model, parts, inputs)
        finally:
            model.train(was_training)
