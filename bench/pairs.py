"""The real pairs that starts are compared on: six languages, two other types of tokenizer, and an untied head.

Usage: python bench/pairs.py [NAMES]

Prints a table of the pairs. Their inputs are downloaded or built once and kept in the cache.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import torch
from harness import fetching
from pair_models import TOKENIZERS, untied_source, variant_donor
from pair_text import arabic, arabic_labels, dialogue, help_text, text_file, without_overlap

from saltlm import TransferConfig, transfer
from saltlm.alignment.align import load_tokens
from saltlm.model.checkpoint import load_source
from saltlm_demo.e5 import language_donor
from saltlm_demo.input_text import Text
from saltlm_demo.inputs import finnish_vectors, french_vectors, source_lm

LANGUAGES = ("fi", "de", "fr", "ar", "vi", "pt")
NAMES: tuple[str, ...] = (*LANGUAGES, "fi-wordpiece", "fr-bytes", "fi-untied")
READY = {"fi": finnish_vectors, "fr": french_vectors}
# Names of message catalogue and help package where they differ from the language: the Brazilian catalogue is complete, and
# that of Portugal is not.
CATALOGUES = {"pt": "pt_BR"}
HELP = {"pt": "pt-br"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResearchPair:
    """Inputs of the transfers of one pair.

    Attributes:
        name: one of :data:`NAMES`.
        source: folder of the source LM.
        gguf_file: name of the GGUF file in that folder, or ``None`` for a model folder of safetensors.
        donor: folder of the target PLM.
        auxiliary: auxiliary vectors as for :func:`saltlm.transfer`: a path, or ``train:FILE``.
        text: held-out, training and English documents.
    """

    name: str
    source: Path
    gguf_file: str | None
    donor: Path
    auxiliary: str
    text: Text = dataclasses.field(repr=False)


def research_pair(name: str) -> ResearchPair:
    """Load a pair; inputs that are not in the cache are downloaded or built.

    Args:
        name: one of :data:`NAMES`.

    Raises:
        InputError: an input cannot be downloaded.
        KeyError: there is no pair of this name.
    """
    if name not in NAMES:
        raise KeyError(f"pair {name!r}: expected one of {', '.join(NAMES)}")
    language, _, variant = name.partition("-")
    text = language_text(language)
    gguf_file: str | None
    with fetching("SmolLM2-135M-Instruct") as report:
        source, gguf_file = source_lm(report)
    if variant == "untied":
        source, gguf_file = untied_source(source, gguf_file, report_step), None
    with fetching("multilingual-e5-small") as report:
        if variant in TOKENIZERS:
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


def report_step(report) -> None:
    """Print a line every ten steps while the head is trained."""
    if report.step % 10 == 0:
        print(f"training of the untied head: step {report.step}", file=sys.stderr, flush=True)


def language_text(language: str) -> Text:
    """Text of a language for training and evaluation."""
    return arabic() if language == "ar" else dialogue(CATALOGUES.get(language, language))


def auxiliary(language: str, text: Text) -> str:
    """Published vectors of a language, or text to train them on, without the held-out text."""
    if language in READY:
        with fetching(f"vectors of {language!r}") as report:
            return str(READY[language](report))
    return f"train:{text_file(f'{language}-vectors', more_text(language, text))}"


def more_text(language: str, text: Text) -> list[str]:
    """Training documents and software help of a language, without overlap with the held-out text."""
    other = arabic_labels() if language == "ar" else help_text(HELP.get(language, language))
    return [*without_overlap(other, text.heldout), *text.training]


HEADINGS = (
    "pair",
    "tokenizer",
    "target vocabulary",
    "shared",
    "new",
    "shared with vectors",
    "median support of SALT",
    "training bytes",
    "held-out bytes",
    "source tokens per byte",
    "new tokens per byte",
)


def describe(pair: ResearchPair) -> tuple[str, ...]:
    """Table row of a pair: the cells of :data:`HEADINGS`."""
    import transformers

    done = transfer(
        pair.source, pair.donor, pair.auxiliary, None, TransferConfig(method="salt", gguf_file=pair.gguf_file)
    )
    summary, target = done.summary, transformers.AutoTokenizer.from_pretrained(pair.donor)
    overlap, size = summary["overlap"], sum(summary["overlap"].values())
    source = load_source(pair.source, gguf_file=pair.gguf_file).tokenizer
    heldout = pair.text.heldout
    return (
        pair.name,
        load_tokens(target).vocabulary.kind,
        f"{size:,}",
        f"{size - overlap['none']:,}",
        f"{overlap['none']:,}",
        f"{summary['anchors']:,}",
        f"{summary['support']['median']:.0f}",
        f"{size_of(pair.text.training):,}",
        f"{size_of(heldout):,}",
        *(f"{count_tokens(tokenizer, heldout) / size_of(heldout):.3f}" for tokenizer in (source, target)),
    )


def describe_head(pair: ResearchPair) -> str | None:
    """Difference between an untied head and the input rows, and English before and after its training; ``None`` if tied."""
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
    """Size of the documents in bytes of UTF-8."""
    return sum(len(document.encode()) for document in documents)


def count_tokens(tokenizer, documents: list[str]) -> int:
    """Number of tokens, without special tokens around a text."""
    return sum(map(len, tokenizer(documents, add_special_tokens=False, verbose=False)["input_ids"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="pairs to describe (default: all, " + ", ".join(NAMES) + ")")
    names = parser.parse_args().names or NAMES
    print(f"| {' | '.join(HEADINGS)} |\n{'| --- ' * len(HEADINGS)}|")
    notes = []
    for name in names:
        pair = research_pair(name)
        print(f"| {' | '.join(describe(pair))} |", flush=True)
        notes.append(describe_head(pair))
    for note in filter(None, notes):
        print(f"\n{note}")


if __name__ == "__main__":
    main()
