"""Roles of special tokens (bos, eos, pad, ...), and pairs of source and target tokens of the same role.

The rule by which a special token of the target takes source rows:

- Only real roles count: those that the target's tokenizer (or the source's, with ``--chat-template source``) gives the token.
  The new tokenizer may also name a token as a stand-in for a role that the target lacks, as a T5 tokenizer has no bos and its
  eos begins a text in its place. Such a stand-in changes no row: the eos token keeps the rows of the source's eos.
- One token may begin and end a text (``<|endoftext|>`` is bos and eos of GPT-2). As an input it begins a text, and as an
  output it ends one. So its input row is the row of the source's bos, and its output row is that of the source's eos.
- With a tied head this token has one row. It is the bos row if the source begins each text with its bos, because then each
  text is read through this row. Otherwise it is the eos row, because a text ends only if the row of its end is predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError, input_error
from ..files.json_files import parse_json
from ..files.open_file import FileKind, read_file
from ..protocols import Tokenizer

ROLES = ("bos", "eos", "pad", "unk", "cls", "sep", "mask")
# Roles of a token that ends a text, the best first. The output row of a token of several roles serves the first of these.
ENDS = ("eos", "sep")

# Role of a target token -> roles of source tokens whose row it can take, the best first. Encoders begin a text with cls and end
# it with sep where causal models use bos and eos; many causal models pad with eos and have no mask.
FALLBACK: dict[str, tuple[str, ...]] = {
    "bos": ("bos", "cls", "eos"),
    "eos": ("eos", "sep"),
    "pad": ("pad", "eos", "sep"),
    "unk": ("unk",),
    "cls": ("cls", "bos", "eos"),
    "sep": ("sep", "eos"),
    "mask": ("mask", "unk"),
}

# Usual spellings of each role, for a tokenizer file that does not name its roles.
SPELLINGS: dict[str, tuple[str, ...]] = {
    "bos": ("<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "<｜begin▁of▁sentence｜>", "[BOS]"),  # noqa: RUF001
    "eos": ("</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>", "<｜end▁of▁sentence｜>", "[EOS]"),  # noqa: RUF001
    "pad": ("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>"),
    "unk": ("<unk>", "[UNK]"),
    "cls": ("[CLS]", "<cls>"),
    "sep": ("[SEP]", "<sep>"),
    "mask": ("<mask>", "[MASK]"),
}


def roles_of(tokenizer: Tokenizer) -> dict[str, int]:
    """Role -> id of a transformers tokenizer, for the roles that it has."""
    roles = {}
    for role in ROLES:
        token = getattr(tokenizer, f"{role}_token", None)
        if token is not None:
            index = tokenizer.convert_tokens_to_ids(str(token))
            if index is not None and str(tokenizer.convert_ids_to_tokens(index)) == str(token):
                roles[role] = int(index)
    return roles


def named_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """Name -> token of the special tokens that a tokenizer names besides the common roles, such as ``image_token``."""
    special: Mapping[str, Any] = getattr(tokenizer, "special_tokens_map", {})
    return {
        name: str(token)
        for name, token in special.items()
        if name.removesuffix("_token") not in ROLES and not isinstance(token, list | tuple)
    }


def roles_in(folder: Path, find: Callable[[str], int | None]) -> dict[str, int]:
    """Roles that ``special_tokens_map.json`` and ``tokenizer_config.json`` of a folder name.

    An entry is a string or an object with ``content``. If both files name a role, ``tokenizer_config.json`` counts.

    Args:
        folder: the tokenizer's folder.
        find: spelling -> id, or ``None`` for a spelling that is not a token.

    Returns:
        Role -> id; without roles whose spelling is not a token.

    Raises:
        InputError: a file cannot be read or does not hold a JSON object.
    """
    named: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        try:
            content = parse_json(read_file(path, FileKind.SETTINGS, inside=folder))
        except InputError:
            raise
        except (OSError, ValueError) as error:
            raise input_error(str(path), f"a broken file ({error})", "JSON", "save the tokenizer again") from error
        if not isinstance(content, dict):
            raise input_error(str(path), f"a {type(content).__name__}", "a JSON object", "save the tokenizer again")
        for role in ROLES:
            entry = content.get(f"{role}_token")
            spelling = entry.get("content") if isinstance(entry, dict) else entry
            if isinstance(spelling, str):
                named[role] = spelling
    ids = {role: find(spelling) for role, spelling in named.items()}
    return {role: index for role, index in ids.items() if index is not None}


def roles_by_spelling(specials: Mapping[str, int]) -> dict[str, int]:
    """Role -> id of special tokens (spelling -> id) by :data:`SPELLINGS`, for a tokenizer that does not name its roles."""
    roles = {}
    for role, spellings in SPELLINGS.items():
        spelling = next((spelling for spelling in spellings if spelling in specials), None)
        if spelling is not None:
            roles[role] = specials[spelling]
    return roles


def match_roles(
    source: Mapping[str, int],
    target: Mapping[str, int],
    overrides: Mapping[int, int] | None = None,
) -> list[tuple[int, int]]:
    """Pairs (target id, source id) of tokens of the same role.

    Args:
        source: role -> id of the source tokenizer.
        target: role -> id of the target tokenizer.
        overrides: target id -> source id; they take precedence over roles.

    Returns:
        One pair for each target token whose role, or a role that replaces it (:data:`FALLBACK`), exists in the source. If a
        target token has several roles (``<|endoftext|>`` is often bos, eos and pad), the first of :data:`ROLES` that the
        source can serve counts. This is the token's role as an input.
    """
    pairs = dict(overrides or {})
    for role in ROLES:
        token = target.get(role)
        if token is None or token in pairs:
            continue
        match = _served(role, source)
        if match is not None:
            pairs[token] = match
    return sorted(pairs.items())


def match_ends(
    source: Mapping[str, int],
    target: Mapping[str, int],
    overrides: Mapping[int, int] | None = None,
) -> dict[int, int]:
    """Tokens whose output row is that of another source token than their input row.

    They are the tokens that end a text and have another role as an input, such as ``<|endoftext|>`` as bos and eos.

    Args:
        source: role -> id of the source tokenizer.
        target: role -> id of the target tokenizer, real roles only.
        overrides: target id -> source id; such a token has both rows of that source token.

    Returns:
        Target id -> id of the source token that ends a text.
    """
    inputs = dict(match_roles(source, target, overrides))
    ends: dict[int, int] = {}
    for role in ENDS:
        token = target.get(role)
        if token is None or token in ends or token in (overrides or {}):
            continue
        match = _served(role, source)
        if match is not None:
            ends[token] = match
    return {token: match for token, match in ends.items() if inputs[token] != match}


def real_roles(tokenizer: Tokenizer, *origins: Tokenizer) -> dict[str, int]:
    """Role -> id of a new tokenizer, without roles for which a token of another role stands in.

    Args:
        tokenizer: the new tokenizer.
        origins: the tokenizers that it was made from; a role is real if one of them gives it to the same token.
    """
    return {
        role: index
        for role, index in roles_of(tokenizer).items()
        if any(_role_token(origin, role) == _role_token(tokenizer, role) for origin in origins)
    }


def _role_token(tokenizer: Tokenizer, role: str) -> str | None:
    """Spelling of the token of a role; ``None`` if the tokenizer has none."""
    token = getattr(tokenizer, f"{role}_token", None)
    return None if token is None else str(token)


def _served(role: str, source: Mapping[str, int]) -> int | None:
    """Id of the source token whose row serves a role; ``None`` if the source has none."""
    return next((source[name] for name in FALLBACK[role] if name in source), None)
