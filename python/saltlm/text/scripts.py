"""The script (writing system) of a text."""

from __future__ import annotations

import collections
import unicodedata

# First words of the Unicode names of ideographs. The name of any other letter begins with its script.
HAN = {"Cjk", "Ideographic", "Kangxi"}


def script_of(text: str) -> str:
    """The script of most letters of a text, from the first words of their Unicode names; the first one of a tie.

    A text without letters is ``digits``, ``punctuation`` (symbols included), ``blank`` or ``other``. A text with lone
    surrogates, which stand for bytes that are not UTF-8, is ``bytes``.

    Example:
        >>> [script_of(text) for text in ("talo", "дом", "中文", "1984", "!?", "ｔａｌｏ")]
        ['Latin', 'Cyrillic', 'Han', 'digits', 'punctuation', 'Latin']
    """
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        return "bytes"
    # The names of compatibility characters begin with their form ("fullwidth", "feminine"); NFKC gives the plain letters.
    text = unicodedata.normalize("NFKC", text)
    categories = [unicodedata.category(letter) for letter in text]
    letters = [letter for letter, category in zip(text, categories, strict=True) if category[0] == "L"]
    if letters:
        names = (unicodedata.name(letter, "other").split()[0].split("-")[0].capitalize() for letter in letters)
        script = collections.Counter(names).most_common(1)[0][0]
        return "Han" if script in HAN else script
    for initials, name in (("N", "digits"), ("PS", "punctuation"), ("ZC", "blank")):
        if any(category[0] in initials for category in categories):
            return name
    return "other"
