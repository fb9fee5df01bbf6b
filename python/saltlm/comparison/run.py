"""Comparison of transfer methods: each method is transferred and then trained for a few steps on the same text."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..adaptation.checkpoints import config_identity
from ..adaptation.config import AdaptConfig
from ..adaptation.run import model_identity
from ..adaptation.text import Sources, TrainingText, read_text
from ..config import TransferConfig
from ..environment import quiet_transformers, require, versions
from ..errors import InputError, input_error
from ..files.hashing import sampled_digest
from ..files.json_files import write_json_whole
from ..progress import StageProgress
from ..protocols import Tokenizer
from ..vectors.auxiliary import auxiliary_files
from .config import (
    ORIGINAL,
    OWN_ADAPT,
    Cell,
    CompareConfig,
    check_base,
    parse_cells,
    plain_transfer,
)
from .folder import CHART, RESULT, CompareFolder

if TYPE_CHECKING:
    from .blocks import BlockLengths

# Source, target and auxiliary vectors, as the caller names them.
Inputs = tuple[str | Path, str | Path, str | Path | None]
_LOGGER = logging.getLogger("saltlm")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Attributes:
        out: the folder with ``compare.json`` and ``compare.png``.
        content: content of ``compare.json``: ``results`` (a dict for each method and seed with ``method``, ``seed``,
            ``bits_per_byte`` as [[step, value]], ``source_bits_per_byte``, ``self_check``, ``training_bytes``, ``seconds``),
            and the summary of :func:`~saltlm.comparison.results.summarize`.
    """

    out: Path
    content: Mapping[str, Any]

    @property
    def best(self) -> str | None:
        """The method with the lowest mean bits per byte at the end; ``None`` if all methods diverged."""
        return self.content["best"]

    def _repr_html_(self) -> str:
        """The best method, the methods as a table, and their curves, for notebooks."""
        from ..inspection.notebook import comparison_html

        return comparison_html(self.content)

    def __repr__(self) -> str:
        return f"Comparison(best={self.best!r}, ties={self.content['ties']}, runs={len(self.content['results'])})"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Plan:
    """The checked inputs and options of all runs.

    Attributes:
        inputs: source, target and auxiliary vectors.
        original: folder of the source model in the safetensors format.
        cells: the original model, then the methods.
        text: training text and held-out text of the probes.
        config: the options of the comparison.
        adaptation: the options of all probes.
        blocks: lengths of the blocks of text.
        identity: what must be equal for runs to be comparable, as plain JSON values.
        warnings: warnings for the user.
    """

    inputs: Inputs
    original: Path
    cells: Sequence[Cell]
    text: TrainingText
    config: CompareConfig
    adaptation: AdaptConfig
    blocks: BlockLengths
    identity: Mapping[str, Any]
    warnings: Sequence[str]


