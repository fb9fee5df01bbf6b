"""Tensors of a GGUF file: their written types, and their bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch

from ..errors import input_error
from .architectures import ADVICE

STORED = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@dataclasses.dataclass(frozen=True)
class Planned:
    """A tensor to be written.

    Attributes:
        name: llama.cpp's name.
        shape: its shape, [rows, columns] for a matrix.
        kind: name of the written type, such as ``F16``.
        data: gives the bytes as a numpy array of the written type; for types that numpy lacks, uint8.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    data: Callable[[], np.ndarray]


def plan(key: str, name: str, weights: str, tensor: torch.Tensor, read: Callable[[], torch.Tensor]) -> Planned:
    """A tensor of a model folder as it will be written.

    Args:
        key: its key in the folder.
        name: llama.cpp's name.
        weights: the option that chooses the type.
        tensor: a tensor of the written shape in the stored dtype; its values are not read.
        read: gives the tensor in llama.cpp's order.

    Raises:
        InputError: the stored dtype is none that is written.
    """
    if tensor.dtype not in STORED:
        raise input_error(f"tensor {key}", str(tensor.dtype), "float32, float16 or bfloat16", ADVICE)
    shape = tuple(tensor.shape)
    kind = written_type(name, shape, STORED[tensor.dtype], weights)
    return Planned(name, shape, kind, lambda: as_array(read(), kind))


def written_type(name: str, shape: tuple[int, ...], stored: str, weights: str) -> str:
    """Name of the type that a tensor is written in.

    Args:
        name: llama.cpp's name of the tensor.
        shape: its shape.
        stored: name of the type that it is stored in.
        weights: the option.
    """
    # llama.cpp computes with vectors, norms and learned positions in float32 alone.
    if len(shape) < 2 or name.endswith("_norm.weight") or name == "position_embd.weight":
        return "F32"
    kind = stored if weights == "auto" else weights.upper()
    return "F16" if kind == "Q8_0" and shape[-1] % 32 else kind  # a block of Q8_0 has 32 weights


def as_array(tensor: torch.Tensor, kind: str) -> np.ndarray:
    """A tensor in a written type; types that numpy lacks as bytes.

    Args:
        tensor: the tensor.
        kind: name of the type.
    """
    import gguf

    if kind == "F32":
        return tensor.float().contiguous().numpy()
    if kind == "F16":
        return tensor.to(torch.float16).contiguous().numpy()
    if kind == "BF16":
        return tensor.to(torch.bfloat16).contiguous().view(torch.uint8).numpy()
    array: np.ndarray = gguf.quants.quantize(tensor.float().contiguous().numpy(), gguf.GGMLQuantizationType[kind])
    return array
