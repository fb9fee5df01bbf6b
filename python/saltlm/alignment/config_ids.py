"""New values of the token ids that config.json and generation_config.json name, at the top and in the parts of a model."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..files.json_files import merged
from ..protocols import Tokenizer
from .roles import FALLBACK

# Roles whose ids every config names.
NAMED_ROLES = ("bos", "eos", "pad")
# Ends of the keys that hold token ids: one, a list, or a list of lists.
ID_KEYS = ("_token_id", "_token_ids", "_token_index", "suppress_tokens")
# Entries of a generation config that spell text in source ids. They are removed: the new tokenizer spells it otherwise.
SPELLED_IN_IDS = ("force_words_ids", "forced_decoder_ids", "sequence_bias")


@dataclasses.dataclass(frozen=True)
class IdChanges:
    """Changes of the entries that name token ids.

    A value that is an object holds the changes inside that object; :func:`~saltlm.files.json_files.merged` applies them.

    Attributes:
        config: key of config.json -> new value; ``None`` for an id whose token is gone.
        generation: the same for generation_config.json; ``None`` if there is no such file.
    """

    config: dict[str, Any]
    generation: dict[str, Any] | None


@dataclasses.dataclass(frozen=True)
class _NewIds:
    """What the new ids are taken from.

    Attributes:
        roles: ``bos_token_id``, ``eos_token_id`` and ``pad_token_id`` of the new tokenizer.
        target_of: source id -> target id.
        rows: number of the source's rows; ``None`` if not known.
    """

    roles: Mapping[str, int | None]
    target_of: Mapping[int, int]
    rows: int | None

    def changed(self, entries: Mapping[str, Any], *, text: bool) -> dict[str, Any]:
        """Changes of the entries of one object.

        Args:
            entries: config.json, generation_config.json, or an object in it, such as ``vision_config``.
            text: whether bos, eos and pad in it are those of the text, and not of another part of the model.
        """
        changes: dict[str, Any] = {}
        for key, value in entries.items():
            if key in self.roles and text:
                changes[key] = self._role_ids(value, key) if isinstance(value, list) else self.roles[key]
            elif key.endswith(ID_KEYS) and value is not None:
                changes[key] = self._mapped(value)
            elif key == "bad_words_ids" and isinstance(value, list):
                words = [[self.target_of[i] for i in word] for word in value if all(i in self.target_of for i in word)]
                changes[key] = words or None
            elif key in SPELLED_IN_IDS and value is not None:
                changes[key] = None
            elif isinstance(value, Mapping) and (part := self._part(value)):
                changes[key] = part
        return changes

    def _part(self, entries: Mapping[str, Any]) -> dict[str, Any]:
        """Changes inside an object of the config; none if it is about another vocabulary, such as one of audio codes."""
        size = entries.get("vocab_size")
        if isinstance(size, int) and self.rows is not None and size != self.rows:
            return {}
        return self.changed(entries, text=isinstance(size, int))

    def _role_ids(self, old: list[int], key: str) -> Any:
        """New value of a role that has several ids, as eos often has: the tokenizer's id first, then the mapped old ids."""
        role = self.roles[key]
        ids = [] if role is None else [role]
        ids += [self.target_of[i] for i in old if i in self.target_of and self.target_of[i] not in ids]
        return ids[0] if len(ids) == 1 else ids or None

    def _mapped(self, value: Any) -> Any:
        """Target ids of one source id, of a list, or of a list of lists; ``None`` if none of them has a target id."""
        if isinstance(value, list):
            mapped = [self._mapped(item) for item in value]
            return [item for item in mapped if item is not None] or None
        return self.target_of.get(value) if isinstance(value, int) else None


