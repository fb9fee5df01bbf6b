"""A record of many rows without a model: real tokens, drawn figures."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from saltlm.alignment.tokens import load_tokens
from saltlm.inspection.rows import Rows, spelled
from saltlm.rows.assembly import ORIGINS, STATUSES
from saltlm.rows.recipe import RULES

HOSTILE = (
    "</script><script>document.title='hostile'</script>",
    '"><img src=x onerror="document.title=\'hostile\'">',
    "<!--<script>",
    "line\u2028separator",
    "\u202eright-to-left override",
    "@@DATA@@",
)
SYLLABLES = [
    first + second
    for first in "bdfghjklmnprstv"
    for second in ("a", "e", "i", "o", "u", "än", "iss", "oll", "ur", "ent")
]


def words(count: int, seed: int = 0) -> list[str]:
    """Different made-up words of one to four syllables; two in three begin with a space, and some are Cyrillic."""
    generator = random.Random(seed)
    chosen: dict[str, None] = dict.fromkeys([*HOSTILE, " kissa"])
    while len(chosen) < count:
        word = "".join(generator.choices(SYLLABLES, k=generator.randint(1, 4)))
        if generator.random() < 0.1:
            word = "".join(chr(0x430 + ord(letter) % 32) for letter in word)
        chosen[(" " if generator.random() < 0.66 else "") + word] = None
    return list(chosen)[:count]


def large_record(folder: Path, count: int, parts: int = 3, seed: int = 0) -> Rows:
    """Rows of a made-up transfer by the default method, a third of them copied.

    Args:
        folder: named in the record; nothing is read from it or written to it.
        count: T'.
        parts: mean number of source pieces of a built row.
        seed: of the figures.
    """
    generator = np.random.default_rng(seed)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    spellings = [byte_level.pre_tokenize_str(word)[0][0] for word in words(count, seed)]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(spellings)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = byte_level, decoders.ByteLevel()
    tokens = load_tokens(tokenizer)
    data, offsets = tokens.vocabulary.token_bytes()
    texts = [spelled(data[offsets[i] : offsets[i + 1]].tobytes()) for i in range(count)]
    copied = np.arange(count) % 3 == 2
    sizes = np.where(copied, 0, generator.poisson(parts - 1, count) + 1)
    source = min(count, 128_000)
    entries = int(sizes.sum())
    arrays: dict[str, np.ndarray] = {
        "origin": np.where(copied, ORIGINS.index("copied"), ORIGINS.index("composed")).astype(np.uint8),
        "source_id": np.where(copied, np.arange(count) % source, -1).astype(np.int32),
        "support_size": sizes.astype(np.int32),
        "rank": np.where(copied, 0, 7).astype(np.int32),
        "residual": np.where(copied, 0, generator.beta(3, 3, count)).astype(np.float32),
        "status": np.where(copied, 0, 1).astype(np.uint8),
        "rule": np.where(copied, RULES.index("copy"), RULES.index("pieces and map")).astype(np.uint8),
        "rule_offsets": np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        "rule_ids": generator.integers(0, source, entries).astype(np.int32),
        "rule_weights": np.repeat(0.65 / np.maximum(sizes, 1), sizes).astype(np.float32),
        "rule_kept": np.ones(count, dtype=np.float32),
        "source_bytes": data[: offsets[source]],
        "source_offsets": offsets[: source + 1],
    }
    matrix = torch.from_numpy(generator.normal(size=(count, 8)).astype(np.float32))
    summary: Any = {
        "method": "auto",
        "origins": list(ORIGINS),
        "rules": list(RULES),
        "statuses": [{"name": name, "count": 0} for name in STATUSES],
        "counts": {"copied": int(copied.sum()), "composed": int((~copied).sum())},
        "new_tokens": int((~copied).sum()),
        "anchors": int(copied.sum()),
        "heldout": {"score": 0.13, "broken": None},
        "blend": {"weight": 0.35, "length": 1.4},
        "inputs": {},
        "config": {"method": "auto", "tune_text": "x"},
        "environment": {},
        "warnings": ["a warning with <b>markup</b> & a remedy"],
    }
    return Rows(folder, summary, arrays, matrix.double().norm(dim=1).numpy(), texts, tokens, matrix)
