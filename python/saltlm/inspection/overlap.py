"""How much two vocabularies have in common, and what speculative decoding with them may expect."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from .._rust import Vocabulary
from ..alignment.align import HOLE, SPECIAL, align, load_tokens
from ..files.json_files import read_json

# What a model of one tokenizer can draft for a model of the other.
SAME, OTHER_ROWS, OTHER_TOKENIZER = "same", "other rows", "other tokenizer"
ADVICE = {
    SAME: "speculative decoding: the target can draft for the source, and the other way round",
    OTHER_ROWS: "speculative decoding: the tokenizers are the same, but most servers also want equal numbers of rows: "
    "give --rows at the transfer",
    OTHER_TOKENIZER: "speculative decoding: only programs that translate between tokenizers can use the pair; a draft then "
    "reaches the shared tokens alone, or is segmented again",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocabularyOverlap:
    """What two vocabularies have in common.

    Attributes:
        source: the first tokenizer as given.
        target: the second tokenizer as given.
        source_tokens: number of tokens of the first; ids without a token do not count.
        target_tokens: number of tokens of the second.
        shared: number of target tokens that have a source token.
        same_id: number of ids that stand for the same token in both.
        matches: number of target tokens by kind of match, see :class:`~saltlm.alignment.align.MatchKind`.
        source_rows: ``vocab_size`` in the first model's config.json; ``None`` where there is none.
        target_rows: ``vocab_size`` in the second model's config.json; ``None`` where there is none.
        same_algorithm: whether both tokenizers are of one family, such as ``byte_level_bpe``.
    """

    source: str
    target: str
    source_tokens: int
    target_tokens: int
    shared: int
    same_id: int
    matches: dict[str, int]
    source_rows: int | None
    target_rows: int | None
    same_algorithm: bool

    @property
    def drafting(self) -> str:
        """:data:`SAME`, :data:`OTHER_ROWS` or :data:`OTHER_TOKENIZER`."""
        if not (self.same_algorithm and self.same_id == self.source_tokens == self.target_tokens):
            return OTHER_TOKENIZER
        return SAME if self.source_rows == self.target_rows else OTHER_ROWS

    def to_json(self) -> dict[str, Any]:
        """The figures as values that :mod:`json` can write, with shares in [0, 1]."""
        return {
            **dataclasses.asdict(self),
            "share_of_source": self.shared / max(1, self.source_tokens),
            "share_of_target": self.shared / max(1, self.target_tokens),
            "drafting": self.drafting,
        }


def vocabulary_overlap(source: str | Path, target: str | Path, overlap: str = "exact") -> VocabularyOverlap:
    """Compare two tokenizers.

    Args:
        source: a model folder, a hub name or a tokenizer file, as :func:`saltlm.align` takes them.
        target: likewise.
        overlap: loosest match that counts as shared: ``exact``, ``word-start`` or ``case``.

    Raises:
        InputError: a tokenizer is missing, broken or of an unknown kind, or ``overlap`` is none of the three.
    """
    alignment = align(load_tokens(source, "source"), load_tokens(target, "target"), overlap=overlap)
    one, other = alignment.source, alignment.target
    spelled, others = _tokens(one), _tokens(other)
    return VocabularyOverlap(
        source=str(source),
        target=str(target),
        source_tokens=sum(token is not None for token in spelled),
        target_tokens=sum(token is not None for token in others),
        shared=int(alignment.shared.sum()),
        same_id=sum(a is not None and a == b for a, b in zip(spelled, others, strict=False)),
        matches=alignment.counts(),
        source_rows=_rows(source),
        target_rows=_rows(target),
        same_algorithm=one.kind == other.kind,
    )


def _tokens(vocabulary: Vocabulary) -> list[tuple[bytes, bool] | None]:
    """Canonical bytes of each id, and whether it is special; ``None`` for an id without a token."""
    joined, offsets = vocabulary.token_bytes()
    data, flags = joined.tobytes(), vocabulary.flags()
    special, hole = (flags & SPECIAL) > 0, (flags & HOLE) > 0
    return [
        None if hole[index] else (data[offsets[index] : offsets[index + 1]], bool(special[index]))
        for index in range(len(flags))
    ]


def _rows(tokenizer: str | Path) -> int | None:
    """``vocab_size`` of the config.json beside a tokenizer, or of its part that reads text."""
    path = Path(tokenizer)
    path = (path if path.is_dir() else path.parent) / "config.json"
    if not path.is_file():
        return None
    config = read_json(path)
    part = config.get("text_config")
    sizes = [content.get("vocab_size") for content in (config, part) if isinstance(content, dict)]
    return next((size for size in sizes if isinstance(size, int)), None)
