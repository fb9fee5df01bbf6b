"""The end of a run: its folder becomes a model folder, whole or not at all."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from ..files.json_files import read_json, write_json_whole
from ..files.open_file import FileKind, check_file, file_kind, read_file
from ..files.output_folder import whole_folder
from ..files.summary_file import (
    FORMAT,
    SCHEMA_VERSION,
    SUMMARY,
    AdaptationRecord,
    AdaptationRun,
    AdaptedSummary,
    schema_version_of,
)
from ..model.causal_lm import DTYPES
from ..model.portable import make_portable, with_rope_keys
from ..model.remote_code import drop_auto_maps, is_plain
from ..model.renaming import loaded_keys
from ..model.safetensors_header import DTYPES as STORED_DTYPES
from ..model.safetensors_header import read_header
from ..model.weights import INDEX, SINGLE, Weights, find_weights, with_dtype
from ..model.written_files import vocabulary_keys, written_files
from ..protocols import LanguageModel
from .checkpoints import METRICS, RECORD, read_metrics
from .curves import draw_run

_LOGGER = logging.getLogger("saltlm")

# Files of the trained model's folder that the written folder takes over: tokenizer, provenance, licences, custom code.
COPIED = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "tekken.json",
    "chat_template*",
    "*processor_config.json",
    "generation_config.json",
    "provenance.safetensors",
    "LICENSE*",
    "LICENCE*",
    "COPYING*",
    "NOTICE*",
    "USE_POLICY*",
)
CODE = "*.py"
# The sentence of a transfer's model card that an adaptation makes untrue.
NOT_ADAPTED = re.compile(r"\*\*It has not been adapted yet\*\*[^\n]*\n?")
SECTION = "\n## Adaptation\n"
CURVE = "curve.png"


def write_adapted(
    out: Path,
    source: Path,
    model: LanguageModel,
    weights: Mapping[str, torch.Tensor],
    *,
    dtype: str | None,
    record: AdaptationRun,
    identity: Mapping[str, Any],
    trust_remote_code: bool = False,
) -> None:
    """Replace the folder of a run by the model folder. The metrics are kept, the checkpoints are not.

    Args:
        out: the run's folder.
        source: folder of the model that was trained; tokenizer, provenance and licences are copied from it.
        model: the trained causal LM.
        weights: its state dict with whole tensors, a tied matrix as one tensor under two names.
        dtype: of the written weights; ``None`` keeps each tensor's dtype in ``source``.
        record: the entry ``adapted`` of ``saltlm.json``.
        identity: what the run was, for ``run.json``.
        trust_remote_code: whether the code of the model may run; without it, neither ``*.py`` nor ``auto_map`` is taken over.

    Raises:
        InputError: the disk is full; the run's folder and its checkpoints are unchanged.
        BackendError: another failure of the file system.
    """
    stored = find_weights(source, f"model {source}")
    loaded = loaded_keys(model, stored.files_of())
    weights = _cast(weights, stored_dtypes(stored, loaded.names), dtype)
    # Tensors that the class does not have, such as a multi-token-prediction layer: transformers has not read them.
    outside = [key for key in loaded.outside() if stored.files_of()[key] not in stored.beside]
    if outside or stored.beside:
        record = {**record, "untrained": [*outside, *stored.beside]}
        _LOGGER.warning(
            "%d tensors outside the model class (%s) were not trained and are written as they were",
            len(outside) + sum(len(stored.headers[name].entries) for name in stored.beside),
            ", ".join([*outside, *stored.beside][:3]),
        )
    needed = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    needed += sum(entry.end - entry.start for entry in map(stored.entry, outside))
    needed += sum(stored.headers[name].path.stat().st_size for name in stored.beside)
    advice = "make room and go on by --resume: the last checkpoint is safe"
    with whole_folder(out.resolve(), needed=needed, force=True, advice=advice) as folder:
        model.save_pretrained(folder, state_dict=weights)
        add_shard(folder, stored, outside)
        for name in stored.beside:
            check_file(source / name, inside=source)
            shutil.copyfile(source / name, folder / name)
        _write_config(source, folder, dtype)
        for path in sorted({path for pattern in COPIED for path in source.glob(pattern) if path.is_file()}):
            if path.match(CODE):  # tokenizer.py is among tokenizer*
                continue
            check_file(path, file_kind(path.name) or FileKind.TOKENIZER, inside=source)
            shutil.copyfile(path, folder / path.name)
        for path in sorted(path for path in source.glob(CODE) if path.is_file()):
            check_file(path, FileKind.TERMS, inside=source)
            if trust_remote_code or is_plain(path):
                shutil.copyfile(path, folder / path.name)
        if not trust_remote_code:
            drop_auto_maps(folder)
        make_portable(folder)
        (folder / "README.md").write_text(_card(source, record), encoding="utf-8")
        shutil.copyfile(out / METRICS, folder / METRICS)
        if (out / "tensorboard").is_dir():
            shutil.copytree(out / "tensorboard", folder / "tensorboard")
        draw_run(read_metrics(out / METRICS), folder / CURVE)
        write_json_whole(folder / RECORD, {"format": 1, "identity": identity, "finished": True})
        # Last, because it holds the digests of the other files.
        summary = adapted_summary(source, record)
        summary["files"] = written_files(folder, vocabulary_keys(summary.get("files", {})))
        write_json_whole(folder / SUMMARY, summary)


def add_shard(folder: Path, weights: Weights, keys: Sequence[str]) -> None:
    """Write tensors of another model folder into one more shard, unchanged, and into the index.

    Args:
        folder: the model folder that ``save_pretrained`` has written.
        weights: the weight files that hold the tensors.
        keys: of the tensors; without any, nothing is changed.
    """
    if not keys:
        return
    from safetensors.torch import save_file

    if (folder / SINGLE).is_file():
        old = {SINGLE: list(read_header(folder / SINGLE).entries)}
        index: dict[str, Any] = {"metadata": {}, "weight_map": {}}
        index["metadata"]["total_size"] = read_header(folder / SINGLE).data_bytes
    else:
        index = read_json(folder / INDEX)
        old = {}
        for key, file in index["weight_map"].items():
            old.setdefault(file, []).append(key)
    count, shard_of = len(old) + 1, {}
    for number, name in enumerate(sorted(old), 1):
        new = f"model-{number:05d}-of-{count:05d}.safetensors"
        (folder / name).rename(folder / new)
        shard_of.update(dict.fromkeys(old[name], new))
    last = f"model-{count:05d}-of-{count:05d}.safetensors"
    save_file({key: weights.tensor(key) for key in keys}, folder / last, metadata={"format": "pt"})
    index["metadata"]["total_size"] += read_header(folder / last).data_bytes
    index["weight_map"] = dict(sorted({**shard_of, **dict.fromkeys(keys, last)}.items()))
    write_json_whole(folder / INDEX, index)


def _cast(
    weights: Mapping[str, torch.Tensor], stored: Mapping[str, torch.dtype], dtype: str | None
) -> dict[str, torch.Tensor]:
    """The tensors in the dtypes to be written; a tensor without a counterpart in the source gets its most common dtype."""
    stored = {} if dtype else stored
    default = DTYPES[dtype] if dtype else max(stored.values(), key=list(stored.values()).count, default=torch.float32)
    cast: dict[tuple[int, torch.Size], torch.Tensor] = {}
    result = {}
    for name, tensor in weights.items():
        key = (tensor.data_ptr(), tensor.shape)
        # A tied matrix has two names and must stay one tensor; otherwise it would be written twice.
        if key not in cast:
            cast[key] = tensor.to(stored.get(name, default)) if tensor.is_floating_point() else tensor
        result[name] = cast[key]
    return result


def stored_dtypes(weights: Weights, names: Mapping[str, str]) -> dict[str, torch.dtype]:
    """Name in the model -> dtype of the floating-point tensors of a model folder.

    Args:
        weights: the weight files.
        names: key in the files -> name in the model.
    """
    return {
        names[key]: STORED_DTYPES[entry.dtype]
        for file, header in weights.headers.items()
        if file not in weights.beside
        for key, entry in header.entries.items()
        if entry.dtype in STORED_DTYPES
    }


def _write_config(source: Path, folder: Path, dtype: str | None) -> None:
    """Write the source's config.json, with the dtype of the weights if one was asked for."""
    config = with_rope_keys(read_json(source / "config.json", inside=source))
    if dtype:
        config = with_dtype(config, DTYPES[dtype], add=True)
    write_json_whole(folder / "config.json", config)
    if not (source / "generation_config.json").is_file():
        (folder / "generation_config.json").unlink(missing_ok=True)  # save_pretrained has written one


