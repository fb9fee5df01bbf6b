"""A tiny transferred model folder and tiny text, for tests of the adaptation."""

from __future__ import annotations

import json
from pathlib import Path

import models_tiny
import numpy as np
from safetensors.numpy import save_file
from tokenizers_tiny import TEXT, tiny

ORIGINS = ["copied", "role", "solved", "composed", "drawn", "padding"]


def documents(count: int = 60, seed: int = 0) -> list[str]:
    """Documents of three lines each, all different."""
    random = np.random.default_rng(seed)
    words = " ".join(TEXT).split()
    return [
        f"{i}: " + "\n".join(" ".join(random.choice(words, size=int(random.integers(5, 40)))) for _ in range(3))
        for i in range(count)
    ]


def text_file(path: Path, count: int = 60, seed: int = 0) -> Path:
    path.write_text("\n\n".join(documents(count, seed)) + "\n", encoding="utf-8")
    return path


def transferred(folder: Path, family: str = "llama", tokenizer: str = "byte_level_bpe", **options) -> Path:
    """Write a model folder with a provenance in which every third row was not copied."""
    save = {"llama": models_tiny.save_llama, "gpt2": models_tiny.save_gpt2, "phi": models_tiny.save_phi}[family]
    save(folder, tiny(tokenizer), **options)
    rows = len(tiny(tokenizer))
    origin = np.where(np.arange(rows) % 3 == 0, ORIGINS.index("solved"), ORIGINS.index("copied")).astype(np.uint8)
    save_file({"origin": origin}, folder / "provenance.safetensors")
    (folder / "saltlm.json").write_text(json.dumps({"format": 1, "origins": ORIGINS, "inputs": {}}))
    (folder / "README.md").write_text("# Model\n\n**It has not been adapted yet**: train it.\n")
    return folder
