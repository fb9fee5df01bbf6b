"""Load the fast tokenizer of a model folder, and check it against the number of rows."""

from __future__ import annotations

from pathlib import Path

from ..environment import quiet_transformers
from ..errors import first_line, input_error
from ..files.file_errors import refuse_lfs_pointer
from ..protocols import Tokenizer

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
# Each of these files holds a vocabulary. Without any of them transformers may build an empty tokenizer of the config's class.
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


def load_tokenizer(folder: Path, side: str, trust_remote_code: bool = False) -> Tokenizer:
    """Load the fast tokenizer of a folder by AutoTokenizer, which converts the files of slow tokenizers.

    Args:
        folder: the model folder.
        side: name of the model in messages.
        trust_remote_code: let transformers run code from the folder.

    Raises:
        InputError: the folder has no tokenizer, the tokenizer is broken, or it has no fast form.
    """
    from transformers import AutoTokenizer

    files = [name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if not set(files) & set(VOCABULARIES):
        advice = "save the tokenizer into the folder"
        raise input_error(f"{side}, {folder}", "no tokenizer", "tokenizer.json or a vocabulary file", advice)
    for name in files:
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


def tokens_without_row(tokenizer: Tokenizer, rows: int, side: str) -> dict[str, int]:
    """Added tokens whose id is not below the number of rows; some published models have such tokens and never use them.

    Args:
        tokenizer: tokenizer of the model.
        rows: number of rows of its input matrix.
        side: name of the model in messages.

    Returns:
        Token -> id, by ascending id.

    Raises:
        InputError: a token that was not added has no row: tokenizer and matrix belong to different models.
    """
    added = tokenizer.get_added_vocab()
    without_row = {token: index for token, index in tokenizer.get_vocab().items() if index >= rows}
    lacking = sorted((index, token) for token, index in without_row.items() if token not in added)
    if lacking:
        named = ", ".join(f"{token!r} (id {index})" for index, token in lacking[:3])
        raise input_error(
            side,
            f"a tokenizer with {len(lacking)} tokens that have no row, such as {named}",
            f"ids below {rows}, the rows of its matrix",
            "tokenizer and weights are of different models; fetch both again",
        )
    return dict(sorted(without_row.items(), key=lambda item: item[1]))
