"""Decoder of a tokenizer whose pieces mark the ends of words (``</w>`` in GPT-1, CLIP and HerBERT)."""

from __future__ import annotations

import json
from typing import Any


def with_readable_ends(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a ``tokenizer.json`` whose decoder writes a blank for the mark of a word's end.

    CLIP's decoder leaves the marks in the text; its class in transformers removes them in Python, which no file holds.

    Args:
        content: of a ``tokenizer.json``.

    Returns:
        The content itself, or a copy with another decoder.
    """
    mark = content["model"].get("end_of_word_suffix")
    if not mark or _removes(content, mark):
        return content
    parts = [
        {"type": "Replace", "pattern": {"String": mark}, "content": " "},
        {"type": "Strip", "content": " ", "start": 0, "stop": 1},
    ]
    if content.get("decoder"):
        return {**content, "decoder": {"type": "Sequence", "decoders": [content["decoder"], {"type": "Fuse"}, *parts]}}
    return {**content, "decoder": {"type": "BPEDecoder", "suffix": mark}}


def _removes(content: dict[str, Any], mark: str) -> bool:
    """Whether the decoder removes the mark, by decoding a token that has it."""
    from tokenizers import Tokenizer as Backend

    tokens = (token for token in content["model"]["vocab"] if token.endswith(mark) and token != mark)
    token = next(tokens, None)
    decoder = Backend.from_str(json.dumps(content)).decoder
    return token is None or (decoder is not None and mark not in decoder.decode([token, token]))
