"""The real pairs that ways to start are compared on: six languages, two other kinds of tokenizer, an untied head.

Usage: python bench/pairs.py [NAMES]

Prints what each of them is; everything it needs is fetched or built once and kept in the cache.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import torch
from harness import fetching
from pair_models import KINDS, untied_source, variant_donor
from pair_text import apart, arabic, arabic_labels, dialogue, help_text, text_file

from demo.e5 import language_donor
from demo.input_text import Text
from demo.inputs import finnish_vectors, french_vectors, source_lm
from saltlm import TransferConfig, transfer
from saltlm.alignment.align import load_tokens
from saltlm.model.checkpoint import load_source

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


HEADINGS = (
    "pair", "tokenizer", "target vocabulary", "shared", "new", "shared with vectors", "median support of SALT",
    "training bytes", "held-out bytes", "source tokens a byte", "new tokens a byte",
)  # fmt: skip


def describe(pair: ResearchPair) -> tuple[str, ...]:
    """A row of the table."""
    import transformers

    done = transfer(
        pair.source, pair.donor, pair.auxiliary, None, TransferConfig(method="salt", gguf_file=pair.gguf_file)
    )
    found, donor = done.summary, transformers.AutoTokenizer.from_pretrained(pair.donor)
    overlap, size = found["overlap"], sum(found["overlap"].values())
    own = load_source(pair.source, gguf_file=pair.gguf_file).tokenizer
    held = pair.text.heldout
    return (
        pair.name,
        load_tokens(donor).vocabulary.kind,
        f"{size:,}",
        f"{size - overlap['none']:,}",
        f"{overlap['none']:,}",
        f"{found['anchors']:,}",
        f"{found['support']['median']:.0f}",
        f"{size_of(pair.text.training):,}",
        f"{size_of(held):,}",
        *(f"{count_tokens(tokenizer, held) / size_of(held):.3f}" for tokenizer in (own, donor)),
    )


def head_apart(pair: ResearchPair) -> str | None:
    """How far a head of its own is from the input rows, and what its training did to the model's English."""
    source = load_source(pair.source, gguf_file=pair.gguf_file)
    if source.tied:
        return None
    rows, head = source.input_rows.float(), source.output_rows.float()
    cosine = torch.nn.functional.cosine_similarity(rows, head).median()
    lines = map(json.loads, (source.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    english = [line["heldout_bits_per_byte"] for line in lines if "heldout_bits_per_byte" in line]
    return (
        f"{pair.name}: head and input rows differ by {(head - rows).norm() / rows.norm():.3f} of the rows' norm, median cosine "
        f"{cosine:.3f}; English {english[0]:.3f} bits per byte before the head was trained, {english[-1]:.3f} after."
    )


def size_of(documents: list[str]) -> int:
    """Bytes of UTF-8."""
    return sum(len(document.encode()) for document in documents)


def count_tokens(tokenizer, documents: list[str]) -> int:
    """Without those that a tokenizer adds around a text."""
    return sum(map(len, tokenizer(documents, add_special_tokens=False, verbose=False)["input_ids"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="default: all, " + ", ".join(NAMES))
    names = parser.parse_args().names or NAMES
    print(f"| {' | '.join(HEADINGS)} |\n{'| --- ' * len(HEADINGS)}|")
    notes = []
    for name in names:
        pair = research_pair(name)
        print(f"| {' | '.join(describe(pair))} |", flush=True)
        notes.append(head_apart(pair))
    for note in filter(None, notes):
        print(f"\n{note}")


if __name__ == "__main__":
    main()
