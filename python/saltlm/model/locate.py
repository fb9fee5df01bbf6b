"""Find the local folder of a model: a folder as given, or a snapshot that huggingface_hub fetches into its cache."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..environment import quiet_transformers
from ..errors import first_line, input_error
from ..files.open_file import check_model_folder
from .processor import PROCESSOR_FILES
from .quantization import QUANTIZATION_FILES
from .tokenizer import TOKENIZER_FILES
from .weights import ADAPTER, BESIDE, INDEX, refuse_adapter_alone

PICKLED_FILES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
# Licence files; the licence's name is in the model card, README.md.
TERMS = ("LICENSE*", "LICENCE*", "COPYING*", "NOTICE*", "USE_POLICY*")


def local_folder(
    name: str | Path,
    side: str,
    *,
    revision: str | None = None,
    gguf_file: str | None = None,
    pickled: bool = False,
) -> Path:
    """Local folder of a model; a model on the hub is fetched first.

    Args:
        name: a local folder or a hub name.
        side: name of the model in messages.
        revision: branch, tag or commit on the hub.
        gguf_file: name of a GGUF file in the folder.
        pickled: fetch pickled weights, too.

    Raises:
        InputError: there is no such model.
    """
    return resolve_model(str(name), side, revision, gguf_file, pickled=pickled)[0]


def resolve_model(
    name: str, side: str, revision: str | None, gguf_file: str | None, *, pickled: bool = False
) -> tuple[Path, str | None]:
    """Local folder of a model, and its commit on the hub (``None`` for a folder that was given).

    Args:
        name: a local folder or a hub name.
        side: name of the model in messages.
        revision: branch, tag or commit on the hub.
        gguf_file: name of a GGUF file in the folder.
        pickled: fetch pickled weights, too.

    Raises:
        InputError: there is no such model, or :func:`~saltlm.files.open_file.check_model_folder` refuses its folder.
    """
    path = Path(name).expanduser()
    # Unlike pathlib's methods, os.path's functions return False for a name that is too long or has forbidden characters.
    if os.path.isdir(path):
        if gguf_file is None and not (path / "config.json").exists():
            refuse_adapter_alone(path, side)
            advice = "name the .gguf file in it with --gguf-file" if any(path.glob("*.gguf")) else "check the path"
            raise input_error(side, "a folder with no config.json", "a model folder", advice)
        folder = path.resolve()
        check_model_folder(folder, side)
        return folder, None
    if os.path.exists(path):
        advice = "give its folder, and its name with --gguf-file" if path.suffix == ".gguf" else "give its folder"
        raise input_error(side, "a file", "a model folder or a hub name", advice)
    return _from_hub(name, side, revision, gguf_file, PICKLED_FILES if pickled else ())


def _from_hub(
    name: str, side: str, revision: str | None, gguf_file: str | None, more: Sequence[str]
) -> tuple[Path, str | None]:
    """Fetch a model into the hub's cache, unless it is there; only config, tokenizer, safetensors, card, licence and code."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    patterns = ["config.json", "generation_config.json", *TOKENIZER_FILES, *PROCESSOR_FILES, "README.md", *TERMS]
    weights = ["model*.safetensors", INDEX, *BESIDE, *QUANTIZATION_FILES, ADAPTER]
    patterns += ["*.py", gguf_file] if gguf_file else ["*.py", *weights]
    patterns += more
    no_such = ("no such folder", "a model folder or a hub name", "check the path")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise input_error(side, *no_such)
    try:
        with quiet_transformers():
            folder = snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"])
    except HFValidationError:
        raise input_error(side, *no_such) from None
    except Exception as error:  # errors of the hub client, of its HTTP library or of the operating system
        raise input_error(
            side,
            f"no such folder, and the hub gives none ({first_line(error)})",
            "a local folder, or a hub name that is cached or reachable",
            "check the name; offline, fetch it first",
        ) from None
    check_model_folder(Path(folder), side)
    refuse_adapter_alone(Path(folder), side)
    return Path(folder), Path(folder).name
