"""Which weights a phase trains, the optimizer's parameter groups, and the learning rate schedule."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import torch

from ..protocols import LanguageModel
from .config import DISTILL, NEW_ROWS_ONLY, AdaptConfig, Phase

# Weight decay is for matrices: biases and the weights of normalization layers only set scales.
NO_DECAY = re.compile(r"bias|norm|(^|\.)ln_", re.IGNORECASE)


def vocabulary_parameters(model: LanguageModel) -> dict[str, Any]:
    """The parameters with one entry per token.

    Args:
        model: a transformers causal LM.

    Returns:
        Name -> parameter: ``input`` (input rows [T', D]); ``output`` (head rows [T', D]) if the head is not tied to the input
        rows; ``bias`` (head bias [T']) if there is one.
    """
    head = model.get_output_embeddings()
    matrix = model.get_input_embeddings().weight
    parameters = {"input": matrix}
    if head is not None:
        if getattr(head, "weight", None) is not None and head.weight is not matrix:
            parameters["output"] = head.weight
        if getattr(head, "bias", None) is not None:
            parameters["bias"] = head.bias
    return parameters


def train_all_input_rows(model: LanguageModel) -> None:
    """Let each input row get its gradient, in place.

    torch gives the row of an embedding's ``padding_idx`` no gradient. Model classes set it to the config's ``pad_token_id``,
    which may be a token that occurs in text, such as eos. Blocks hold no padding, so no row needs this.

    Args:
        model: a transformers causal LM.
    """
    matrix = model.get_input_embeddings().weight
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding) and module.weight is matrix:
            module.padding_idx = None


def set_trained(model: LanguageModel, phase: Phase) -> None:
    """Set ``requires_grad`` of all parameters: ``True`` for those that the phase trains.

    Of a model of several parts only the text part is trained; text does not reach a vision tower.

    Args:
        model: a transformers causal LM, changed in place.
        phase: the phase that is about to start.
    """
    trained = {id(parameter) for parameter in vocabulary_parameters(model).values()}
    if phase.name == DISTILL:  # its loss compares hidden states, which depend on the input rows and not on the head
        trained = {id(model.get_input_embeddings().weight)}
    if phase.name == "all":
        trained |= {id(parameter) for parameter in text_part(model).parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)


def text_part(model: LanguageModel) -> Any:
    """The part of a model that reads text: the model itself, or the decoder of a model of several parts.

    Args:
        model: a transformers causal LM.
    """
    config = model.config
    return model if config.get_text_config() is config else model.get_decoder()


def parameter_groups(model: LanguageModel, phase: Phase, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups of the optimizer, with learning rate and weight decay.

    In phases that train the new rows alone the optimizer decays no vocabulary rows, because its decay would change the frozen
    rows; :class:`~saltlm.adaptation.row_mask.RowMask` decays the trained rows instead.

    Args:
        model: a transformers causal LM whose ``requires_grad`` :func:`set_trained` has set.
        phase: names the learning rates.
        weight_decay: decoupled weight decay of matrices, in [0, inf).

    Returns:
        The groups ``vocabulary`` (input and head rows), ``body`` (matrices of the body) and ``scales`` (biases and
        normalization weights), each without parameters that are not trained; a group without parameters is left out.
    """
    vocabulary = {id(parameter) for parameter in vocabulary_parameters(model).values()}
    groups: dict[str, dict[str, Any]] = {
        "vocabulary": {"lr": phase.embedding_learning_rate, "weight_decay": weight_decay, "params": []},
        "body": {"lr": phase.learning_rate, "weight_decay": weight_decay, "params": []},
        "scales": {"lr": phase.learning_rate, "weight_decay": 0.0, "params": []},
    }
    if phase.name in NEW_ROWS_ONLY:
        groups["vocabulary"]["weight_decay"] = 0.0
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in vocabulary and parameter.dim() == 2:
            group = "vocabulary"
        else:
            group = "scales" if parameter.dim() < 2 or NO_DECAY.search(name) else "body"
        groups[group]["params"].append(parameter)
    return [{"name": name, **group} for name, group in groups.items() if group["params"]]


def rate_factor(config: AdaptConfig, steps: int) -> Callable[[int], float]:
    """The learning rate schedule of a phase.

    Args:
        config: ``schedule``, ``warmup_steps`` and ``decay_share`` are read.
        steps: number of steps of the phase.

    Returns:
        A function from the number of finished steps, in [0, steps], to the factor of the peak learning rate, in [0, 1].
    """
    warmup = min(steps, round(steps * 0.1) if config.warmup_steps is None else config.warmup_steps)
    decay = max(1, round(steps * config.decay_share))

    def factor(finished: int) -> float:
        if finished < warmup:
            return (finished + 1) / (warmup + 1)
        left = max(0, steps - finished)
        if config.schedule == "cosine":
            return 0.5 * (1 - math.cos(math.pi * left / max(1, steps - warmup)))
        if config.schedule == "wsd":
            return min(1.0, left / decay)
        return 1.0

    return factor
