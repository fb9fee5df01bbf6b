"""The whole transfer as one function: load, align, vectors, rows, assemble, write (steps 1 to 6)."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .align import HOLE, Alignment
from .assemble import ORIGINS, Assembly
from .auxiliary import Auxiliary, auxiliary_files, check_auxiliary, load_auxiliary
from .causal_lm import resolve_device
from .checkpoint import Donor, Source
from .config import TransferConfig
from .errors import InputError, input_error
from .heldout import heldout_check
from .methods import METHODS, Job, anchors_of
from .new_tokenizer import id_changes
from .output_folder import check_output, refuse_written
from .provenance import (
    FORMAT,
    counts,
    licence_of,
    model_card,
    norms,
    provenance_bytes,
    statuses,
    summary_bytes,
    support_summary,
)  # fmt: skip
from .segmented_vectors import check_words, segmented_vectors
from .shared import Shared
from .source_vectors import check_dictionary, check_source_vectors, load_source_vectors
from .status import versions
from .write_folder import write_folder

Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Transfer:
    """A finished transfer.

    Attributes:
        input_rows: [T', D], new input rows in the dtype as written; ``T'`` is ``T`` rounded up as asked.
        output_rows: [T', D] of an untied head, ``None`` for a tied one.
        output_bias: [T'] of the head, ``None`` where it has none.
        alignment: source id and verdict of each target token.
        origin: uint8 [T'], index into :data:`~saltlm.assemble.ORIGINS`.
        summary: what ``saltlm.json`` holds.
        tokenizer: the new tokenizer.
        out: the written folder, ``None`` if none was asked for.
    """

    input_rows: torch.Tensor
    output_rows: torch.Tensor | None
    output_bias: torch.Tensor | None
    alignment: Alignment
    origin: np.ndarray
    summary: dict[str, Any]
    tokenizer: Any
    out: Path | None

    def __repr__(self) -> str:
        head = "tied" if self.output_rows is None else "untied"
        return f"Transfer(T'={len(self.origin)}, D={self.input_rows.shape[1]}, {head}, {self.summary['counts']})"


class _Clock:
    """Seconds by stage; tells the progress callback when a stage starts."""

    def __init__(self, progress: Progress | None) -> None:
        self.seconds: dict[str, float] = {}
        self.progress: Progress = progress or (lambda stage, done, total: None)

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self.progress(stage, 0, 0)
        start = time.perf_counter()
        yield
        self.seconds[stage] = round(time.perf_counter() - start, 3)


def transfer(
    source: str | Path,
    target: str | Path,
    auxiliary: str | Path | None = None,
    out: str | Path | None = None,
    config: TransferConfig | None = None,
    *,
    progress: Progress | None = None,
    dry_run: bool = False,
    shared: Shared | None = None,
    locked: bool = False,
) -> Transfer:
    """Give a source causal LM the tokenizer of a target-language PLM, with new embedding rows.

    Args:
        source: folder or hub name of the causal LM.
        target: folder or hub name of the PLM (BERT, GPT or T5 kind).
        auxiliary: static vectors of the target language, see :func:`~saltlm.load_auxiliary`; may be left out for methods
            that need none.
        out: folder to write, whole or not at all; ``None`` writes nothing.
        config: the options; ``None`` is all defaults.
        progress: called with (stage, done, total), total 0 where it is not known.
        dry_run: stop before any row is built: the summary then tells what would be done.
        shared: what earlier transfers of this process have read and computed; what this one does is added.
        locked: the caller holds :func:`~saltlm.output_folder.locked_output` for ``out``.

    Returns:
        The new matrices, the alignment, each row's origin and the summary.

    Raises:
        InputError: an input is missing, broken or does not fit the others; nothing has been written then.
        BackendError: the file system failed; nothing has been written then.
    """
    config = config or TransferConfig()
    shared = shared or Shared()
    clock = _Clock(progress)
    _check_named(source=source, target=target, auxiliary=auxiliary, out=out)
    destination = None if out is None else Path(out)
    if destination is not None:
        # Names of the hub are not files and cannot be overwritten.
        inputs = [
            Path(name)
            for name in (source, target, *auxiliary_files(auxiliary), *_source_files(config))
            if os.path.exists(name)
        ]
        destination = check_output(destination, protected=inputs, force=config.force)
        if not locked:
            refuse_written(destination)
    for _, fault in method_faults(config, auxiliary):
        raise fault
    device = resolve_device(config.device)
    with clock("load"):
        model, donor = shared.source(source, config), shared.donor(target, config)
    with clock("align"):
        tokenizer, alignment = shared.aligned(model, donor, config)
    with clock("vectors"):
        kind, source_vectors = METHODS[config.method].source_vectors, None
        if kind == "segmented":
            sizes = (alignment.target.size, alignment.source.size)
            vectors, source_vectors = segmented_vectors(auxiliary, (tokenizer, model.tokenizer), sizes)
        else:
            vectors = _vectors(config, auxiliary, alignment, model, donor, shared)
        if kind == "dictionary":
            source_vectors = load_source_vectors(
                config.source_auxiliary, config.dictionary, auxiliary, alignment, vectors.vectors.shape[1]
            )
    rows = -(-alignment.target.size // (config.pad_to_multiple_of or 1)) * (config.pad_to_multiple_of or 1)
    assembly = Assembly(model, alignment, rows, getattr(torch, config.dtype) if config.dtype else None)
    job = _job(assembly, model, donor, alignment, vectors, config, device, clock)
    job = dataclasses.replace(job, source_auxiliary=source_vectors)
    if not dry_run:
        with clock("rows"):
            for block in METHODS[config.method].build(job):
                assembly.put(block)
            assembly.draw(config.seed, job.used)
            assembly.pad(job.used)
            matrices = assembly.matrices()
    heldout = None
    if not dry_run and config.heldout and (METHODS[config.method].anchors or METHODS[config.method].source_vectors):
        with clock("self-check"):
            heldout = heldout_check(job, config.heldout, config.seed)
    summary = _summary(config, model, donor, vectors, alignment, assembly, job, heldout, clock)
    summary["warnings"] += _unused(config, auxiliary, model, donor)
    if not dry_run and destination is not None:
        changes = id_changes(model.config, model.generation_config, tokenizer, assembly.source_id)
        with clock("write"):
            write_folder(
                destination,
                model,
                matrices,
                tokenizer=tokenizer,
                config_changes=changes.config,
                generation_changes=changes.generation,
                extra_files={
                    "saltlm.json": summary_bytes(summary),
                    "provenance.safetensors": provenance_bytes(assembly),
                    "README.md": model_card(summary),
                },
                force=config.force,
                protected=[donor.folder],
                progress=lambda done, total: clock.progress("write", done, total),
            )
    return Transfer(
        input_rows=assembly.input_rows,
        output_rows=assembly.output_rows,
        output_bias=assembly.output_bias,
        alignment=alignment,
        origin=assembly.origin,
        summary=summary,
        tokenizer=tokenizer,
        out=None if dry_run else destination,
    )


def _check_named(**given: str | Path | None) -> None:
    """An empty name, as an unset variable in a shell gives it, would stand for the current folder."""
    for name, value in given.items():
        if value is not None and not str(value):
            raise input_error(
                name, "an empty name", "a folder, a file or a hub name", "check the variable it came from"
            )


def _source_files(config: TransferConfig) -> list[str]:
    return auxiliary_files(config.source_auxiliary) + ([str(config.dictionary)] if config.dictionary else [])


def method_faults(config: TransferConfig, auxiliary: str | Path | None) -> Iterator[tuple[str, InputError]]:
    """What the method lacks of what it needs, and what it is given and cannot use; before anything large is loaded.

    Yields:
        The name of the option, and what is wrong with it.
    """
    method, default = METHODS[config.method], TransferConfig()
    for name in ("ridge", "center", "max_support", "blend_weight", "source_auxiliary", "dictionary"):
        if getattr(config, name) != getattr(default, name) and name not in method.options:
            taken = [method for method, entry in METHODS.items() if name in entry.options]
            yield name, input_error(
                name, f"{getattr(config, name)!r} for method {config.method!r}, which has no use for it",
                "one of " + ", ".join(taken), f"leave --{name.replace('_', '-')} out or choose another --method",
            )  # fmt: skip
    if auxiliary is not None:
        check = check_words if method.source_vectors == "segmented" else check_auxiliary
        yield from _raised("auxiliary", check, auxiliary)
    elif method.vectors:
        yield "auxiliary", input_error(
            "auxiliary", f"none for method {config.method!r}", "static vectors of the target language",
            "give --auxiliary, or a method that needs none such as subword-mean",
        )  # fmt: skip
    if method.source_vectors == "dictionary":
        for name, what, check in (
            ("source_auxiliary", "static vectors of the source's language", check_source_vectors),
            ("dictionary", "a text file of word pairs, source and target", check_dictionary),
        ):
            if getattr(config, name) is not None:
                yield from _raised(name, check, getattr(config, name))
                continue
            flag = name.replace("_", "-")
            yield (
                name,
                input_error(
                    flag, f"none for method {config.method!r}", what, f"give --{flag}, or a method that needs none"
                ),
            )


def _raised(name: str, check: Callable[[Any], object], value: object) -> Iterator[tuple[str, InputError]]:
    try:
        check(value)
    except InputError as error:
        yield name, error


def _vectors(
    config: TransferConfig, auxiliary: str | Path | None, alignment: Alignment, model: Source, donor: Donor, shared: Shared
) -> Auxiliary | None:  # fmt: skip
    if auxiliary is None or not METHODS[config.method].vectors:
        return None
    if str(auxiliary) != "plm":
        return shared.vectors(auxiliary, alignment, model, donor, config)
    # Tokens beyond the PLM's rows (added ones) have no row and so no vector.
    size = alignment.target.size
    plm = torch.zeros(size, donor.input_rows.shape[1])
    both = min(size, len(donor.input_rows))
    plm[:both] = donor.input_rows[:both].float()
    return load_auxiliary(auxiliary, alignment.target.words(), plm_rows=plm)


def _job(
    assembly: Assembly, model: Source, donor: Donor, alignment: Alignment, vectors: Auxiliary | None,
    config: TransferConfig, device: torch.device, clock: _Clock,
) -> Job:  # fmt: skip
    flags = alignment.source.flags()[: len(model.input_rows)]
    method = METHODS[config.method]
    anchors = anchors_of(assembly, alignment, vectors, donor.input_rows if method.plm or not method.anchors else None)
    if method.anchors and not len(anchors):
        shared = int((assembly.source_id >= 0).sum())
        needed = " and ".join(["a vector"] * method.vectors + ["a PLM row"] * method.plm)
        raise input_error(
            "tokenizers",
            f"{shared} shared tokens, none of them text with {needed}",
            "at least one shared token to learn from",
            "choose a PLM or vectors that share a script with the source, or --method subword-mean",
        )
    return Job(
        alignment=alignment,
        source_rows=model.input_rows,
        head=assembly.head,
        used=np.flatnonzero(flags & HOLE == 0),
        auxiliary=vectors,
        plm_rows=donor.input_rows,
        anchors=anchors,
        new=np.flatnonzero(assembly.open),
        config=config,
        device=device,
        progress=lambda done, total: clock.progress("rows", done, total),
    )


def _summary(
    config: TransferConfig, model: Source, donor: Donor, vectors: Auxiliary | None, alignment: Alignment,
    assembly: Assembly, job: Job, heldout: dict[str, Any] | None, clock: _Clock,
) -> dict[str, Any]:  # fmt: skip
    sides = {"source": model, "target": donor}
    inputs: dict[str, Any] = {
        side: {
            "path": str(loaded.name), "revision": loaded.revision, "architecture": loaded.architecture,
            "licence": licence_of(loaded.folder), "sha256": dict(loaded.files),
        }
        for side, loaded in sides.items()
    }  # fmt: skip
    if vectors is not None:
        inputs["auxiliary"] = {**vectors.description, "licence": "not stated"}
    if job.source_auxiliary is not None:
        inputs["source_auxiliary"] = {**job.source_auxiliary.description, "licence": "not stated"}
    summary = {
        "format": FORMAT,
        "saltlm_version": versions()["saltlm"],
        "method": config.method,
        "config": config.to_json(),
        "inputs": inputs,
        "origins": list(ORIGINS),
        "counts": counts(assembly),
        "overlap": alignment.counts(),
        "anchors": len(job.anchors),
        "new_tokens": len(job.new),
        "support": support_summary(assembly, METHODS[config.method].neighbours),
        "statuses": [{"name": name, "count": count} for name, count in statuses(assembly).items()],
        "norms": norms(assembly),
        "heldout": heldout,
        "seconds": dict(clock.seconds),
        "environment": {**versions(), "device": str(job.device), "operators": _operators(job.device)},
    }
    summary["warnings"] = _warnings(summary, model)
    return summary


def _operators(device: torch.device) -> str:
    from .ops import backend

    return backend(device.type).name


def _unused(config: TransferConfig, auxiliary: str | Path | None, model: Source, donor: Donor) -> list[str]:
    """What was given and has no effect: the user may believe that it has."""
    found = []
    if auxiliary is not None and not METHODS[config.method].vectors:
        found.append(f"method {config.method} does not use auxiliary")
    for side, loaded, revision in (
        ("source", model, config.source_revision),
        ("target", donor, config.target_revision),
    ):
        if revision is not None and loaded.revision is None:
            found.append(f"{side}_revision has no effect on a local folder")
    return found


def _warnings(summary: dict[str, Any], model: Source) -> list[str]:
    """What a user should know before trusting this start."""
    found = []
    method = METHODS[summary["method"]]
    support, length = summary["support"], summary["norms"]
    if support and method.sparse and support["median"] > summary["anchors"] / 4:
        found.append(
            f"the median token has {support['median']:.0f} of {summary['anchors']} anchors as neighbours: the vectors hardly"
            " tell words apart; better vectors or --max-support would help"
        )
    for origin in ("solved", "composed"):
        found += _norm_warnings(length, origin, method.options)
    if summary["method"] == "subword-asymmetric" and model.output_rows is None:
        found.append(
            "the head is tied: its rows are the input rows, so only the input's rule of subword-asymmetric applies"
        )
    if summary["method"] == "blend" and summary["heldout"]:
        found.append("the self-check measures the ridge map alone: hidden shared tokens have no pieces to blend in")
    drawn = summary["counts"]["drawn"] / max(1, summary["new_tokens"])
    if summary["method"] not in ("normal", "multivariate") and drawn > 0.05:
        found.append(f"{drawn:.0%} of the new tokens got a random row (see statuses)")
    if model.tokenizer.chat_template and summary["config"]["chat_template"] == "target":
        found.append("the source's chat template is left out; --chat-template source keeps it")
    return found


def _norm_warnings(length: dict[str, dict[str, float]], origin: str, options: tuple[str, ...]) -> list[str]:
    """Rows of this origin that are far longer, or nearly all far shorter, than any or most of the copied ones."""
    if origin not in length or "copied" not in length:
        return []
    own, copied = length[origin], length["copied"]
    helpful = " or ".join(text for name, text in (("center", "--center"), ("ridge", "--ridge 0.01")) if name in options)
    advice = (
        f": {helpful} keeps rows near the source's" if helpful else ": another --method may keep rows near the source's"
    )
    found = []
    if own["max"] > 4 * copied["max"]:
        found.append(
            f"the largest {origin} row has norm {own['max']:.1f}, the largest copied one {copied['max']:.1f}{advice}"
        )
    if own["median"] < copied["median"] / 4:
        found.append(
            f"the median {origin} row has norm {own['median']:.2g}, the median copied one {copied['median']:.2g}{advice}"
        )
    return found
