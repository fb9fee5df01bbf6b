"""The PLM's tokenizer made fit for a causal model: no end mark after a prompt, roles named, chat template by policy."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import input_error
from .roles import roles_of

# An encoder begins with cls and ends with sep where a causal model has bos and eos.
STAND_INS = {"bos": ("bos", "cls", "eos"), "eos": ("eos", "sep"), "pad": ("pad", "eos", "sep")}
# Components that add tokens around a text; anything else in a post-processor only adjusts offsets and stays.
ADDING = ("TemplateProcessing", "BertProcessing", "RobertaProcessing")


def causal_tokenizer(target: Any, source: Any, *, chat_template: str) -> Any:
    """The target's tokenizer for a causal model.

    Its segmentation is untouched. What it adds around a text follows the source (an encoder's closing ``</s>`` or ``[SEP]``
    would end every prompt); it returns no token types; bos, eos and pad are named, with cls and sep standing in.

    Args:
        target: fast tokenizer of the PLM.
        source: fast tokenizer of the source model.
        chat_template: ``target``, ``source`` or ``none``; with ``source`` the special tokens its template spells, and its
            bos and eos, are added to the vocabulary where they are missing.

    Returns:
        A new fast tokenizer; the arguments are not changed.

    Raises:
        InputError: ``source`` is asked for and has no chat template.
    """
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    named = {role: target.convert_ids_to_tokens(index) for role, index in roles_of(target).items()}
    for role, candidates in STAND_INS.items():
        token = next((named[name] for name in candidates if name in named), None)
        if token is not None:
            named[role] = token
    backend = Tokenizer.from_str(target.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    template = _template(target, source, chat_template)
    extra: list[str] = []
    if chat_template == "source":
        ends = {role: getattr(source, f"{role}_token") for role in ("bos", "eos")}
        named.update({role: token for role, token in ends.items() if token is not None})
        spelled = [str(token) for token in source.all_special_tokens if str(token) in str(template)]
        extra = list(dict.fromkeys([*[str(t) for t in ends.values() if t is not None], *spelled]))
        missing = [token for token in extra if backend.token_to_id(token) is None]
        backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in missing])
    content = json.loads(backend.to_str())
    content["post_processor"] = _around(content.get("post_processor"), named, _adds(source), backend)
    settings: dict[str, Any] = {f"{role}_token": token for role, token in named.items()}
    if others := [token for token in _other_special(target, extra) if token not in named.values()]:
        settings["additional_special_tokens"] = others
    result = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        model_max_length=source.model_max_length,
        padding_side=source.padding_side,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        **settings,
    )
    result.chat_template = template
    return result


def _template(target: Any, source: Any, policy: str) -> str | None:
    if policy == "none":
        return None
    if policy == "target":
        return target.chat_template
    if not source.chat_template:
        raise input_error(
            "chat_template",
            "'source', but the source tokenizer has none",
            "a source with a chat template",
            "use --chat-template target or none",
        )
    return source.chat_template


def _other_special(target: Any, extra: list[str]) -> list[str]:
    return list(dict.fromkeys([*(str(token) for token in target.all_special_tokens), *extra]))


def _adds(source: Any) -> tuple[bool, bool]:
    """Whether the source puts its bos before and its eos after a text."""
    plain = source("a", add_special_tokens=False)["input_ids"]
    whole = source("a")["input_ids"]
    extra = len(whole) - len(plain)
    before = extra > 0 and source.bos_token_id is not None and whole[0] == source.bos_token_id
    after = extra > int(before) and source.eos_token_id is not None and whole[-1] == source.eos_token_id
    return before, after


def _around(
    old: dict[str, Any] | None, named: Mapping[str, str], adds: tuple[bool, bool], backend: Any
) -> dict[str, Any] | None:
    """A post-processor that adds what the source would; the parts of ``old`` that add nothing are kept."""
    parts = [] if old is None else old["processors"] if old["type"] == "Sequence" else [old]
    kept = [part for part in parts if part["type"] not in ADDING]
    template = [{"Sequence": {"id": "A", "type_id": 0}}]
    pair = [*template, {"Sequence": {"id": "B", "type_id": 0}}]
    special = {}
    for role, wanted, first in (("bos", adds[0], True), ("eos", adds[1], False)):
        if wanted and role in named:
            token = named[role]
            special[token] = {"id": token, "ids": [backend.token_to_id(token)], "tokens": [token]}
            mark = [{"SpecialToken": {"id": token, "type_id": 0}}]
            template = mark + template if first else template + mark
            pair = mark + pair if first else pair + mark
    if special:
        kept.append({"type": "TemplateProcessing", "single": template, "pair": pair, "special_tokens": special})
    return None if not kept else kept[0] if len(kept) == 1 else {"type": "Sequence", "processors": kept}


# Entries of a generation config whose ids have no counterpart to be moved to one by one.
SPELLED_IN_IDS = ("force_words_ids", "forced_decoder_ids", "sequence_bias")


@dataclasses.dataclass(frozen=True)
class IdChanges:
    """What the configuration files must say about token ids; ``None`` removes an entry."""

    config: dict[str, Any]
    generation: dict[str, Any] | None


def id_changes(
    config: Mapping[str, Any], generation: Mapping[str, Any] | None, tokenizer: Any, source_id: np.ndarray
) -> IdChanges:
    """New values of every entry that names token ids: roles from the tokenizer, other ids through the alignment.

    Args:
        config: the source's ``config.json``.
        generation: its ``generation_config.json`` or ``None``.
        tokenizer: the new tokenizer.
        source_id: int32 [T], the alignment's.
    """
    moved: dict[int, int] = {}
    for token in np.flatnonzero(source_id >= 0)[::-1]:
        moved[int(source_id[token])] = int(token)
    roles = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    # bos and pad often take the row of the source's eos, too; where that is meant, the end of a text is.
    for token in (roles["pad_token_id"], roles["bos_token_id"], roles["eos_token_id"]):
        if token is not None and token < len(source_id) and source_id[token] >= 0:
            moved[int(source_id[token])] = token

    def changed(entries: Mapping[str, Any], always: tuple[str, ...]) -> dict[str, Any]:
        changes: dict[str, Any] = {}
        for key, value in entries.items():
            if key in roles:
                changes[key] = _ends(value, roles[key], moved) if isinstance(value, list) else roles[key]
            elif key.endswith(("_token_id", "_token_ids", "suppress_tokens")) and value is not None:
                changes[key] = _moved(value, moved)
            elif key == "bad_words_ids" and isinstance(value, list):
                changes[key] = [[moved[i] for i in word] for word in value if all(i in moved for i in word)] or None
            elif key in SPELLED_IN_IDS and value is not None:
                changes[key] = None
        return {**{key: roles[key] for key in always}, **changes}

    return IdChanges(
        config=changed(config, ("bos_token_id", "eos_token_id", "pad_token_id")),
        generation=None
        if generation is None
        else changed(generation, ("bos_token_id", "eos_token_id", "pad_token_id")),
    )


def _ends(old: list[int], role: int | None, moved: Mapping[int, int]) -> Any:
    ids = [] if role is None else [role]
    ids += [moved[i] for i in old if i in moved and moved[i] not in ids]
    return ids[0] if len(ids) == 1 else ids or None


def _moved(value: Any, moved: Mapping[int, int]) -> Any:
    if isinstance(value, list):
        return [moved[i] for i in value if i in moved] or None
    return moved.get(value) if isinstance(value, int) else None
