"""``tokenizer.json`` files put together from parts, and the tokens of a vocabulary as bytes."""

from __future__ import annotations

import itertools
import json

from saltlm import _rust
from saltlm.alignment.align import load_tokens


def canonical(vocabulary: _rust.Vocabulary) -> list[bytes]:
    """The bytes that each token stands for, by id."""
    data, offsets = vocabulary.token_bytes()
    return [data[a:b].tobytes() for a, b in itertools.pairwise(offsets)]


def native(data: bytes) -> _rust.Vocabulary:
    """The vocabulary of the content of a ``tokenizer.json``."""
    return _rust.Vocabulary.from_tokenizer_json(data, [])


def component(name: str, **options) -> dict:
    return {"type": name, **options}


def model_file(tmp_path, model: dict, **parts):
    """Tokens of a ``tokenizer.json`` with this model and these components."""
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"model": model, **parts}), encoding="utf-8")
    return load_tokens(path)


LEVEL = component("ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=False)


def added_tokens(*tokens: tuple[int, str, bool]) -> list[dict]:
    """Entries of ``added_tokens`` from (id, text, whether special)."""
    return [{"id": index, "content": content, "special": special} for index, content, special in tokens]
