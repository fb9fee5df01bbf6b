"""Turn the PLM's tokenizer into one for a causal model: special tokens around a text, roles, padding token, chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import input_error
from ..protocols import Tokenizer
from .roles import named_tokens, roles_of
from .template_markers import add_markers
from .word_ends import with_readable_ends

# Role -> roles whose token serves, the best first. An encoder uses cls and sep where a causal model uses bos and eos.
# Such a stand-in gives the tokenizer a token for the role and changes no row: see saltlm.alignment.roles.
REPLACEMENTS = {"bos": ("bos", "cls", "eos"), "eos": ("eos", "sep")}
# Spellings of a padding token that is added, the best first, after that of the source's.
PADDINGS = ("<pad>", "[PAD]", "<|pad|>")
# Post-processors that add tokens around a text. Other post-processors only adjust offsets and are kept.
TEMPLATE_PROCESSORS = ("TemplateProcessing", "BertProcessing", "RobertaProcessing")


def causal_tokenizer(
    target: Tokenizer,
    source: Tokenizer,
    *,
    chat_template: str,
    needs_pad: bool = False,
    markers: Sequence[str] = (),
) -> Tokenizer:
    """The target's tokenizer for a causal model.

    The segmentation of text stays. Around a text it adds the special tokens that the source adds: an encoder's closing
    ``</s>`` or ``[SEP]`` would end every prompt. It returns no token types. It names bos and eos; cls and sep replace bos and
    eos where these are missing. It names a padding token where there is one that does not end a text: training code leaves
    the padding token out of the loss, and a model that never learns its eos never stops.

    Args:
        target: fast tokenizer of the PLM.
        source: fast tokenizer of the source model.
        chat_template: ``target``, ``source`` or ``none``; with ``source``, the source's bos and eos and the added tokens in
            its template are added to the vocabulary if they are missing.
        needs_pad: whether the source's model class cannot work without a padding token; then one is added if it is missing.
        markers: tokens of the source that are added if they are missing, with the names that the source has for them: those
            that mark images, sound and video in a text.

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
    backend.add_tokens([_added_token(source, token) for token in markers])
    named.pop("pad", None)
    if (pad := _pad_token(target, source, backend, named.get("eos"))) is not None:
        named["pad"] = pad
    if needs_pad and named.get("pad", named.get("eos")) == named.get("eos"):
        named["pad"] = _add_pad(backend, source)
    content = with_readable_ends(json.loads(backend.to_str()))
    content["post_processor"] = _post_processor(content.get("post_processor"), named, adds_bos_eos(source), backend)
    settings: dict[str, Any] = {f"{role}_token": token for role, token in named.items()}
    settings |= {name: token for name, token in named_tokens(source).items() if token in markers}
    if others := [token for token in _other_special(target, [*extra, *markers]) if token not in named.values()]:
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


def _added_token(source: Tokenizer, token: str) -> Any:
    """A token of the source as an added token, with the flags that it has as an added token of the source."""
    from tokenizers import AddedToken

    known = getattr(source, "added_tokens_decoder", {}).get(source.convert_tokens_to_ids(token))
    return AddedToken(token, special=True, normalized=False) if known is None else known


def _pad_token(target: Tokenizer, source: Tokenizer, backend: Any, eos: str | None) -> str | None:
    """The padding token: the target's, or else the source's if the target has that token, or else none.

    A token that ends a text pads only if both tokenizers say so: then the user has chosen it twice.

    Args:
        target: tokenizer of the PLM.
        source: tokenizer of the source model.
        backend: the new tokenizer so far.
        eos: token that ends a text in the new tokenizer.
    """
    pads = [getattr(tokenizer, "pad_token", None) for tokenizer in (target, source)]
    own, other = (None if pad is None else str(pad) for pad in pads)
    if own is not None and own != eos:
        return own
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    # A token that is not an added one may occur in a text, and would be taken for padding there.
    if other is not None and other != eos and other in added:
        return other
    source_ends = other is not None and other == str(getattr(source, "eos_token", None))
    return own if source_ends else None


def _add_pad(backend: Any, source: Tokenizer) -> str:
    """Add a padding token to a tokenizer, under the source's spelling or a usual one that is free; returns it."""
    from tokenizers import AddedToken

    spellings = (str(getattr(source, "pad_token", None) or PADDINGS[0]), *PADDINGS)
    free = (spelling for spelling in spellings if backend.token_to_id(spelling) is None)
    pad = next(free, f"<pad {backend.get_vocab_size()}>")
    backend.add_special_tokens([AddedToken(pad, special=True, normalized=False)])
    return pad


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


def adds_bos_eos(source: Tokenizer) -> tuple[bool, bool]:
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
