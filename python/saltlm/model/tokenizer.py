"""Load the fast tokenizer of a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..environment import quiet_transformers
from ..errors import first_line, input_error
from ..files.read import refuse_lfs_pointer

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "source.spm",
    "spm.model",
    "tekken.json",
    "vocab.tiktoken",
    "qwen.tiktoken",
    "chat_template.jinja",
    "chat_template.json",
)
# Any one of these is a vocabulary; without one transformers may make an empty tokenizer from the config's class.
VOCABULARIES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "source.spm",
    "spm.model",
    "tekken.json",
    "vocab.tiktoken",
    "qwen.tiktoken",
)


def load_tokenizer(folder: Path, side: str, trust_remote_code: bool = False) -> Any:
    """The fast tokenizer of a folder, as AutoTokenizer finds it; slow vocabularies are converted by transformers.

    Raises:
        InputError: there is none, it is broken, or it has no fast form.
    """
    from transformers import AutoTokenizer

    there = [name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if not set(there) & set(VOCABULARIES):
        advice = "save the tokenizer into the folder"
        raise input_error(f"{side}, {folder}", "no tokenizer", "tokenizer.json or a vocabulary file", advice)
    for name in there:
        with (folder / name).open("rb") as file:
            refuse_lfs_pointer(folder / name, file.read(64))
    with quiet_transformers():
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
        except Exception as error:  # the tokenizers library raises bare exceptions on broken files
            reason = first_line(error)
            found = f"a tokenizer that transformers cannot load ({reason})"
            raise input_error(f"{side}, {folder}", found, "a tokenizer", "save it again") from None
    if not getattr(tokenizer, "is_fast", False):
        found = f"{type(tokenizer).__name__}, which has no fast form"
        raise input_error(f"{side}, {folder}", found, "a fast tokenizer", "convert it to tokenizer.json")
    return tokenizer


def tokens_without_row(tokenizer: Any, rows: int, side: str) -> dict[str, int]:
    """Added tokens whose id is at or beyond the number of rows; models with such exist, the tokens are never used.

    Raises:
        InputError: a token of the vocabulary itself has no row: tokenizer and matrix are of different models.
    """
    added = tokenizer.get_added_vocab()
    beyond = {token: index for token, index in tokenizer.get_vocab().items() if index >= rows}
    lost = sorted((index, token) for token, index in beyond.items() if token not in added)
    if lost:
        named = ", ".join(f"{token!r} (id {index})" for index, token in lost[:3])
        raise input_error(
            side,
            f"a tokenizer with {len(lost)} tokens that have no row, such as {named}",
            f"ids below {rows}, the rows of its matrix",
            "tokenizer and weights are of different models; fetch both again",
        )
    return dict(sorted(beyond.items(), key=lambda item: item[1]))
