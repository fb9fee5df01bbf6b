"""The text of a run: training documents with their shares, and held-out documents that no training document overlaps."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import input_error
from ..text.corpus import Corpus, Overlap, is_heldout, take_bytes, training_documents
from .config import AdaptConfig

if TYPE_CHECKING:
    from .packing import Packer, Stream

Sources = str | Path | Iterable[str | Path]


@dataclasses.dataclass(frozen=True)
class TrainingText:
    """The text of a run.

    Attributes:
        corpora: the training text, then each replayed text.
        shares: the share of all blocks that each corpus fills, each in (0, 1], sum 1.
        keep: for each corpus, whether a document of it may be trained on.
        heldout: held-out documents in the target language; may be empty.
        source: held-out documents in the source language; may be empty.
        identity: paths and digests of all text, as plain JSON values; two runs on the same text have the same identity.
    """

    corpora: Sequence[Corpus]
    shares: Sequence[float]
    keep: Sequence[Callable[[str], bool]]
    heldout: Sequence[str]
    source: Sequence[str]
    identity: Mapping[str, Any]


def read_text(
    texts: Sources,
    eval_texts: Sources | None,
    source_eval_texts: Sources | None,
    replay: Mapping[str | Path, float] | None,
    config: AdaptConfig,
) -> TrainingText:
    """Open the text of a run and take the held-out documents out of it.

    Args:
        texts: training text in the target language.
        eval_texts: held-out text in the target language; ``None`` holds out a share of the documents of ``texts``.
        source_eval_texts: held-out text in the source language; ``None`` holds out a share of the replayed documents.
        replay: path -> share of all blocks, each in (0, 1), together below 1.
        config: the options of the text.

    Raises:
        InputError: a text is missing or cannot be read, a share is out of range, no document is held out, or training
            documents overlap ``eval_texts`` or ``source_eval_texts`` without ``drop_overlap``.
    """
    open_corpus = functools.partial(Corpus, column=config.text_column, split_at=config.split_at)
    ratios = _replay_shares(replay or {})
    corpora = [open_corpus(texts), *map(open_corpus, ratios)]
    heldout, keep_text = _hold_out("text", corpora[:1], eval_texts, config)
    source, keep_replay = _hold_out("replay", corpora[1:], source_eval_texts, config)
    # A held-out set is kept out of its own language's corpora by the rule that selected it; here it is kept out of the
    # other language's corpora by comparing the text.
    keep_text, keep_replay = _without_overlap(keep_text, source), _without_overlap(keep_replay, heldout)
    shares = [1 - sum(ratios.values()), *ratios.values()]
    return TrainingText(
        corpora=corpora,
        shares=shares,
        keep=[keep_text, *[keep_replay] * len(ratios)],
        heldout=heldout,
        source=source,
        identity={
            "text": corpora[0].fingerprint(),
            "replay": [[*corpus.fingerprint(), share] for corpus, share in zip(corpora[1:], shares[1:], strict=True)],
            "evaluation": [
                None if given is None else open_corpus(given).fingerprint() for given in (eval_texts, source_eval_texts)
            ],
        },
    )


def open_streams(
    text: TrainingText, packer: Packer, config: AdaptConfig, marks: Sequence[Sequence[Sequence[int]]] = ()
) -> list[Stream]:
    """A stream of blocks for each corpus.

    Args:
        text: the text of the run.
        packer: makes the blocks.
        config: ``seed`` and ``shuffle_documents`` are read.
        marks: the marks of each stream in the checkpoint that the run resumes from; empty for a new run.
    """
    from .packing import Stream

    return [
        Stream(
            training_documents(corpus, keep),
            packer,
            seed=config.seed + index,
            window_documents=config.shuffle_documents,
            name=", ".join(corpus.sources),
            marks=marks[index] if marks else (),
        )
        for index, (corpus, keep) in enumerate(zip(text.corpora, text.keep, strict=True))
    ]


def _replay_shares(replay: Mapping[str | Path, float]) -> dict[str, float]:
    shares = {str(path): float(share) for path, share in replay.items()}
    if any(not 0 < share < 1 for share in shares.values()) or sum(shares.values()) >= 1:
        raise input_error(
            "replay",
            ", ".join(f"{path}:{share:g}" for path, share in shares.items()),
            "shares of all text in (0, 1), together below 1",
            "write e.g. --replay english.txt:0.1",
        )
    return shares


def _hold_out(
    name: str, corpora: Sequence[Corpus], given: Sources | None, config: AdaptConfig
) -> tuple[list[str], Callable[[str], bool]]:
    """Select held-out documents.

    Args:
        name: of the corpora, for messages: ``text`` or ``replay``.
        corpora: the training text in one language.
        given: held-out text that the user gave; ``None`` selects a share of the documents of the corpora.
        config: the options of the text.

    Returns:
        The held-out documents, and a function that says whether a document of the corpora may be trained on.
    """
    if given is not None:
        documents = take_bytes(Corpus(given, column=config.text_column, split_at=config.split_at), config.eval_bytes)
        overlap = Overlap(documents)
        if not config.drop_overlap:
            _refuse_overlap(name, corpora, overlap)
        return documents, lambda document: not overlap(document)
    share = config.heldout
    if not corpora or not share:
        return [], lambda document: True
    selected = (document for corpus in corpora for document in corpus if is_heldout(document, share))
    documents = take_bytes(selected, config.eval_bytes)
    if not documents and name == "text":
        raise input_error(
            "text",
            f"no document that falls into the held-out share {share:g}",
            "at least one",
            "give --eval-text, a larger --heldout, or --heldout 0 to train without evaluation",
        )
    return documents, lambda document: not is_heldout(document, share)


def _without_overlap(keep: Callable[[str], bool], documents: Sequence[str]) -> Callable[[str], bool]:
    """``keep``, but ``False`` for text that overlaps these documents."""
    overlap = Overlap(documents)
    return lambda document: keep(document) and not overlap(document)


def _refuse_overlap(name: str, corpora: Sequence[Corpus], overlap: Overlap) -> None:
    """Refuse training documents that overlap held-out text.

    Only local corpora are searched, because a streamed corpus cannot be read in advance; its overlapping documents are left
    out of training while they are read.
    """
    count, first = 0, ""
    for corpus in corpora:
        for document in corpus if corpus.local else ():
            if overlap(document):
                count, first = count + 1, first or document
    if count:
        raise input_error(
            f"held-out {name}",
            f"{count} training documents that share text with it ({first[:40]!r}...)",
            "held-out text that is not trained on",
            "remove them, or leave them out of training by --drop-overlap",
        )
