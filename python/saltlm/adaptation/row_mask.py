"""Training of some rows of the vocabulary matrices; all other rows keep their bits."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import input_error
from ..files.json_files import read_json
from ..files.open_file import check_file
from ..files.summary_file import SUMMARY
from .sharding import local_rows

# Origins, as the transfer records them, of the rows that it copied from the source model.
COPIED_ORIGINS = ("copied", "role")


def new_rows(folder: Path) -> np.ndarray:
    """Which rows of a transferred model were not copied from the source model.

    Args:
        folder: a model folder with ``saltlm.json`` and ``provenance.safetensors``.

    Returns:
        bool [T'], ``True`` for rows that were not copied.

    Raises:
        InputError: the folder has no record of the origin of its rows.
    """
    from safetensors.numpy import load_file

    try:
        origins = read_json(folder / SUMMARY)["origins"]
        check_file(folder / "provenance.safetensors", inside=folder)
        origin = load_file(folder / "provenance.safetensors")["origin"]
        copied = [origins.index(name) for name in COPIED_ORIGINS if name in origins]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise input_error(
            f"model {str(folder)!r}",
            "no record of where its rows came from (saltlm.json, provenance.safetensors)",
            "a folder written by saltlm transfer, for the phase rows and for row distillation",
            "leave them out, e.g. --phases embeddings:200,all:1000",
        ) from error
    return ~np.isin(origin, copied)


class RowMask:
    """Keeps frozen rows and their optimizer state bit for bit.

    AdamW changes a row whose gradient has always been zero by exactly zero, and the moments of the row stay zero. So the mask
    sets the gradients of the frozen rows to zero before each step (before gradients are clipped). AdamW's own weight decay
    would change frozen rows, so the optimizer must not decay these matrices; the mask decays the trained rows instead.
    """

    def __init__(self, parameters: Iterable[torch.Tensor], trained: np.ndarray, weight_decay: float) -> None:
        """Create a mask; it does nothing until its methods are called.

        Args:
            parameters: vocabulary parameters, each [T', ...]; each may be sharded by rows.
            trained: bool [T'], ``True`` for rows that are trained.
            weight_decay: decoupled weight decay of the trained rows, in [0, inf).
        """
        self.parameters = list(parameters)
        self.frozen = torch.from_numpy(np.flatnonzero(~trained))
        self.trained = torch.from_numpy(np.flatnonzero(trained))
        self.weight_decay = weight_decay

    def zero_frozen_gradients(self) -> None:
        """Set the gradients of the frozen rows to zero. Call it once per step, when the gradients are complete."""
        for parameter in self.parameters:
            if parameter.grad is not None:
                gradient, first = local_rows(parameter.grad)
                gradient.index_fill_(0, _local_indices(self.frozen, first, gradient), 0.0)

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Decay the trained rows before each step of the optimizer, by the formula of AdamW.

        Args:
            optimizer: takes the learning rates of the rows from its parameter groups.
        """

        def decay(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
            with torch.no_grad():
                for parameter in self.parameters:
                    if parameter.dim() == 2 and id(parameter) in rates and parameter.grad is not None:
                        rows, first = local_rows(parameter)
                        factor = 1 - rates[id(parameter)] * self.weight_decay
                        rows[_local_indices(self.trained, first, rows)] *= factor

        if self.weight_decay:
            optimizer.register_step_pre_hook(decay)


def _local_indices(rows: torch.Tensor, first: int, part: torch.Tensor) -> torch.Tensor:
    """Row numbers of a whole matrix as indices into a part of it.

    Args:
        rows: int64 [R], row numbers in the whole matrix.
        first: number of the part's first row in the whole matrix.
        part: [n, ...].

    Returns:
        int64 [r], r <= R, on the device of the part; rows outside the part are left out.
    """
    indices = rows - first
    return indices[(indices >= 0) & (indices < len(part))].to(part.device)
