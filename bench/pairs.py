"""The real pairs that ways to start are compared on: six languages, two other kinds of tokenizer, an untied head.

Usage: python bench/pairs.py [NAMES]
"""

import dataclasses
import sys
from pathlib import Path

from harness import fetching
from pair_models import KINDS, untied_source, variant_donor
from pair_text import apart, arabic, arabic_labels, dialogue, help_text, text_file
from saltlm.e5 import language_donor
from saltlm.input_text import Text
from saltlm.inputs import finnish_vectors, french_vectors, source_lm

LANGUAGES = ("fi", "de", "fr", "ar", "vi", "pt")
NAMES: tuple[str, ...] = (*LANGUAGES, "fi-wordpiece", "fr-bytes", "fi-untied")
READY = {"fi": finnish_vectors, "fr": french_vectors}
# Catalogue and help package where they are not called by the language: the catalogue of Brazil is whole, Portugal's is not.
CATALOGUES = {"pt": "pt_BR"}
HELP = {"pt": "pt-br"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResearchPair:
    """Inputs of the transfers of one comparison.

    Attributes:
        name: of :data:`NAMES`.
        source: folder of the source LM.
        gguf_file: its file in that folder, or ``None`` for a plain model folder.
        donor: folder of the PLM.
        auxiliary: what :func:`saltlm.transfer` takes: a path, or ``train:FILE``.
        text: held-out, training and English documents.
    """

    name: str
    source: Path
    gguf_file: str | None
    donor: Path
    auxiliary: str
    text: Text = dataclasses.field(repr=False)


def research_pair(name: str) -> ResearchPair:
    """Fetch or build what is not in the cache yet.

    Raises:
        InputError: an input cannot be fetched.
        KeyError: no such pair.
    """
    if name not in NAMES:
        raise KeyError(f"{name!r} is none of {', '.join(NAMES)}")
    language, _, variant = name.partition("-")
    text = language_text(language)
    gguf_file: str | None
    with fetching("SmolLM2-135M-Instruct") as report:
        source, gguf_file = source_lm(report)
    if variant == "untied":
        source, gguf_file = untied_source(source, gguf_file, say_step), None
    with fetching("multilingual-e5-small") as report:
        if variant in KINDS:
            donor = variant_donor(language, variant, more_text(language, text), report)
        else:
            donor = language_donor(language, report)
    return ResearchPair(
        name=name,
        source=source,
        gguf_file=gguf_file,
        donor=donor,
        auxiliary=auxiliary(language, text),
        text=text,
    )


def say_step(report) -> None:
    """A line now and then while the head is trained."""
    if report.step % 10 == 0:
        print(f"head of its own: step {report.step}", file=sys.stderr, flush=True)


def language_text(language: str) -> Text:
    """What is trained and measured on."""
    return arabic() if language == "ar" else dialogue(CATALOGUES.get(language, language))


def auxiliary(language: str, text: Text) -> str:
    """Vectors that exist, or text to train them on; nothing of it is held out."""
    if language in READY:
        with fetching(f"vectors of {language!r}") as report:
            return str(READY[language](report))
    return f"train:{text_file(f'{language}-vectors', more_text(language, text))}"


def more_text(language: str, text: Text) -> list[str]:
    """The training documents and software help of the language, apart from what is held out."""
    other = arabic_labels() if language == "ar" else help_text(HELP.get(language, language))
    return [*apart(other, text.heldout), *text.training]
