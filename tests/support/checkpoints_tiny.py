"""Changes of tiny checkpoints on disk: other keys, further tensors, quantised bodies."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Read the weights of a folder with one weight file, change them in place, and write them."""
    content = load_file(folder / WEIGHTS)
    change(content)
    save_file(content, folder / WEIGHTS, metadata={"format": "pt"})


def add_tensors(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Add tensors to a folder with one weight file."""
    change_tensors(folder, lambda content: content.update(tensors))


def rename_keys(folder: Path, rename: Callable[[str], str]) -> None:
    """Rename the tensors of all weight files, and the index."""
    for path in folder.glob("*.safetensors"):
        content = load_file(path)
        save_file({rename(key): value for key, value in content.items()}, path, metadata={"format": "pt"})
    index = folder / f"{WEIGHTS}.index.json"
    if index.is_file():
        entries = json.loads(index.read_text())
        entries["weight_map"] = {rename(key): file for key, file in entries["weight_map"].items()}
        index.write_text(json.dumps(entries))


def change_config(folder: Path, **changes: Any) -> None:
    """Set entries of config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def all_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of all weight files of a model."""
    return {
        key: value
        for path in sorted(folder.glob("*.safetensors"))
        if path.name != "provenance.safetensors"
        for key, value in load_file(path).items()
    }


def keys_by_file(folder: Path) -> dict[str, set[str]]:
    """Name of each weight file -> its keys."""
    keys = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            keys[path.name] = set(file.keys())
    return keys


def bits(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Dtype, shape and bytes of a tensor, to compare dtypes that have no equality of their own."""
    return tensor.dtype, tuple(tensor.shape), tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal values."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
