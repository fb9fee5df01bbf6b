"""Vectors of the source tokens, rotated into the space of the target language's vectors (WECHSEL)."""

from __future__ import annotations

import os
from pathlib import Path

from ..alignment.align import Alignment
from ..errors import input_error
from ..files.hashing import sha256_file
from ..files.open_file import FileKind, check_file
from ..files.summary_file import VectorsDescription
from ..operators.linear import procrustes
from ..operators.nearest import EqualRows
from ..text.documents import read_text
from .auxiliary import Auxiliary, check_auxiliary, load_auxiliary


def check_source_vectors(source_auxiliary: str) -> None:
    """Check that the source language's vectors exist and are of a known kind, without reading them.

    Raises:
        InputError: they are missing, of an unknown kind, or ``plm``.
    """
    if check_auxiliary(source_auxiliary) == "plm":
        raise input_error(
            "source-auxiliary", "'plm'", "static vectors of the source's language", "name a file of vectors"
        )


def check_dictionary(dictionary: str) -> None:
    """Check that the dictionary is a regular file of a size that is read.

    Raises:
        InputError: it is not.
    """
    if not os.path.exists(dictionary):
        raise input_error("dictionary", f"no file at {dictionary!r}", "pairs of words", "check the path")
    try:
        check_file(dictionary, FileKind.DICTIONARY, what=f"dictionary {dictionary}")
    except OSError as error:
        raise input_error(
            f"dictionary {dictionary}", f"{error.strerror}", "a readable file", "check its permissions"
        ) from None


def load_source_vectors(
    source_auxiliary: str, dictionary: str, auxiliary: str | Path, alignment: Alignment, width: int
) -> Auxiliary:
    """Look up the source tokens' vectors and rotate them into the space of the target vectors (WECHSEL, section 3.2).

    The rotation is the orthogonal matrix that brings the vectors of the dictionary's source words nearest to those of their
    translations (Procrustes). As in WECHSEL's code, each word enters as written, in lower case and in title case, so each pair
    gives nine. Unlike there, a word whose vector comes from its n-grams alone enters, too.

    Args:
        source_auxiliary: vectors of the source's language, as :func:`~saltlm.load_auxiliary` takes them; vectors that are
            trained on a text get ``width``.
        dictionary: path of a text file; each line has a source word and its translation, separated by a tab or a space.
        auxiliary: vectors of the target language, as :func:`~saltlm.load_auxiliary` takes them.
        alignment: alignment of the two tokenizers.
        width: P, the width of the target language's vectors.

    Returns:
        Vectors of the source tokens, [S, P].

    Raises:
        InputError: the widths differ, a line is not a pair, or no pair has both vectors.
    """
    pairs = read_dictionary(dictionary)
    # Tokens and dictionary words are looked up together, so that a large file is read once.
    tokens, left = _look_up(source_auxiliary, alignment.source.words(), [pair[0] for pair in pairs], width)
    if tokens.vectors.shape[1] != width:
        raise input_error(
            "source-auxiliary",
            f"vectors of width {tokens.vectors.shape[1]}",
            f"{width}, as the target's",
            "take both from one collection, or cut the wider one down",
        )
    right = _look_up(auxiliary, alignment.target.words(), [pair[1] for pair in pairs])[1]
    both = left.known & right.known
    if not both.any():
        raise input_error(
            f"dictionary {dictionary}",
            f"{len(pairs) // 9} pairs, none with a vector on both sides",
            "words that both vector files know",
            "check that the source's language stands first",
        )
    rotation = procrustes(left.vectors[both].double().T @ right.vectors[both].double())
    description: VectorsDescription = {
        **tokens.description,
        "dictionary": dictionary,
        "dictionary_sha256": sha256_file(Path(dictionary)),
        "pairs": int(both.sum()),
    }
    # Tokens with equal vectors keep equal vectors, whatever the rounding of the matrix product.
    vectors = EqualRows.of(tokens.vectors).share_rows((tokens.vectors.double() @ rotation).float())
    return Auxiliary(vectors, tokens.known, description)


def _look_up(
    spec: str | Path, tokens: list[str | None], words: list[str], width: int | None = None
) -> tuple[Auxiliary, Auxiliary]:
    """Vectors of the tokens, and vectors of further words, from one reading of the file."""
    vectors, count = load_auxiliary(spec, [*tokens, *words], width=width), len(tokens)
    description: VectorsDescription = {**vectors.description, "known": int(vectors.known[:count].sum())}
    return (
        Auxiliary(vectors.vectors[:count], vectors.known[:count], description),
        Auxiliary(vectors.vectors[count:], vectors.known[count:], description),
    )


def read_dictionary(path: str | Path) -> list[tuple[str, str]]:
    """Word pairs of a dictionary; each line gives nine: both words as written, in lower case and in title case.

    Raises:
        InputError: a line is not a pair, or the file cannot be read as text.
    """
    pairs = []
    for number, line in enumerate(read_text(path, kind=FileKind.DICTIONARY).splitlines(), 1):
        if not line.strip():
            continue
        words = [part.strip() for part in line.strip().split("\t")]
        if len(words) != 2:
            words = line.split()
        if len(words) != 2 or not all(words):
            raise input_error(
                f"dictionary {path}, line {number}",
                repr(line[:80]),
                "a source word and a target word",
                "separate them by a tab",
            )
        source, target = ((word, word.lower(), word.title()) for word in words)
        pairs += [(one, other) for one in source for other in target]
    return pairs
