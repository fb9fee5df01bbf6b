"""Quantised weights: whether a checkpoint has some, whether its config.json says so, and whether the vocabulary rows are plain.

A transfer takes a quantised body over byte for byte, because it changes vocabulary rows alone. What computes with the model
(``evaluate``, ``adapt``) needs transformers to apply the scales, which it does only where config.json names the method.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError, input_error
from ..files.json_files import read_json
from .safetensors_header import DTYPES
from .weights import Weights

# Files in which quantisation libraries describe what they did, beside config.json or instead of its quantization_config.
QUANTIZATION_FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")
# Keys of config.json, or of the config of its text part, in which a quantisation is declared.
DECLARATIONS = ("quantization_config", "compression_config")
# Dtypes of the format that hold quantised weights; 8-bit integers do so in tensors called "weight".
PACKED_DTYPES = ("F4", "F6_E2M3", "F6_E3M2", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
PACKED_INTEGERS = ("I8", "U8", "I16", "I32")
# Last part of the keys in which scales, zero points and packed weights are stored: FP8 and ModelOpt (weight_scale,
# weight_scale_inv, weight_scale_2, input_scale), compressed-tensors (weight_packed, weight_shape, weight_zero_point), GPTQ and
# AWQ (qweight, qzeros, scales, g_idx), bitsandbytes (absmax, quant_map, quant_state, SCB), MXFP4 (_blocks, _scales), AQLM
# (codes, codebooks), HQQ (W_q), QuIP# (Qidxs), VPTQ (centroids), torchao (qdata, scale_and_zero).
# Not k_scale and v_scale: they are the scales of a cache.
PACKED_KEYS = re.compile(
    r"(?:^|[.:])(?:(?:weight|input|activation|act|pre_quant|output)_(?:global_)?scales?(?:_inv|_2)?|scale_inv|scales"
    r"|weight_(?:packed|shape|zero_point|g_idx|format|blocks)|qweight|qzeros|g_idx|qscales|absmax|nested_absmax|quant_map"
    r"|nested_quant_map|quant_state(?:\..*)?|SCB|W_q|codes|codebooks|Qidxs|centroids|weight_?qdata|qdata|scale_and_zero"
    r"|\w+_(?:blocks|scales|scale_inv))$"
)
SHOWN = 3  # keys that a message names


@dataclasses.dataclass(frozen=True)
class Declared:
    """Where a folder says that its weights are quantised.

    Attributes:
        method: of ``quantization_config``, or the name of the file that describes the quantisation.
        by_config: whether config.json declares it, so that transformers applies the scales.
    """

    method: str
    by_config: bool


def declared_quantization(config: Mapping[str, Any], folder: Path) -> Declared | None:
    """What config.json or another file says about a quantisation; ``None`` if neither says anything."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, Mapping) else {}):
        for key in DECLARATIONS:
            if part.get(key):
                content = part[key]
                method = content.get("quant_method") if isinstance(content, Mapping) else None
                return Declared(f"{key}, method {method!r}", True)
    named = next((name for name in QUANTIZATION_FILES if (folder / name).is_file()), None)
    return None if named is None else Declared(named, False)


def packed_keys(keys: Iterable[str]) -> list[str]:
    """The keys that name scales, zero points or packed weights of a quantisation.

    Args:
        keys: only keys that the model's class does not have: a class may have a parameter called ``scales``.
    """
    return [key for key in keys if PACKED_KEYS.search(key)]


def packed_dtypes(weights: Weights) -> list[str]:
    """Keys of the tensors whose dtype holds quantised weights."""
    return [
        key
        for header in weights.headers.values()
        for key, entry in header.entries.items()
        if entry.dtype in PACKED_DTYPES or (entry.dtype in PACKED_INTEGERS and key.endswith("weight"))
    ]


def quantized_keys(weights: Weights, outside: Iterable[str]) -> list[str]:
    """Keys of a checkpoint that show a quantisation, by dtype or by name.

    Args:
        weights: the weight files.
        outside: keys that the model's class does not have.
    """
    return list(dict.fromkeys([*packed_dtypes(weights), *packed_keys(outside)]))


def refuse_quantized_rows(
    weights: Weights, names: Mapping[str, str], vocabulary: Collection[str], declared: Declared | None, side: str
) -> None:
    """Refuse a checkpoint whose vocabulary rows are quantised: with scales, packed, or in a dtype of 8 bits or less.

    Args:
        weights: the weight files.
        names: key -> name in the model, of all keys.
        vocabulary: names of the vocabulary tensors in the model.
        declared: what the folder says about a quantisation.
        side: name of the model in messages.

    Raises:
        InputError: they are quantised.
    """
    modules = {f".{name.rpartition('.')[0]}" for name in vocabulary}
    for header in weights.headers.values():
        for key, entry in header.entries.items():
            name = names[key]
            if name in vocabulary:
                quantized = entry.dtype not in DTYPES and (
                    entry.dtype in (*PACKED_DTYPES, "I8", "U8") or bool(declared)
                )
            else:
                match = PACKED_KEYS.search(name)
                # transformers renames the tensors of its class alone: here the prefix of the base model may differ.
                stem = None if match is None else f".{name[: match.start()]}"
                quantized = stem is not None and any(m.endswith(stem) or stem.endswith(m) for m in modules)
            if quantized:
                raise _quantized(side, key, f"{entry.dtype} {list(entry.shape)}", declared)


def _quantized(side: str, key: str, found: str, declared: Declared | None) -> InputError:
    method = "" if declared is None else f", {declared.method}"
    return input_error(
        side,
        f"quantized vocabulary rows ({key}: {found}{method})",
        "unquantized input matrix and head; all other weights may be quantized",
        "take the model it was made from, or quantize it without input matrix and head",
    )


def undeclared_warning(keys: list[str], declared: Declared | None) -> str:
    """The warning for a quantised body that config.json does not declare."""
    file = "" if declared is None else f" ({declared.method} does)"
    return (
        f"the source has quantised weights ({_named(keys)}), and its config.json does not say so{file}: they are taken over"
        " as they are, but transformers loads them without their scales; a server that knows the format can run the result"
    )


def refuse_undeclared(folder: Path, weights: Weights | None, outside: Iterable[str], what: str) -> None:
    """Refuse quantised weights that config.json does not declare: transformers would compute without their scales.

    Args:
        folder: the model folder.
        weights: its weight files; ``None`` checks the names alone.
        outside: keys of the checkpoint that transformers does not load.
        what: name of the model in messages.

    Raises:
        InputError: there are such weights.
    """
    keys = packed_keys(outside) if weights is None else quantized_keys(weights, outside)
    if not keys:
        return
    declared = declared_quantization(read_json(folder / "config.json"), folder)
    if declared is not None and declared.by_config:
        return
    file = "" if declared is None else f", {declared.method}"
    raise input_error(
        what,
        f"quantized weights that config.json does not declare ({_named(keys)}{file})",
        "unquantized weights, or a quantization_config that transformers applies",
        "take the model it was made from, or dequantize it first",
    )


def refuse_training(config: Mapping[str, Any], folder: Path, what: str) -> None:
    """Refuse to train a model whose config.json declares quantised weights.

    Raises:
        InputError: it does.
    """
    declared = declared_quantization(config, folder)
    if declared is not None and declared.by_config:
        raise input_error(
            what,
            f"a quantized checkpoint ({declared.method})",
            "unquantized weights to train",
            "take the model it was made from, or dequantize it first",
        )


def _named(keys: list[str]) -> str:
    return ", ".join(keys[:SHOWN]) + (f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else "")
