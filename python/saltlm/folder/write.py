"""Write the new model folder: the source's with new vocabulary rows and another tokenizer (step 6)."""

from __future__ import annotations

import errno
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from ..errors import BackendError, InputError, input_error
from ..files.copy import copy_file, link_file, shares_blocks
from ..files.file_errors import output_errors
from ..files.json_files import merged, write_json
from ..files.open_file import FileKind, check_file, file_kind
from ..files.output_folder import check_output, whole_folder
from ..model.checkpoint import Source
from ..model.composite import with_entry
from ..model.locate import TERMS
from ..model.portable import save_tokenizer, with_rope_keys
from ..model.processor import copy_processor
from ..model.quantization import QUANTIZATION_FILES
from ..model.safetensors_header import DTYPES, Header
from ..model.safetensors_stream import kept_bytes, replaced_header, rewrite
from ..model.sentencepiece_bpe import tokenizer_model
from ..model.weights import INDEX, with_dtype
from ..operators.checks import finite_rows
from ..rows.matrices import NewMatrices

ROOM = 64 << 20  # tokenizer, card and provenance beside the weights

Extra = bytes | Callable[[Path], object]


def write_folder(
    out: Path,
    source: Source,
    matrices: NewMatrices,
    *,
    tokenizer: Any,
    config_changes: Mapping[str, Any],
    generation_changes: Mapping[str, Any] | None = None,
    tensors: Mapping[str, torch.Tensor] | None = None,
    extra_files: Mapping[str, Extra] | None = None,
    check: Callable[[Path], object] | None = None,
    link: str = "copy",
    force: bool = False,
    protected: Sequence[Path] = (),
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a model folder that stock transformers loads; whole or not at all.

    Shards without vocabulary rows share their blocks with the source where the file system can, and are copied in the
    kernel where it cannot, or linked; the others are rewritten, with every other tensor taken over in the same two ways.
    Besides what is named below, files like LICENSE are kept; the source's own code only if it was let run; nothing else.

    Args:
        out: the folder to make.
        source: the model whose weights and config are taken.
        matrices: its new vocabulary rows.
        tokenizer: saved by its ``save_pretrained``; AutoTokenizer is checked to give it back from the folder.
        config_changes: keys of config.json that get other values, also inside objects; the vocabulary size is set here.
        generation_changes: keys of generation_config.json likewise; ``None`` keeps the file, if any, as it is.
        tensors: key -> new tensor, for tensors of the checkpoint other than the vocabulary's; ``None`` keeps them all.
        extra_files: name -> bytes, or a function that writes the file at the path it is given.
        check: called with the temporary folder when all but the extra files is written; where it raises, nothing is written.
        link: ``copy`` or ``hard``, for shards without vocabulary rows; see :class:`~saltlm.TransferConfig`.
        force: replace an existing model folder.
        protected: folders besides the source's that ``out`` must keep off, such as the donor's.
        progress: told of bytes written and bytes in all.

    Raises:
        InputError: ``out`` exists without ``force``, touches an input folder, is no place to write or to link to, or the
            disk is full.
        BackendError: the file system failed otherwise, rows are not finite, the tokenizer cannot be saved faithfully, or the
            check failed.
        ValueError: the matrices do not fit the source.
    """
    out = check_output(out, protected=[source.folder, source.given_folder, *protected], force=force)
    rows = _replacements(source, matrices)
    replaced = {**rows, **(tensors or {})}
    plan = {
        name: {key: tensor for key, tensor in replaced.items() if key in header.entries}
        for name, header in source.weights.headers.items()
    }
    if link == "hard":
        check_link(source, out)
    with output_errors(out, 0):
        needed = _disk_bytes(source, plan, out, link) + ROOM
    total = sum(_new_bytes(source.weights.headers[name], tensors) for name, tensors in plan.items())
    done = 0

    def report(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, total)

    with whole_folder(out, needed=needed, force=force) as folder:
        for name, tensors in plan.items():
            header = source.weights.headers[name]
            renames = _renames(source, header)
            if tensors or renames:
                rewrite(header, folder / name, tensors, renames=renames, progress=report)
            elif link == "hard":
                _link(header.path, folder / name)
                report(_new_bytes(header, {}))
            else:
                copy_file(header.path, folder / name, progress=report)
        if source.weights.index is not None:
            write_json(folder / INDEX, _index(source, replaced))
        write_json(folder / "config.json", _config(source, matrices, rows, config_changes))
        if source.generation_config is not None or generation_changes:
            generation = merged(source.generation_config or {}, generation_changes or {})
            write_json(folder / "generation_config.json", generation)
        _keep_files(source, folder)
        _write_tokenizer(tokenizer, folder)
        if check is not None:
            check(folder)
        for name, extra in (extra_files or {}).items():
            if callable(extra):
                extra(folder / name)
            else:
                (folder / name).write_bytes(extra)


def _replacements(source: Source, matrices: NewMatrices) -> dict[str, torch.Tensor]:
    """Checkpoint key -> new tensor; some checkpoints hold a tied matrix twice, under two keys."""
    pairs: tuple[tuple[str | None, torch.Tensor | None, torch.Tensor | None], ...] = (
        (source.input_name, source.input_rows, matrices.input_rows),
        (source.output_name, source.output_rows, matrices.output_rows),
        (source.bias_name, source.output_bias, matrices.output_bias),
    )
    tables = {table.key: table.rows for table in source.tables}
    if tables.keys() != matrices.tables.keys():
        raise ValueError(f"{source.name}: new rows for the tables {sorted(matrices.tables)}, not {sorted(tables)}")
    pairs += tuple((key, rows, matrices.tables[key]) for key, rows in tables.items())
    replaced: dict[str, torch.Tensor] = {}
    for key, old, new in pairs:
        if key is None or old is None or new is None:
            if old is not None or new is not None:
                raise ValueError(f"{source.name}: the tensor for {key} is {_shape(new)}, the source's {_shape(old)}")
            continue
        if old.shape[1:] != new.shape[1:]:
            raise ValueError(f"{source.name}: the tensor for {key} is {_shape(new)}, the source's {_shape(old)}")
        bad = _first_not_finite(new)
        if bad is not None:
            raise BackendError(f"{key}: row {bad} of the new matrix is not finite; nothing was written")
        replaced[key] = new
    return replaced | {copy: replaced[key] for copy, key in source.copies.items()}


def _renames(source: Source, header: Header) -> dict[str, str]:
    """Key -> key as written, for the keys of a file that are written without the names of wrapper modules."""
    return {key: name for key, name in source.weights.unwrapped.items() if key in header.entries}


def _shape(tensor: torch.Tensor | None) -> object:
    return "none" if tensor is None else list(tensor.shape)


def _first_not_finite(tensor: torch.Tensor) -> int | None:
    for start in range(0, len(tensor), 512):
        finite = finite_rows(tensor[start : start + 512])
        if not finite.all():
            return start + int(torch.nonzero(~finite)[0])
    return None


def _new_bytes(header: Header, replaced: Mapping[str, torch.Tensor]) -> int:
    if not replaced:
        return header.data_start + header.data_bytes
    return max((entry.end for entry in replaced_header(header, replaced)[1].values()), default=0)


def _disk_bytes(source: Source, plan: Mapping[str, Mapping[str, torch.Tensor]], out: Path, link: str) -> int:
    """What the shards take on the disk: links and shared blocks nothing, nor do holes."""
    folder = _nearest(out)
    shared: dict[int, bool] = {}  # by the device that a shard lies on: all files there are alike
    total = 0
    for name, replaced in plan.items():
        header = source.weights.headers[name]
        renames = _renames(source, header)
        if not replaced and not renames and link == "hard":
            continue
        device = header.path.stat().st_dev
        if device not in shared:
            shared[device] = shares_blocks(header.path, folder)
        if replaced or renames or not shared[device]:
            total += kept_bytes(header, replaced, renames=renames, shared=shared[device])
        total += sum(tensor.numel() * tensor.element_size() for tensor in replaced.values())
    return total


def _nearest(out: Path) -> Path:
    """The folder that ``out`` will lie in, or what there is of it."""
    return next(parent for parent in out.parents if parent.is_dir())


def check_link(source: Source, out: Path) -> None:
    """Check, before any work is done, that files of the source can be linked into ``out``.

    Raises:
        InputError: they lie on another file system.
    """
    with output_errors(out, 0):
        place = _nearest(out).stat().st_dev
        for header in source.weights.headers.values():
            if header.path.stat().st_dev != place:
                raise _no_link(header.path, "it on another file system")


def _link(source: Path, target: Path) -> None:
    reasons = {
        errno.EXDEV: "it on another file system",
        errno.EPERM: "that this system does not let you link it",
        errno.EACCES: "that this system does not let you link it",
        errno.EOPNOTSUPP: "a file system without links",
        errno.EMLINK: "that it has as many names as a file may have",
    }
    try:
        link_file(source, target)
    except OSError as error:
        if error.errno not in reasons:
            raise
        raise _no_link(source, reasons[error.errno]) from error


def _no_link(source: Path, found: str) -> InputError:
    return input_error(
        f"link, {source}", found, "a file that can get a second name in the output folder", "leave --link out to copy"
    )


def _index(source: Source, replaced: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The index with its sums brought up to date; which shard holds what does not change."""
    size, grown = 0, 0
    apart = {*source.copies, *(table.key for table in source.tables)}
    for file, header in source.weights.headers.items():
        if file in source.weights.beside:
            continue
        for name, entry in header.entries.items():
            new = replaced.get(name)
            size += entry.end - entry.start if new is None else new.numel() * new.element_size()
            if new is not None and name not in apart:
                grown += new.numel() - math.prod(entry.shape)
    index = dict(source.weights.index or {})
    metadata: dict[str, Any] = dict(cast("Mapping[str, Any]", index.get("metadata") or {}))
    metadata["total_size"] = size
    if isinstance(metadata.get("total_parameters"), int):
        metadata["total_parameters"] += grown
    if source.weights.unwrapped:
        shard_of = cast("Mapping[str, str]", index["weight_map"])
        index["weight_map"] = {source.weights.unwrapped.get(key, key): file for key, file in shard_of.items()}
    return {**index, "metadata": metadata}


def _config(
    source: Source, matrices: NewMatrices, replaced: Mapping[str, torch.Tensor], changes: Mapping[str, Any]
) -> dict[str, Any]:
    config = dict(source.config)
    for path in source.size_paths:
        config = with_entry(config, path, len(matrices.input_rows))
    config.pop("tokenizer_class", None)  # named the old tokenizer's
    if not source.trust_remote_code:
        config.pop("auto_map", None)  # its code is not in the new folder
    if source.config_says_tied and not source.tied:
        config["tie_word_embeddings"] = False
    body = _body_dtypes(source, replaced)
    rows = {tensor.dtype for tensor in replaced.values()}
    config = with_dtype(config, _loading_dtype(config, body, rows), add=len(body | rows) > 1)
    return merged(with_rope_keys(config), changes)


def _body_dtypes(source: Source, replaced: Mapping[str, torch.Tensor]) -> set[torch.dtype]:
    """Float dtypes of the tensors that are taken over; those of 8 bits, which promote to no other, left out."""
    entries = (entry for header in source.weights.headers.values() for entry in header.entries.values())
    return {DTYPES[entry.dtype] for entry in entries if entry.name not in replaced and entry.dtype in DTYPES}


def _loading_dtype(config: Mapping[str, Any], body: set[torch.dtype], rows: set[torch.dtype]) -> torch.dtype:
    """The dtype for config.json: the narrowest one that a plain load can use without rounding body or rows.

    A plain load casts all weights to the dtype that config.json names. So it is the narrowest dtype that holds both: float32
    for float32 rows on a bfloat16 body, and for bfloat16 rows on a float32 body. Where the body has several dtypes (a few
    float32 tensors in a bfloat16 model are common), its dtype is what the source's config.json names.

    Args:
        config: the source's config.json.
        body: dtypes of the tensors taken over.
        rows: dtypes of the vocabulary rows as written.
    """
    named = config.get("dtype") or config.get("torch_dtype")
    declared = getattr(torch, str(named).removeprefix("torch."), None) if named else None
    if len(body) > 1 and isinstance(declared, torch.dtype):
        body = {declared}
    return functools.reduce(torch.promote_types, body | rows)


def _write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Save the tokenizer, and tokenizer.model beside it where that is the same tokenizer."""
    save_tokenizer(tokenizer, folder)
    if (model_file := tokenizer_model(tokenizer)) is not None:
        (folder / "tokenizer.model").write_bytes(model_file)


def _keep_files(source: Source, folder: Path) -> None:
    # Under their own names; the source's README, old tokenizer and other weights are not kept.
    names = [*TERMS, *QUANTIZATION_FILES, *(["*.py"] if source.trust_remote_code else [])]
    kept = {path for name in names for path in source.given_folder.glob(name) if path.is_file()}
    for path in sorted(path for path in kept if path.name not in source.weights.headers):
        check_file(path, file_kind(path.name) or FileKind.TERMS, inside=source.given_folder)
        copy_file(path, folder / path.name)
    if source.text_path:
        copy_processor(source.folder, folder)
