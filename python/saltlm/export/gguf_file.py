"""Write a model folder as a GGUF file, for llama.cpp and the programs that are built on it.

Tensors are read, converted and written one at a time, so the memory does not grow with the model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..environment import quiet_transformers, require
from ..errors import input_error
from ..files.file_errors import output_errors
from ..files.json_files import read_json
from ..files.output_folder import missing_parents, remove_empty, sync_path
from ..model.locate import local_folder
from ..model.safetensors_header import DTYPES
from ..model.tokenizer import load_tokenizer
from ..model.weights import Weights, find_weights, release_pages
from ..progress import StageProgress
from ..protocols import Tokenizer
from .architectures import ADVICE, Architecture, architecture_of, rope_factors
from .body import Field, from_body
from .config import ExportConfig
from .tensors import Planned, plan
from .vocabulary import Vocabulary, build_vocabulary, refuse_differences

# Buffers of old checkpoints that no class reads.
BUFFERS = re.compile(r"(\.attn\.(masked_)?bias|rotary_emb\.inv_freq)$")
FILE_TYPES = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16", "Q8_0": "MOSTLY_Q8_0"}
ADVICE_OUT = "choose another file or make room"


@dataclasses.dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        out: the file.
        architecture: llama.cpp's name of the architecture.
        tokenizer: llama.cpp's names of the form of the tokenizer and of its pre-tokenizer.
        rows: number of rows of the input matrix.
        bytes: size of the file.
        compared: number of ordinary texts on which llama.cpp's segmentation was compared.
        different: how many of them it segments differently.
        notes: what a user has to know, one sentence each.
    """

    out: Path
    architecture: str
    tokenizer: tuple[str, str]
    rows: int
    bytes: int
    compared: int
    different: int
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON object."""
        return {**dataclasses.asdict(self), "out": str(self.out), "tokenizer": list(self.tokenizer)}


def export_gguf(
    model: str | Path,
    out: str | Path,
    config: ExportConfig | None = None,
    *,
    progress: StageProgress | None = None,
) -> Export:
    """Write a model folder as one GGUF file.

    The tokenizer is written in llama.cpp's form that segments text as the folder's tokenizer does; this is compared on text
    in many scripts and on the vocabulary.

    Args:
        model: a folder that saltlm wrote, or another causal LM: a folder or a hub name.
        out: the file to write.
        config: the options.
        progress: told the stage, the bytes written and the bytes in all.

    Raises:
        InputError: gguf is not installed, llama.cpp lacks the tokenizer's kind or would segment text differently, the
            architecture is not supported, or ``out`` cannot be written.
        BackendError: another failure of the file system.
    """
    config = config or ExportConfig()
    require("gguf", "gguf", "export")
    folder = local_folder(model, f"model {model}")
    destination = _destination(Path(out), config.force, protected=config.body)
    tokenizer = load_tokenizer(folder, f"model {model}").tokenizer
    raw = read_json(folder / "config.json")
    weights = find_weights(folder, f"model {model}")
    if config.body is None:
        name, settings, planned = _from_folder(folder, raw, weights, config)
    else:
        name, settings, planned = from_body(Path(config.body).expanduser(), folder, config.weights)
    rows = next(tensor.shape[0] for tensor in planned if tensor.name == "token_embd.weight")
    vocabulary = build_vocabulary(tokenizer, rows)
    if not config.allow_differences:
        refuse_differences(vocabulary, f"model {model}")
    notes = _notes(vocabulary)
    generation = folder / "generation_config.json"
    ids = _role_ids(tokenizer, read_json(generation) if generation.is_file() else {})
    size = _write(destination, name, folder, settings, planned, vocabulary, tokenizer, ids, progress)
    return Export(
        out=destination,
        architecture=name,
        tokenizer=(vocabulary.model, vocabulary.pre),
        rows=rows,
        bytes=size,
        compared=vocabulary.compared,
        different=len(vocabulary.difference.texts),
        notes=notes,
    )


def _destination(out: Path, force: bool, protected: str | None) -> Path:
    """The file to write, as an absolute path."""
    out = out.expanduser().resolve()
    if out.is_dir():
        raise input_error(f"output {out}", "a folder of that name", "the name of a new file", "add a file name")
    if protected is not None and Path(protected).expanduser().resolve() == out:
        raise input_error(f"output {out}", "the file that --body names", "another file", "choose another name")
    if os.path.lexists(out) and not force:
        raise input_error(f"output {out}", "an existing file", "a new one", "give --force to replace it")
    return out


def _from_folder(
    folder: Path, raw: Mapping[str, Any], weights: Weights, config: ExportConfig
) -> tuple[str, dict[str, Any], list[Planned]]:
    """Architecture, settings and tensors of a folder whose class saltlm writes itself."""
    import gguf
    from transformers import AutoConfig

    with quiet_transformers():
        loaded = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    class_name = (raw.get("architectures") or ["a model without a class name"])[0]
    architecture = architecture_of(loaded, class_name)
    settings = architecture.settings(loaded)
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.name)
    names = gguf.get_tensor_name_map(arch, int(settings["block_count"]))
    planned = []
    for key in sorted(weights.files_of()):
        if BUFFERS.search(key) or (key == "lm_head.weight" and loaded.tie_word_embeddings):
            continue
        new = names.get_name(key, (".weight", ".bias")) or names.get_name(f"transformer.{key}", (".weight", ".bias"))
        if new is None or (new.startswith("output.") and not architecture.head):
            expected = f"the tensors of {class_name} that llama.cpp has"
            raise input_error(f"model {folder.name}", f"the tensor {key}", expected, ADVICE)
        shape = weights.entry(key).shape
        stored = torch.empty(shape, dtype=DTYPES.get(weights.entry(key).dtype, torch.uint8), device="meta")
        read = functools.partial(_read, architecture, loaded, weights, key)
        like = architecture.change(loaded, key, stored).to(stored.dtype)
        planned.append(plan(key, new, config.weights, like, read))
    factors = rope_factors(loaded)
    if factors is not None:
        planned.append(Planned("rope_freqs.weight", tuple(factors.shape), "F32", factors.numpy))
    return architecture.name, settings, planned


def _read(architecture: Architecture, config: Any, weights: Weights, key: str) -> torch.Tensor:
    """A tensor of the folder as llama.cpp stores it."""
    return architecture.change(config, key, weights.tensor(key))


def _notes(vocabulary: Vocabulary) -> list[str]:
    notes = []
    if vocabulary.difference.texts:
        count = len(vocabulary.difference.texts)
        notes.append(f"llama.cpp segments {count:,} of {vocabulary.compared:,} texts differently from transformers")
    if vocabulary.difference.edges:
        notes.append("llama.cpp segments differently: " + "; ".join(vocabulary.difference.edges))
    if vocabulary.model == "bert":
        notes.append(
            "llama.cpp puts the tokens of bos and sep around every text of a WordPiece tokenizer: have the program leave"
            " special tokens out (add_special = false), or the model reads an end of text before its answer"
        )
        if not vocabulary.flags["tokenizer.ggml.normalizer.lowercase"]:
            notes.append("versions of llama.cpp before 2026 lowercase the text of every WordPiece tokenizer")
    return notes


def _role_ids(tokenizer: Tokenizer, generation: Mapping[str, Any]) -> dict[str, int | bool]:
    """Ids of special tokens and whether they are put around a text, by their keys in the file.

    Raises:
        InputError: the tokenizer has no eos, for which llama.cpp would take an ordinary token.
    """
    import gguf

    roles = {role: getattr(tokenizer, f"{role}_token_id", None) for role in ("bos", "eos", "unk", "sep", "pad", "mask")}
    ends = generation.get("eos_token_id")
    ends = [index for index in (ends if isinstance(ends, list) else [ends]) if isinstance(index, int)]
    if roles["eos"] is None and ends:
        roles["eos"] = ends[0]
    if roles["eos"] is None:
        advice = "name its end-of-text token in tokenizer_config.json"
        raise input_error("tokenizer", "no eos token", "one, because llama.cpp takes token 11 or 2 otherwise", advice)
    if roles["sep"] is None:  # llama.cpp ends every text of a WordPiece tokenizer with it
        roles["sep"] = roles["eos"]
    keys = gguf.Keys.Tokenizer
    ids: dict[str, int | bool] = {
        getattr(keys, f"{role.upper()}_ID"): index for role, index in roles.items() if index is not None
    }
    # A model may end its answer by another token than a text, such as <|eot_id|>.
    for key, index in zip((keys.EOT_ID, keys.EOM_ID), (i for i in ends if i != roles["eos"]), strict=False):
        ids[key] = index
    ids[keys.ADD_BOS], ids[keys.ADD_EOS] = _adds_bos_eos(tokenizer, roles["bos"], roles["eos"])
    return ids


def _adds_bos_eos(tokenizer: Tokenizer, bos: int | None, eos: int | None) -> tuple[bool, bool]:
    """Whether the tokenizer puts bos before a text and eos after it."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    more = len(whole) - len(bare)
    before = more > 0 and bos is not None and whole[0] == bos
    return before, more > int(before) and whole[-1] == eos


