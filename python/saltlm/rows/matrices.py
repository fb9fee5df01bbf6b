"""The new vocabulary rows as they are written."""

from __future__ import annotations

import dataclasses

import torch

from ..model.safetensors_header import NAMES


@dataclasses.dataclass(frozen=True, kw_only=True)
class NewMatrices:
    """The new vocabulary rows, in the dtype they are to be written in.

    Attributes:
        input_rows: [T', D].
        output_rows: [T', D'], or ``None`` for a tied head.
        output_bias: [T'], or ``None`` where the head has none.
    """

    input_rows: torch.Tensor
    output_rows: torch.Tensor | None = None
    output_bias: torch.Tensor | None = None

    def __post_init__(self) -> None:
        rows = len(self.input_rows)
        shapes = [(what, tuple(tensor.shape)) for what, tensor in self._there()]
        right = self.input_rows.dim() == 2 and all(shape[0] == rows for _, shape in shapes)
        if not right or any(tensor.dtype not in NAMES for _, tensor in self._there()):
            raise ValueError(
                f"matrices of these shapes cannot be written: {shapes}; expected float [T', D], [T', D'], [T']"
            )

    def __repr__(self) -> str:
        return "NewMatrices(" + ", ".join(f"{what}={list(tensor.shape)}" for what, tensor in self._there()) + ")"

    def _there(self) -> list[tuple[str, torch.Tensor]]:
        fields = [(field.name, getattr(self, field.name)) for field in dataclasses.fields(self)]
        return [(what, tensor) for what, tensor in fields if tensor is not None]
