"""Read of a model folder only what a transfer needs: config, tokenizer and the vocabulary's rows, mapped from the file."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..environment import quiet_transformers
from ..errors import first_line, input_error
from ..files.json_files import read_json
from ..files.read import refuse_lfs_pointer
from .architecture import Architecture, find_architecture
from .safetensors_stream import byte_blocks
from .weights import INDEX, Weights, check_rows, check_shape, find_weights, match_names, release_pages

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt",
    "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "sentencepiece.model", "source.spm",
    "spm.model", "tekken.json", "vocab.tiktoken", "qwen.tiktoken", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
# Any one of these is a vocabulary; without one transformers may make an empty tokenizer from the config's class.
VOCABULARIES = (
    "tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
    "sentencepiece.model", "source.spm", "spm.model", "tekken.json", "vocab.tiktoken", "qwen.tiktoken",
)  # fmt: skip
# Files that say under which terms a model may be used; its card, README.md, names the licence.
TERMS = ("LICENSE*", "LICENCE*", "COPYING*", "NOTICE*", "USE_POLICY*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A causal LM, read as far as a transfer needs it.

    Attributes:
        name: as the caller gave it.
        folder: the local folder its files are in (for a GGUF file, its converted folder in the cache).
        given_folder: the local folder that was named, the same but for GGUF.
        revision: commit on the hub, or ``None`` for a local folder.
        config: config.json as it is in the file.
        generation_config: generation_config.json, or ``None`` where there is none.
        tokenizer: the fast tokenizer.
        tokens_without_row: added tokens whose id has no row, with that id.
        input_rows: [rows, D] in the stored dtype, mapped from the file.
        output_rows: [rows, D'] of an untied head, or ``None`` where the head is the input matrix.
        output_bias: [rows], or ``None`` where the head has none.
        input_name: key of the input matrix in the checkpoint.
        output_name: key of the head, or ``None`` where it is tied.
        bias_name: key of the head's bias, or ``None``.
        copies: key -> the key of the same tensor above, where the checkpoint holds one twice.
        shards: key of every tensor -> name of the file that holds it.
        weights: the files by their headers.
        architecture: the model class.
        vocab_key: key of config.json that holds the vocabulary size.
        config_says_tied: the config ties the head, whatever the tensors say.
        trust_remote_code: code of the checkpoint was let run.
        files: name -> sha256 of what was read; embedding tensors as ``FILE#KEY``; files too large to hash with size and time.
    """

    name: str
    folder: Path
    given_folder: Path
    revision: str | None
    config: Mapping[str, Any] = dataclasses.field(repr=False)
    generation_config: Mapping[str, Any] | None = dataclasses.field(repr=False)
    tokenizer: Any = dataclasses.field(repr=False)
    tokens_without_row: Mapping[str, int]
    input_rows: torch.Tensor = dataclasses.field(repr=False)
    output_rows: torch.Tensor | None = dataclasses.field(repr=False)
    output_bias: torch.Tensor | None = dataclasses.field(repr=False)
    input_name: str
    output_name: str | None
    bias_name: str | None
    copies: Mapping[str, str]
    shards: Mapping[str, str] = dataclasses.field(repr=False)
    weights: Weights = dataclasses.field(repr=False)
    architecture: str
    vocab_key: str
    config_says_tied: bool
    trust_remote_code: bool
    files: Mapping[str, str] = dataclasses.field(repr=False)

    @property
    def tied(self) -> bool:
        """Head and input are one matrix."""
        return self.output_rows is None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Donor:
    """A target-language PLM, read as far as a transfer needs it; the attributes are those of :class:`Source`.

    Attributes:
        name: as the caller gave it.
        folder: the local folder its files are in.
        revision: commit on the hub, or ``None`` for a local folder.
        config: config.json as it is in the file.
        tokenizer: the fast tokenizer.
        tokens_without_row: added tokens whose id has no row, with that id.
        input_rows: [rows, E] in the stored dtype, mapped from the file.
        input_name: key of the input matrix in the checkpoint.
        architecture: the model class.
        files: name -> sha256 of what was read, as in :class:`Source`.
    """

    name: str
    folder: Path
    revision: str | None
    config: Mapping[str, Any] = dataclasses.field(repr=False)
    tokenizer: Any = dataclasses.field(repr=False)
    tokens_without_row: Mapping[str, int]
    input_rows: torch.Tensor = dataclasses.field(repr=False)
    input_name: str
    architecture: str
    files: Mapping[str, str] = dataclasses.field(repr=False)


