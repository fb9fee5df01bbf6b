"""The end of a run: its folder becomes a model folder, whole or not at all."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

from ..files.json_files import write_json_whole
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
from ..model.safetensors_header import DTYPES as STORED_DTYPES
from ..model.weights import with_dtype
from ..protocols import LanguageModel
from .checkpoints import METRICS, RECORD, read_metrics
from .curves import draw_run

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
    "generation_config.json",
    "provenance.safetensors",
    "LICENSE*",
    "LICENCE*",
    "COPYING*",
    "NOTICE*",
    "USE_POLICY*",
    "*.py",
)
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

    Raises:
        InputError: the disk is full; the run's folder and its checkpoints are unchanged.
        BackendError: another failure of the file system.
    """
    weights = _cast(weights, source, dtype)
    needed = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    advice = "make room and go on by --resume: the last checkpoint is safe"
    with whole_folder(out.resolve(), needed=needed, force=True, advice=advice) as folder:
        model.save_pretrained(folder, state_dict=weights)
        _write_config(source, folder, dtype)
        for path in sorted({path for pattern in COPIED for path in source.glob(pattern) if path.is_file()}):
            shutil.copyfile(path, folder / path.name)
        write_json_whole(folder / SUMMARY, adapted_summary(source, record))
        (folder / "README.md").write_text(_card(source, record), encoding="utf-8")
        shutil.copyfile(out / METRICS, folder / METRICS)
        if (out / "tensorboard").is_dir():
            shutil.copytree(out / "tensorboard", folder / "tensorboard")
        draw_run(read_metrics(out / METRICS), folder / CURVE)
        write_json_whole(folder / RECORD, {"format": 1, "identity": identity, "finished": True})


def _cast(weights: Mapping[str, torch.Tensor], source: Path, dtype: str | None) -> dict[str, torch.Tensor]:
    """The tensors in the dtypes to be written; a tensor without a counterpart in the source gets its most common dtype."""
    stored = {} if dtype else stored_dtypes(source)
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


def stored_dtypes(folder: Path) -> dict[str, torch.dtype]:
    """Name -> dtype of the floating-point tensors in the safetensors files of a model folder."""
    from safetensors import safe_open

    dtypes = {}
    for path in folder.glob("*.safetensors"):
        if path.name == "provenance.safetensors":
            continue
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                dtype = STORED_DTYPES.get(file.get_slice(name).get_dtype())
                if dtype is not None and dtype.is_floating_point:
                    dtypes[name] = dtype
    return dtypes


def _write_config(source: Path, folder: Path, dtype: str | None) -> None:
    """Write the source's config.json, with the dtype of the weights if one was asked for."""
    config = json.loads((source / "config.json").read_bytes())
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
        summary = json.loads(path.read_bytes())
    summary["schema_version"] = schema_version_of(summary)
    adapted: AdaptationRecord = {**record, "before": [summary["adapted"]] if "adapted" in summary else []}
    return cast(AdaptedSummary, {**summary, "saltlm_version": record["saltlm_version"], "adapted": adapted})


def _card(source: Path, record: AdaptationRun) -> str:
    """The source's model card with a section on the adaptation."""
    path = source / "README.md"
    card = "# An adapted causal language model\n"
    if path.is_file():
        card = path.read_text(encoding="utf-8", errors="replace")
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