def adapted_summary(source: Path, record: AdaptationRun) -> AdaptedSummary:
    """Content of ``saltlm.json``.

    Args:
        source: folder of the model that was trained; the content of its ``saltlm.json`` is taken over.
        record: the entry ``adapted``; an earlier entry is kept in its ``before``.
    """
    path = source / SUMMARY
    summary: dict[str, Any] = {"format": FORMAT, "schema_version": SCHEMA_VERSION}
    if path.is_file():
        summary = read_json(path, inside=source)
    summary["schema_version"] = schema_version_of(summary)
    adapted: AdaptationRecord = {**record, "before": [summary["adapted"]] if "adapted" in summary else []}
    return cast(AdaptedSummary, {**summary, "saltlm_version": record["saltlm_version"], "adapted": adapted})


def _card(source: Path, record: AdaptationRun) -> str:
    """The source's model card with a section on the adaptation."""
    path = source / "README.md"
    card = "# An adapted causal language model\n"
    if path.is_file():
        card = read_file(path, FileKind.TERMS, inside=source).decode(errors="replace")
    card = NOT_ADAPTED.sub("", card).rstrip() + "\n"
    steps = f"{record['steps']:,}"
    if record["kept_step"] != record["steps"]:
        steps += f"; the weights are those of step {record['kept_step']:,}"
    rows = [("steps", steps), ("tokens", f"{record['tokens']:,}"), ("text, bytes", f"{record['bytes']:,}")]
    for values, label in (
        (record["heldout"], "held-out bits per byte, target language"),
        (record["source"], "the same, source language"),
    ):
        if values:
            after = next(value for step, value in values if step == record["kept_step"])
            rows.append((label, f"{values[0][1]:.3f} before, {after:.3f} after"))
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    names = ", ".join(f"`{Path(entry['path']).name}`" for entry in record["text"])
    return (
        f"{card}{SECTION}\nTrained further by saltlm {record['saltlm_version']} on {names}, in the phases"
        f" `{record['phases']}`.\n\n| | |\n| --- | --- |\n{table}\n"
        f"\n`metrics.jsonl`: one line per step; `{CURVE}`: its chart.\n"
    )