def _write(
    out: Path,
    architecture: str,
    folder: Path,
    settings: Mapping[str, Any],
    planned: list[Planned],
    vocabulary: Vocabulary,
    tokenizer: Tokenizer,
    ids: Mapping[str, int | bool],
    progress: StageProgress | None,
) -> int:
    """Write the file under a hidden name, then rename it; returns its size in bytes."""
    import gguf

    kinds = {tensor.name: gguf.GGMLQuantizationType[tensor.kind] for tensor in planned}
    sizes = {t.name: int(np.prod(gguf.quant_shape_to_byte_shape(t.shape, kinds[t.name]))) for t in planned}
    with output_errors(out, sum(sizes.values()), ADVICE_OUT), _whole_file(out) as path:
        writer = gguf.GGUFWriter(path, architecture)
        try:
            _add_settings(writer, folder, architecture, settings, planned)
            _add_vocabulary(writer, vocabulary, tokenizer, ids)
            for tensor in planned:
                shape = gguf.quant_shape_to_byte_shape(tensor.shape, kinds[tensor.name])
                writer.add_tensor_info(tensor.name, shape, np.dtype(np.uint8), sizes[tensor.name], kinds[tensor.name])
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            written, total = 0, sum(sizes.values())
            for tensor in planned:
                writer.write_tensor_data(tensor.data())
                release_pages()
                written += sizes[tensor.name]
                if progress:
                    progress("write", written, total)
        finally:
            writer.close()
        return path.stat().st_size