def compare(
    source: str | Path,
    target: str | Path,
    auxiliary: str | Path | None,
    methods: Sequence[str],
    texts: Sources,
    out: str | Path,
    config: CompareConfig | None = None,
    *,
    eval_texts: Sources | None = None,
    source_eval_texts: Sources | None = None,
    transfer_config: TransferConfig | None = None,
    adapt_config: AdaptConfig | None = None,
    progress: StageProgress | None = None,
) -> Comparison:
    """Transfer by several methods, and train each result for a few steps on the same text in the same order.

    The figures of a probe equal those of :func:`~saltlm.transfer` followed by :func:`~saltlm.adapt` with the same options; a
    probe only drops the trained weights. The control ``original`` is the source model with its own tokenizer. Its number of
    tokens per byte differs, so its blocks are longer or shorter by the ratio, and a step reads the same number of bytes on
    average. No probe reads a part of the text twice. The text of the probes tunes ``auto``, as ``tune_text`` does, unless
    options that it could choose are set; ``auto:tune-text=none`` is not tuned. If two cells have the same rows, bit for bit,
    one probe serves both. Finished runs are kept in ``out``: the same call resumes after an interruption, and later calls can
    add methods or seeds.

    Args:
        source: as for :func:`~saltlm.transfer`.
        target: as for :func:`~saltlm.transfer`.
        auxiliary: as for :func:`~saltlm.transfer`; ``None`` if no method reads auxiliary vectors.
        methods: each ``METHOD[:option=value[:option=value]]``, which is also the label of the method; ``auxiliary=PATH``
            replaces the auxiliary vectors for this method.
        texts: training text of the probes, see :class:`~saltlm.text.corpus.Corpus`.
        out: folder of the results.
        config: probe, steps and seeds; ``None`` for the defaults.
        eval_texts: held-out text in the target language; ``None`` holds out a share of the documents of ``texts``.
        source_eval_texts: text in the source language, evaluated before and after each probe.
        transfer_config: options of all transfers, except ``method`` and ``seed``.
        adapt_config: options of all probes: text, blocks, batches, learning rates.
        progress: called with (stage, done, total); total is 0 if it is not known.

    Returns:
        The figures. They are also in ``out``, with a chart if matplotlib is installed.

    Raises:
        InputError: a method or an option is not known, a method lacks an input, the text is too short for the steps or
            overlaps the held-out text, or ``out`` contains something else. Nothing has been written then.
        KeyboardInterrupt: a signal came; finished runs are kept.
    """
    require("accelerate", "adapt", "compare")
    report: StageProgress = progress or (lambda stage, done, total: None)
    folder = CompareFolder(Path(out))
    plan = _plan(
        (source, target, auxiliary),
        methods,
        texts,
        folder,
        config or CompareConfig(),
        (eval_texts, source_eval_texts),
        transfer_config or TransferConfig(),
        adapt_config or AdaptConfig(),
        report,
    )
    from .chart import draw_comparison
    from .results import summarize

    with folder.opened(plan.identity, force=plan.config.force):
        try:
            results: list[dict[str, Any]] = []
            for cell in plan.cells:
                results += _runs(plan, cell, folder, results, report)
        except KeyboardInterrupt:
            message = "no run was finished, and nothing was left behind"
            if folder.runs:
                message = f"finished runs are kept in {folder.out}; the same command goes on"
            raise KeyboardInterrupt(message) from None
        content = {
            "format": 1,
            **_description(plan),
            **summarize(plan.cells, results, plan.config.confidence),
            "results": results,
            "warnings": list(plan.warnings),
        }
        write_json_whole(folder.out / RESULT, content)
        draw_comparison(content, folder.out / CHART)
    for warning in plan.warnings:
        _LOGGER.warning("%s", warning)
    return Comparison(folder.out, content)


def _runs(
    plan: _Plan, cell: Cell, folder: CompareFolder, others: Sequence[Mapping[str, Any]], report: StageProgress
) -> list[dict[str, Any]]:
    """The runs of a cell, one per seed. A run that an earlier call finished is read from the folder.

    Args:
        plan: inputs and options.
        cell: the cell.
        folder: the folder of the comparison.
        others: runs of the cells before this one.
        report: called with (stage, done, total).
    """
    from .probe import run_cell

    runs: list[dict[str, Any]] = []
    seeds = len(plan.config.seed_list)
    for number, seed in enumerate(plan.config.seed_list, plan.cells.index(cell) * seeds + 1):
        stage = f"{number} of {len(plan.cells) * seeds}: {cell.label}, seed {seed}"
        key = folder.key(_run_identity(plan, cell, seed))
        run = folder.load(key)
        if run is None:
            length = plan.blocks.original if cell.label == ORIGINAL else plan.blocks.length
            with folder.empty_scratch() as scratch:
                try:
                    run = run_cell(
                        cell,
                        seed,
                        inputs=cell.inputs(plan.inputs),
                        original=plan.original,
                        text=plan.text,
                        scratch=scratch,
                        earlier=runs,
                        others=others,
                        config=plan.config.adaptation(plan.adaptation, seed, length),
                        report=_with_prefix(stage, report),
                    )
                except InputError as error:
                    raise InputError(f"method {cell.label!r}: {error}") from error
            folder.save(key, run)
        else:
            report(f"{stage}, kept from before", 1, 1)
        runs.append({"method": cell.label, "seed": seed, **run})
    return runs


