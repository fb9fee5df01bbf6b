"""Options of an evaluation in bits per byte."""

from __future__ import annotations

import dataclasses

from ..config import DTypeName
from ..errors import input_error
from ..options import check_choices, documented, is_whole_number, option

# Headings of the command line.
WINDOWS, LOADING = "scoring windows", "loading"


@documented
@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How a model is loaded and how a text is scored.

    Raises:
        InputError: a value is out of its range.
    """

    max_length: int = option(
        1024,
        "Length of a scoring window in tokens with its start token, an integer >= 2. A model with fewer positions gets "
        "shorter windows.",
        group=WINDOWS,
    )
    stride: int | None = option(
        None,
        "Number of tokens by which the scoring window moves, an integer from 1 to --max-length - 1. "
        "Default: half of --max-length.",
        group=WINDOWS,
    )
    batch_tokens: int | None = option(
        None,
        "Number of tokens in a batch, padding included, an integer >= 1. It changes memory and time, and the result only in "
        "the last digits of float32. Default: 2048 on a CPU, 16384 on other devices.",
        group=WINDOWS,
    )
    device: str = option("auto", "Device of the model: auto, cpu or cuda[:index].", group=LOADING)
    dtype: DTypeName | None = option(
        None,
        "Dtype of the weights in memory: {choices}. Default: float32 on a CPU, that of the checkpoint on other devices.",
        group=LOADING,
    )
    gguf_file: str | None = option(
        None, "Name of the GGUF file in the model folder. Default: the model has safetensors weights.", group=LOADING
    )
    revision: str | None = option(None, "Revision of a hub model. Default: its default branch.", group=LOADING)
    trust_remote_code: bool = option(False, "Let transformers run code that the checkpoint contains.", group=LOADING)

    def __post_init__(self) -> None:
        check_choices(self)
        check_windows(self.max_length, self.stride)
        if self.batch_tokens is not None and not is_whole_number(self.batch_tokens, 1):
            raise input_error(
                "batch_tokens", repr(self.batch_tokens), "a whole number >= 1", "leave it out for the default"
            )


def check_windows(max_length: int, stride: int | None) -> None:
    """Check length and stride of the sliding window.

    Args:
        max_length: length of a window in tokens.
        stride: tokens by which the window moves; ``None`` for half of its length.

    Raises:
        InputError: ``max_length`` is below 2, or ``stride`` is not in [1, max_length - 1].
    """
    if not is_whole_number(max_length, 2):
        raise input_error("max_length", repr(max_length), "a whole number >= 2", "a window needs a token and its past")
    if stride is not None and not (is_whole_number(stride, 1) and stride < max_length):
        expected = f"a whole number from 1 to {max_length - 1}, less than the window"
        raise input_error("stride", repr(stride), expected, "leave it out for half the window")
