"""Load the fast tokenizer of a model folder, and check it against the number of rows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ..alignment.roles import ROLES
from ..environment import quiet_transformers
from ..errors import first_line, input_error
from ..files.file_errors import refuse_lfs_pointer
from ..files.open_file import FileKind, open_file
from ..protocols import Tokenizer
from .tokenizer_file import FILE, difference, follows_file, read_file, set_roles

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "bpe.codes",
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
MERGES = ("bpe.codes", "merges.txt")
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


@dataclasses.dataclass(frozen=True)
class LoadedTokenizer:
    """A fast tokenizer, and what a user should know about how it was loaded.

    Attributes:
        tokenizer: the fast tokenizer.
        notes: warnings for the summary.
    """

    tokenizer: Tokenizer
    notes: tuple[str, ...] = ()


def load_tokenizer(
    folder: Path, side: str, trust_remote_code: bool = False, *, by_file: bool = False
) -> LoadedTokenizer:
    """Load the fast tokenizer of a folder by AutoTokenizer, which converts the files of slow tokenizers.

    Where AutoTokenizer gives no fast tokenizer and there is a ``tokenizer.json``, the file is taken, and a note says so.

    Args:
        folder: the model folder.
        side: name of the model in messages.
        trust_remote_code: let transformers run code from the folder.
        by_file: take ``tokenizer.json`` also where the class that AutoTokenizer chooses gives other tokens or other ids than
            the file. A donor's rows belong to the file; a source is used as AutoTokenizer gives it.

    Raises:
        InputError: the folder has no tokenizer, the tokenizer is broken, or it has no fast form.
    """
    from transformers import AutoTokenizer

    check_files(folder, side)
    with quiet_transformers():
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
        except (
            BaseException
        ) as error:  # the tokenizers library raises bare exceptions, and panics, on files it does not expect
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            reason = first_line(error)
            if own := _by_file(folder):
                return LoadedTokenizer(own, (_overruled(side, "", f"it cannot be loaded ({reason})"),))
            found = f"a tokenizer that transformers cannot load ({reason})"
            raise input_error(f"{side}, {folder}", found, "a tokenizer", "save it again") from None
    is_fast = getattr(tokenizer, "is_fast", False)
    own = None if is_fast and (not by_file or follows_file(tokenizer)) else _by_file(folder)
    if own is None and is_fast:
        return LoadedTokenizer(tokenizer)
    name = type(tokenizer).__name__
    if own is None:
        raise input_error(
            f"{side}, {folder}", f"{name}, which has no fast form", "a fast tokenizer", _slow_advice(folder)
        )
    differs = difference(tokenizer, own) if is_fast else "it has no fast form"
    if differs is None:
        return LoadedTokenizer(tokenizer)
    set_roles(own, {role: str(token) for role in ROLES if (token := getattr(tokenizer, f"{role}_token", None))})
    return LoadedTokenizer(own, (_overruled(side, f" ({name})", differs),))


def check_files(folder: Path, side: str) -> None:
    """Check that a folder holds a vocabulary, and that its tokenizer files are no git-LFS pointers.

    Raises:
        InputError: it does not, or they are.
    """
    files = [name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if not set(files) & set(VOCABULARIES):
        advice = "save the tokenizer into the folder"
        raise input_error(f"{side}, {folder}", "no tokenizer", "tokenizer.json or a vocabulary file", advice)
    for name in files:
        with open_file(folder / name, FileKind.TOKENIZER, inside=folder) as file:
            refuse_lfs_pointer(folder / name, file.read(64))


def _by_file(folder: Path) -> Tokenizer | None:
    """The tokenizer of ``tokenizer.json``; ``None`` if there is no such file or it cannot be read."""
    if not (folder / FILE).is_file():
        return None
    try:
        return read_file(folder / FILE)
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        return None


def _overruled(side: str, name: str, differs: str) -> str:
    """The note of a tokenizer class that differs from its file."""
    return (
        f"{side}: the tokenizer class that transformers chooses{name} differs from tokenizer.json: {differs};"
        ' tokenizer.json is used; "tokenizer_class": "PreTrainedTokenizerFast" in tokenizer_config.json may make other'
        " programs agree"
    )


def _slow_advice(folder: Path) -> str:
    """How a tokenizer without a fast form gets one."""
    if any((folder / name).is_file() for name in MERGES):
        return f"saltlm convert {folder} --out NEW_FOLDER writes tokenizer.json, if it gives the same ids; name that folder"
    return "transformers cannot convert it; write a tokenizer.json that gives the same ids, or choose another model"


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
