"""Convert a GGUF file to a float16 model folder in the cache."""

from __future__ import annotations

from pathlib import Path

from ..environment import quiet_transformers, require
from ..errors import first_line, input_error
from ..files.cache import cache_folder, cached_folder
from ..files.hashing import sha256_file
from ..files.open_file import open_file


def converted(file: Path) -> Path | None:
    """Folder of the cache with the conversion of a GGUF file, or ``None`` if it has not been converted."""
    folder = _folder_of(sha256_file(file))
    return folder if (folder / "config.json").is_file() else None


def _folder_of(digest: str) -> Path:
    """Folder of the cache for the conversion of the GGUF file with this sha256."""
    return (cache_folder() / "gguf" / digest).absolute()


def convert(file: Path) -> tuple[Path, str]:
    """Dequantize a GGUF file through transformers into a folder of the cache, unless the folder exists.

    The whole model passes through memory: two bytes per weight, and more while it is dequantized.

    Args:
        file: the ``.gguf`` file.

    Returns:
        The folder with config, float16 safetensors and tokenizer; the file's hexadecimal sha256.

    Raises:
        InputError: gguf or accelerate is missing, transformers cannot read the file, or the cache is full.
        BackendError: the cache cannot be written.
    """
    for module in ("gguf", "accelerate"):
        require(module, "gguf", str(file))
    with open_file(file, inside=file.parent) as stream:
        if stream.read(4) != b"GGUF":
            raise input_error(str(file), "no GGUF file", "one that begins with the bytes GGUF", "fetch it again")
    digest = sha256_file(file)
    folder = _folder_of(digest)
    if not (folder / "config.json").is_file():
        with cached_folder(folder) as part:
            _save(file, part)
    return folder, digest


def _save(file: Path, folder: Path) -> None:
    """Read the GGUF file by transformers and save model and tokenizer into the folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet_transformers():
        try:
            model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float16)
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        except Exception as error:  # transformers raises anything on a file it does not expect
            advice = "take another quantization, or the original model"
            raise input_error(
                str(file), f"a file transformers cannot read ({first_line(error)})", "a GGUF model", advice
            ) from None
        # transformers marks a model that it read from GGUF as quantized and refuses to save it. A second model of the same
        # config with the same tensors does not have that mark.
        config = model.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        with torch.device("meta"):
            plain = AutoModelForCausalLM.from_config(config, dtype=torch.float16)
        plain.load_state_dict(model.state_dict(), assign=True)
        plain.tie_weights()
        plain.generation_config = model.generation_config
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