def _add_settings(
    writer: Any, folder: Path, architecture: str, settings: Mapping[str, Any], planned: list[Planned]
) -> None:
    import gguf

    for key, value in settings.items():
        if isinstance(value, Field):
            writer.add_key_value(key, value.value, value.kind, value.item_kind)
        elif isinstance(value, float):
            writer.add_float32(f"{architecture}.{key}", value)
        elif isinstance(value, str):
            writer.add_string(f"{architecture}.{key}", value)
        else:
            writer.add_uint32(f"{architecture}.{key}", value)
    if "general.type" not in settings:
        matrices = [tensor.kind for tensor in planned if len(tensor.shape) > 1]
        common = max(sorted(set(matrices)), key=matrices.count)
        writer.add_type(gguf.GGUFType.MODEL)
        writer.add_file_type(int(gguf.LlamaFileType[FILE_TYPES[common]]))
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if "general.name" not in settings:
        writer.add_name(folder.name)


def _add_vocabulary(writer: Any, vocabulary: Vocabulary, tokenizer: Tokenizer, ids: Mapping[str, int | bool]) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges is not None:
        writer.add_token_merges(vocabulary.merges)
    if vocabulary.charsmap is not None:
        writer.add_precompiled_charsmap(vocabulary.charsmap)
    for key, flag in {**vocabulary.flags, **ids}.items():
        if isinstance(flag, bool):
            writer.add_bool(key, flag)
        else:
            writer.add_uint32(key, flag)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


@contextlib.contextmanager
def _whole_file(out: Path) -> Iterator[Path]:
    """Yield a hidden path beside ``out``; when the block ends without an error, the file there is renamed to ``out``."""
    new_parents = missing_parents(out)
    path = out.with_name(f".{out.name}.saltlm-{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield path
        sync_path(path)
        path.replace(out)
        sync_path(out.parent)
    except BaseException:
        path.unlink(missing_ok=True)
        remove_empty(new_parents)
        raise
