"""Documents -> blocks of equal length in which no document sees another.

Documents are read in *windows* (a number of documents or bytes), shuffled within the window by a seed, concatenated with a
start and an end token each, and cut every ``L`` tokens. The fewer than ``L`` tokens that are left at the end of a window are
dropped, and no others. A window starts a new block, so it depends only on the number of its first document, the pass over the
corpus and the seed. A resumed run therefore makes the window that it needs without tokenizing the windows before.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import torch

from ..errors import InputError, input_error
from ..protocols import Tokenizer

WINDOW_BYTES = 64 << 20
TOKENIZER_BATCH = 1000  # documents per call of the tokenizer
# Label of a token that is not predicted.
IGNORED = -100


@dataclasses.dataclass(frozen=True)
class PackedBlocks:
    """The blocks of one window.

    Attributes:
        tokens: int32 [n, L], token ids.
        starts: bool [n, L], ``True`` at the first token of a document and at the first token of a block.
        bytes: float64 [n], bytes of text of the predicted tokens; each text token of a document counts an equal share of the
            document's bytes.
        dropped: number of tokens left over at the end, in [0, L).
    """

    tokens: np.ndarray
    starts: np.ndarray
    bytes: np.ndarray
    dropped: int

    def __repr__(self) -> str:
        return f"PackedBlocks(n={self.tokens.shape[0]}, L={self.tokens.shape[1]}, dropped={self.dropped})"


class Packer:
    """Makes blocks of documents with one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, *, rows: int, length: int, name: str = "model") -> None:
        """Create a packer with a copy of the tokenizer, because another thread uses it.

        Args:
            tokenizer: a fast tokenizer.
            rows: number of input rows of the model; every token id must be below it.
            length: number of tokens in a block, in [1, inf).
            name: of the model, for messages.
        """
        self.tokenizer = copy.deepcopy(tokenizer)
        self.rows, self.length, self.name = rows, length, name
        starts = (tokenizer.bos_token_id, tokenizer.eos_token_id, getattr(tokenizer, "cls_token_id", None))
        self.start = next((token for token in starts if token is not None), None)
        ends = (tokenizer.eos_token_id, getattr(tokenizer, "sep_token_id", None))
        self.end = next((token for token in ends if token is not None), None)

    def encode(self, documents: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each document: start token, text, end token. A special token's name in the text stays plain text.

        Args:
            documents: in any number.

        Returns:
            int32 [tokens] for each document.

        Raises:
            InputError: an id is not below the number of the model's rows.
        """
        result: list[np.ndarray] = []
        prefix = [] if self.start is None else [self.start]
        suffix = [] if self.end is None else [self.end]
        for first in range(0, len(documents), TOKENIZER_BATCH):
            encoded = self.tokenizer(
                list(documents[first : first + TOKENIZER_BATCH]),
                add_special_tokens=False,
                split_special_tokens=True,
                return_attention_mask=False,
                return_token_type_ids=False,
                truncation=False,
                padding=False,
                verbose=False,
            )["input_ids"]
            result += [np.array([*prefix, *ids, *suffix], dtype=np.int32) for ids in encoded]
        largest = max((int(ids.max()) for ids in result if len(ids)), default=0)
        if largest >= self.rows:
            raise input_error(
                f"tokenizer of {self.name}",
                f"id {largest} ({self.tokenizer.convert_ids_to_tokens(largest)!r})",
                f"ids below the model's {self.rows} rows",
                "use the tokenizer made for the model",
            )
        return result

    def pack(self, documents: Sequence[str]) -> PackedBlocks:
        """Blocks of these documents, in this order.

        Raises:
            InputError: an id is not below the number of the model's rows.
        """
        encoded = self.encode(documents)
        lengths = np.array([len(ids) for ids in encoded], dtype=np.int64)
        total = int(lengths.sum())
        count = total // self.length
        shape, used = (count, self.length), count * self.length
        tokens = np.concatenate(encoded)[:used] if encoded else np.zeros(0, np.int32)
        document_ends = np.cumsum(lengths)
        starts = np.zeros(total, dtype=bool)
        starts[(document_ends - lengths)[lengths > 0]] = True
        extra = (self.start is not None) + (self.end is not None)
        sizes = np.array([len(text.encode(errors="surrogatepass")) for text in documents], dtype=np.float64)
        token_bytes = np.repeat(sizes / np.maximum(lengths - extra, 1), lengths)
        if self.end is not None:
            token_bytes[document_ends[lengths > 0] - 1] = 0  # the end token is predicted, but is no text
        block_starts = starts[:used].reshape(shape)
        block_starts[:, :1] = True
        block_bytes = np.where(block_starts, 0, token_bytes[:used].reshape(shape)).sum(axis=1)
        return PackedBlocks(tokens.reshape(shape), block_starts, block_bytes, total - used)


class Stream:
    """The endless sequence of blocks of one corpus, pass after pass over it; each pass has another order.

    Attributes:
        documents: starts reading the corpus.
        marks: for each window so far: number of the pass, number of the window's first document in that pass, number of
            documents in it, number of its first block. A checkpoint saves them.
    """

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
        """Create a stream; nothing is read yet.

        Args:
            documents: starts reading the corpus.
            packer: makes the blocks.
            seed: of the order of the documents, in [0, 2**32).
            window_documents: maximum number of documents in a window, in [1, inf).
            window_bytes: a window ends at the document that reaches this number of characters, in [1, inf).
            name: of the text, for messages.
            marks: :attr:`marks` of the stream that is continued; its windows are made without tokenizing earlier ones.
        """
        self.documents, self.packer, self.seed, self.name = documents, packer, seed, name
        self.window_documents, self.window_bytes = window_documents, window_bytes
        self.marks: list[list[int]] = [list(mark) for mark in marks]
        self._current: tuple[int, PackedBlocks] | None = None  # number of the first block, blocks
        self._reader: tuple[int, int, Iterator[str]] | None = None  # pass, number of the next document, documents
        self._next_window: Future[tuple[list[int], PackedBlocks]] | None = None
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="saltlm-packing")

    def block(self, number: int) -> tuple[np.ndarray, np.ndarray, float]:
        """One block; fast where the numbers rise from call to call.

        Args:
            number: of the block, in [0, inf).

        Returns:
            Tokens int32 [L], starts bool [L] and bytes, as in :class:`PackedBlocks`.

        Raises:
            InputError: the corpus holds too little text for one block in a window, or cannot be read.
        """
        while True:
            if self._current is not None:
                first, blocks = self._current
                index = number - first
                if 0 <= index < len(blocks.tokens):
                    return blocks.tokens[index], blocks.starts[index], float(blocks.bytes[index])
            self._advance(number)

    @property
    def passes(self) -> int:
        """Number of the pass over the corpus that the current window belongs to, from 0."""
        return self.marks[self._window_of(self._current[0])][0] if self._current else 0

    def read_window(self, epoch: int, first: int) -> list[str]:
        """The documents of one window, in the order of the corpus; empty at the end of the corpus.

        Args:
            epoch: number of the pass over the corpus, from 0.
            first: number of the window's first document in the pass.
        """
        if self._reader is None or self._reader[:2] != (epoch, first):
            self._reader = (epoch, first, islice(self.documents(), first, None))
        reader = self._reader[2]
        window: list[str] = []
        size = 0
        for document in reader:
            window.append(document)
            size += len(document)
            if len(window) >= self.window_documents or size >= self.window_bytes:
                break
        self._reader = (epoch, first + len(window), reader)
        return window

    def close(self) -> None:
        """Stop the thread that makes the next window."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _window_of(self, block: int) -> int:
        """Index into :attr:`marks` of the window that holds a block, or of the last window before it."""
        return max(0, int(np.searchsorted([mark[3] for mark in self.marks], block, side="right")) - 1)

    def _advance(self, number: int) -> None:
        """Make another window current: the next one where the block lies behind the current one, else by the marks."""
        end = 0 if self._current is None else self._current[0] + len(self._current[1].tokens)
        if self._next_window is not None and number >= end:
            mark, blocks = self._next_window.result()
        elif self.marks:
            epoch, first, *_ = self.marks[self._window_of(number)]
            mark, blocks = self._threads.submit(self._make_window, epoch, first).result()
        else:
            mark, blocks = self._threads.submit(self._make_window, 0, 0).result()
        known = [entry[:2] for entry in self.marks]
        if mark[:2] in known:
            mark[3] = self.marks[known.index(mark[:2])][3]
        else:
            mark[3] = end
            self.marks.append(mark)
        self._current = (mark[3], blocks)
        self._next_window = self._threads.submit(self._make_window, mark[0], mark[1] + mark[2])

    def _make_window(self, epoch: int, first: int) -> tuple[list[int], PackedBlocks]:
        """The mark and the blocks of a window; of the next one that fills a block, where this one does not."""
        empty = 0
        while True:
            window = self.read_window(epoch, first)
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


class Mixture(torch.utils.data.Dataset[dict[str, Any]]):
    """A range of the blocks of a run; each block comes from one of several streams, in fixed shares."""

    def __init__(
        self,
        streams: Sequence[Stream],
        shares: Sequence[float],
        *,
        offset: int,
        length: int,
        cross_documents: bool = False,
        first_position: int = 0,
    ) -> None:
        """Assign a stream to each block of the run; nothing is read yet.

        Args:
            streams: of blocks.
            shares: share of all blocks that each stream fills, sum 1.
            offset: number of the range's first block in the run, in [0, inf).
            length: number of blocks in the range.
            cross_documents: whether a document sees the documents before it in its block.
            first_position: position id of the first token of a text.
        """
        self.streams, self.offset, self.length = list(streams), offset, length
        self.cross_documents, self.first_position = cross_documents, first_position
        # Multiples of the golden ratio modulo 1 fall into intervals evenly: each share is exact within a block or two.
        golden = np.arange(offset + length, dtype=np.float64) * ((5**0.5 - 1) / 2) % 1.0
        self.stream_of_block = np.searchsorted(np.cumsum(shares)[:-1], golden, side="right").astype(np.int16)
        self.number_in_stream = np.zeros(offset + length, dtype=np.int64)
        for stream in range(len(self.streams)):
            selected = self.stream_of_block == stream
            self.number_in_stream[selected] = np.arange(int(selected.sum()))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One block.

        Returns:
            ``input_ids``, ``labels`` and ``position_ids``, each int64 [L], and ``bytes``, a float.
        """
        number = self.offset + index
        tokens, starts, size = self.streams[self.stream_of_block[number]].block(int(self.number_in_stream[number]))
        ids = tokens.astype(np.int64)
        if self.cross_documents:
            starts = np.zeros_like(starts)
            starts[0] = True
        positions = np.arange(len(ids))
        return {
            "input_ids": ids,
            "labels": np.where(starts, IGNORED, ids),
            "position_ids": self.first_position + positions - np.maximum.accumulate(np.where(starts, positions, 0)),
            "bytes": size,
        }


def collate(blocks: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Make a batch of blocks from :class:`Mixture`.

    Returns:
        ``input_ids``, ``labels`` and ``position_ids``, each int64 [B, L], and ``bytes`` float64 [B].
    """
    batch = {
        name: torch.from_numpy(np.stack([block[name] for block in blocks]))
        for name in ("input_ids", "labels", "position_ids")
    }
    return {**batch, "bytes": torch.tensor([block["bytes"] for block in blocks], dtype=torch.float64)}
