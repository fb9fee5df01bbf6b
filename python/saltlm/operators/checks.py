"""Checks of the operators' arguments, and whether rows are finite.

Each error message names the operator, the argument, what was found and what was expected.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import InputError, input_error

_REALS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def matrix(op: str, name: str, value: Tensor) -> Tensor:
    """Check that a value is a dense matrix of reals on the CPU or a CUDA device; returns it detached."""
    argument = f"{op}, {name}"
    if not isinstance(value, Tensor):
        raise input_error(argument, type(value).__name__, "a torch tensor", "convert it first")
    if value.layout != torch.strided or value.dtype not in _REALS:
        found = str(value.dtype)[6:] if value.layout == torch.strided else str(value.layout)
        raise input_error(argument, found, "a dense float32, float64, bfloat16 or float16", "convert it first")
    if value.dim() != 2:
        raise input_error(argument, f"shape {list(value.shape)}", "a matrix, one row a token", "reshape it")
    if value.device.type not in ("cpu", "cuda"):
        raise input_error(argument, f"device {value.device}", "cpu or cuda", "move it with .cpu()")
    if value.shape[0] >= 2**31 - 1:
        raise input_error(argument, f"{value.shape[0]} rows", "fewer than 2**31 - 1", "split it")
    return value.detach()


def pair(op: str, new_name: str, new: Tensor, anchor_name: str, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Check that two matrices have one device and one width; returns both in their common dtype."""
    new, anchors = matrix(op, new_name, new), matrix(op, anchor_name, anchors)
    if new.device != anchors.device:
        raise device_error(op, anchor_name, anchors, new)
    if new.shape[1] != anchors.shape[1]:
        raise input_error(
            f"{op}, {anchor_name}",
            f"width {anchors.shape[1]}",
            f"{new.shape[1]}, the width of {new_name}",
            "check both",
        )
    dtype = torch.promote_types(new.dtype, anchors.dtype)
    return new.to(dtype), anchors.to(dtype)


def some_width(op: str, name: str, value: Tensor) -> None:
    """Check that rows have at least one column: cosines of width 0 are defined (0), least squares is not."""
    if value.shape[1] == 0:
        raise input_error(f"{op}, {name}", "width 0", "a width of 1 or more", "check where the rows come from")


def same_rows(op: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Check that two matrices have equally many rows."""
    if value.shape[0] != other.shape[0]:
        raise input_error(
            f"{op}, {name}",
            f"{value.shape[0]} rows",
            f"{other.shape[0]}, as {other_name}",
            "pass the same tokens to both",
        )


def problem(
    op: str, new_auxiliary: Tensor, anchor_auxiliary: Tensor, new_plm: Tensor, anchor_plm: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Check that both spaces have the same new tokens and the same anchors, on one device."""
    new_aux, anchor_aux = pair(op, "new_auxiliary", new_auxiliary, "anchor_auxiliary", anchor_auxiliary)
    new, anchors = pair(op, "new_plm", new_plm, "anchor_plm", anchor_plm)
    some_width(op, "new_plm", new)
    same_rows(op, "new_plm", new, "new_auxiliary", new_aux)
    same_rows(op, "anchor_plm", anchors, "anchor_auxiliary", anchor_aux)
    if new.device != new_aux.device:
        raise device_error(op, "new_plm", new, new_aux)
    return new_aux, anchor_aux, new, anchors


def targets(op: str, anchor_lm: Tensor, anchor_output: Tensor | None, anchors: Tensor) -> list[Tensor]:
    """Check the anchors' rows in the source model; returns the input rows and, where given, the output rows."""
    sides = [("anchor_lm", anchor_lm)]
    if anchor_output is not None:
        sides.append(("anchor_output", anchor_output))
    checked = []
    for name, value in sides:
        rows = matrix(op, name, value)
        same_rows(op, name, rows, "anchor_auxiliary", anchors)
        if rows.device != anchors.device:
            raise device_error(op, name, rows, anchors)
        checked.append(rows)
    return checked


def vector(op: str, name: str, value: Tensor, dtype: torch.dtype) -> None:
    """Check that a value is a vector of a dtype."""
    if not isinstance(value, Tensor) or value.dim() != 1 or value.dtype != dtype:
        found = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise input_error(f"{op}, {name}", found, f"a vector of {str(dtype)[6:]}", "pass it as saltlm made it")


def support_fits(op: str, offsets: Tensor, ids: Tensor, anchors: Tensor) -> None:
    """Check that offsets and ids name rows of these anchors: the kernels read memory at these positions."""
    if offsets.device != anchors.device or ids.device != anchors.device:
        raise device_error(op, "support", offsets, anchors)
    ascending = bool(offsets[0] == 0) and bool(offsets[-1] == len(ids)) and not bool((offsets.diff() < 0).any())
    if not ascending:
        raise input_error(f"{op}, support", "offsets out of order", f"ascending from 0 to {len(ids)}", "rebuild it")
    if len(ids) and not (0 <= int(ids.min()) and int(ids.max()) < anchors.shape[0]):
        raise input_error(
            f"{op}, support",
            f"ids from {int(ids.min())} to {int(ids.max())}",
            f"positions in [0, {anchors.shape[0]})",
            "pass the anchors the support was made with",
        )


def device_error(op: str, name: str, value: Tensor, other: Tensor) -> InputError:
    """The error of an argument on another device than the other arguments."""
    return input_error(f"{op}, {name}", f"device {value.device}", f"{other.device}, as the rest", "move it there")


def cap(op: str, max_support: int | None) -> int:
    """Check ``max_support``; returns it in the form of the kernels, 0 for no cap."""
    if max_support is None:
        return 0
    if isinstance(max_support, bool) or not isinstance(max_support, int) or max_support < 1:
        raise input_error(f"{op}, max_support", repr(max_support), "a whole number >= 1", "use None for no limit")
    return min(max_support, 2**31)


def ridge_strength(op: str, ridge: float | None) -> float:
    """Check ``ridge``; returns it in the form of the kernels, 0 for no ridge."""
    if ridge is None:
        return 0.0
    if isinstance(ridge, bool) or not isinstance(ridge, (int, float)) or not (math.isfinite(ridge) and ridge >= 0):
        raise input_error(f"{op}, ridge", repr(ridge), "a finite number >= 0", "use None for no ridge")
    return float(ridge)


def all_finite(tensor: Tensor) -> bool:
    """Whether a float tensor holds no NaN and no infinity; 25 times as fast as a test of each element of a bfloat16 one."""
    if not tensor.numel():
        return True
    smallest, largest = torch.aminmax(tensor)  # NaN passes through both
    return bool(smallest.isfinite() & largest.isfinite())


def finite_rows(matrix: Tensor) -> Tensor:
    """Bool [n], for a float tensor [n, ...]: the row holds no NaN and no infinity.

    The whole tensor is tested first: nearly always it is finite, and one pass is then enough.
    """
    if all_finite(matrix):
        return torch.ones(len(matrix), dtype=torch.bool, device=matrix.device)
    return matrix.isfinite().reshape(len(matrix), -1).all(dim=1)
