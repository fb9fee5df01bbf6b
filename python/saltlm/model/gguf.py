"""A GGUF file becomes an ordinary model folder in the cache, in float16, once."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ..environment import quiet_transformers
from ..errors import first_line, input_error
from ..files.cache import cache_folder, cached_folder
from ..files.hashing import sha256_file


def converted(file: Path) -> Path | None:
    """The folder that the file has been converted into, if it has."""
    kept = (cache_folder() / "gguf" / sha256_file(file)).absolute()
    return kept if (kept / "config.json").is_file() else None


def convert(file: Path) -> tuple[Path, str]:
    """Dequantize a GGUF file through transformers into a folder of the cache; done once for each file.

    The whole model passes through memory, at two bytes a weight and more while it is dequantized.

    Args:
        file: the ``.gguf`` file.

    Returns:
        The folder, with config, float16 safetensors and tokenizer, and the file's sha256.

    Raises:
        InputError: gguf or accelerate are missing, transformers cannot read the file, or the cache is full.
        BackendError: the cache cannot be written.
    """
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise input_error(
            str(file), f"no {' and no '.join(missing)}", "the packages that read GGUF", 'pip install "saltlm[gguf]"'
        )
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise input_error(str(file), "no GGUF file", "one that begins with the bytes GGUF", "fetch it again")
    digest = sha256_file(file)
    kept = (cache_folder() / "gguf" / digest).absolute()
    if (kept / "config.json").is_file():
        return kept, digest
    with cached_folder(kept) as fresh:
        _save(file, fresh)
    return kept, digest


def _save(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet_transformers():
        try:
            model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float16)
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        except Exception as error:  # transformers raises anything on a file it does not expect
            reason = first_line(error)
            advice = "take another quantization, or the original model"
            raise input_error(
                str(file), f"a file transformers cannot read ({reason})", "a GGUF model", advice
            ) from None
        # transformers refuses to save a model that it read from GGUF, for it believes the weights still quantized; a
        # model built anew from the same config and state is free of that mark.
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
