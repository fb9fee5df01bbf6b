"""What the self-check sorts tokens by: the script of their letters, and how frequent they are."""

from __future__ import annotations

import collections
import unicodedata

import numpy as np

QUARTERS = 4
# Names of ideographs begin so; other letters' names begin with their script's.
HAN = {"Cjk", "Ideographic", "Kangxi"}


def script_of(text: str) -> str:
    """The script of most of the text's letters, by the first word of their Unicode names; of equals the first.

    Text without letters is ``digits``, ``punctuation`` (symbols too), ``blank``, or ``other``; lone surrogates, which stand
    for bytes that are no UTF-8, make it ``bytes``.

    Example:
        >>> [script_of(text) for text in ("talo", "дом", "中文", "1984", "!?", "ｔａｌｏ")]
        ['Latin', 'Cyrillic', 'Han', 'digits', 'punctuation', 'Latin']
    """
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        return "bytes"
    # Compatibility forms are named by their form ("fullwidth", "feminine"): their plain letters have the script's name.
    text = unicodedata.normalize("NFKC", text)
    kinds = [unicodedata.category(letter) for letter in text]
    letters = [letter for letter, kind in zip(text, kinds, strict=True) if kind[0] == "L"]
    if letters:
        names = (unicodedata.name(letter, "other").split()[0].split("-")[0].capitalize() for letter in letters)
        script = collections.Counter(names).most_common(1)[0][0]
        return "Han" if script in HAN else script
    for initials, name in (("N", "digits"), ("PS", "punctuation"), ("ZC", "blank")):
        if any(kind[0] in initials for kind in kinds):
            return name
    return "other"


def bands(text: np.ndarray, scores: np.ndarray | None) -> np.ndarray:
    """The quarter of the vocabulary that each id falls into, 1 the most frequent.

    Args:
        text: int64, ids of the tokens that stand for text, ascending.
        scores: float64 [T], log-probabilities of a Unigram model; ``None`` goes by id, for trained vocabularies are written
            most frequent first.

    Returns:
        int8 [largest id + 1], 0 for ids not in ``text``.
    """
    ordered = text if scores is None else text[np.argsort(-scores[text], kind="stable")]
    found = np.zeros(int(text.max(initial=-1)) + 1, dtype=np.int8)
    found[ordered] = 1 + np.arange(len(ordered)) * QUARTERS // max(1, len(ordered))
    return found
