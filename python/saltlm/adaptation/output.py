"""The end of an adaptation: the run's folder becomes a model folder, whole or not at all."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..files.json_files import write_json_whole
from ..files.output_folder import whole_folder
from ..files.summary_file import FORMAT, SCHEMA_VERSION, schema_version_of
from ..model.causal_lm import DTYPES
from ..model.weights import with_dtype
from .checkpoints import METRICS, RECORD, read_metrics
from .metrics import draw_curve

KEPT = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model", "*.tiktoken",
    "tekken.json", "chat_template*", "generation_config.json", "provenance.safetensors", "LICENSE*", "LICENCE*", "COPYING*",
    "NOTICE*", "USE_POLICY*", "*.py",
)  # fmt: skip
NOT_YET = re.compile(r"\*\*It has not been adapted yet\*\*[^\n]*\n?")
SECTION = "\n## Adaptation\n"
CURVE = "curve.png"


def write_adapted(
    out: Path, source: Path, model: Any, weights: Mapping[str, torch.Tensor], *, dtype: str | None,
    record: Mapping[str, Any], identity: Mapping[str, Any],
) -> None:  # fmt: skip
    """Put the model folder in place of the run's folder; its metrics stay, its checkpoints go.

    Args:
        out: the run's folder.
        source: the folder that the model was read from; tokenizer, provenance and licences are taken from it.
        model: the trained causal LM.
        weights: its tensors by name, whole, a tied matrix as one tensor under two names.
        dtype: of the written weights; ``None`` keeps each tensor's dtype in ``source``.
        record: what ``saltlm.json`` says under ``adapted``.
        identity: what the run was.

    Raises:
        InputError: the disk is full; the run's folder with its checkpoints is untouched.
        BackendError: the file system failed otherwise.
    """
    weights = _weights(weights, source, dtype)
    needed = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    advice = "make room and go on by --resume: the last checkpoint is safe"
    with whole_folder(out.resolve(), needed=needed, force=True, advice=advice) as folder:
        model.save_pretrained(folder, state_dict=weights)
        _config(source, folder, dtype)
        for path in sorted({p for name in KEPT for p in source.glob(name) if p.is_file()}):
            shutil.copyfile(path, folder / path.name)
        write_json_whole(folder / "saltlm.json", _summary(source, record))
        (folder / "README.md").write_text(_card(source, record), encoding="utf-8")
        shutil.copyfile(out / METRICS, folder / METRICS)
        if (out / "tensorboard").is_dir():
            shutil.copytree(out / "tensorboard", folder / "tensorboard")
        draw_curve(read_metrics(out / METRICS), folder / CURVE)
        write_json_whole(folder / RECORD, {"format": 1, "identity": identity, "finished": True})


def _weights(state: Mapping[str, torch.Tensor], source: Path, dtype: str | None) -> dict[str, torch.Tensor]:
    """Tensors by name, in the dtypes to be written."""
    stored = {} if dtype else stored_dtypes(source)
    usual = DTYPES[dtype] if dtype else max(stored.values(), key=list(stored.values()).count, default=torch.float32)
    cast: dict[tuple[int, torch.Size], torch.Tensor] = {}
    found = {}
    for name, tensor in state.items():
        place = (tensor.data_ptr(), tensor.shape)
        # A tied matrix goes by two names and must stay one tensor, or it is written twice.
        if place not in cast:
            cast[place] = tensor.to(stored.get(name, usual)) if tensor.is_floating_point() else tensor
        found[name] = cast[place]
    return found


def stored_dtypes(folder: Path) -> dict[str, torch.dtype]:
    """Name -> dtype of the float tensors in a folder's safetensors files."""
    from safetensors import safe_open

    from ..model.safetensors_header import DTYPES as STORED

    found = {}
    for path in folder.glob("*.safetensors"):
        if path.name != "provenance.safetensors":
            with safe_open(path, framework="pt") as file:
                for name in file.keys():
                    kind = STORED.get(file.get_slice(name).get_dtype())
                    if kind is not None and kind.is_floating_point:
                        found[name] = kind
    return found


def _config(source: Path, folder: Path, dtype: str | None) -> None:
    config = json.loads((source / "config.json").read_bytes())
    if dtype:
        config = with_dtype(config, DTYPES[dtype], add=True)
    write_json_whole(folder / "config.json", config)
    if not (source / "generation_config.json").is_file():
        (folder / "generation_config.json").unlink(missing_ok=True)


def _summary(source: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    path = source / "saltlm.json"
    there = path.is_file()
    summary = json.loads(path.read_bytes()) if there else {"format": FORMAT, "schema_version": SCHEMA_VERSION}
    summary["schema_version"] = schema_version_of(summary)
    before = [summary["adapted"]] if "adapted" in summary else []
    return {**summary, "saltlm_version": record["saltlm_version"], "adapted": {**record, "before": before}}


def _card(source: Path, record: Mapping[str, Any]) -> str:
    path = source / "README.md"
    card = (
        path.read_text(encoding="utf-8", errors="replace") if path.is_file() else "# An adapted causal language model\n"
    )
    card = NOT_YET.sub("", card).rstrip() + "\n"
    rows = [
        ("steps", f"{record['steps']:,}{_kept(record)}"),
        ("tokens", f"{record['tokens']:,}"),
        ("text, bytes", f"{record['bytes']:,}"),
    ]
    for key, words in (("heldout", "held-out bits per byte, target language"), ("source", "the same, source language")):
        values: Sequence[Any] = record[key]
        if values:
            after = next(value for step, value in values if step == record["kept_step"])
            rows.append((words, f"{values[0][1]:.3f} before, {after:.3f} after"))
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    names = ", ".join(f"`{Path(entry['path']).name}`" for entry in record["text"])
    return (
        f"{card}{SECTION}\nTrained further by saltlm {record['saltlm_version']} on {names}, in the phases"
        f" `{record['phases']}`.\n\n| | |\n| --- | --- |\n{table}\n\n`metrics.jsonl`: a line a step; `{CURVE}`: the picture.\n"
    )


def _kept(record: Mapping[str, Any]) -> str:
    """Which step's weights these are, where it is not the last one's."""
    return "" if record["kept_step"] == record["steps"] else f"; the weights are those of step {record['kept_step']:,}"