def _with_prefix(stage: str, report: StageProgress) -> StageProgress:
    """A progress callback for the parts of a stage."""
    return lambda part, done, total: report(f"{stage}, {part}", done, total)


def _run_identity(plan: _Plan, cell: Cell, seed: int) -> dict[str, Any]:
    """Everything that the result of a run depends on, as plain JSON values."""
    options = None
    if cell.config is not None:
        options = {**plain_transfer(cell.config), **cell.extra_options(), "reads": cell.file_options()}
    return {
        "identity": plan.identity,
        "seed": seed,
        "cell": options,
        "files": [sampled_digest(path) for path in cell.files()],
    }


def _plan(
    inputs: Inputs,
    methods: Sequence[str],
    texts: Sources,
    folder: CompareFolder,
    config: CompareConfig,
    heldout: tuple[Sources | None, Sources | None],
    base: TransferConfig,
    adaptation: AdaptConfig,
    report: StageProgress,
) -> _Plan:
    """Check all inputs and options before the first run, quick checks before slow ones."""
    from ..model.causal_lm import positions_in
    from ..model.gguf import convert
    from ..model.locate import resolve_model
    from ..model.tokenizer_alone import find_alone
    from ..pipeline import transfer
    from ..rows.rules import check_method, check_plm_rows
    from .blocks import fitted_blocks
    from .probe import training_text, tuning_documents

    check_base(adaptation)
    cells = parse_cells(methods, base)
    alone = find_alone(inputs[1])
    for cell in cells[1:]:
        try:
            check_method(cell.transfer, cell.inputs(inputs)[2])
            if alone is not None:
                check_plm_rows(cell.transfer, cell.inputs(inputs)[2], f"target {inputs[1]}")
        except InputError as error:
            raise InputError(f"method {cell.label!r}: {error}") from None
    files = [Path(name) for name in _existing(inputs[2])]
    source = resolve_model(str(inputs[0]), f"source {inputs[0]}", base.source_revision, base.gguf_file)[0]
    if alone is not None:
        target = alone.path
    else:
        target = resolve_model(str(inputs[1]), f"target {inputs[1]}", base.target_revision, None)[0]
    folder.check([source, target, *files, *(file for cell in cells for file in cell.files())])
    report("text", 0, 0)
    text = read_text(texts, *heldout, None, adaptation)
    if not text.heldout:
        raise input_error("held-out text", "none", "text to measure on", "give --eval-text, or a larger --heldout")
    for cell in cells[1:]:
        if cell.transfer.tune_text is not None:
            try:
                tuning_documents(cell.transfer.tune_text, text)
            except InputError as error:
                raise InputError(f"method {cell.label!r}: {error}") from None
    if any(cell.tunes for cell in cells) and not training_text(text):
        # The text is too short to tune by; ``auto`` then keeps its default options.
        cells = [dataclasses.replace(cell, tunes=False) for cell in cells]
    report("inputs", 0, 0)
    # All methods have the same new tokenizer; a dry run of the first one yields it.
    first = dataclasses.replace(cells[1].transfer, seed=config.seed)
    dry = transfer(*cells[1].inputs(inputs), config=first, dry_run=True)
    original = convert(source / base.gguf_file)[0] if base.gguf_file else source
    report("counting tokens", 0, 0)
    positions = positions_in(original, f"source {inputs[0]}", trust_remote_code=base.trust_remote_code)
    tokenizers = (dry.tokenizer, _tokenizer(original, base))
    blocks = fitted_blocks(text, tokenizers, adaptation, config.probe_steps, positions)
    adaptation = dataclasses.replace(adaptation, seq_length=blocks.length)
    identity = _identity(original, target, inputs[2], text, config, base, adaptation)
    folder.refuse_other(identity, force=config.force)
    warnings = []
    vectors_are_read = any(cell.reads_vectors and cell.auxiliary is None for cell in cells)
    if inputs[2] is not None and not vectors_are_read:
        warnings.append(f"no method of this comparison reads these auxiliary vectors: {inputs[2]} changes nothing")
    return _Plan(
        inputs=inputs,
        original=original,
        cells=cells,
        text=text,
        config=config,
        adaptation=adaptation,
        blocks=blocks,
        identity=identity,
        warnings=warnings,
    )


