"""Special tokens by role: which token of a tokenizer begins, ends, pads or hides text, and how two tokenizers' agree."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import input_error

ROLES = ("bos", "eos", "pad", "unk", "cls", "sep", "mask")

# Where the source lacks a role, the row of the nearest in meaning serves: encoders begin with cls and end with sep where
# causal models have bos and eos; many causal models pad with eos and have no mask.
FALLBACK: dict[str, tuple[str, ...]] = {
    "bos": ("bos", "cls", "eos"),
    "eos": ("eos", "sep"),
    "pad": ("pad", "eos", "sep"),
    "unk": ("unk",),
    "cls": ("cls", "bos", "eos"),
    "sep": ("sep", "eos"),
    "mask": ("mask", "unk"),
}

# How the common families spell each role, for a bare file that does not name them.
SPELLINGS: dict[str, tuple[str, ...]] = {
    "bos": ("<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "<｜begin▁of▁sentence｜>", "[BOS]"),  # noqa: RUF001
    "eos": ("</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>", "<｜end▁of▁sentence｜>", "[EOS]"),  # noqa: RUF001
    "pad": ("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>"),
    "unk": ("<unk>", "[UNK]"),
    "cls": ("[CLS]", "<cls>"),
    "sep": ("[SEP]", "<sep>"),
    "mask": ("<mask>", "[MASK]"),
}


def roles_of(tokenizer: Any) -> dict[str, int]:
    """Roles of a transformers tokenizer: role -> id, for the roles it has."""
    found = {}
    for role in ROLES:
        token = getattr(tokenizer, f"{role}_token", None)
        if token is not None:
            index = tokenizer.convert_tokens_to_ids(str(token))
            if index is not None and str(tokenizer.convert_ids_to_tokens(index)) == str(token):
                found[role] = int(index)
    return found


def roles_in(folder: Path, find: Callable[[str], int | None]) -> dict[str, int]:
    """Roles named by ``special_tokens_map.json`` and ``tokenizer_config.json`` of a folder; ``find`` gives a spelling's id.

    An entry may be a string or an object with ``content``; the later file wins. A spelling without an id has no role.

    Raises:
        InputError: a file cannot be read or is no JSON object.
    """
    named: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise input_error(str(path), f"a broken file ({error})", "JSON", "save the tokenizer again") from error
        if not isinstance(content, dict):
            raise input_error(str(path), f"a {type(content).__name__}", "a JSON object", "save the tokenizer again")
        for role in ROLES:
            entry = content.get(f"{role}_token")
            spelling = entry.get("content") if isinstance(entry, dict) else entry
            if isinstance(spelling, str):
                named[role] = spelling
    found = {role: find(spelling) for role, spelling in named.items()}
    return {role: index for role, index in found.items() if index is not None}


def roles_by_spelling(specials: Mapping[str, int]) -> dict[str, int]:
    """Roles of special tokens (spelling -> id) by :data:`SPELLINGS`, for a tokenizer that comes without their names."""
    found = {}
    for role, spellings in SPELLINGS.items():
        spelling = next((spelling for spelling in spellings if spelling in specials), None)
        if spelling is not None:
            found[role] = specials[spelling]
    return found


def match_roles(
    source: Mapping[str, int],
    target: Mapping[str, int],
    overrides: Mapping[int, int] | None = None,
) -> list[tuple[int, int]]:
    """Pairs (target id, source id) of tokens that play the same role.

    Args:
        source: role -> id of the source tokenizer.
        target: role -> id of the target tokenizer.
        overrides: target id -> source id, before any role.

    Returns:
        One pair for each target token that has a role the source has too, or one that stands in for it
        (:data:`FALLBACK`). Where a target token plays several roles (``<|endoftext|>`` is often bos, eos and pad), the
        first in :data:`ROLES` that the source knows decides.
    """
    pairs = dict(overrides or {})
    for role in ROLES:
        token = target.get(role)
        if token is None or token in pairs:
            continue
        stand_in = next((source[r] for r in FALLBACK[role] if r in source), None)
        if stand_in is not None:
            pairs[token] = stand_in
    return sorted(pairs.items())
