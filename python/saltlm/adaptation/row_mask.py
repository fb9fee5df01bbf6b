"""Train some rows of the vocabulary matrices and leave the others exactly as they are."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import input_error
from .sharding import rows_here

KEPT_ORIGINS = ("copied", "role")


def new_rows(folder: Path) -> np.ndarray:
    """Which rows of a transferred model were not copied from its source.

    Args:
        folder: a model folder with ``saltlm.json`` and ``provenance.safetensors``.

    Returns:
        bool [T'].

    Raises:
        InputError: the folder does not say where its rows came from.
    """
    import json

    from safetensors.numpy import load_file

    try:
        origins = json.loads((folder / "saltlm.json").read_bytes())["origins"]
        origin = load_file(folder / "provenance.safetensors")["origin"]
        kept = [origins.index(name) for name in KEPT_ORIGINS if name in origins]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise input_error(
            f"model {str(folder)!r}", "no record of where its rows came from (saltlm.json, provenance.safetensors)",
            "a folder written by saltlm transfer, for the phase rows and for row distillation",
            "leave them out, e.g. --phases embeddings:200,all:1000",
        ) from error  # fmt: skip
    return ~np.isin(origin, kept)


class RowMask:
    """Keeps frozen rows and their optimizer state bit for bit.

    AdamW moves a row whose gradient was always zero by exactly zero, and its moments stay zero. So it is enough to zero
    the frozen rows' gradients before each step (before they are clipped), to keep AdamW's own weight decay off these
    matrices, and to decay the trained rows here.
    """

    def __init__(self, parameters: Iterable[torch.Tensor], trained: np.ndarray, weight_decay: float) -> None:
        """Args: vocabulary parameters (rows first), bool [T'] of rows to train, decoupled decay of the trained rows."""
        self.parameters = list(parameters)
        self.frozen = torch.from_numpy(np.flatnonzero(~trained))
        self.trained = torch.from_numpy(np.flatnonzero(trained))
        self.weight_decay = weight_decay

    def zero_frozen_gradients(self) -> None:
        """Call when the gradients of a step are complete; a sharded matrix is masked slice by slice."""
        for parameter in self.parameters:
            if parameter.grad is not None:
                gradient, first = rows_here(parameter.grad)
                gradient.index_fill_(0, _among(self.frozen, first, gradient), 0.0)

    def attach(self, optimizer: torch.optim.Optimizer) -> Any:
        """Decay the trained rows right before each step of the optimizer, as AdamW would; returns the hook's handle."""

        def decay(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
            with torch.no_grad():
                for parameter in self.parameters:
                    if parameter.dim() == 2 and id(parameter) in rates and parameter.grad is not None:
                        own, first = rows_here(parameter)
                        own[_among(self.trained, first, own)] *= 1 - rates[id(parameter)] * self.weight_decay

        return optimizer.register_step_pre_hook(decay) if self.weight_decay else None


def _among(rows: torch.Tensor, first: int, part: torch.Tensor) -> torch.Tensor:
    """Those of the row numbers that lie in a part which begins with row ``first``, as places in it."""
    places = rows - first
    return places[(places >= 0) & (places < len(part))].to(part.device)
