"""Find the folder of a model: a local one, or a snapshot of the hub that transformers' cache keeps."""

from __future__ import annotations

import os
from pathlib import Path

from ..environment import quiet_transformers
from ..errors import first_line, input_error
from .tokenizer import TOKENIZER_FILES
from .weights import INDEX

# Files that say under which terms a model may be used; its card, README.md, names the licence.
TERMS = ("LICENSE*", "LICENCE*", "COPYING*", "NOTICE*", "USE_POLICY*")


def local_folder(name: str | Path, side: str, *, revision: str | None = None, gguf_file: str | None = None) -> Path:
    """The folder a model's files are in, fetched from the hub if that is where it is.

    Raises:
        InputError: there is none.
    """
    return resolve_model(str(name), side, revision, gguf_file)[0]


def resolve_model(name: str, side: str, revision: str | None, gguf_file: str | None) -> tuple[Path, str | None]:
    """Local folder of a model, and its commit if it comes from the hub."""
    path = Path(name).expanduser()
    # os.path's tests, unlike pathlib's, take a name that is too long or forbidden for one that is not there.
    if os.path.isdir(path):
        if gguf_file is None and not (path / "config.json").exists():
            advice = "name the .gguf file in it with --gguf-file" if any(path.glob("*.gguf")) else "check the path"
            raise input_error(side, "a folder with no config.json", "a model folder", advice)
        return path.resolve(), None
    if os.path.exists(path):
        advice = "give its folder, and its name with --gguf-file" if path.suffix == ".gguf" else "give its folder"
        raise input_error(side, "a file", "a model folder or a hub name", advice)
    return _from_hub(name, side, revision, gguf_file)


def _from_hub(name: str, side: str, revision: str | None, gguf_file: str | None) -> tuple[Path, str | None]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    wanted = ["config.json", "generation_config.json", *TOKENIZER_FILES, "README.md", *TERMS]
    wanted += ["*.py", gguf_file] if gguf_file else ["*.py", "model*.safetensors", INDEX]
    no_such = ("no such folder", "a model folder or a hub name", "check the path")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise input_error(side, *no_such)
    try:
        with quiet_transformers():
            folder = snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=["*/*"])
    except HFValidationError:
        raise input_error(side, *no_such) from None
    except Exception as error:  # the hub client raises errors of its own, of its HTTP library and of the system
        reason = first_line(error)
        raise input_error(
            side,
            f"no such folder, and the hub gives none ({reason})",
            "a local folder, or a hub name that is cached or reachable",
            "check the name; offline, fetch it first",
        ) from None
    return Path(folder), Path(folder).name
