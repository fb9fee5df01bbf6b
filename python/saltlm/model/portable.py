"""Forms of tokenizer_config.json and config.json that transformers 4.57 and transformers 5 read to the same effect.

transformers 5 writes names that transformers 4 does not know: the tokenizer class ``TokenizersBackend``, a list under
``extra_special_tokens``, and ``rope_parameters``. The last is the worst: transformers 4 ignores it and uses the class's
default rotary base. Serving programs lag behind, so every folder that saltlm writes has the older names too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..alignment.roles import named_tokens
from ..environment import quiet_transformers
from ..errors import BackendError
from ..files.json_files import read_json, write_json
from ..protocols import Tokenizer

CLASS = "PreTrainedTokenizerFast"  # in transformers 4 the class, in transformers 5 another name of TokenizersBackend
PLAIN = """from transformers import PreTrainedTokenizerFast


class Plain(PreTrainedTokenizerFast):
    \"\"\"tokenizer.json as it is, where the model's type would have transformers change it.\"\"\"
"""
PLAIN_FILE, PLAIN_MAP = "tokenizer.py", {"AutoTokenizer": [None, "tokenizer.Plain"]}
# Model type -> names in transformers 4 of the rotary base, the base of sliding-window layers, and the share of rotated
# dimensions, where they are not those of Llama and Gemma 3.
ROPE_KEYS = {
    "gpt_neox": ("rotary_emb_base", None, "rotary_pct"),
    "gpt_neox_japanese": ("rotary_emb_base", None, "rotary_pct"),
    "modernbert": ("global_rope_theta", "local_rope_theta", None),
    "modernbert-decoder": ("global_rope_theta", "local_rope_theta", None),
}
# Kinds of rotary scaling that transformers 4.57 knows. A model of another kind has no class there, and some config classes
# of transformers 5 warn about the older name.
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
DEFAULT_ROPE_KEYS = ("rope_theta", "rope_local_base_freq", "partial_rotary_factor")


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Save a tokenizer so that AutoTokenizer of transformers 4.57 and 5 gives the same one back from this folder.

    AutoTokenizer chooses a class by the model's type, too. For some types (qwen2 among them) transformers 5 overrules what
    the tokenizer's own file says, and the class then puts its own pre-tokenizer in place of the saved one, in silence.
    An ``auto_map`` entry is what keeps it from that: without trust_remote_code it then goes by ``tokenizer_class``, and
    with it by the entry, which therefore has to name a class; :data:`PLAIN` is that class.

    Args:
        tokenizer: a fast tokenizer.
        folder: the model folder, which has its config.json already.

    Raises:
        BackendError: AutoTokenizer does not give the tokenizer back.
    """
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    saved = read_json(path)
    for content in _forms(saved, tokenizer):
        write_json(path, content)
        if "auto_map" in content:
            (folder / PLAIN_FILE).write_text(PLAIN, encoding="utf-8")
        if _is_given_back(tokenizer, folder):
            return
    raise BackendError(
        f"{type(tokenizer).__name__}: AutoTokenizer does not give this tokenizer back from the new folder"
    )


def make_portable(folder: Path) -> None:
    """Rewrite the tokenizer_config.json of a model folder if transformers 4.57 could not read it.

    Args:
        folder: a model folder with tokenizer.json.

    Raises:
        BackendError: the tokenizer cannot be saved in a form that both versions read.
    """
    from transformers import AutoTokenizer

    path = folder / "tokenizer_config.json"
    if not path.is_file() or not (folder / "tokenizer.json").is_file():
        return
    content = read_json(path)
    class_name = content.get("tokenizer_class")
    if not str(class_name).endswith("Backend") and not isinstance(content.get("extra_special_tokens"), list):
        return
    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    for form in _forms(content, tokenizer):
        write_json(path, form)
        if "auto_map" in form and not (folder / PLAIN_FILE).exists():
            (folder / PLAIN_FILE).write_text(PLAIN, encoding="utf-8")
        if _is_given_back(tokenizer, folder):
            return
    raise BackendError(f"{folder.name}: AutoTokenizer does not give the tokenizer back from the new folder")


def _forms(saved: Mapping[str, Any], tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
    """Contents of tokenizer_config.json to try, the best first."""
    plain = portable_tokenizer_config(saved, tokenizer)
    yield plain
    yield {**plain, "auto_map": PLAIN_MAP}
    yield dict(saved)


def portable_tokenizer_config(saved: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of tokenizer_config.json in the form of transformers 4, which transformers 5 reads too.

    Args:
        saved: the content as transformers 5 writes it.
        tokenizer: the tokenizer; its settings that have another default in transformers 4 are written out.
    """
    content = {key: value for key, value in saved.items() if key not in ("auto_map", "backend", "is_local")}
    content["tokenizer_class"] = CLASS
    extra = content.get("extra_special_tokens")
    if isinstance(extra, list | tuple):  # transformers 4 takes a dictionary alone under this name
        del content["extra_special_tokens"]
        content["additional_special_tokens"] = list(extra)
    if named := named_tokens(tokenizer):  # such as image_token, which processors ask for
        content["extra_special_tokens"] = named
    content["clean_up_tokenization_spaces"] = bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))
    content["model_input_names"] = list(getattr(tokenizer, "model_input_names", ["input_ids", "attention_mask"]))
    return content


def _is_given_back(tokenizer: Tokenizer, folder: Path) -> bool:
    """Whether AutoTokenizer reads the same pipeline, vocabulary, special tokens and chat template from the folder."""
    from transformers import AutoTokenizer

    with quiet_transformers():
        try:
            read = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        except Exception:  # any class may fail on another's files; the next form is then tried
            return False
    same_specials = set(map(str, read.all_special_tokens)) == set(map(str, tokenizer.all_special_tokens))
    same_template = (read.chat_template or None) == (tokenizer.chat_template or None)
    return same_specials and same_template and pipeline_of(read) == pipeline_of(tokenizer)


def pipeline_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """Content of tokenizer.json without truncation and padding."""
    content: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return {key: value for key, value in content.items() if key not in ("truncation", "padding")}


def with_rope_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a config with transformers 4's names of what ``rope_parameters`` says, beside it; also in the model's parts.

    Keys that the config has stay as they are. transformers 5 reads the same values from both.

    Args:
        config: content of config.json.
    """
    changed = dict(config)
    for key, part in config.items():
        if key.endswith("_config") and isinstance(part, Mapping):
            changed[key] = with_rope_keys(part)
    parameters = config.get("rope_parameters")
    if not isinstance(parameters, Mapping) or not parameters:
        return changed
    nested = all(value is None or isinstance(value, Mapping) for value in parameters.values())
    rope = parameters.get("full_attention") if nested else parameters
    sliding = parameters.get("sliding_attention") if nested else None
    base_key, local_key, share_key = ROPE_KEYS.get(str(config.get("model_type")), DEFAULT_ROPE_KEYS)
    if isinstance(rope, Mapping):
        scaling = {key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")}
        if scaling not in ({}, {"rope_type": "default"}) and scaling.get("rope_type") in ROPE_TYPES:
            changed.setdefault("rope_scaling", scaling)
        _set_missing(changed, base_key, rope.get("rope_theta"))
        _set_missing(changed, share_key, rope.get("partial_rotary_factor"))
    if isinstance(sliding, Mapping):
        _set_missing(changed, local_key, sliding.get("rope_theta"))
    return changed


def _set_missing(config: dict[str, Any], key: str | None, value: Any) -> None:
    if key is not None and value is not None:
        config.setdefault(key, value)
