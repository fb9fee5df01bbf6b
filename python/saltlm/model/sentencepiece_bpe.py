"""SentencePiece's form of a BPE tokenizer: one score for each token, and the file tokenizer.model.

SentencePiece and llama.cpp know no merges. They join two neighbours if the vocabulary has the joined token, the token with
the highest score first. A tokenizer.json with merges is the same tokenizer if its merges are exactly those joins in that
order, as in every tokenizer that was converted from SentencePiece. Whether that is so is tested on text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .segmentation import check_texts, compare, is_byte_level

BYTE = re.compile(r"<0x[0-9A-F]{2}>")
# Types of SentencePiece's pieces; llama.cpp uses the same numbers.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE_PIECE = 1, 2, 3, 4, 5, 6
FILLER = re.compile(r"<no token \d+>")  # placeholder of an expanded vocabulary


def is_sentencepiece_bpe(content: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json is BPE over text with ``▁`` for a blank and with a token for each byte.

    Args:
        content: the tokenizer.json.
    """
    model = content["model"]
    plain = not model.get("end_of_word_suffix") and not model.get("continuing_subword_prefix")
    if model.get("type") != "BPE" or not plain or is_byte_level(content) or not model.get("byte_fallback"):
        return False
    return all(f"<0x{byte:02X}>" in model["vocab"] for byte in range(256))


def piece_types(content: Mapping[str, Any], tokens: Sequence[str]) -> list[int]:
    """Type of each token: normal, unknown, control, user-defined, unused or byte.

    Args:
        content: the tokenizer.json.
        tokens: spelling of each id, added tokens included.
    """
    model = content["model"]
    added = {token["id"]: token for token in content.get("added_tokens", ())}
    unknown = model.get("unk_token")
    unknown_id = model.get("unk_id")
    types = []
    for index, spelling in enumerate(tokens):
        if index == unknown_id or (unknown is not None and spelling == unknown):
            types.append(UNKNOWN)
        elif index in added:
            types.append(CONTROL if added[index]["special"] else USER_DEFINED)
        elif BYTE.fullmatch(spelling) and model.get("byte_fallback"):
            types.append(BYTE_PIECE)
        else:
            types.append(UNUSED if FILLER.fullmatch(spelling) else NORMAL)
    return types


def scores_of(content: Mapping[str, Any], tokens: Sequence[str]) -> list[float]:
    """Score of each token: minus the rank of its first merge. Tokens that no merge makes come after all others.

    Args:
        content: a tokenizer.json with a BPE model.
        tokens: spelling of each id.
    """
    merges = content["model"]["merges"]
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        ranks.setdefault(left + right, rank)
    return [-float(ranks.get(token, len(merges))) for token in tokens]


def joined_content(content: Mapping[str, Any], tokens: Sequence[str], scores: Sequence[float]) -> dict[str, Any]:
    """The tokenizer.json of the tokenizer that joins neighbours by score, without its normalizer and pre-tokenizer.

    Args:
        content: the tokenizer.json that the tokens are from.
        tokens: spelling of each id.
        scores: score of each id.
    """
    vocabulary = content["model"]["vocab"]
    added = {token["content"] for token in content.get("added_tokens", ())}
    merges = []
    by_score = sorted((index for index in range(len(tokens))), key=lambda index: -scores[index])
    for index in by_score:
        token = tokens[index]
        if token not in vocabulary or token in added or BYTE.fullmatch(token):
            continue
        for at in range(1, len(token)):
            if token[:at] in vocabulary and token[at:] in vocabulary:
                merges.append([token[:at], token[at:]])
    model = {**content["model"], "merges": merges, "ignore_merges": False}
    return {**content, "model": model, "normalizer": None, "pre_tokenizer": None, "post_processor": None}


def with_blanks_marked(joined: Mapping[str, Any], prefix: bool) -> Any:
    """A ``tokenizers.Tokenizer`` of :func:`joined_content` that writes ``▁`` for each blank.

    Args:
        joined: what :func:`joined_content` returned.
        prefix: write a ``▁`` before the text, too.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import normalizers

    backend = Backend.from_str(json.dumps(joined))
    steps = [normalizers.Prepend("▁")] * prefix + [normalizers.Replace(" ", "▁")]
    backend.normalizer = normalizers.Sequence(steps)
    return backend


def tokenizer_model(tokenizer: Any) -> bytes | None:
    """Content of ``tokenizer.model``, which llama.cpp's converter and other programs read in place of tokenizer.json.

    Args:
        tokenizer: a fast tokenizer.

    Returns:
        ``None`` if SentencePiece's BPE would segment ordinary text differently, or the tokenizer is of another kind. Unigram
        tokenizers get no file: those programs take every such file for BPE.
    """
    from tokenizers import Tokenizer as Backend

    content = json.loads(tokenizer.backend_tokenizer.to_str())
    if not is_sentencepiece_bpe(content) or content["model"].get("unk_token") is None:
        return None
    size = max(tokenizer.get_vocab().values()) + 1
    by_id = {index: token for token, index in tokenizer.get_vocab().items()}
    if len(by_id) != size:
        return None
    tokens = [by_id[index] for index in range(size)]
    types = piece_types(content, tokens)
    if types.count(UNKNOWN) != 1:
        return None
    scores = scores_of(content, tokens)
    joined = joined_content(content, tokens, scores)
    backend = Backend.from_str(json.dumps({**content, "post_processor": None}))
    texts = check_texts(backend, content)
    for prefix in (True, False):
        if not compare(backend, with_blanks_marked(joined, prefix), texts).texts:
            roles = {role: getattr(tokenizer, f"{role}_token_id") for role in ("unk", "bos", "eos", "pad")}
            return _model_file(tokens, scores, types, roles, prefix)
    return None


def _model_file(
    tokens: Sequence[str],
    scores: Sequence[float],
    types: Sequence[int],
    roles: Mapping[str, int | None],
    prefix: bool,
) -> bytes:
    """SentencePiece's ModelProto, in protobuf's wire format: pieces, the trainer's settings, the normalizer's settings."""
    import struct

    pieces = b"".join(
        _field(1, _field(1, token.encode()) + b"\x15" + struct.pack("<f", score) + _field(3, kind))
        for token, score, kind in zip(tokens, scores, types, strict=True)
    )
    trainer = _field(3, 2) + _field(4, len(tokens)) + _field(35, 1)  # model type BPE, size, byte fallback
    for number, role in ((40, "unk"), (41, "bos"), (42, "eos"), (43, "pad")):
        index = roles[role]
        trainer += _field(number, -1 if index is None else index)
        if index is not None:
            trainer += _field(number + 5, tokens[index].encode())
    normalizer = _field(1, b"identity") + _field(3, int(prefix)) + _field(4, 0) + _field(5, 1)
    return pieces + _field(2, trainer) + _field(3, normalizer)


def _field(number: int, value: int | bytes) -> bytes:
    """A protobuf field: a varint, or bytes with their length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # negative numbers take ten bytes
    groups = [value & 127]
    while value := value >> 7:
        groups.append(value & 127)
    return bytes([*(group | 128 for group in groups[:-1]), groups[-1]])
