"""The transfer, from top to bottom: load, align, read vectors, build rows, assemble, write."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .alignment.align import HOLE, Alignment
from .alignment.config_ids import IdChanges, fill_refused_nulls, id_changes
from .alignment.expand import Expansion, expand
from .config import MOST_PADDING, TransferConfig
from .errors import input_error
from .files.output_folder import check_output
from .files.output_lock import refuse_written
from .files.summary_file import SUMMARY, Summary
from .folder.card import model_card
from .folder.estimate import Estimate, estimate
from .folder.provenance import provenance_bytes, summary_bytes
from .folder.reload_check import check_reload
from .folder.summary import summary_of
from .folder.write import check_link, write_folder
from .inspection.notebook import transfer_html
from .inspection.verdict import Verdict, verdict_of
from .model.causal_lm import resolve_device
from .model.checkpoint import Donor, Source
from .model.positions import PadChange, keep_positions
from .model.weights import release_pages
from .model.written_files import written_files
from .progress import Clock, StageProgress
from .protocols import Tokenizer
from .rows.assembly import Assembly
from .rows.build import build_rows
from .rows.methods import Job, anchors_of, method_of
from .rows.rules import check_method, check_plm_rows
from .shared import Shared, basis_of
from .vectors.auxiliary import Auxiliary, auxiliary_files, load_auxiliary
from .vectors.bilingual import load_source_vectors
from .vectors.segmented import segmented_vectors

_LOGGER = logging.getLogger("saltlm")


@dataclasses.dataclass(frozen=True)
class Transfer:
    """A finished transfer.

    Attributes:
        input_rows: [T', D], new input rows in the dtype as written; ``T'`` is ``T`` (or ``S`` and the
            added tokens), rounded up as asked, or the number that was asked for.
        output_rows: [T', D] of an untied head, ``None`` for a tied one.
        output_bias: [T'] of the head, ``None`` where it has none.
        alignment: source id and verdict of each target token.
        origin: uint8 [T'], of each row: index into :data:`~saltlm.rows.assembly.ORIGINS`.
        summary: the content of ``saltlm.json``, a dictionary.
        tokenizer: the new tokenizer, the target's or the source's with tokens added.
        out: the written folder, ``None`` if none was asked for.
        estimate: expected memory, time and disk; ``None`` unless the transfer was only planned.
    """

    input_rows: torch.Tensor
    output_rows: torch.Tensor | None
    output_bias: torch.Tensor | None
    alignment: Alignment
    origin: np.ndarray
    summary: Summary
    tokenizer: Any
    out: Path | None
    estimate: Estimate | None = None

    @property
    def verdict(self) -> Verdict:
        """What the figures mean, and what to do next."""
        return verdict_of(self.summary, self.out, cost=None if self.estimate is None else str(self.estimate))

    def _repr_html_(self) -> str:
        """The verdict, and the rows by origin, for notebooks."""
        return transfer_html(self.summary, self.verdict)

    def __repr__(self) -> str:
        head = "tied" if self.output_rows is None else "untied"
        return f"Transfer(T'={len(self.origin)}, D={self.input_rows.shape[1]}, {head}, {self.summary['counts']})"


def transfer(
    source: str | Path,
    target: str | Path,
    auxiliary: str | Path | None = None,
    out: str | Path | None = None,
    config: TransferConfig | None = None,
    *,
    progress: StageProgress | None = None,
    dry_run: bool = False,
) -> Transfer:
    """Give a source causal LM the tokenizer of a target-language PLM, with new embedding rows.

    The warnings of the summary are also logged, once the transfer is finished, by the logger ``saltlm``.

    Args:
        source: folder or hub name of the causal LM.
        target: folder or hub name of the PLM (BERT, GPT or T5 kind); or a tokenizer alone, a folder without weights or a
            ``tokenizer.json``, for methods that read no PLM rows.
        auxiliary: static vectors of the target language, see :func:`~saltlm.load_auxiliary`; ``None`` for methods that
            need none.
        out: folder to write, whole or not at all; ``None`` writes nothing.
        config: the options; ``None`` is all defaults.
        progress: called with (stage, units done, units in all); the last is 0 where it is not known.
        dry_run: stop before any row is built; the summary then tells what would be done.

    Returns:
        The new matrices, the alignment, each row's origin and the summary.

    Raises:
        InputError: an input is missing or broken, or does not fit the others; nothing has been written then.
        BackendError: the file system failed, or the written folder does not compute what the source computes on shared
            tokens (see ``reload_check`` of the config); nothing has been written then.
    """
    return run_transfer(
        source, target, auxiliary, out, config or TransferConfig(), shared=Shared(), progress=progress, dry_run=dry_run
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """The inputs of a transfer, read and aligned, before any row is built.

    Attributes:
        model: the source.
        donor: the target PLM.
        tokenizer: the new tokenizer; with an expansion, the target's as it is aligned.
        alignment: of source and target tokens.
        expansion: the tokens that are added to the source's; ``None`` where the target's tokenizer replaces it.
        pad: changes of the checkpoint that keep its positions with another padding id.
        assembly: the new matrices; shared rows are filled, the rows of new tokens are open.
        job: the input of the method.
    """

    model: Source
    donor: Donor
    tokenizer: Any
    alignment: Alignment
    expansion: Expansion | None
    pad: PadChange
    assembly: Assembly
    job: Job


def prepare(
    source: str | Path,
    target: str | Path,
    auxiliary: str | Path | None,
    config: TransferConfig,
    *,
    shared: Shared,
    clock: Clock,
    link_to: Path | None = None,
) -> Prepared:
    """Load, align and read vectors: everything before the rows of new tokens are built.

    Args:
        source: as in :func:`transfer`.
        target: as in :func:`transfer`.
        auxiliary: as in :func:`transfer`.
        config: the options.
        shared: what earlier transfers of this process have read and computed.
        clock: measures the stages and reports progress.
        link_to: folder that files of the source must be linkable into; ``None`` checks nothing.

    Raises:
        InputError: as in :func:`transfer`.
    """
    check_method(config, auxiliary)
    device = resolve_device(config.device)
    with clock("load"):
        model, donor = shared.source(source, config), shared.donor(target, config)
        if donor.alone is not None:
            check_plm_rows(config, auxiliary, f"target {target}")
        if link_to is not None:
            check_link(model, link_to)
    with clock("align"):
        tokenizer, alignment = shared.aligned(model, donor, config)
        expansion = expand(model.tokenizer, alignment, len(model.input_rows)) if config.keep_source_vocabulary else None
        pad = keep_positions(model, tokenizer.pad_token_id) if expansion is None else PadChange()
    with clock("vectors"):
        vectors, source_vectors = _vectors(config, auxiliary, tokenizer, alignment, model, donor, shared)
    size = alignment.target.size if expansion is None else expansion.first + len(expansion.added)
    rows = _row_count(size, config)
    assembly = Assembly(model, alignment, rows, getattr(torch, config.dtype) if config.dtype else None, expansion)
    job = _job(assembly, model, donor, alignment, vectors, config, device, clock)
    basis = basis_of(donor, vectors, model, config)
    return Prepared(
        model=model,
        donor=donor,
        tokenizer=tokenizer,
        alignment=alignment,
        expansion=expansion,
        pad=pad,
        assembly=assembly,
        job=dataclasses.replace(job, source_auxiliary=source_vectors, shared=shared, basis=basis),
    )


def run_transfer(
    source: str | Path,
    target: str | Path,
    auxiliary: str | Path | None,
    out: str | Path | None,
    config: TransferConfig,
    *,
    shared: Shared,
    progress: StageProgress | None = None,
    dry_run: bool = False,
    locked: bool = False,
) -> Transfer:
    """One transfer of a process that may make several; :func:`transfer` documents what both take.

    Args:
        source: as in :func:`transfer`.
        target: as in :func:`transfer`.
        auxiliary: as in :func:`transfer`.
        out: as in :func:`transfer`.
        config: the options.
        shared: what earlier transfers of this process have read and computed; this transfer adds to it.
        progress: as in :func:`transfer`.
        dry_run: as in :func:`transfer`.
        locked: whether the caller holds :func:`~saltlm.files.output_lock.locked_output` for ``out``.

    Returns:
        As :func:`transfer`.

    Raises:
        InputError: as in :func:`transfer`.
        BackendError: as in :func:`transfer`.
    """
    clock = Clock(progress)
    _check_named(source=source, target=target, auxiliary=auxiliary, out=out)
    read = (source, target, *auxiliary_files(auxiliary), *_source_files(config))
    destination = _destination(out, config, read, locked)
    link_to = destination if config.link == "hard" else None
    prepared = prepare(source, target, auxiliary, config, shared=shared, clock=clock, link_to=link_to)
    model, donor, assembly, job = prepared.model, prepared.donor, prepared.assembly, prepared.job
    alignment, expansion, pad, tokenizer = prepared.alignment, prepared.expansion, prepared.pad, prepared.tokenizer
    if expansion is not None:
        tokenizer = expansion.tokenizer
    expected = estimate(model, donor, assembly, job, config, sum(clock.seconds.values())) if dry_run else None
    built = build_rows(job, assembly, tokenizer, clock, dry_run=dry_run)
    summary = summary_of(
        built, model, donor, assembly, tokenizer, expansion, auxiliary, clock.seconds, warnings=pad.warnings
    )
    if not dry_run and destination is not None:
        # An expanded vocabulary keeps the ids of the source, so that no id in its configuration changes.
        changes = IdChanges(config={}, generation=None) if expansion else _changes(model, tokenizer, assembly, pad)
        with clock("write"):
            write_folder(
                destination,
                model,
                assembly.matrices(),
                tokenizer=tokenizer,
                config_changes=changes.config,
                generation_changes=changes.generation,
                tensors=pad.tensors,
                check=lambda folder: _reload(folder, summary, model, assembly, tokenizer, config, shared),
                extra_files={
                    "provenance.safetensors": provenance_bytes(assembly, alignment.source),
                    "README.md": _card(summary, model),
                    # After the check, which adds its figures to the summary, and after all files, whose digests it holds.
                    SUMMARY: lambda path: _write_summary(path, summary, model),
                },
                link=config.link,
                force=config.force,
                protected=[donor.path],
                progress=lambda done, total: clock.progress("write", done, total),
            )
    for warning in summary["warnings"]:
        _LOGGER.warning("%s", warning)
    return Transfer(
        input_rows=assembly.input_rows,
        output_rows=assembly.output_rows,
        output_bias=assembly.output_bias,
        alignment=alignment,
        origin=assembly.origin,
        summary=summary,
        tokenizer=tokenizer,
        out=None if dry_run else destination,
        estimate=expected,
    )


def _row_count(size: int, config: TransferConfig) -> int:
    """T', the number of rows for ``size`` tokens: as given, or rounded up."""
    if config.rows is None:
        multiple = config.pad_to_multiple_of or 1
        return -(-size // multiple) * multiple
    if not size <= config.rows <= size + MOST_PADDING:
        raise input_error(
            "rows",
            f"{config.rows:,} for a tokenizer of {size:,} ids",
            f"a number in [{size:,}, {size + MOST_PADDING:,}]",
            "give at least one row for each id; a draft model needs the tokenizer and the number of rows of its model",
        )
    return config.rows


def _reload(
    folder: Path,
    summary: Summary,
    model: Source,
    assembly: Assembly,
    tokenizer: Tokenizer,
    config: TransferConfig,
    shared: Shared,
) -> None:
    """Compare the written folder with the source, and add what was checked to the summary."""
    report = check_reload(folder, model, assembly, tokenizer, mode=config.reload_check, shared=shared)
    summary["reload_check"] = report
    if report["reason"] and config.reload_check != "off":
        summary["warnings"].append(f"the result was not compared with the source: {report['reason']}")


def _write_summary(path: Path, summary: Summary, model: Source) -> None:
    """Write saltlm.json, with the digests of all other files of its folder."""
    keys = [model.input_name, model.output_name, model.bias_name, *model.copies, *(table.key for table in model.tables)]
    names = [model.weights.unwrapped.get(key, key) for key in keys if key is not None]
    summary["files"] = written_files(path.parent, names)
    path.write_bytes(summary_bytes(summary))


def _card(summary: Summary, model: Source) -> bytes:
    """The model card; a model of several parts is loaded by its own class."""
    return model_card(summary, model.architecture) if model.text_path and model.architecture else model_card(summary)


def _changes(model: Source, tokenizer: Tokenizer, assembly: Assembly, pad: PadChange) -> IdChanges:
    """New values of the ids in the source's configs, with what its positions need."""
    old_rows, new_rows = len(model.input_rows), len(assembly.input_rows)
    changes = id_changes(model.config, model.generation_config, tokenizer, assembly.source_id, old_rows)
    config = fill_refused_nulls(model.config, changes.config, tokenizer, new_rows)
    return dataclasses.replace(changes, config={**config, **pad.config})


def _destination(
    out: str | Path | None, config: TransferConfig, names: Sequence[str | Path], locked: bool
) -> Path | None:
    """The folder to write, checked against the files and folders that are read."""
    if out is None:
        return None
    # Names of hub models are no files, so they cannot be overwritten.
    inputs = [Path(name) for name in names if os.path.exists(name)]
    destination = check_output(Path(out), protected=inputs, force=config.force)
    if not locked:
        refuse_written(destination)
    return destination


def _check_named(**given: str | Path | None) -> None:
    """Refuse empty names: an unset shell variable gives one, and pathlib would take it for the current folder."""
    for name, value in given.items():
        if value is not None and not str(value):
            raise input_error(
                name, "an empty name", "a folder, a file or a hub name", "check the variable it came from"
            )


def _source_files(config: TransferConfig) -> list[str]:
    named = (config.dictionary, config.unigram_text, config.tune_text)
    return auxiliary_files(config.source_auxiliary) + [str(name) for name in named if name]


def _vectors(
    config: TransferConfig,
    auxiliary: str | Path | None,
    tokenizer: Tokenizer,
    alignment: Alignment,
    model: Source,
    donor: Donor,
    shared: Shared,
) -> tuple[Auxiliary | None, Auxiliary | None]:
    """Vectors of the target tokens and of the source tokens, as far as the method reads them."""
    needs = method_of(config).source_vectors
    vectors = None if needs == "segmented" else _target_vectors(config, auxiliary, alignment, model, donor, shared)
    # check_method has refused a method without the files that it needs.
    if auxiliary is not None and needs == "segmented":
        sizes = (alignment.target.size, alignment.source.size)
        target_vectors, source_vectors = segmented_vectors(auxiliary, (tokenizer, model.tokenizer), sizes)
        return target_vectors, source_vectors
    if needs == "dictionary" and vectors is not None and auxiliary and config.source_auxiliary and config.dictionary:
        width = vectors.vectors.shape[1]
        return vectors, load_source_vectors(config.source_auxiliary, config.dictionary, auxiliary, alignment, width)
    return vectors, None


def _target_vectors(
    config: TransferConfig,
    auxiliary: str | Path | None,
    alignment: Alignment,
    model: Source,
    donor: Donor,
    shared: Shared,
) -> Auxiliary | None:
    if auxiliary is None or not method_of(config).vectors:
        return None
    if str(auxiliary) != "plm":
        return shared.vectors(auxiliary, alignment, model, donor, config)
    # Added tokens beyond the rows of the PLM have no row, and so no vector.
    size = alignment.target.size
    plm = torch.zeros(size, donor.input_rows.shape[1])
    both = min(size, len(donor.input_rows))
    plm[:both] = donor.input_rows[:both].float()
    return load_auxiliary(auxiliary, alignment.target.words(), plm_rows=plm)


def _job(
    assembly: Assembly,
    model: Source,
    donor: Donor,
    alignment: Alignment,
    vectors: Auxiliary | None,
    config: TransferConfig,
    device: torch.device,
    clock: Clock,
) -> Job:
    """What the method works from."""

    def progress(done: int, total: int) -> None:
        release_pages()
        clock.progress("rows", done, total)

    flags = alignment.source.flags()[: len(model.input_rows)]
    method = method_of(config)
    by_plm = donor.alone is None and (method.plm or not method.anchors)
    anchors = anchors_of(assembly, alignment, vectors, donor.input_rows if by_plm else None)
    if method.anchors and not method.alone and not len(anchors):
        shared = int(assembly.shared.sum())
        needed = " and ".join(["a vector"] * method.vectors + ["a PLM row"] * by_plm)
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
        new=assembly.new,
        config=config,
        device=device,
        progress=progress,
    )
