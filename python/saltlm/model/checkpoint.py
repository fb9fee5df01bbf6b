"""Read from a model folder what a transfer needs: config, tokenizer and vocabulary rows, mapped from the files."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from ..errors import input_error
from ..files.hashing import sha256_file
from ..files.json_files import read_json
from ..protocols import Tokenizer
from .architecture import Architecture, find_architecture
from .locate import resolve_model
from .positions import needs_pad
from .processor import marker_tokens, processor_template, with_defaults
from .quantization import QUANTIZATION_FILES, declared_quantization, quantized_keys, undeclared_warning
from .renaming import LoadedKeys, loaded_keys
from .tokenizer import TOKENIZER_FILES, load_tokenizer, tokens_without_row
from .tokenizer_alone import TokenizerAlone, find_alone
from .vocabulary_rows import VocabularyKeys, find_keys, read_digests
from .weights import ADAPTER, INDEX, Weights, find_weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Config, tokenizer and input rows of a model folder.

    Attributes:
        name: folder or hub name that the caller gave.
        folder: local folder of its files (for a GGUF file, the converted folder in the cache).
        revision: commit on the hub; ``None`` for a local folder.
        config: content of config.json.
        tokenizer: the fast tokenizer.
        tokens_without_row: added token -> id, for ids that have no row.
        input_rows: [S, D] or [T, E] in the stored dtype, mapped from the file.
        input_name: key of the input matrix in the checkpoint.
        architecture: name of the model class; ``None`` for a tokenizer alone.
        notes: what a user should know about how it was loaded; they become warnings of the summary.
        files: file name -> sha256 of the file; ``FILE#KEY`` -> sha256 of a vocabulary tensor. For a weight file, size and
            time of change stand in place of the sha256.
    """

    name: str
    folder: Path
    revision: str | None
    config: Mapping[str, Any] = dataclasses.field(repr=False)
    tokenizer: Tokenizer = dataclasses.field(repr=False)
    tokens_without_row: Mapping[str, int]
    input_rows: torch.Tensor = dataclasses.field(repr=False)
    input_name: str
    architecture: str | None
    notes: tuple[str, ...] = ()
    files: Mapping[str, str] = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Donor(Checkpoint):
    """A target-language PLM. Its head is not read.

    Attributes:
        alone: the tokenizer, for a target that is a tokenizer alone; ``input_rows`` then has no rows. Else ``None``.
    """

    alone: TokenizerAlone | None = None

    @property
    def path(self) -> Path:
        """What a transfer reads, and must not write to."""
        return self.folder if self.alone is None else self.alone.path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """One more matrix of vocabulary rows: a table of per-layer inputs, or one of a multi-token-prediction layer.

    Attributes:
        key: its key in the checkpoint.
        role: ``input`` or ``output``: which rows it holds; ``bias`` of an output table.
        rows: [S, width], or [S] of a bias, in the stored dtype, mapped from the file. A table of per-layer inputs may have
            fewer rows: the model reads row 0 for a token beyond them.
        names: names of the table in the model class; empty if the class does not have it.
    """

    key: str
    role: Literal["input", "output", "bias"]
    rows: torch.Tensor = dataclasses.field(repr=False)
    names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(Checkpoint):
    """A causal LM, with its head and the headers of all its tensors.

    Attributes:
        given_folder: local folder that holds the original files; it differs from ``folder`` only for GGUF.
        generation_config: content of generation_config.json; ``None`` if there is no such file.
        output_rows: [S, D'] of an untied head; ``None`` if the head is the input matrix.
        output_bias: [S] of the head; ``None`` if it has no bias.
        output_name: key of the head; ``None`` if it is tied.
        bias_name: key of the head's bias; ``None`` if it has none.
        copies: key of a duplicate tensor -> key of the tensor that it duplicates.
        shards: key of every tensor -> name of the file that holds it.
        names: key of every tensor -> its name in the model class.
        weights: headers of the weight files.
        text_path: leads from the config to that of the text part; empty for a text model.
        markers: tokens that mark images, sound and video in a text, by ascending id; none for a text model.
        size_paths: paths of the entries of config.json that hold the number of rows, such as ``("text_config", "vocab_size")``.
        config_says_tied: whether the config ties the head; the stored tensors may differ.
        trust_remote_code: whether code of the checkpoint may run.
        tables: further matrices of vocabulary rows.
        reads_pad: whether the model class reads the padding id when it runs (:mod:`saltlm.model.positions`).
        needs_pad: whether the model cannot do without a padding id.
    """

    given_folder: Path
    generation_config: Mapping[str, Any] | None = dataclasses.field(repr=False)
    output_rows: torch.Tensor | None = dataclasses.field(repr=False)
    output_bias: torch.Tensor | None = dataclasses.field(repr=False)
    output_name: str | None
    bias_name: str | None
    copies: Mapping[str, str]
    shards: Mapping[str, str] = dataclasses.field(repr=False)
    names: Mapping[str, str] = dataclasses.field(repr=False)
    weights: Weights = dataclasses.field(repr=False)
    text_path: tuple[str, ...]
    markers: tuple[str, ...]
    size_paths: tuple[tuple[str, ...], ...]
    config_says_tied: bool
    trust_remote_code: bool
    tables: tuple[Table, ...] = ()
    reads_pad: bool = False
    needs_pad: bool = False

    @property
    def tied(self) -> bool:
        """Whether head and input matrix are one tensor."""
        return self.output_rows is None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Opened:
    """The fields of :class:`Checkpoint`, and the objects that they were read from."""

    common: dict[str, Any]
    shape: Architecture
    weights: Weights
    loaded: LoadedKeys
    keys: VocabularyKeys


