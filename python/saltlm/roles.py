"""Special tokens by role: which token of a tokenizer begins, ends, pads or hides text, and how two tokenizers' agree."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import input_error

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


def roles_in(folder: Path, ids: Mapping[str, int]) -> dict[str, int]:
    """Roles named by ``special_tokens_map.json`` and ``tokenizer_config.json`` of a folder, through spelling -> id.

    An entry may be a string or an object with ``content``; the later file wins.
    """
    named: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise input_error(str(path), f"a broken file ({error})", "JSON", "save the tokenizer again") from error
        for role in ROLES:
            entry = content.get(f"{role}_token")
            spelling = entry.get("content") if isinstance(entry, dict) else entry
            if isinstance(spelling, str):
                named[role] = spelling
    return {role: ids[spelling] for role, spelling in named.items() if spelling in ids}


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
