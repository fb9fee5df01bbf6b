"""What is trained when and how fast: phases, the weights of each, the course of the learning rates."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import input_error

if TYPE_CHECKING:
    from .config import AdaptConfig

NAMES = ("rows", "embeddings", "all")
DISTILL = "distill"  # before the others, when asked for
MASKED = ("rows", DISTILL)
FORM = re.compile(r"(?P<name>[a-z]+):(?P<steps>\d+)(@(?P<rate>[^/]+)(/(?P<embeddings>.+))?)?")
# Decay is for matrices alone: biases and norms only set scales.
NO_DECAY = re.compile(r"bias|norm|(^|\.)ln_", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Phase:
    """A run of steps in which the same weights are trained.

    Attributes:
        name: one of :data:`NAMES`, or ``distill``.
        steps: optimizer steps, at least 1.
        start: optimizer steps before it.
        learning_rate: peak rate of the weights that are no vocabulary rows.
        embedding_learning_rate: peak rate of embedding and head rows.
    """

    name: str
    steps: int
    start: int
    learning_rate: float
    embedding_learning_rate: float


def parse_phases(config: AdaptConfig) -> tuple[Phase, ...]:
    """The phases of a configuration.

    A single rate after ``@`` is the rate of all that the phase trains; ``@A/B`` is ``A`` for the body and ``B`` for
    embedding and head rows.

    Args:
        config: its ``phases``, or ``steps`` where that is ``None``.

    Returns:
        At least one phase.

    Raises:
        InputError: a phase is misspelt, has no steps, or a rate that is no positive number.
    """
    phases: list[Phase] = []
    start = 0
    if config.distill_rows:
        rate = config.embedding_learning_rate
        phases.append(Phase(DISTILL, config.distill_steps, 0, rate, rate))
        start = config.distill_steps
    for part in (config.phases if config.phases is not None else f"all:{config.steps}").split(","):
        match = FORM.fullmatch(part.strip())
        if not match or match["name"] not in NAMES or int(match["steps"]) < 1:
            raise input_error(
                "phases", repr(part), f"NAME:STEPS[@RATE[/EMBEDDINGS_RATE]] with NAME one of {', '.join(NAMES)} and STEPS >= 1",
                "write e.g. --phases rows:100,embeddings:200,all:1000@1e-4",
            )  # fmt: skip
        rate = _rate(match["rate"], part) if match["rate"] else None
        embeddings = _rate(match["embeddings"], part) if match["embeddings"] else rate
        steps = int(match["steps"])
        phases.append(
            Phase(
                name=match["name"],
                steps=steps,
                start=start,
                learning_rate=rate or config.learning_rate,
                embedding_learning_rate=embeddings or config.embedding_learning_rate,
            )
        )
        start += steps
    return tuple(phases)


def _rate(text: str, part: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not (math.isfinite(rate) and rate > 0):
        raise input_error("phases", f"rate {text!r} in {part!r}", "a finite number > 0", "write e.g. all:1000@1e-4")
    return rate


def vocabulary_parameters(model: Any) -> dict[str, Any]:
    """The parameters with an entry for each token: input rows, head rows where untied, head bias.

    Args:
        model: a transformers causal LM.

    Returns:
        ``input``, ``output`` and ``bias`` -> parameter, those that exist.
    """
    head = model.get_output_embeddings()
    matrix = model.get_input_embeddings().weight
    found = {"input": matrix}
    if head is not None:
        if getattr(head, "weight", None) is not None and head.weight is not matrix:
            found["output"] = head.weight
        if getattr(head, "bias", None) is not None:
            found["bias"] = head.bias
    return found


def set_trained(model: Any, phase: Phase) -> None:
    """Let only the parameters of this phase take gradients."""
    vocabulary = {id(parameter) for parameter in vocabulary_parameters(model).values()}
    if phase.name == DISTILL:  # states depend on input rows alone
        vocabulary = {id(model.get_input_embeddings().weight)}
    for parameter in model.parameters():
        parameter.requires_grad_(phase.name == "all" or id(parameter) in vocabulary)


def parameter_groups(model: Any, phase: Phase, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for an optimizer: vocabulary rows, matrices of the body, the rest of it; each with its rate and decay.

    In the phases ``distill`` and ``rows`` the optimizer itself decays nothing, since it would touch frozen rows: see
    :class:`~saltlm.adaptation.row_mask.RowMask`.
    """
    vocabulary = {id(parameter) for parameter in vocabulary_parameters(model).values()}
    groups: dict[str, dict[str, Any]] = {
        "vocabulary": {"lr": phase.embedding_learning_rate, "weight_decay": weight_decay, "params": []},
        "body": {"lr": phase.learning_rate, "weight_decay": weight_decay, "params": []},
        "scales": {"lr": phase.learning_rate, "weight_decay": 0.0, "params": []},
    }
    if phase.name in MASKED:
        groups["vocabulary"]["weight_decay"] = 0.0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = "scales" if parameter.dim() < 2 or NO_DECAY.search(name) else "body"
            groups["vocabulary" if id(parameter) in vocabulary and parameter.dim() == 2 else plain]["params"].append(
                parameter
            )
    return [{"name": name, **group} for name, group in groups.items() if group["params"]]


def rate_factor(config: AdaptConfig, steps: int) -> Callable[[int], float]:
    """Step of a phase -> share of the peak rate.

    Args:
        config: schedule, warm-up and share of the decay.
        steps: of the phase.

    Returns:
        A function of the number of steps done, in [0, steps], to [0, 1].
    """
    warmup = min(steps, round(steps * 0.1) if config.warmup_steps is None else config.warmup_steps)
    decay = max(1, round(steps * config.decay_share))

    def factor(done: int) -> float:
        if done < warmup:
            return (done + 1) / (warmup + 1)
        left = max(0, steps - done)
        if config.schedule == "cosine":
            return 0.5 * (1 - math.cos(math.pi * left / max(1, steps - warmup)))
        if config.schedule == "wsd":
            return min(1.0, left / decay)
        return 1.0

    return factor