def _existing(auxiliary: str | Path | None) -> list[str]:
    """The files of auxiliary vectors that exist. Vectors that no method reads may be missing; then their name counts."""
    # os.path's test, unlike pathlib's, takes a name that is too long for one that is not there.
    return [name for name in auxiliary_files(auxiliary) if os.path.exists(name)]


def _unread(auxiliary: str | Path) -> str:
    return f"no method of this comparison reads these auxiliary vectors: {auxiliary} changes nothing"


def _identity(
    original: Path,
    target: Path,
    auxiliary: str | Path | None,
    text: TrainingText,
    config: CompareConfig,
    base: TransferConfig,
    adaptation: AdaptConfig,
) -> dict[str, Any]:
    """What must be equal for runs to be comparable: content of the inputs, and all options except methods and seeds."""
    from .. import __version__
    from ..rows.methods import METHODS

    def content(entries: Any) -> Any:
        return None if entries is None else [entry["sha256"] or entry["path"] for entry in entries]

    method_options = {name for method in METHODS.values() for name in method.options}
    probe_options = {name: getattr(config, name) for name in ("probe", "probe_steps", "eval_steps")}
    adapt_options = {name: value for name, value in config_identity(adaptation).items() if name not in OWN_ADAPT}
    transfer_options = plain_transfer(base, leave_out=["method", *method_options])
    names = _existing(auxiliary)
    return {
        "version": __version__,
        "source": model_identity(original),
        "target": model_identity(target) if target.is_dir() else {target.name: sampled_digest(target)},
        "auxiliary": [sampled_digest(Path(name)) for name in names] or str(auxiliary),
        "text": content(text.identity["text"]),
        "evaluation": [content(entries) for entries in text.identity["evaluation"]],
        "options": {
            **{f"transfer {name}": value for name, value in transfer_options.items()},
            **adapt_options,
            **probe_options,
        },
    }


def _tokenizer(folder: Path, base: TransferConfig) -> Tokenizer:
    """The tokenizer of the source model, loaded as an adaptation loads it."""
    from transformers import AutoTokenizer

    with quiet_transformers():
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=base.trust_remote_code)


def _description(plan: _Plan) -> dict[str, Any]:
    """Inputs, options and versions, as plain JSON values for ``compare.json``."""
    new, original = plan.blocks.tokens_per_byte
    names = ("source", "target", "auxiliary")
    return {
        "saltlm_version": plan.identity["version"],
        "environment": versions(),
        "inputs": {name: None if value is None else str(value) for name, value in zip(names, plan.inputs, strict=True)},
        "text": plan.text.identity["text"],
        "evaluation": plan.text.identity["evaluation"],
        "heldout_bytes": sum(len(document.encode(errors="surrogatepass")) for document in plan.text.heldout),
        "probe": plan.config.probe,
        "probe_steps": plan.config.probe_steps,
        "seeds": list(plan.config.seed_list),
        "options": plan.identity["options"],
        "cells": {cell.label: cell.to_json() for cell in plan.cells if cell.config is not None},
        "training_tokens_per_byte": {"new": round(new, 6), "original": round(original, 6)},
        "seq_lengths": {"new": plan.blocks.length, "original": plan.blocks.original},
    }
