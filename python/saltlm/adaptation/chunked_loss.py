"""Cross-entropy over a large vocabulary without the logits of the whole batch.

Logits are made for a few hundred tokens at a time. Their gradient is taken at once, while they are there, and only its
results are kept: one gradient for the hidden states and one for the head. So no logits are computed twice, and memory
holds ``chunk x V`` floats rather than ``tokens x V``.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from ..model.body_and_head import LogitsFunction, simplest_head, split_head
from .distillation import state_error

LOGIT_FLOATS = 2**25
PROBE_TOKENS = 5
IGNORED = -100


class _ChunkedLoss(torch.autograd.Function):
    """Summed cross-entropy [] of hidden states [n, D], head(hidden) -> logits [m, V], and targets int64 [n]."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, targets: torch.Tensor, head: LogitsFunction, chunk: int, *parameters: torch.Tensor
    ) -> torch.Tensor:
        wanted = [parameter for parameter in parameters if parameter.requires_grad]
        needs_hidden = hidden.requires_grad
        states = torch.empty_like(hidden) if needs_hidden else None
        sums: list[torch.Tensor | None] = [None] * len(wanted)
        total = torch.zeros(
            (), dtype=torch.float32 if hidden.dtype != torch.float64 else torch.float64, device=hidden.device
        )
        for at in range(0, len(hidden), chunk):
            with torch.enable_grad():
                piece = hidden[at : at + chunk].detach().requires_grad_(needs_hidden)
                loss = _sum(head(piece), targets[at : at + chunk])
            inputs = ([piece] if needs_hidden else []) + wanted
            if inputs:
                found = list(torch.autograd.grad(loss, inputs, allow_unused=True))
                if needs_hidden:
                    states[at : at + chunk] = found.pop(0)
                for place, part in enumerate(found):
                    if part is not None:
                        # The first is kept as it is: a sum that starts at zero costs three passes over V x D floats.
                        sums[place] = part if sums[place] is None else sums[place].add_(part)
            total += loss.detach()
        places = iter(sums)
        # Not saved by autograd's own means, which would keep a second reference and so make the engine copy them.
        ctx.gradients = [states, *(next(places) if parameter.requires_grad else None for parameter in parameters)]
        return total

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        states, *parameters = ctx.gradients
        ctx.gradients = None
        return (_scaled(states, gradient), None, None, None, *(_scaled(part, gradient) for part in parameters))


def _scaled(tensor: torch.Tensor | None, factor: torch.Tensor) -> torch.Tensor | None:
    return None if tensor is None else tensor.mul_(factor)


def _sum(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")


def chunked_cross_entropy(
    hidden: torch.Tensor, targets: torch.Tensor, head: LogitsFunction, parameters: Sequence[torch.Tensor], chunk: int
) -> torch.Tensor:
    """Summed cross-entropy of predictions made by a head, a chunk of tokens at a time.

    Args:
        hidden: [n, D], states before the head.
        targets: int64 [n], token ids; -100 counts nothing.
        head: [m, D] -> logits [m, V], for any m.
        parameters: what the head uses that may take gradients.
        chunk: tokens at a time, in [1, inf).

    Returns:
        [], float32 (float64 for float64 states); its gradients go to ``hidden`` and ``parameters``, once.
    """
    return _ChunkedLoss.apply(hidden, targets, head, chunk, *parameters)


class ChunkedLM:
    """Gives a causal LM a forward that returns the loss alone when labels are there.

    Body and head come from :func:`~saltlm.model.body_and_head.split_head`. Where it finds none, the stock forward stays and whole
    logits are made; :attr:`chunked` says so.
    """

    def __init__(self, model: Any, chunk: int | None = None) -> None:
        """Args: a transformers causal LM, changed in place; tokens a chunk, ``None`` for 2**25 logits."""
        self.model = model
        self.stock = model.forward
        self.body: Any = None
        self.head: LogitsFunction | None = None
        self._find()
        self._steps: Any = self.body
        width = model.get_output_embeddings().weight.shape[0]
        self.chunk = chunk or max(1, LOGIT_FLOATS // width)
        # A plain function: accelerate takes a bound method apart and binds it to the model.
        self.patched = functools.partial(self.forward)
        if self.chunked:
            model.forward = self.patched

    @contextlib.contextmanager
    def unwrapped(self) -> Iterator[None]:
        """The model without what accelerate has put around its forward, such as autocast."""
        wrapped = self.model.__dict__.get("forward")
        if self.chunked:
            self.model.forward = self.patched
        elif wrapped is not None:
            del self.model.forward
        try:
            yield
        finally:
            if wrapped is not None:
                self.model.forward = wrapped

    def unwrap(self) -> None:
        """Take that off for good, so that the next phase is prepared anew: accelerate prepares nothing that bears its mark."""
        for mark in ("_original_forward", "_is_accelerate_prepared"):
            self.model.__dict__.pop(mark, None)
        if self.chunked:
            self.model.forward = self.patched
        else:
            self.model.__dict__.pop("forward", None)

    def compile(self) -> None:
        """Let training run the body compiled.

        Only training: its blocks are all of one length, where evaluations would have it compiled anew for each length.
        """
        if self.body is not None:
            self._steps = torch.compile(self.body, dynamic=False)

    @property
    def chunked(self) -> bool:
        """Whether logits are made chunk by chunk."""
        return self.head is not None

    @property
    def parameters(self) -> list[torch.Tensor]:
        """What the head uses; asked for anew each time, since a sharded model has other tensors whenever it gathers them."""
        inside = {id(parameter) for parameter in self.body.parameters()}
        found = [p for p in self.model.parameters() if id(p) not in inside]
        matrix = self.model.get_output_embeddings().weight
        # A tied matrix is the body's own.
        return found if any(p is matrix for p in found) else [*found, matrix]

    def forward(
        self, input_ids: torch.Tensor, labels: torch.Tensor | None = None, num_items_in_batch: Any = None, **rest: Any
    ) -> dict[str, torch.Tensor] | Any:
        """``{"loss": []}``, or the stock output where there is nothing to learn.

        The loss is the sum over predicted tokens by ``num_items_in_batch`` (``None``: by their number); for row distillation,
        with ``places`` [M] and ``wanted_states`` [M, D], the error of the states at these places of the flattened batch.
        """
        if "wanted_states" in rest:
            hidden = self.body(input_ids=input_ids, use_cache=False).last_hidden_state.flatten(0, 1)
            return {"loss": state_error(hidden[rest["places"]], rest["wanted_states"])}
        if labels is None:
            return self.stock(input_ids=input_ids, **rest)
        # Without a cache, and only then, transformers keeps packed documents apart by their position ids.
        rest.pop("use_cache", None)
        hidden = self._steps(input_ids=input_ids, use_cache=False, **rest).last_hidden_state
        targets = labels[:, 1:].flatten()
        total = chunked_cross_entropy(
            hidden[:, :-1].flatten(0, 1), targets, self.head, self.parameters, self.chunk
        )  # fmt: skip
        items = (targets != IGNORED).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        return {"loss": total / items}

    def _find(self) -> None:
        model = self.model
        if getattr(model.config, "output_router_logits", False):
            return  # the loss has another term, which only the stock forward knows
        inputs = {"input_ids": torch.arange(PROBE_TOKENS, device=model.get_input_embeddings().weight.device)[None]}
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad():
                logits = self.stock(**inputs, use_cache=False).logits[0]
                parts = split_head(model, inputs, logits, forward=self.stock)
                if parts is not None:
                    self.body, self.head = parts.body, simplest_head(model, parts, inputs)
        finally:
            model.train(was_training)
