"""Types of the native module."""

from collections.abc import Sequence
from os import PathLike

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
    def prepare(self) -> None: ...
    def token_bytes(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]: ...
    def flags(self) -> npt.NDArray[np.uint8]: ...
    def words(self) -> list[str | None]: ...
    def scores(self) -> npt.NDArray[np.float64] | None: ...
    def added(self) -> list[tuple[str, int]]: ...
    def find(self, spelling: str) -> int | None: ...

def align(
    source: Vocabulary,
    target: Vocabulary,
    overlap: str,
    roles: list[tuple[int, int]],
    covers: bool = True,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.int32]]: ...
def covers_without(
    source: Vocabulary,
    target: Vocabulary,
    tokens: npt.NDArray[np.int64],
    offsets: npt.NDArray[np.int64],
    forbidden: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]: ...

class FastText:
    """A fastText .bin, memory-mapped."""

    @property
    def dimension(self) -> int: ...
    @property
    def word_count(self) -> int: ...
    @staticmethod
    def open(path: str | PathLike[str]) -> FastText: ...
    def vectors(self, words: Sequence[str | None]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]: ...

def read_text_vectors(
    path: str | PathLike[str], words: Sequence[str | None]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]: ...
def floret_vectors(
    words: Sequence[str | None],
    table: npt.NDArray[np.float32],
    *,
    minn: int,
    maxn: int,
    hash_count: int,
    hash_seed: int,
    bow: str,
    eow: str,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]: ...
def table_rows(table: bytes, words: Sequence[str | None], name: str) -> npt.NDArray[np.int64]: ...
