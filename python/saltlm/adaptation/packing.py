"""Documents -> blocks of equal length in which no document sees another; any block can be had again by its number.

Documents are read in *windows* (so many documents or bytes), shuffled within their window by a seed, put one after the
other with a start and an end token, and cut every ``L`` tokens. What is left at the end of a window, fewer than ``L``
tokens, is dropped; nothing else is. A window starts fresh, so it can be made again from the number of its first document
alone: that is how a resumed run finds its place without reading everything twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import torch

from ..errors import InputError, input_error

WINDOW_BYTES = 64 << 20
IGNORED = -100
TOKENIZER_BATCH = 1000


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Packed blocks.

    Attributes:
        tokens: int32 [n, L].
        starts: bool [n, L], where a document, or the rest of one that the block's edge has cut, begins.
        bytes: float64 [n], bytes of text that the predicted tokens stand for (a document's bytes shared evenly by its tokens).
        dropped: tokens left over, fewer than L.
    """

    tokens: np.ndarray
    starts: np.ndarray
    bytes: np.ndarray
    dropped: int

    def __repr__(self) -> str:
        return f"Blocks(n={self.tokens.shape[0]}, L={self.tokens.shape[1]}, dropped={self.dropped})"


class Packer:
    """Turns documents into blocks with one tokenizer."""

    def __init__(self, tokenizer: Any, *, rows: int, length: int, name: str = "model") -> None:
        """Args: a fast tokenizer (copied, for use in another thread), rows of the model, tokens in a block, its name."""
        import copy

        self.tokenizer = copy.deepcopy(tokenizer)
        self.rows, self.length, self.name = rows, length, name
        candidates = (tokenizer.bos_token_id, tokenizer.eos_token_id, getattr(tokenizer, "cls_token_id", None))
        self.start = next((token for token in candidates if token is not None), None)
        ends = (tokenizer.eos_token_id, getattr(tokenizer, "sep_token_id", None))
        self.end = next((token for token in ends if token is not None), None)

    def encode(self, documents: Sequence[str]) -> list[np.ndarray]:
        """int32 ids of each document: start token, text, end token; text that spells a special token stays plain text."""
        found: list[np.ndarray] = []
        before = [] if self.start is None else [self.start]
        after = [] if self.end is None else [self.end]
        for at in range(0, len(documents), TOKENIZER_BATCH):
            encoded = self.tokenizer(
                list(documents[at : at + TOKENIZER_BATCH]), add_special_tokens=False, split_special_tokens=True,
                return_attention_mask=False, return_token_type_ids=False, truncation=False, padding=False, verbose=False,
            )["input_ids"]  # fmt: skip
            found += [np.array([*before, *ids, *after], dtype=np.int32) for ids in encoded]
        largest = max((int(ids.max()) for ids in found if len(ids)), default=0)
        if largest >= self.rows:
            raise input_error(
                f"tokenizer of {self.name}", f"id {largest} ({self.tokenizer.convert_ids_to_tokens(largest)!r})",
                f"ids below the model's {self.rows} rows", "use the tokenizer made for the model",
            )  # fmt: skip
        return found

    def pack(self, documents: Sequence[str]) -> Blocks:
        """Blocks of documents in this order."""
        encoded = self.encode(documents)
        lengths = np.array([len(ids) for ids in encoded], dtype=np.int64)
        total = int(lengths.sum())
        count = total // self.length
        used = count * self.length
        tokens = np.concatenate(encoded)[:used] if encoded else np.zeros(0, np.int32)
        starts = np.zeros(total, dtype=bool)
        starts[(np.cumsum(lengths) - lengths)[lengths > 0]] = True
        extra = (self.start is not None) + (self.end is not None)
        sizes = np.array([len(text.encode(errors="surrogatepass")) for text in documents], dtype=np.float64)
        share = np.repeat(sizes / np.maximum(lengths - extra, 1), lengths)
        ends = np.cumsum(lengths)[lengths > 0] - 1
        if self.end is not None:
            share[ends] = 0  # predicted, but no text
        starts = starts[:used].reshape(count, self.length)
        starts[:, :1] = True
        share = np.where(starts, 0, share[:used].reshape(count, self.length))
        return Blocks(tokens.reshape(count, self.length), starts, share.sum(axis=1), total - used)


