"""A target that is a tokenizer alone: a folder without weights, or a ``tokenizer.json`` file."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from ..errors import first_line, input_error
from ..files.hashing import sha256_file
from ..files.open_file import FileKind, check_file, check_model_folder
from .tokenizer import TOKENIZER_FILES, VOCABULARIES, LoadedTokenizer, check_files, load_tokenizer
from .tokenizer_file import FILE, read_file
from .weights import PICKLED

# A folder with any of these has, or had, weights.
WEIGHTS = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*.bin",
    "*.pt",
    "*.pth",
    "*.gguf",
    "*.h5",
    "*.msgpack",
    *PICKLED,
)
ADAPTER = "adapter_config.json"


@dataclasses.dataclass(frozen=True)
class TokenizerAlone:
    """A tokenizer without a model.

    Attributes:
        folder: local folder of its files.
        file: the tokenizer file where that was named, not its folder; else ``None``.
    """

    folder: Path
    file: Path | None = None

    @property
    def path(self) -> Path:
        """What a transfer reads, and must not write to: the named file, else the folder."""
        return self.file or self.folder

    @property
    def tokenizer_bytes(self) -> int:
        """Size of the tokenizer files."""
        return sum(path.stat().st_size for path in self._files().values())

    def hashes(self) -> dict[str, str]:
        """File name -> sha256. A named file stands as ``tokenizer.json``, whatever its name is."""
        return {name: sha256_file(path) for name, path in self._files().items()}

    def _files(self) -> dict[str, Path]:
        names = () if self.file is not None and self.file.name != FILE else TOKENIZER_FILES
        files = {name: self.folder / name for name in names if (self.folder / name).is_file()}
        return files if self.file is None else {**files, FILE: self.file}

    def load(self, side: str, trust_remote_code: bool = False) -> LoadedTokenizer:
        """Load the tokenizer; from ``tokenizer.json`` as it is, if there is one.

        Args:
            side: name of the target in messages.
            trust_remote_code: let transformers run code from the folder.

        Raises:
            InputError: it is broken or has no fast form.
        """
        file = self.file or self.folder / FILE
        if self.file is None:
            check_files(self.folder, side)
        if not file.is_file():
            return load_tokenizer(self.folder, side, trust_remote_code)
        try:
            return LoadedTokenizer(read_file(file))
        except BaseException as error:  # the tokenizers library raises bare exceptions, and panics, on broken files
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            found = f"a file that cannot be loaded ({first_line(error)})"
            raise input_error(f"{side}, {file}", found, "a tokenizer.json", "save the tokenizer again") from None


def find_alone(name: str | Path) -> TokenizerAlone | None:
    """The tokenizer of a local folder without weights, or of a ``tokenizer.json``; ``None`` for anything else.

    Args:
        name: what the user named as the target.

    Raises:
        InputError: a file of the tokenizer is no regular file or too large, or a link leads out of its folder.
    """
    path = Path(name).expanduser()
    # Unlike pathlib's methods, os.path's functions return False for a name that is too long or has forbidden characters.
    if os.path.isfile(path) and path.suffix == ".json":
        check_file(path, FileKind.TOKENIZER)
        if path.name == FILE:  # the files beside it are read, too
            check_model_folder(path.resolve().parent, f"tokenizer {name}")
        return TokenizerAlone(path.resolve().parent, path.resolve())
    if not os.path.isdir(path) or (path / ADAPTER).is_file():
        return None
    # From the hub only safetensors files are fetched: a snapshot without them may be of a model with pickled weights.
    fetched = path.resolve().parent.name == "snapshots" and (path / "config.json").is_file()
    has_weights = fetched or any(next(path.glob(pattern), None) for pattern in WEIGHTS)
    has_vocabulary = any((path / name).is_file() for name in VOCABULARIES)
    if not has_vocabulary or has_weights:
        return None
    check_model_folder(path.resolve(), f"tokenizer {name}")
    return TokenizerAlone(path.resolve())
