"""Configuration of a verification: how many rows are computed again, and what may run."""

from __future__ import annotations

import dataclasses

from ..config import INPUTS, RUN
from ..errors import input_error
from ..options import documented, is_whole_number, option


@documented
@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """How much of a transferred folder is checked.

    Raises:
        InputError: a value is out of its range.
    """

    sample: int = option(
        256,
        "Number of new rows, drawn at random, that are computed again: from their recipes, and by the method. An integer >= 1.",
        group=RUN,
    )
    seed: int = option(
        0,
        "Seed of the random sample of rows, an integer in [0, 2**63).",
        group=RUN,
    )
    full: bool = option(
        False,
        "Compute all new rows from their recipes, not a sample, and compare all other tensors byte by byte with the source's.",
        group=RUN,
    )
    trust_remote_code: bool = option(
        False,
        "Allow transformers to run Python code that comes with a checkpoint, whatever the record of the folder says.",
        group=INPUTS,
    )

    def __post_init__(self) -> None:
        if not is_whole_number(self.sample, 1):
            raise input_error("sample", repr(self.sample), "a whole number >= 1", "use 256, or --full for all recipes")
        if not is_whole_number(self.seed, 0, 2**63 - 1):
            raise input_error("seed", repr(self.seed), "a whole number in [0, 2**63)", "choose another seed")
