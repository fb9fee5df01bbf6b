"""Lengths of the blocks of training text under two tokenizers, such that a step reads as many bytes with either of them."""

from __future__ import annotations

import dataclasses

import numpy as np

from ..adaptation.config import SEQ_LENGTH, SHORTEST_SEQ_LENGTH, AdaptConfig
from ..adaptation.packing import Packer, Stream
from ..adaptation.text import TrainingText
from ..errors import InputError, input_error
from ..model.causal_lm import resolve_length
from ..protocols import Tokenizer
from ..text.corpus import training_documents

# Minimum length of a block under the source tokenizer, in tokens.
MIN_ORIGINAL_LENGTH = 8
# More rows than any vocabulary has: tokens are only counted here, so that no id is too large.
ANY_ROWS = 2**31


class TooLittleText(InputError):
    """The text does not fill the blocks of a probe.

    Attributes:
        ratio: tokens of the source tokenizer divided by tokens of the new tokenizer, on the whole text; 1 without tokens.
    """

    def __init__(self, message: str, ratio: float = 1.0) -> None:
        """Create the error.

        Args:
            message: the message.
            ratio: see the attribute.
        """
        super().__init__(message)
        self.ratio = ratio


@dataclasses.dataclass(frozen=True)
class BlockLengths:
    """Lengths of the blocks of training text under both tokenizers.

    Attributes:
        length: tokens in a block of the new tokenizer.
        original: tokens in a block of the source tokenizer, which holds as many bytes on average.
        needed: number of blocks that a probe takes.
        tokens_per_byte: tokens per byte of the new and of the source tokenizer on the text that was read to measure them,
            start and end tokens included.
    """

    length: int
    original: int
    needed: int
    tokens_per_byte: tuple[float, float]


def fitted_blocks(
    text: TrainingText,
    tokenizers: tuple[Tokenizer, Tokenizer],
    config: AdaptConfig,
    steps: int,
    positions: int | None,
) -> BlockLengths:
    """The lengths of :func:`measure_blocks`, reduced until the source model takes blocks of both tokenizers.

    Args:
        text: text of the probes.
        tokenizers: the new tokenizer and the source tokenizer.
        config: sizes of batches. A ``seq_length`` that is set must fit; ``None`` lets this function choose it.
        steps: optimizer steps of a probe.
        positions: longest input of the source model in tokens; ``None`` for no limit.

    Returns:
        The lengths.

    Raises:
        InputError: ``seq_length`` is too long, or a probe would read a part of the text twice.
    """
    length = resolve_length("seq_length", config.seq_length, SEQ_LENGTH, positions, "the source model")
    while True:
        try:
            blocks = measure_blocks(text, tokenizers, dataclasses.replace(config, seq_length=length), steps)
            if positions is None or blocks.original <= positions:
                return blocks
            original, ratio = blocks.original, blocks.original / blocks.length
        except TooLittleText as error:
            # Blocks that must be shortened in any case may then be enough.
            original, ratio = round(length * error.ratio), error.ratio
            if positions is None or original <= positions:
                raise
        if config.seq_length is not None or length == SHORTEST_SEQ_LENGTH:
            raise input_error(
                "seq_length",
                f"{length}, {original} tokens with the source's own tokenizer",
                f"at most the {positions} positions of the source model",
                "choose less, or leave it out",
            )
        length = max(SHORTEST_SEQ_LENGTH, min(length - 1, int(positions / ratio)))


def measure_blocks(
    text: TrainingText, tokenizers: tuple[Tokenizer, Tokenizer], config: AdaptConfig, steps: int
) -> BlockLengths:
    """Read as much text as a probe reads, in the same windows, and count its tokens with both tokenizers.

    Args:
        text: text of the probes.
        tokenizers: the new tokenizer and the source tokenizer.
        config: ``seq_length``, which must be set, and sizes of batches.
        steps: optimizer steps of a probe.

    Returns:
        The lengths.

    Raises:
        TooLittleText: a probe would read a part of the text twice.
    """
    seq_length = config.seq_length
    if seq_length is None:
        raise ValueError("measure_blocks() needs a configuration with seq_length")
    packers = [Packer(tokenizer, rows=ANY_ROWS, length=seq_length) for tokenizer in tokenizers]
    reader = Stream(
        training_documents(text.corpora[0], text.keep[0]), packers[0], seed=0, window_documents=config.shuffle_documents
    )
    needed = steps * config.batch_size * config.accumulate
    totals, size, read, blocks, length = np.zeros(2), 0, 0, 0, 0
    windows: list[int] = []
    try:
        while window := reader.read_window(0, read):
            read += len(window)
            size += sum(len(document.encode(errors="surrogatepass")) for document in window)
            counts = [sum(map(len, packer.encode(window))) for packer in packers]
            totals += counts
            windows.append(counts[1])
            blocks += counts[0] // seq_length
            if not length and blocks >= needed:
                length = max(MIN_ORIGINAL_LENGTH, round(seq_length * totals[1] / totals[0]))
            if length and sum(count // length for count in windows) >= needed:
                return BlockLengths(seq_length, length, needed, (totals[0] / size, totals[1] / size))
    finally:
        reader.close()
    if length:
        filled = (
            f"{sum(count // length for count in windows):,} blocks of {length} tokens of the source's own tokenizer"
        )
    else:
        filled = f"{blocks:,} blocks of {seq_length} tokens"
    message = input_error(
        "text",
        f"{size:,} bytes to train on, {filled}",
        f"the {needed:,} blocks that {steps:,} steps take, none of them twice",
        "give more text, or fewer --probe-steps, or a shorter --seq-length",
    )
    raise TooLittleText(str(message), ratio=float(totals[1] / totals[0]) if totals[0] else 1.0)
