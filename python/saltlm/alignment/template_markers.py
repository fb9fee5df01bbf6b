"""The added tokens of a tokenizer that its chat template spells, such as ``<|im_start|>`` or DeepSeek's ``<｜User｜>``.

A marker is found by its text, in the template or in what the template writes for made-up messages, never by its flags: some
tokenizers have markers that no configuration file lists as special, others have markers that are not special at all, and some
templates put a marker together from parts (``'<|' + role + '|>'``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..protocols import Tokenizer
from .roles import roles_of

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look_up",
            "description": "Look a word up.",
            "parameters": {
                "type": "object",
                "properties": {"word": {"type": "string", "description": "The word."}},
                "required": ["word"],
            },
        },
    }
]
CALL = {"id": "call00001", "type": "function", "function": {"name": "look_up", "arguments": {"word": "a"}}}
QUESTION = {"role": "user", "content": "a"}
ANSWER = {"role": "assistant", "content": "b"}
# Conversations that together use the roles and fields that templates know. A template refuses those that it does not support.
CONVERSATIONS: tuple[tuple[list[dict[str, Any]], dict[str, Any]], ...] = (
    ([QUESTION], {}),
    ([QUESTION], {"add_generation_prompt": True}),
    ([QUESTION, ANSWER, QUESTION], {"add_generation_prompt": True}),
    ([{"role": "system", "content": "c"}, QUESTION, ANSWER], {}),
    ([{"role": "developer", "content": "c"}, QUESTION, ANSWER], {}),
    ([QUESTION, {**ANSWER, "reasoning_content": "d", "thinking": "d"}, QUESTION, ANSWER], {}),
    ([QUESTION], {"add_generation_prompt": True, "enable_thinking": True, "thinking": True}),
    ([QUESTION], {"add_generation_prompt": True, "enable_thinking": False}),
    ([QUESTION], {"add_generation_prompt": True, "tools": TOOLS}),
    (
        [
            QUESTION,
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "call00001", "name": "look_up", "content": "e"},
            ANSWER,
        ],
        {"tools": TOOLS},
    ),
)


def template_markers(tokenizer: Tokenizer) -> list[Any]:
    """The added tokens that the tokenizer's chat template spells, ascending by id.

    White space counts only where the template writes it: its source is indented by blanks and line breaks that are not text.

    Args:
        tokenizer: a fast tokenizer with a chat template.

    Returns:
        ``tokenizers.AddedToken`` of each marker.
    """
    written = "".join(rendered(tokenizer))
    spelled = "".join(_templates(tokenizer.chat_template)) + written
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    return [
        token
        for _, token in sorted(added.items())
        if token.content and token.content in (written if token.content.isspace() else spelled)
    ]


def rendered(tokenizer: Tokenizer) -> Iterator[str]:
    """What the chat template of a tokenizer writes for :data:`CONVERSATIONS`; those that it refuses are left out."""
    for template in _templates(tokenizer.chat_template):
        for messages, options in CONVERSATIONS:
            with contextlib.suppress(
                Exception
            ):  # a template raises errors of any type for messages that it does not support
                yield tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **options)


def _templates(template: Any) -> list[str]:
    """The texts of a chat template, of which a tokenizer may have several by name."""
    if isinstance(template, Mapping):
        return [text for text in template.values() if isinstance(text, str)]
    return [template] if isinstance(template, str) else []


def add_markers(backend: Any, source: Tokenizer, ends: Sequence[str]) -> list[str]:
    """Add the source's markers to a tokenizer that is to have its chat template.

    White space is left out where the tokenizer spells it already: an added token would be cut out of every text.

    Args:
        backend: the ``tokenizers.Tokenizer`` that gets them, changed in place.
        source: the source's tokenizer.
        ends: bos and eos of the source, which come along whether the template spells them or not.

    Returns:
        The special ones, those that ``backend`` had included.
    """
    from tokenizers import AddedToken

    markers = [token for token in template_markers(source) if token.content not in ends]
    # Not normalized: the normalizer of the target could lower-case a marker or strip it of its marks.
    markers_to_add = [AddedToken(end, special=True, normalized=False) for end in ends]
    markers_to_add += [
        AddedToken(
            token.content,
            special=token.special,
            lstrip=token.lstrip,
            rstrip=token.rstrip,
            single_word=token.single_word,
            normalized=False,
        )
        for token in markers
        if not (token.content.isspace() and _keeps(backend, token.content))
    ]
    present = {token.content for token in backend.get_added_tokens_decoder().values()}
    missing = [token for token in markers_to_add if token.content not in present]
    backend.add_special_tokens([token for token in missing if token.special])
    backend.add_tokens([token for token in missing if not token.special])
    return [token.content for token in markers_to_add if token.special]


def _keeps(backend: Any, gap: str) -> bool:
    """Whether white space between two letters is still there after encoding and decoding."""
    return gap in backend.decode(backend.encode(f"a{gap}a", add_special_tokens=False).ids)


def marker_pairs(target: Tokenizer, source: Tokenizer) -> dict[str, str]:
    """Markers that both tokenizers have as added tokens, as pairs for :func:`~saltlm.alignment.align.align`.

    Each takes the row of its own spelling. Tokens with a role (bos, eos, ...) are left out: roles pair these.

    Args:
        target: the tokenizer that got the markers by :func:`add_markers`.
        source: the source's tokenizer.
    """
    added = {token.content for token in target.backend_tokenizer.get_added_tokens_decoder().values()}
    roles = {
        tokenizer.convert_ids_to_tokens(index)
        for tokenizer in (target, source)
        for index in roles_of(tokenizer).values()
    }
    markers = [token.content for token in template_markers(source)]
    return {marker: marker for marker in markers if marker in added and marker not in roles}
