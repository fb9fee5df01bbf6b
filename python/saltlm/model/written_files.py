"""Digests of the files of a written model folder, as saltlm.json keeps them under ``files``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from ..files.hashing import sha256_file
from ..files.summary_file import SUMMARY
from .safetensors_stream import byte_blocks
from .weights import Weights, find_weights, release_pages


def written_files(folder: Path, keys: Iterable[str]) -> dict[str, str]:
    """Digests of all files of a model folder except saltlm.json, which holds them.

    Args:
        folder: the model folder.
        keys: of vocabulary tensors; keys that the folder lacks are left out.

    Returns:
        File name (with ``/`` below a subfolder) -> hexadecimal sha256, but ``N bytes`` for a weight file, which can be too
        large to hash; and ``FILE#KEY`` -> hexadecimal sha256 of the bytes of a vocabulary tensor.
    """
    weights = find_weights(folder, f"folder {folder}")
    digests = {
        name: file_digest(folder, name, weights)
        for name in sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        if name != SUMMARY
    }
    file_of = weights.files_of()
    return digests | {
        f"{file_of[key]}#{key}": tensor_digest(weights.tensor(key)) for key in sorted(set(keys)) if key in file_of
    }


def file_digest(folder: Path, name: str, weights: Weights) -> str:
    """Hexadecimal sha256 of a file of a model folder; the size, as ``N bytes``, of a weight file."""
    return f"{(folder / name).stat().st_size} bytes" if name in weights.headers else sha256_file(folder / name)


def tensor_digest(tensor: torch.Tensor) -> str:
    """Hexadecimal sha256 of the bytes of a tensor, as safetensors stores them; pages of a mapped file are released."""
    digest = hashlib.sha256()
    for block in byte_blocks(tensor):
        digest.update(block)
        release_pages()
    return digest.hexdigest()


def vocabulary_keys(files: Mapping[str, str]) -> set[str]:
    """Keys of the vocabulary tensors that the entry ``files`` of a saltlm.json names."""
    return {name.split("#", 1)[1] for name in files if "#" in name}
