"""The new vocabulary rows in the form in which they are written."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch

from ..model.safetensors_header import NAMES


@dataclasses.dataclass(frozen=True, kw_only=True)
class NewMatrices:
    """The new vocabulary rows, in the dtype in which they are written.

    Attributes:
        input_rows: [T', D].
        output_rows: [T', D'], or ``None`` for a tied head.
        output_bias: [T'], or ``None`` where the head has none.
        tables: key in the checkpoint -> [T', ...], for matrices of vocabulary rows outside the model class.
    """

    input_rows: torch.Tensor
    output_rows: torch.Tensor | None = None
    output_bias: torch.Tensor | None = None
    tables: Mapping[str, torch.Tensor] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        rows = len(self.input_rows)
        shapes = [(name, tuple(tensor.shape)) for name, tensor in self._present()]
        fitting = self.input_rows.dim() == 2 and all(shape[0] == rows for _, shape in shapes)
        if not fitting or any(tensor.dtype not in NAMES for _, tensor in self._present()):
            raise ValueError(
                f"matrices of these shapes cannot be written: {shapes}; expected float [T', D], [T', D'], [T']"
            )

    def __repr__(self) -> str:
        return "NewMatrices(" + ", ".join(f"{name}={list(tensor.shape)}" for name, tensor in self._present()) + ")"

    def _present(self) -> list[tuple[str, torch.Tensor]]:
        matrices = [(name, vars(self)[name]) for name in ("input_rows", "output_rows", "output_bias")]
        return [(name, tensor) for name, tensor in [*matrices, *self.tables.items()] if tensor is not None]
