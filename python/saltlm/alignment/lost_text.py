"""Text that the source's tokenizer keeps and the new one does not: white space, upper case, accents.

Each loss is measured: short probe texts are encoded and decoded by both tokenizers. A tokenizer that drops line breaks makes a
model that can neither read nor write them, whatever its rows are.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping

from ..protocols import Tokenizer
from .template_markers import rendered

# White space by the name that a message gives it.
GAPS: Mapping[str, tuple[str, ...]] = {
    "line breaks": ("\n",),
    "blank lines": ("\n\n",),
    "tabs": ("\t",),
    "several blanks in a row": ("  ", "    "),
}
PUNCTUATION = "whether a blank stands beside punctuation"
# One of these stands on both sides of a gap: the first that the tokenizer spells.
WORDS = ("a", "я", "λ", "ب", "क", "ש", "ก", "你", "の", "가", "1")
# Letters of scripts that have two cases.
CAPITALS = "ABCDEFGHIJKLMNOPRSTUVÄÖÅÉČŞДЖИЛЯΓΔΘΛΣΩԱԲ"
# Letters with a mark that a normalizer may strip: accents, and the vowel signs of scripts that write vowels as marks.
MARKED = (*"áàâäãåāăąčçćďéèêëęěíìîïīñńňóòôöõőøřšşșťúùûüůűýžżйёїάέό", "ế", "ữ", "कु", "के", "কু", "กี", "กุ", "بَ", "שָ")
NAMED = 5  # letters named in a message


def lost_text(source: Tokenizer, result: Tokenizer) -> list[str]:
    """One sentence for each kind of text that the source's tokenizer keeps and the new one loses, with a remedy.

    Args:
        source: fast tokenizer of the source model.
        result: the new tokenizer.
    """
    notes = []
    gaps = [name for name in _kept_gaps(source) if name not in _kept_gaps(result)]
    if "line breaks" in gaps and "blank lines" in gaps:
        gaps.remove("blank lines")
    if gaps:
        written = "".join(rendered(result))
        in_template = [name for name in gaps if any(gap in written for gap in GAPS.get(name, ()))]
        template = (
            f"; the chat template writes {_joined(in_template)}, which its prompts lose, too" if in_template else ""
        )
        notes.append(
            f"the new tokenizer does not keep {_joined(gaps)}, as the source's does: the model can neither read nor write"
            f" them{template}; use a PLM whose tokenizer keeps them (most with byte-level BPE or byte fallback do), or"
            " --keep-source-vocabulary, which keeps the source's tokenizer"
        )
    if letters := _lost_letters(source, result, CAPITALS, str.lower):
        notes.append(
            f"the new tokenizer turns upper case into lower case ({_named(letters)}): the model can neither read nor write"
            " upper case; use a cased PLM, or --keep-source-vocabulary, which keeps the source's tokenizer"
        )
    if letters := _lost_letters(source, result, MARKED, _without_marks):
        notes.append(
            f"the new tokenizer strips accents or vowel signs ({_named(letters)}): the model can neither read nor write them;"
            " use a PLM whose tokenizer keeps them, or --keep-source-vocabulary, which keeps the source's tokenizer"
        )
    return notes


def _spelled(tokenizer: Tokenizer, text: str) -> str:
    """The text after encoding and decoding, without blanks around it."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    decoded = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return unicodedata.normalize("NFC", decoded).strip()


def _kept_gaps(tokenizer: Tokenizer) -> list[str]:
    """Names of the white space that the tokenizer keeps; all of them for a tokenizer that spells none of :data:`WORDS`."""
    word = next((word for word in WORDS if _spelled(tokenizer, f"{word} {word}") == f"{word} {word}"), None)
    if word is None:
        return [*GAPS, PUNCTUATION]
    kept = [
        name
        for name, gaps in GAPS.items()
        # A tokenizer may write a blank after a line break that is an added token; the line break is kept.
        if all(gap in _spelled(tokenizer, f"{word}{gap}{word}") for gap in gaps)
    ]
    near, apart = (_spelled(tokenizer, text) for text in (f"{word},{word}", f"{word} , {word}"))
    return kept if near == apart and "," in near else [*kept, PUNCTUATION]


def _lost_letters(
    source: Tokenizer, result: Tokenizer, letters: str | tuple[str, ...], plain: Callable[[str], str]
) -> list[str]:
    """Letters that the source spells and for which the new tokenizer spells the plain letter instead."""
    return [
        letter
        for letter in letters
        if _spelled(result, letter) == plain(letter) != letter and _spelled(source, letter) == letter
    ]


def _without_marks(text: str) -> str:
    """The text without combining marks."""
    parts = unicodedata.normalize("NFD", text)
    return unicodedata.normalize("NFC", "".join(part for part in parts if unicodedata.category(part) != "Mn"))


def _joined(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _named(letters: list[str]) -> str:
    return ", ".join(letters[:NAMED]) + (", ..." if len(letters) > NAMED else "")
