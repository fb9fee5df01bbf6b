"""Layers and settings of a GGUF file of the source model, for an export whose vocabulary and rows are the folder's.

A transfer leaves every tensor but the vocabulary's rows as it was. So whatever llama.cpp's converter made of the source
model, in any type of weights and for any architecture, serves the transferred model, too.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import first_line, input_error
from ..files.json_files import read_json
from ..files.open_file import check_file
from ..files.summary_file import SUMMARY
from ..model.checkpoint import Source, load_source
from .tensors import Planned, plan

INPUT, OUTPUT, BIAS = "token_embd.weight", "output.weight", "output.bias"


@dataclasses.dataclass(frozen=True)
class Field:
    """A setting of a GGUF file.

    Attributes:
        value: its value.
        kind: its type, a ``gguf.GGUFValueType``.
        item_kind: type of the items of an array; ``None`` for other settings.
    """

    value: Any
    kind: Any
    item_kind: Any


def from_body(file: Path, folder: Path, weights: str) -> tuple[str, dict[str, Field], list[Planned]]:
    """Architecture, settings and tensors: the folder's vocabulary rows, all else from the file.

    Args:
        file: GGUF file of the source model.
        folder: the transferred model.
        weights: the option that chooses the type of the rows.

    Raises:
        InputError: the file is no GGUF file, belongs to another model, or has further tensors with a row for each token;
            or the layers of the folder were trained.
    """
    reader = _open(file)
    _refuse_trained(folder)
    architecture = str(reader.fields["general.architecture"].contents())
    source = load_source(folder)
    _check_shapes(file, reader, source)
    planned = [
        *_rows(source, weights),
        *(
            Planned(
                t.name,
                tuple(int(n) for n in reversed(t.shape)),
                t.tensor_type.name,
                functools.partial(np.asarray, t.data),
            )
            for t in reader.tensors
            if t.name not in (INPUT, OUTPUT, BIAS)
        ),
    ]
    return architecture, _settings(reader, architecture, len(source.input_rows)), planned


def _open(file: Path) -> Any:
    import gguf

    if not file.is_file():
        raise input_error("--body", f"no file {file}", "a GGUF file of the source model", "check the name")
    check_file(file)
    try:
        return gguf.GGUFReader(file)
    except Exception as error:  # gguf-py raises anything on a broken file
        found = f"a file that gguf cannot read ({first_line(error)})"
        raise input_error(f"--body, {file}", found, "a GGUF file of the source model", "fetch it again") from None


def _refuse_trained(folder: Path) -> None:
    """Raise if the folder's layers were trained: then the source's layers are not the folder's."""
    path = folder / SUMMARY
    adapted = read_json(path).get("adapted") if path.is_file() else None
    while adapted:
        if "all" in str(adapted.get("phases")):
            raise input_error(
                f"model {folder}",
                "layers that were trained by saltlm adapt",
                "the source's layers, as after a transfer or the phases rows and embeddings",
                "export without --body, or convert the folder by llama.cpp's converter and name the result with --body",
            )
        adapted = next(iter(adapted.get("before") or ()), None)


def _check_shapes(file: Path, reader: Any, source: Source) -> None:
    shapes = {tensor.name: tuple(int(n) for n in reversed(tensor.shape)) for tensor in reader.tensors}
    if INPUT not in shapes:
        raise input_error(
            f"--body, {file}", f"no {INPUT}", "a GGUF file of the source model", "name its first part's whole"
        )
    rows, width = shapes[INPUT]
    if width != source.input_rows.shape[1]:
        found = f"rows of {width} numbers"
        expected = f"{source.input_rows.shape[1]}, as in the folder"
        raise input_error(f"--body, {file}", found, expected, "name the file of the model that was transferred")
    if (OUTPUT in shapes) == source.tied:
        found = f"{'a' if OUTPUT in shapes else 'no'} head of its own"
        expected = f"{'no' if source.tied else 'a'} head of its own, as in the folder"
        raise input_error(f"--body, {file}", found, expected, "name the file of the model that was transferred")
    others = [
        name for name, shape in shapes.items() if name not in (INPUT, OUTPUT, BIAS) and shape[0] == rows and rows > 4096
    ]
    if others:
        found = f"the tensor {others[0]} with a row for each token of the source"
        expected = "rows for each token in the input matrix and the head alone"
        raise input_error(f"--body, {file}", found, expected, "convert the folder by llama.cpp's converter")


def _rows(source: Source, weights: str) -> list[Planned]:
    """The folder's vocabulary rows."""
    named: Mapping[str, torch.Tensor | None] = {
        INPUT: source.input_rows,
        OUTPUT: source.output_rows,
        BIAS: source.output_bias,
    }
    return [
        plan(name, name, weights, tensor, functools.partial(torch.Tensor.detach, tensor))
        for name, tensor in named.items()
        if tensor is not None
    ]


def _settings(reader: Any, architecture: str, rows: int) -> dict[str, Field]:
    """All settings but the tokenizer's; the number of rows is the folder's."""
    import gguf

    settings = {}
    for name, field in reader.fields.items():
        if name.startswith(("GGUF.", "tokenizer.", "split.")) or name in ("general.architecture", "general.alignment"):
            continue
        item = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        settings[name] = Field(field.contents(), field.types[0], item)
    settings[f"{architecture}.vocab_size"] = Field(rows, gguf.GGUFValueType.UINT32, None)
    return settings
