"""Turn the PLM's tokenizer into one for a causal model: special tokens around a text, roles, chat template, ids in configs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import input_error
from ..protocols import Tokenizer
from .roles import roles_of
from .template_markers import add_markers
from .word_ends import with_readable_ends

# Role -> roles whose token serves, the best first. An encoder uses cls and sep where a causal model uses bos and eos.
REPLACEMENTS = {"bos": ("bos", "cls", "eos"), "eos": ("eos", "sep"), "pad": ("pad", "eos", "sep")}
# Post-processors that add tokens around a text. Other post-processors only adjust offsets and are kept.
TEMPLATE_PROCESSORS = ("TemplateProcessing", "BertProcessing", "RobertaProcessing")


def causal_tokenizer(target: Tokenizer, source: Tokenizer, *, chat_template: str) -> Tokenizer:
    """The target's tokenizer for a causal model.

    The segmentation of text stays. Around a text it adds the special tokens that the source adds: an encoder's closing
    ``</s>`` or ``[SEP]`` would end every prompt. It returns no token types. It names bos, eos and pad; cls and sep replace bos
    and eos where these are missing.

    Args:
        target: fast tokenizer of the PLM.
        source: fast tokenizer of the source model.
        chat_template: ``target``, ``source`` or ``none``; with ``source``, the source's bos and eos and the added tokens in
            its template are added to the vocabulary if they are missing.

    Returns:
        A new fast tokenizer.

    Raises:
        InputError: ``chat_template`` is ``source`` and the source has no chat template.
    """
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerFast

    named = {role: target.convert_ids_to_tokens(index) for role, index in roles_of(target).items()}
    for role, candidates in REPLACEMENTS.items():
        token = next((named[name] for name in candidates if name in named), None)
        if token is not None:
            named[role] = token
    backend = Backend.from_str(target.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    template = _template(target, source, chat_template)
    extra: list[str] = []
    if chat_template == "source":
        ends = {role: getattr(source, f"{role}_token") for role in ("bos", "eos")}
        named.update({role: token for role, token in ends.items() if token is not None})
        extra = add_markers(backend, source, list(dict.fromkeys(str(t) for t in ends.values() if t is not None)))
    content = with_readable_ends(json.loads(backend.to_str()))
    content["post_processor"] = _post_processor(content.get("post_processor"), named, _adds_bos_eos(source), backend)
    settings: dict[str, Any] = {f"{role}_token": token for role, token in named.items()}
    if others := [token for token in _other_special(target, extra) if token not in named.values()]:
        settings["additional_special_tokens"] = others
    result = PreTrainedTokenizerFast(
        tokenizer_object=Backend.from_str(json.dumps(content)),
        model_max_length=source.model_max_length,
        padding_side=source.padding_side,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        **settings,
    )
    result.chat_template = template
    return result


def _template(target: Tokenizer, source: Tokenizer, policy: str) -> str | None:
    """The chat template by the policy ``target``, ``source`` or ``none``."""
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


def _other_special(target: Tokenizer, extra: list[str]) -> list[str]:
    """Special tokens of the target and the added ones, each once."""
    return list(dict.fromkeys([*(str(token) for token in target.all_special_tokens), *extra]))


def _adds_bos_eos(source: Tokenizer) -> tuple[bool, bool]:
    """Whether the source adds its bos before a text, and its eos after it."""
    bare = source("a", add_special_tokens=False)["input_ids"]
    whole = source("a")["input_ids"]
    extra = len(whole) - len(bare)
    before = extra > 0 and source.bos_token_id is not None and whole[0] == source.bos_token_id
    after = extra > int(before) and source.eos_token_id is not None and whole[-1] == source.eos_token_id
    return before, after


def _post_processor(
    old: dict[str, Any] | None, named: Mapping[str, str], adds_bos_eos: tuple[bool, bool], backend: Any
) -> dict[str, Any] | None:
    """A post-processor that adds bos and eos as the source does, with those parts of ``old`` that add no tokens."""
    parts = [] if old is None else old["processors"] if old["type"] == "Sequence" else [old]
    kept = [part for part in parts if part["type"] not in TEMPLATE_PROCESSORS]
    template: list[dict[str, Any]] = [{"Sequence": {"id": "A", "type_id": 0}}]
    pair = [*template, {"Sequence": {"id": "B", "type_id": 0}}]
    special = {}
    for role, adds, first in (("bos", adds_bos_eos[0], True), ("eos", adds_bos_eos[1], False)):
        if adds and role in named:
            token = named[role]
            special[token] = {"id": token, "ids": [backend.token_to_id(token)], "tokens": [token]}
            mark = [{"SpecialToken": {"id": token, "type_id": 0}}]
            template = mark + template if first else template + mark
            pair = mark + pair if first else pair + mark
    if special:
        kept.append({"type": "TemplateProcessing", "single": template, "pair": pair, "special_tokens": special})
    return None if not kept else kept[0] if len(kept) == 1 else {"type": "Sequence", "processors": kept}


# Entries of a generation config that spell text in source ids. They are removed: the new tokenizer spells it otherwise.
SPELLED_IN_IDS = ("force_words_ids", "forced_decoder_ids", "sequence_bias")


@dataclasses.dataclass(frozen=True)
class IdChanges:
    """Changes of the entries that name token ids.

    Attributes:
        config: key of config.json -> new value; ``None`` removes the entry.
        generation: the same for generation_config.json; ``None`` if there is no such file.
    """

    config: dict[str, Any]
    generation: dict[str, Any] | None


def id_changes(
    config: Mapping[str, Any], generation: Mapping[str, Any] | None, tokenizer: Tokenizer, source_id: np.ndarray
) -> IdChanges:
    """New values of all config entries that name token ids.

    Ids of bos, eos and pad come from the new tokenizer. Other source ids become the target ids that share their row.

    Args:
        config: content of the source's ``config.json``.
        generation: content of its ``generation_config.json``, or ``None``.
        tokenizer: the new tokenizer.
        source_id: int32 [T], source id of each token by the alignment; -1 for none.
    """
    target_of: dict[int, int] = {}  # source id -> target id
    for token in np.flatnonzero(source_id >= 0)[::-1]:
        target_of[int(source_id[token])] = int(token)
    roles = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    # bos and pad often share the row of the source's eos. Then the source's eos becomes the target's eos, which is set last.
    for token in (roles["pad_token_id"], roles["bos_token_id"], roles["eos_token_id"]):
        if token is not None and token < len(source_id) and source_id[token] >= 0:
            target_of[int(source_id[token])] = token

    def changed(entries: Mapping[str, Any]) -> dict[str, Any]:
        changes: dict[str, Any] = {}
        for key, value in entries.items():
            if key in roles:
                changes[key] = _role_ids(value, roles[key], target_of) if isinstance(value, list) else roles[key]
            elif key.endswith(("_token_id", "_token_ids", "suppress_tokens")) and value is not None:
                changes[key] = _mapped(value, target_of)
            elif key == "bad_words_ids" and isinstance(value, list):
                changes[key] = [
                    [target_of[i] for i in word] for word in value if all(i in target_of for i in word)
                ] or None
            elif key in SPELLED_IN_IDS and value is not None:
                changes[key] = None
        return {**roles, **changes}

    return IdChanges(config=changed(config), generation=None if generation is None else changed(generation))


def _role_ids(old: list[int], role: int | None, target_of: Mapping[int, int]) -> Any:
    """New value of a role that has several ids, as eos often has: the tokenizer's id first, then the mapped old ids."""
    ids = [] if role is None else [role]
    ids += [target_of[i] for i in old if i in target_of and target_of[i] not in ids]
    return ids[0] if len(ids) == 1 else ids or None


def _mapped(value: Any, target_of: Mapping[int, int]) -> Any:
    """Target ids of one source id or of a list; ``None`` if none of them has a target id."""
    if isinstance(value, list):
        return [target_of[i] for i in value if i in target_of] or None
    return target_of.get(value) if isinstance(value, int) else None
