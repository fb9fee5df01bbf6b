# ruff: noqa: RUF001 (text in many scripts)
"""Whether two tokenizers segment text alike: texts that tell tokenizers apart, and the comparison."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import Any

# Running text in the scripts that donors have, with what pre-tokenizers treat differently: digits, contractions, runs of
# punctuation, line breaks, code, emoji. All of it is in Unicode's NFC form, without blanks at the ends or in a row.
SENTENCES = (
    "The quick brown fox doesn't jump over 13 lazy dogs; it's tired, isn't it? WE'LL SEE: they'd've said so.",
    "Hyvää päivää! Älä unohda 1234567 euron laskua, joka erääntyy 31.12.2026 klo 23:59.",
    "Die Straße über den Fluß führt nach Köln, sagte der Müller (85 %).",
    "Ça va? L'été dernier, j'ai vu un cœur naïf à l'œuvre - « très bien ».",
    "Zażółć gęślą jaźń, příliš žluťoučký kůň, çalışıyor mu?",
    "Съешь же ещё этих мягких французских булок, да выпей чаю. Їжак і ґанок.",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία του 21ου αιώνα.",
    "ذهب الولد إلى المدرسة في الساعة ٧ صباحًا، ثم عاد.",
    "הילד הלך לבית הספר בשעה 7, ואז חזר הביתה.",
    "लड़का सुबह ७ बजे स्कूल गया और फिर घर लौट आया।",
    "তিনি বাংলায় কথা বলেন।",
    "他早上七点去了学校，然后回家了。2026年！",
    "彼は朝7時に学校へ行き、そして家に帰りました。カタカナもある。",
    "그는 아침 7시에 학교에 갔다가 집으로 돌아왔다.",
    "เด็กชายไปโรงเรียนตอนเจ็ดโมงเช้า",
    "A smile \U0001f642, a family \U0001f468\u200d\U0001f469\u200d\U0001f467 and flags \U0001f1eb\U0001f1ee.",
    "e-mail: a.b+c@example.org; see http://example.org/a_b?c=1&d=2#e ...!!! $5.00 #tag 3*4=12 <b>bold</b>",
    "def f(x_1, y):\n    return {'a': x_1 ** 2, \"b\": [y]}  # done\n\n\nprint(f(10, 2000))",
    "first line\nsecond line\n\nthird paragraph\r\nafter a carriage return\tand a tab",
)
# What kinds of text differ in programs that otherwise agree -> such texts.
EDGES: Mapping[str, tuple[str, ...]] = {
    "blanks at the ends of a text or in a row": (
        " one blank before",
        "   three blanks before",
        "one blank after ",
        "two  blanks and three   blanks inside",
        "line   \n   with blanks around the break",
        "\n\n",
        "   ",
    ),
    "text that is not in Unicode's NFC form": ("cafe\u0301 nai\u0308ve A\u030a \u1100\u1161", "\u212b \u2126"),
    "compatibility characters": (
        "\ufb01ne \uff21\uff22\uff23 \u2460 \u00bd \u2122 \u3392",
        "soft\u00adhyphen zero\u200bwidth \ufeffmark",
    ),
    "control characters": ("a\u0000b\u0007c\u007fd", "a\u0085b\u2028c\u00a0d\u3000e"),
}
SAMPLE = 50_000  # tokens of the vocabulary whose text is compared
GROUP = 6  # tokens joined to one text


@dataclasses.dataclass(frozen=True)
class Difference:
    """Texts that two tokenizers segment differently.

    Attributes:
        texts: ordinary text, or the text of a token, that differs.
        edges: kinds of unusual text that differ, keys of :data:`EDGES`.
    """

    texts: list[str]
    edges: list[str]


def compare(one: Any, other: Any, texts: Sequence[str]) -> Difference:
    """Compare the ids that two tokenizers give, without special tokens around a text.

    Args:
        one: a ``tokenizers.Tokenizer``.
        other: another one with the same ids.
        texts: ordinary texts; :data:`EDGES` is compared besides.
    """
    edges = [kind for kind, examples in EDGES.items() if _different(one, other, examples)]
    return Difference(texts=_different(one, other, texts), edges=edges)


def _different(one: Any, other: Any, texts: Sequence[str]) -> list[str]:
    encoded = [tokenizer.encode_batch(list(texts), add_special_tokens=False) for tokenizer in (one, other)]
    return [text for text, left, right in zip(texts, *encoded, strict=True) if left.ids != right.ids]


def check_texts(backend: Any, content: Mapping[str, Any]) -> list[str]:
    """Ordinary texts for a comparison: :data:`SENTENCES`, texts of single tokens, and tokens joined at random.

    Args:
        backend: a ``tokenizers.Tokenizer``.
        content: its tokenizer.json.
    """
    chance = random.Random(0)
    tokens = token_texts(backend, content)
    chosen = sorted(chance.sample(range(len(tokens)), min(SAMPLE, len(tokens))))
    sampled = [tokens[index] for index in chosen]
    shuffled = chance.sample(sampled, min(4096, len(sampled)))
    joined = ["".join(shuffled[start : start + GROUP]) for start in range(0, len(shuffled), GROUP)]
    # A token that begins a word stands between two words; the blank would be lost at the start of a text.
    single = (f"a{text} a" if text.startswith(" ") else text for text in sampled)
    usual = (" ".join(text.split()) for text in (*single, *joined))
    return [*SENTENCES, *dict.fromkeys(text for text in usual if text)]


def boundary_texts() -> list[str]:
    """Short texts of characters of all classes that pre-tokenizers tell apart, drawn at random, always the same ones."""
    chance = random.Random(0)
    classes = (
        "a",
        "Z",
        "é",
        "ß",
        "д",
        "Ж",
        "ع",
        "中",
        "の",
        "한",
        "ก",
        "\u0301",
        "\u093f",
        "1",
        "23",
        "4567",
        "٣",
        "½",
    )
    marks = (".", ",", "'", "'s", "'LL", '"', "(", "_", "/", "$", "+", "^", "…", "—", "\U0001f642", "\u200d")
    blanks = (" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000")
    groups = (classes, classes, marks, blanks)
    return ["".join(chance.choice(chance.choice(groups)) for _ in range(chance.randint(2, 7))) for _ in range(1500)]


def token_texts(backend: Any, content: Mapping[str, Any]) -> list[str]:
    """The text of each token that was not added, by id; tokens whose bytes are not UTF-8 are left out.

    Args:
        backend: a ``tokenizers.Tokenizer``.
        content: its tokenizer.json.
    """
    added = {token["id"] for token in content.get("added_tokens", ())}
    vocabulary = backend.get_vocab(with_added_tokens=False)
    by_id = sorted((index, piece) for piece, index in vocabulary.items() if index not in added)
    if is_byte_level(content):
        texts = backend.decode_batch([[index] for index, _ in by_id])
        return [text for text in texts if text and "\ufffd" not in text]
    prefix = content["model"].get("continuing_subword_prefix") or ""
    texts = [piece.removeprefix(prefix).replace("▁", " ") for _, piece in by_id]
    return [text for text in texts if not (text.startswith("<0x") and len(text) == 6)]


def is_byte_level(content: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json spells bytes by GPT-2's table."""
    return any(part["type"] == "ByteLevel" for part in steps_of(content.get("pre_tokenizer"), "pretokenizers"))


def steps_of(part: Mapping[str, Any] | None, key: str) -> list[Mapping[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, sequences opened.

    Args:
        part: the entry of tokenizer.json; ``None`` has no steps.
        key: name of the list in a sequence: ``normalizers`` or ``pretokenizers``.
    """
    if part is None:
        return []
    if part["type"] == "Sequence":
        return [step for inner in part[key] for step in steps_of(inner, key)]
    return [part]