class Stream:
    """The endless row of blocks of one corpus, pass after pass, each pass shuffled anew."""

    def __init__(
        self,
        documents: Callable[[], Iterator[str]],
        packer: Packer,
        *,
        seed: int,
        window_documents: int = 10_000,
        window_bytes: int = WINDOW_BYTES,
        name: str = "text",
        marks: Sequence[Sequence[int]] = (),
    ) -> None:
        """A stream at its start, or anywhere in it.

        Args:
            documents: starts reading the corpus anew.
            packer: makes blocks.
            seed: of the order.
            window_documents: documents shuffled together.
            window_bytes: bytes of text after which a window ends all the same.
            name: for errors.
            marks: what :attr:`marks` held when a run was cut off: windows are found again without reading those before.
        """
        self.documents, self.packer, self.seed, self.name = documents, packer, seed, name
        self.window_documents, self.window_bytes = window_documents, window_bytes
        # Of each window: pass, first document of that pass, documents in it, first block.
        self.marks: list[list[int]] = [list(mark) for mark in marks]
        self._current: tuple[int, Blocks] | None = None
        self._reader: tuple[int, int, Iterator[str]] | None = None
        self._ahead: Future[tuple[list[int], Blocks]] | None = None
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="saltlm-packing")

    def block(self, number: int) -> tuple[np.ndarray, np.ndarray, float]:
        """Tokens int32 [L], starts bool [L] and bytes of a block; meant to be asked for in rising order."""
        while self._current is None or not self._holds(number):
            self._advance(number)
        first, blocks = self._current
        at = number - first
        return blocks.tokens[at], blocks.starts[at], float(blocks.bytes[at])

    @property
    def passes(self) -> int:
        """The pass over the corpus that the current window belongs to, from 0."""
        return self.marks[self._window_of(self._current[0])][0] if self._current else 0

    def close(self) -> None:
        """Stop reading ahead."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _holds(self, number: int) -> bool:
        first, blocks = self._current
        return first <= number < first + len(blocks.tokens)

    def _window_of(self, block: int) -> int:
        return max(0, int(np.searchsorted([mark[3] for mark in self.marks], block, side="right")) - 1)

    def _advance(self, number: int) -> None:
        if self._current is not None and number >= self._current[0] + len(self._current[1].tokens) and self._ahead:
            mark, blocks = self._ahead.result()
        elif self.marks:
            mark, blocks = self._threads.submit(self._make, *self.marks[self._window_of(number)][:2]).result()
        else:
            mark, blocks = self._threads.submit(self._make, 0, 0).result()
        known = [entry[:2] for entry in self.marks]
        if mark[:2] in known:
            mark[3] = self.marks[known.index(mark[:2])][3]
        else:
            mark[3] = self._current[0] + len(self._current[1].tokens) if self._current else 0
            self.marks.append(mark)
        self._current = (mark[3], blocks)
        self._ahead = self._threads.submit(self._make, mark[0], mark[1] + mark[2])

    def _make(self, epoch: int, first: int) -> tuple[list[int], Blocks]:
        """The window that starts at this document of this pass, or the next one that fills a block."""
        empty = 0
        while True:
            window = self._read(epoch, first)
            if not window:
                epoch, first, empty = epoch + 1, 0, empty + 1
                if empty > 1:
                    raise InputError(
                        f"text {self.name}: found fewer tokens than one block of {self.packer.length} in any"
                        f" {self.window_documents:,} documents (--shuffle-documents); expected more text; give more, or a"
                        " shorter --seq-length, or shuffle more documents together"
                    )
                continue
            order = np.random.default_rng([self.seed, epoch, first]).permutation(len(window))
            blocks = self.packer.pack([window[i] for i in order])
            if len(blocks.tokens):
                return [epoch, first, len(window), 0], blocks
            first += len(window)

    def _read(self, epoch: int, first: int) -> list[str]:
        if self._reader is None or self._reader[:2] != (epoch, first):
            self._reader = (epoch, first, islice(self.documents(), first, None))
        window: list[str] = []
        size = 0
        for document in self._reader[2]:
            window.append(document)
            size += len(document)
            if len(window) >= self.window_documents or size >= self.window_bytes:
                break
        self._reader = (epoch, first + len(window), self._reader[2])
        return window


class Mixture(torch.utils.data.Dataset):
    """Blocks ``offset .. offset + length`` of a run, each from one of several streams in fixed shares."""

    def __init__(
        self,
        streams: Sequence[Stream],
        shares: Sequence[float],
        *,
        offset: int,
        length: int,
        cross_documents: bool = False,
    ) -> None:
        """Args: streams, their shares of the blocks (sum 1), first block, number of blocks, whether documents may mix."""
        self.streams, self.offset, self.length, self.cross = list(streams), offset, length, cross_documents
        # Multiples of the golden ratio modulo 1 fall into intervals evenly: each share is kept within a block or two.
        golden = np.arange(offset + length, dtype=np.float64) * ((5**0.5 - 1) / 2) % 1.0
        self.choice = np.searchsorted(np.cumsum(shares)[:-1], golden, side="right").astype(np.int16)
        self.place = np.zeros(offset + length, dtype=np.int64)
        for stream in range(len(self.streams)):
            own = self.choice == stream
            self.place[own] = np.arange(int(own.sum()))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, np.ndarray | float]:
        """``input_ids``, ``labels``, ``position_ids`` int64 [L], and ``bytes``."""
        number = self.offset + index
        tokens, starts, size = self.streams[self.choice[number]].block(int(self.place[number]))
        ids = tokens.astype(np.int64)
        if self.cross:
            starts = np.zeros_like(starts)
            starts[0] = True
        places = np.arange(len(ids))
        return {
            "input_ids": ids,
            "labels": np.where(starts, IGNORED, ids),
            "position_ids": places - np.maximum.accumulate(np.where(starts, places, 0)),
            "bytes": size,
        }


def collate(blocks: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Blocks as a batch of tensors [B, L], and bytes [B]."""
    batch = {
        name: torch.from_numpy(np.stack([block[name] for block in blocks]))
        for name in ("input_ids", "labels", "position_ids")
    }
    return {**batch, "bytes": torch.tensor([block["bytes"] for block in blocks], dtype=torch.float64)}