def id_changes(
    config: Mapping[str, Any],
    generation: Mapping[str, Any] | None,
    tokenizer: Tokenizer,
    source_id: np.ndarray,
    rows: int | None = None,
) -> IdChanges:
    """New values of all config entries that name token ids, also of those in objects such as ``vision_config``.

    Ids of bos, eos and pad come from the new tokenizer. Other source ids become the target ids that share their row, or
    ``None`` where no target token does. An object with a ``vocab_size`` other than ``rows`` is about another vocabulary and
    keeps its ids.

    Args:
        config: content of the source's ``config.json``.
        generation: content of its ``generation_config.json``, or ``None``.
        tokenizer: the new tokenizer.
        source_id: int32 [T], source id of each token by the alignment; -1 for none.
        rows: number of the source's rows; ``None`` takes no object for one of another vocabulary.
    """
    target_of: dict[int, int] = {}  # source id -> target id
    for token in np.flatnonzero(source_id >= 0)[::-1]:
        target_of[int(source_id[token])] = int(token)
    roles = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in NAMED_ROLES}
    # bos and pad often share the row of the source's eos. Then the source's eos becomes the target's eos, which is set last.
    for token in (roles["pad_token_id"], roles["bos_token_id"], roles["eos_token_id"]):
        if token is not None and token < len(source_id) and source_id[token] >= 0:
            target_of[int(source_id[token])] = token
    new = _NewIds(roles, target_of, rows)
    return IdChanges(
        config={**roles, **new.changed(config, text=True)},
        generation=None if generation is None else {**roles, **new.changed(generation, text=True)},
    )


def refuses_null(config: Mapping[str, Any], key: str) -> bool:
    """Whether the config class of a model type takes this config, but not with ``None`` under a key.

    Some classes declare ids as plain integers. A config.json with ``null`` there cannot be loaded.

    Args:
        config: content of config.json.
        key: a key at the top of it.
    """
    return not _accepted({**config, key: None}) and _accepted(config)


def fill_refused_nulls(
    config: Mapping[str, Any], changes: Mapping[str, Any], tokenizer: Tokenizer, rows: int
) -> dict[str, Any]:
    """The changes with an id in place of each ``None`` that the model's config class does not take.

    An entry of a role, such as ``cls_token_id``, gets the id of the token that stands in for the role. Any other entry gets
    the number of rows, an id that no token has: an id in the vocabulary would make an ordinary token mean something else.

    Args:
        config: content of the source's config.json.
        changes: changes of its entries.
        tokenizer: the new tokenizer.
        rows: number of the new rows.
    """
    nulls = [_nested(path, None) for path in _null_paths(changes)]
    if not nulls or _accepted(functools.reduce(merged, nulls, dict(config))) or not _accepted(config):
        return dict(changes)
    filled = dict(changes)
    for path in _null_paths(changes):
        if not _accepted(merged(config, _nested(path, None))):
            filled = merged(filled, _nested(path, _stand_in(path[-1].removesuffix("_token_id"), tokenizer, rows)))
    return filled


def _null_paths(changes: Mapping[str, Any], parents: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Keys that lead to each ``None`` in the changes."""
    for key, value in changes.items():
        if isinstance(value, Mapping):
            yield from _null_paths(value, (*parents, key))
        elif value is None:
            yield (*parents, key)


def _nested(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """An object that holds one value under these keys."""
    for key in reversed(path):
        value = {key: value}
    return value


def _stand_in(role: str, tokenizer: Tokenizer, rows: int) -> int:
    """Id of the token that stands in for a role; ``rows`` for what is no role or has no such token."""
    names = (*FALLBACK[role], "eos", "pad", "bos", "unk") if role in FALLBACK else ()
    ids = (getattr(tokenizer, f"{name}_token_id", None) for name in names)
    return next((index for index in ids if index is not None), rows)


def _accepted(config: Mapping[str, Any]) -> bool:
    """Whether the config class of a model type takes a config; also ``True`` for an unknown model type."""
    from transformers import CONFIG_MAPPING

    model_type = config.get("model_type")
    if model_type not in CONFIG_MAPPING:
        return True
    try:
        CONFIG_MAPPING[model_type].from_dict(copy.deepcopy(dict(config)))
    except Exception:  # each config class has checks of its own, with errors of any type
        return False
    return True
