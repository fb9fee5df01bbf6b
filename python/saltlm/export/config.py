"""The options of an export. The Python API and the command line read both from here."""

from __future__ import annotations

import dataclasses
from typing import Literal

from ..config import OUTPUT
from ..options import check_choices, documented, option

WeightType = Literal["auto", "f32", "f16", "bf16", "q8_0"]


@documented
@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """How a model is written as a GGUF file.

    Raises:
        InputError: a value is none of the accepted names.
    """

    weights: WeightType = option(
        "auto",
        "Type of the written matrices: {choices}. auto keeps the stored type. q8_0 has 8.5 bits a weight; llama.cpp's own "
        "llama-quantize makes smaller types of the result. Vectors are always written as f32.",
        group=OUTPUT,
    )
    body: str | None = option(
        None,
        "GGUF file of the source model, in any type of weights: layers and settings are taken from it, and only "
        "vocabulary and rows from the folder. This works for every architecture that llama.cpp has. Default: all from the "
        "folder.",
        group=OUTPUT,
        metavar="FILE",
    )
    allow_differences: bool = option(
        False,
        "Write the file although llama.cpp would segment some ordinary text differently from transformers; how much is "
        "told.",
        group=OUTPUT,
    )
    force: bool = option(False, "Replace an existing file.", group=OUTPUT)

    def __post_init__(self) -> None:
        check_choices(self)
