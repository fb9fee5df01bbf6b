"""A normalizer as SentencePiece's table of replacements, the only form of a normalizer in a GGUF file."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
import sys
import tempfile
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..environment import require
from ..model.segmentation import steps_of

# Steps that a table can express, because they replace characters one by one, or a letter with its marks.
BY_CHARACTER = ("NFC", "NFD", "NFKC", "NFKD", "Nmt", "Lowercase", "StripAccents", "Precompiled", "BertNormalizer")
BLANK = re.compile(r"\s")
MARKS = 3  # a letter with at most so many marks is replaced as a whole


def charsmap_of(content: Mapping[str, Any]) -> bytes | None:
    """The table of a tokenizer's steps that replace characters; blanks before a text and in a row are left to flags.

    Args:
        content: the tokenizer.json.

    Returns:
        The table in SentencePiece's format; ``None`` if no step replaces characters.

    Raises:
        InputError: a table has to be made, and sentencepiece is not installed.
    """
    steps = [step for step in steps_of(content.get("normalizer"), "normalizers") if step["type"] in BY_CHARACTER]
    replace = _replacer({"type": "Sequence", "normalizers": steps})
    blanks = takes_blanks_alike(content) and replace("a\nb") != "a b"
    if len(steps) == 1 and steps[0]["type"] == "Precompiled" and not blanks:
        charsmap = steps[0]["precompiled_charsmap"]
        return base64.b64decode(charsmap) if charsmap else None
    if not steps and not blanks:
        return None
    return _trained(_rules((lambda text: BLANK.sub(" ", replace(text))) if blanks else replace))


def takes_blanks_alike(content: Mapping[str, Any]) -> bool:
    """Whether every kind of blank, line breaks among them, is to a tokenizer what a space is.

    Args:
        content: the tokenizer.json.
    """
    if any(step["type"] == "WhitespaceSplit" for step in steps_of(content.get("pre_tokenizer"), "pretokenizers")):
        return True
    return bool(content.get("normalizer")) and _replacer(content["normalizer"])("a\nb") in ("a b", "a▁b", "▁a▁b")


def _replacer(normalizer: Mapping[str, Any]) -> Callable[[str], str]:
    """The function that a normalizer is."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models

    content = {**json.loads(Backend(models.BPE()).to_str()), "normalizer": normalizer}
    replace: Callable[[str], str] = Backend.from_str(json.dumps(content)).normalizer.normalize_str
    return replace


def _rules(replace: Callable[[str], str]) -> dict[str, str]:
    """Text -> its replacement, for each character that changes, and for letters whose marks are written apart."""
    rules = {}
    for code in range(1, sys.maxunicode + 1):
        character = chr(code)
        if unicodedata.category(character) in ("Cn", "Co", "Cs"):
            continue
        if (new := replace(character)) != character:
            rules[character] = new
        apart = unicodedata.normalize("NFD", character)
        if 1 < len(apart) <= 1 + MARKS:
            for spelling in _partly_composed(apart):
                if (new := replace(spelling)) != spelling:
                    rules[spelling] = new
    return rules


def _partly_composed(apart: str) -> set[str]:
    """A letter and its marks, and the same with the first marks composed."""
    return {
        unicodedata.normalize("NFC", apart[:end]) + apart[end:] for end in itertools.chain([1], range(2, len(apart)))
    }


def _trained(rules: Mapping[str, str]) -> bytes:
    """The table of these rules, compiled by SentencePiece's trainer."""
    require("sentencepiece", "sentencepiece", "the tokenizer's normalizer")
    require("google.protobuf", "sentencepiece", "the tokenizer's normalizer")
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    lines = (
        " ".join(f"{ord(c):X}" for c in old) + "\t" + " ".join(f"{ord(c):X}" for c in new) for old, new in rules.items()
    )
    trained = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "rules.tsv"
        table.write_text("\n".join(lines) + "\n", encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["a b"]),
            model_writer=trained,
            model_type="char",
            vocab_size=5,
            hard_vocab_limit=False,
            normalization_rule_tsv=str(table),
            minloglevel=2,
        )
    proto = sentencepiece_model_pb2.ModelProto.FromString(trained.getvalue())
    return bytes(proto.normalizer_spec.precompiled_charsmap)
