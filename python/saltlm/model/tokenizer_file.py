"""A tokenizer read from its ``tokenizer.json`` alone, and the comparison with what transformers' class makes of it.

transformers may choose a tokenizer class by ``tokenizer_class`` or by the model's type. Some classes take the vocabulary from
``tokenizer.json`` and put their own normalizer, pre-tokenizer and decoder in the place of the file's, without a word. The model
was trained with what its file says.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..alignment.roles import ROLES, roles_by_spelling
from ..environment import quiet_transformers
from ..errors import first_line
from ..protocols import Tokenizer

FILE = "tokenizer.json"
PROBES = (
    "The cat sat on the mat, and 1984 other cats didn't!",
    " a  leading blank,   runs of blanks\nand\n\nline breaks\tand tabs",
    "Über die Straße; naïve café; żółć; İstanbul; Đây là tiếng Việt",
    "Привет, мир! Γειά σου Κόσμε. שלום עולם",  # noqa: RUF001
    "القط جلس على السجادة। नमस्ते दुनिया สวัสดีชาวโลก",
    "中文字和汉字。日本語のテキスト、한국어 텍스트 🙂👍🏽",
    "def f(x):\n    return x**2  # 3.14 == 3,14",
)
SAMPLES = 200  # tokens of the vocabulary whose texts are compared too


def read_file(path: Path) -> Tokenizer:
    """The fast tokenizer of a ``tokenizer.json``, with the roles and settings that the files beside it name.

    Without such files, roles come from the usual spellings of its special tokens.

    Raises:
        Exception: the tokenizers library cannot read the file; it raises bare exceptions.
    """
    from transformers import PreTrainedTokenizerFast

    with quiet_transformers():
        if path.name == FILE:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(str(path.parent))
        else:
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path))
    if not any(getattr(tokenizer, f"{role}_token", None) for role in ROLES):
        added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
        special = {token.content: index for index, token in added.items() if token.special}
        set_roles(
            tokenizer, {role: tokenizer.convert_ids_to_tokens(i) for role, i in roles_by_spelling(special).items()}
        )
    return tokenizer


def set_roles(tokenizer: Any, tokens: dict[str, str]) -> None:
    """Give a tokenizer the roles that it lacks, as far as it has their tokens.

    Args:
        tokenizer: changed in place.
        tokens: role -> token.
    """
    vocabulary = tokenizer.get_vocab()
    for role, token in tokens.items():
        if getattr(tokenizer, f"{role}_token", None) is None and token in vocabulary:
            setattr(tokenizer, f"{role}_token", token)


def follows_file(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer is of the plain class, which takes ``tokenizer.json`` as it is."""
    from transformers import PreTrainedTokenizerFast

    return type(tokenizer) is PreTrainedTokenizerFast


def difference(loaded: Tokenizer, by_file: Tokenizer) -> str | None:
    """How a tokenizer differs from its file, in words; ``None`` if both have the same tokens and give the same ids.

    Args:
        loaded: as AutoTokenizer gives it.
        by_file: as :func:`read_file` gives it.
    """
    vocabulary = by_file.get_vocab()
    other = loaded.get_vocab()
    changed = [token for token, index in vocabulary.items() if other.get(token) != index]
    if changed:
        return f"{len(changed)} of its {len(vocabulary)} tokens are missing or have other ids, such as {changed[0]!r}"
    texts = [*PROBES, *_texts_of_tokens(by_file, len(vocabulary))]
    expected = by_file.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    try:
        found = loaded.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    except BaseException as error:  # a panic of the tokenizers library is no Exception
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        return f"it cannot segment text ({first_line(error)})"
    unequal = [text for text, one, two in zip(texts, expected, found, strict=True) if one.ids != two.ids]
    return f"it segments text otherwise, such as {unequal[0][:40]!r}" if unequal else None


def _texts_of_tokens(tokenizer: Tokenizer, size: int) -> Sequence[str]:
    """Texts of tokens spread over the vocabulary, one after the other."""
    ids = range(0, size, max(1, size // SAMPLES))
    texts = [tokenizer.decode([index], skip_special_tokens=True, clean_up_tokenization_spaces=False) for index in ids]
    return [" ".join(texts[start : start + 20]) for start in range(0, len(texts), 20)]