def load_source(
    name: str | Path,
    *,
    gguf_file: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Source:
    """Load config, tokenizer and vocabulary rows of a causal LM. No other tensor is read.

    Args:
        name: a local folder or a hub name.
        gguf_file: name of a GGUF file in that folder; it is converted first, and the result is kept in the cache.
        revision: branch, tag or commit on the hub.
        trust_remote_code: let transformers run code from the checkpoint.

    Raises:
        InputError: the model is missing, broken, pickled or not a causal LM, its vocabulary rows are
            quantized, or its files contradict each other.
    """
    side = f"source {name}"
    given_folder, commit = resolve_model(str(name), side, revision, gguf_file)
    folder, gguf_digest = given_folder, {}
    if gguf_file is not None:
        folder, gguf_digest[gguf_file] = _convert_gguf(given_folder, gguf_file, side)
    opened = _open(str(name), folder, commit, side, causal=True, trust_remote_code=trust_remote_code)
    weights, keys = opened.weights, opened.keys
    generation = folder / "generation_config.json"
    opened.common["notes"] = (*opened.common["notes"], *_notes(folder, opened))
    opened.common["files"] = gguf_digest | opened.common["files"]
    markers = _markers(opened) if opened.shape.text_path else ()
    return Source(
        **opened.common,
        given_folder=given_folder,
        generation_config=read_json(generation) if generation.is_file() else None,
        output_rows=weights.tensor(keys.output) if keys.output else None,
        output_bias=weights.tensor(keys.bias) if keys.bias else None,
        output_name=keys.output,
        bias_name=keys.bias,
        copies=keys.copies,
        shards=weights.files_of(),
        names=opened.loaded.names,
        weights=weights,
        text_path=opened.shape.text_path,
        markers=markers,
        size_paths=opened.shape.size_paths,
        config_says_tied=opened.shape.tied,
        trust_remote_code=trust_remote_code,
        tables=tuple(Table(key=t.key, role=t.role, rows=weights.tensor(t.key), names=t.names) for t in keys.tables),
        reads_pad=opened.shape.reads_pad,
        # Code that joins the parts of a model may put the padding id in the place of an image's tokens.
        needs_pad=bool(opened.shape.text_path and opened.shape.reads_pad)
        or needs_pad(
            folder, opened.common["config"], reads_pad=opened.shape.reads_pad, trust_remote_code=trust_remote_code
        ),
    )


def _notes(folder: Path, opened: _Opened) -> tuple[str, ...]:
    """What a user should know about the files of a source."""
    weights, keys, loaded = opened.weights, opened.keys, opened.loaded
    notes = []
    outside = loaded.outside()
    packed = quantized_keys(weights, outside)
    declared = declared_quantization(opened.common["config"], folder)
    if packed and not (declared and declared.by_config):
        notes.append(undeclared_warning(packed, declared))
    if weights.unwrapped:
        key, name = next(iter(weights.unwrapped.items()))
        notes.append(f"the source's keys are those of a wrapped or compiled model: {key} is written as {name}")
    if (folder / ADAPTER).is_file():
        notes.append(
            f"the source's folder holds an adapter ({ADAPTER}) beside the model: it is neither applied nor copied; merge it"
            " with peft (merge_and_unload) first if it belongs to the model"
        )
    copied = [key for key in keys.copies if key in set(outside)]
    tables = [table.key for table in keys.tables if not table.names]
    if copied or tables:
        names = ", ".join([*copied, *tables][:4])
        notes.append(
            f"{len(copied) + len(tables)} tensors with a row for each token lie outside the model class ({names}):"
            f" {len(copied)} equal rows of the model and get the same new rows, {len(tables)} are built by the same"
            " method from their own rows; adapt does not train them"
        )
    return tuple(notes)


def load_donor(name: str | Path, *, revision: str | None = None, trust_remote_code: bool = False) -> Donor:
    """Load config, tokenizer and input rows of a PLM (an encoder, a decoder or an encoder-decoder), or a tokenizer alone.

    Args:
        name: a local folder, a hub name, or a ``tokenizer.json``. A folder without weights is a tokenizer alone.
        revision: branch, tag or commit on the hub.
        trust_remote_code: let transformers run code from the checkpoint.

    Raises:
        InputError: the model is missing, broken, pickled or not a text model, its input rows are
            quantized, or its files contradict each other.
    """
    side = f"target {name}"
    if alone := find_alone(name):
        return _load_alone(str(name), alone, None, side, trust_remote_code)
    folder, commit = resolve_model(str(name), side, revision, None)
    if commit and not (folder / "config.json").is_file() and (alone := find_alone(folder)):
        return _load_alone(str(name), alone, commit, side, trust_remote_code)
    return Donor(**_open(str(name), folder, commit, side, causal=False, trust_remote_code=trust_remote_code).common)


def _markers(opened: _Opened) -> tuple[str, ...]:
    """The tokens that mark images, sound and video.

    The tokenizer gets the chat template of an older processor, and config.json the entries that it leaves to its class.
    """
    common, config = opened.common, opened.shape.model.config
    tokenizer = common["tokenizer"]
    tokenizer.chat_template = tokenizer.chat_template or processor_template(common["folder"])
    common["config"] = with_defaults(common["config"], config, opened.shape.size_paths)
    return marker_tokens(config, common["folder"], tokenizer)


def _load_alone(name: str, alone: TokenizerAlone, commit: str | None, side: str, trust_remote_code: bool) -> Donor:
    """A target without rows."""
    loaded = alone.load(side, trust_remote_code)
    return Donor(
        name=name,
        folder=alone.folder,
        revision=commit,
        config={},
        tokenizer=loaded.tokenizer,
        tokens_without_row={},
        input_rows=torch.empty(0, 0),
        input_name="",
        architecture=None,
        notes=(f"{side} has no weights: its tokenizer alone is used", *loaded.notes),
        files=alone.hashes(),
        alone=alone,
    )


def _convert_gguf(folder: Path, file: str, side: str) -> tuple[Path, str]:
    """Convert a GGUF file of the folder; returns the converted folder and the sha256 of the file."""
    from .gguf import convert

    if not os.path.isfile(folder / file):
        names = ", ".join(sorted(path.name for path in folder.glob("*.gguf"))[:5]) or "none"
        raise input_error(side, f"no {file}", f"one of the GGUF files there: {names}", "check the name")
    return convert(folder / file)


def _open(name: str, folder: Path, commit: str | None, side: str, *, causal: bool, trust_remote_code: bool) -> _Opened:
    """Read and check what source and donor have in common."""
    config = read_json(folder / "config.json")
    shape = find_architecture(folder, config, side=side, causal=causal, trust_remote_code=trust_remote_code)
    weights = find_weights(folder, side)
    loaded = loaded_keys(shape.model, weights.files_of(), weights.unwrapped)
    declared = declared_quantization(config, folder)
    keys = find_keys(weights, shape, loaded, side, head=causal, declared=declared)
    read = load_tokenizer(folder, side, trust_remote_code, by_file=not causal)
    tokenizer = read.tokenizer
    without_row = tokens_without_row(tokenizer, shape.rows, side)
    common = {
        "name": name,
        "folder": folder,
        "revision": commit,
        "config": config,
        "tokenizer": tokenizer,
        "tokens_without_row": without_row,
        "input_rows": weights.tensor(keys.input),
        "input_name": keys.input,
        "architecture": shape.name,
        "notes": read.notes,
        "files": hash_files(folder, weights) | read_digests(weights, keys, tokenizer, side),
    }
    return _Opened(common=common, shape=shape, weights=weights, loaded=loaded, keys=keys)


def hash_files(folder: Path, weights: Weights) -> dict[str, str]:
    """File name -> sha256; of weight files, which can be too large to hash, size and time of change."""
    digests = {}
    for name in ("config.json", "generation_config.json", *TOKENIZER_FILES, *QUANTIZATION_FILES, INDEX):
        if (folder / name).is_file() and not (name == INDEX and weights.index is None):
            digests[name] = sha256_file(folder / name)
    for name, header in weights.headers.items():
        stat = header.path.stat()
        changed = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(stat.st_mtime))
        digests[name] = f"not hashed: {stat.st_size} bytes, changed {changed}"
    return digests