def load_source(
    name: str | Path,
    *,
    gguf_file: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Source:
    """Load config, tokenizer and vocabulary rows of a causal LM; no other tensor is read.

    Args:
        name: a local folder or a hub name, as transformers takes them.
        gguf_file: name of a GGUF file in it, which is converted first and kept in the cache.
        revision: branch, tag or commit on the hub.
        trust_remote_code: let transformers run code that the checkpoint brings along.

    Raises:
        InputError: it is missing, broken, pickled, quantized, no causal LM, or its parts disagree.
    """
    side = f"source {name}"
    given_folder, commit = _resolve(str(name), side, revision, gguf_file)
    folder, files = given_folder, {}
    if gguf_file is not None:
        from .gguf import convert

        if not os.path.isfile(given_folder / gguf_file):
            found = ", ".join(sorted(path.name for path in given_folder.glob("*.gguf"))[:5]) or "none"
            raise input_error(side, f"no {gguf_file}", f"one of the GGUF files there: {found}", "check the name")
        folder, files[gguf_file] = convert(given_folder / gguf_file)
    config = read_json(folder / "config.json")
    shape = find_architecture(folder, config, side=side, causal=True, trust_remote_code=trust_remote_code)
    weights = find_weights(folder, side)
    inputs, outputs, biases = _keys(weights, shape, side)
    tokenizer = load_tokenizer(folder, side, trust_remote_code)
    without_row = tokens_without_row(tokenizer, shape.rows, side)
    generation = folder / "generation_config.json"
    kept = (inputs[0], *outputs[:1], *biases[:1])
    files |= hash_files(folder, weights) | _read_rows(weights, kept, tokenizer, side)
    return Source(
        name=str(name),
        folder=folder,
        given_folder=given_folder,
        revision=commit,
        config=config,
        generation_config=read_json(generation) if generation.is_file() else None,
        tokenizer=tokenizer,
        tokens_without_row=without_row,
        input_rows=weights.tensor(inputs[0]),
        output_rows=weights.tensor(outputs[0]) if outputs else None,
        output_bias=weights.tensor(biases[0]) if biases else None,
        input_name=inputs[0],
        output_name=outputs[0] if outputs else None,
        bias_name=biases[0] if biases else None,
        copies={key: keys[0] for keys in (inputs, outputs, biases) for key in keys[1:]},
        shards=weights.files_of(),
        weights=weights,
        architecture=shape.name,
        vocab_key=shape.vocab_key,
        config_says_tied=shape.tied,
        trust_remote_code=trust_remote_code,
        files=files,
    )


def load_donor(name: str | Path, *, revision: str | None = None, trust_remote_code: bool = False) -> Donor:
    """Load config, tokenizer and input rows of a PLM: encoder, decoder or encoder-decoder.

    Args:
        name: a local folder or a hub name, as transformers takes them.
        revision: branch, tag or commit on the hub.
        trust_remote_code: let transformers run code that the checkpoint brings along.

    Raises:
        InputError: it is missing, broken, pickled, quantized, no text model, or its parts disagree.
    """
    side = f"target {name}"
    folder, commit = _resolve(str(name), side, revision, None)
    config = read_json(folder / "config.json")
    shape = find_architecture(folder, config, side=side, causal=False, trust_remote_code=trust_remote_code)
    weights = find_weights(folder, side)
    key = _need(weights, shape.input_names, side, "input matrix")[0]
    check_shape(weights, key, (shape.rows, shape.width), side, "input matrix")
    tokenizer = load_tokenizer(folder, side, trust_remote_code)
    without_row = tokens_without_row(tokenizer, shape.rows, side)
    files = hash_files(folder, weights) | _read_rows(weights, (key,), tokenizer, side)
    return Donor(
        name=str(name),
        folder=folder,
        revision=commit,
        config=config,
        tokenizer=tokenizer,
        tokens_without_row=without_row,
        input_rows=weights.tensor(key),
        input_name=key,
        architecture=shape.name,
        files=files,
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


def local_folder(name: str | Path, side: str, *, revision: str | None = None, gguf_file: str | None = None) -> Path:
    """The folder a model's files are in, fetched from the hub if that is where it is.

    Raises:
        InputError: there is none.
    """
    return _resolve(str(name), side, revision, gguf_file)[0]


def _resolve(name: str, side: str, revision: str | None, gguf_file: str | None) -> tuple[Path, str | None]:
    """Local folder of a model, and its commit if it comes from the hub."""
    path = Path(name).expanduser()
    # os.path's tests, unlike pathlib's, take a name that is too long or forbidden for one that is not there.
    if os.path.isdir(path):
        if gguf_file is None and not (path / "config.json").exists():
            advice = "name the .gguf file in it with --gguf-file" if any(path.glob("*.gguf")) else "check the path"
            raise input_error(side, "a folder with no config.json", "a model folder", advice)
        return path.resolve(), None
    if os.path.exists(path):
        advice = "give its folder, and its name with --gguf-file" if path.suffix == ".gguf" else "give its folder"
        raise input_error(side, "a file", "a model folder or a hub name", advice)
    return _from_hub(name, side, revision, gguf_file)


def _from_hub(name: str, side: str, revision: str | None, gguf_file: str | None) -> tuple[Path, str | None]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    wanted = ["config.json", "generation_config.json", *TOKENIZER_FILES, "README.md", *TERMS]
    wanted += ["*.py", gguf_file] if gguf_file else ["*.py", "model*.safetensors", INDEX]
    no_such = ("no such folder", "a model folder or a hub name", "check the path")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise input_error(side, *no_such)
    try:
        with quiet_transformers():
            folder = snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=["*/*"])
    except HFValidationError:
        raise input_error(side, *no_such) from None
    except Exception as error:  # the hub client raises errors of its own, of its HTTP library and of the system
        reason = first_line(error)
        raise input_error(
            side,
            f"no such folder, and the hub gives none ({reason})",
            "a local folder, or a hub name that is cached or reachable",
            "check the name; offline, fetch it first",
        ) from None
    return Path(folder), Path(folder).name


def _need(weights: Weights, names: tuple[str, ...], side: str, what: str) -> tuple[str, ...]:
    keys = match_names(weights, names, side)
    if not keys:
        some = ", ".join(sorted(weights.files_of())[:3])
        raise input_error(
            f"{side}, {what}", f"no tensor {names[0]} (there are {some}, ...)", "it in the weights",
            "the checkpoint is incomplete or of another model; fetch it again",
        )  # fmt: skip
    return keys


def _keys(weights: Weights, shape: Architecture, side: str) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Checkpoint keys of input matrix, untied head and head bias; the first of each is read, the rest are copies of it."""
    inputs = _need(weights, shape.input_names, side, "input matrix")
    for key in inputs:
        check_shape(weights, key, (shape.rows, shape.width), side, "input matrix")
    outputs: tuple[str, ...] = ()
    if not shape.tied:
        outputs = _need(weights, shape.output_names, side, "head")
        for key in outputs:
            check_shape(weights, key, (shape.rows, shape.output_width), side, "head")
    elif different := [key for key in inputs[1:] if not _equal(weights, inputs[0], key)]:
        # The config ties the two, the file holds two different matrices: transformers then leaves them untied, and so do we.
        outputs = tuple(different)
        inputs = tuple(key for key in inputs if key not in different)
    biases = _need(weights, shape.bias_names, side, "head bias") if shape.bias_names else ()
    for key in biases:
        check_shape(weights, key, (shape.rows,), side, "head bias")
    return inputs, outputs, biases


def _equal(weights: Weights, one: str, other: str) -> bool:
    if weights.entry(one).dtype != weights.entry(other).dtype:
        return False
    blocks = zip(byte_blocks(weights.tensor(one)), byte_blocks(weights.tensor(other)), strict=True)
    for a, b in blocks:
        if a.tobytes() != b.tobytes():
            return False
        release_pages()
    return True


def _read_rows(weights: Weights, keys: tuple[str, ...], tokenizer: Any, side: str) -> dict[str, str]:
    tokens = {index: token for token, index in tokenizer.get_vocab().items()}
    where = weights.files_of()
    return {f"{where[key]}#{key}": check_rows(weights.tensor(key), key, side, tokens) for key in keys}


def hash_files(folder: Path, weights: Weights) -> dict[str, str]:
    """sha256 of the small files; weights can be too large to hash whole, so size and time of change stand for them."""
    found = {}
    for name in ("config.json", "generation_config.json", *TOKENIZER_FILES, INDEX):
        if (folder / name).is_file() and not (name == INDEX and weights.index is None):
            found[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    for name, header in weights.headers.items():
        stat = header.path.stat()
        changed = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(stat.st_mtime))
        found[name] = f"not hashed: {stat.st_size} bytes, changed {changed}"
    return found
