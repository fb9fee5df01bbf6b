"""Types of the native module."""

import numpy as np
import numpy.typing as npt

__version__: str

class Vocabulary:
    """A vocabulary by id."""

    @property
    def size(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @staticmethod
    def from_tokenizer_json(data: bytes, special_ids: list[int], name: str = "tokenizer.json") -> Vocabulary: ...
    @staticmethod
    def from_tiktoken(data: bytes, specials: list[tuple[str, int]], name: str = "tiktoken ranks") -> Vocabulary: ...
    def token_bytes(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]: ...
    def flags(self) -> npt.NDArray[np.uint8]: ...
    def words(self) -> list[str | None]: ...
    def added(self) -> list[tuple[str, int]]: ...

def align(
    source: Vocabulary,
    target: Vocabulary,
    overlap: str,
    roles: list[tuple[int, int]],
    covers: bool = True,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.int32]]: ...
