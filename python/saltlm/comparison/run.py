"""Several ways to start, one probe: the recipe (step 8)."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..adaptation.checkpoints import config_identity
from ..adaptation.config import AdaptConfig
from ..adaptation.run import model_identity
from ..adaptation.text import Sources, TrainingText, read_text
from ..config import TransferConfig
from ..environment import require
from ..errors import InputError, input_error
from ..files.hashing import sampled_digest
from ..files.json_files import write_json_whole
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

Report = Callable[[str, int, int], None]
_LOGGER = logging.getLogger("saltlm")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Attributes:
        out: the folder with ``compare.json`` and ``compare.png``.
        content: what ``compare.json`` holds: ``results`` (a dict for each method and seed with ``method``, ``seed``,
            ``bits_per_byte`` as [[step, value]], ``source_bits_per_byte``, ``self_check``, ``training_bytes``, ``seconds``),
            and what :func:`~saltlm.comparison.results.summarize` makes of them.
    """

    out: Path
    content: Mapping[str, Any]

    @property
    def best(self) -> str | None:
        """The method that ends lowest on average; ``None`` if every one of them diverged."""
        return self.content["best"]

    def __repr__(self) -> str:
        return f"Comparison(best={self.best!r}, ties={self.content['ties']}, runs={len(self.content['results'])})"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Plan:
    """All that is known before the first run."""

    inputs: tuple[str, str, str | None]
    original: Path
    cells: Sequence[Cell]
    text: TrainingText
    config: CompareConfig
    adaptation: AdaptConfig
    blocks: Any
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
    progress: Report | None = None,
) -> Comparison:
    """Transfer by several methods and train each result a little, on the same text in the same order with the same seeds.

    A probe is what :func:`~saltlm.transfer` and :func:`~saltlm.adapt` with the same options do, figure for figure; it only
    keeps no weights. The control ``original`` is the source model with its own tokenizer: since that makes more tokens of a
    byte, its blocks are longer by the ratio of tokens per byte, so that a step holds the same number of bytes on average.
    No probe sees a text twice. ``auto`` has its options chosen by the probes' text, as ``tune_text`` does, unless some are
    given; ``auto:tune-text=none`` does without. Two cells with the same rows, bit for bit, are probed once. Finished runs are
    kept in ``out``: the same call goes on after an interruption, and further methods or seeds can be added later.

    Args:
        source: as for :func:`~saltlm.transfer`.
        target: likewise.
        auxiliary: likewise; may be ``None`` for methods that need none.
        methods: each ``METHOD[:option=value[:option=value]]``, which is also its label; ``auxiliary=PATH`` gives it vectors
            of its own.
        texts: what the probes train on, see :class:`~saltlm.text.corpus.Corpus`.
        out: folder of the results.
        config: probe, steps and seeds; ``None`` is all defaults.
        eval_texts: held-out text in the target language; ``None`` keeps a share of the documents of ``texts`` back.
        source_eval_texts: text in the source language, measured before and after each probe.
        transfer_config: options of all transfers, ``method`` and ``seed`` apart.
        adapt_config: options of all probes: text, blocks, batches, learning rates.
        progress: called with (stage, done, total), total 0 where it is not known.

    Returns:
        The figures; they, and a chart where matplotlib is installed, are in ``out`` too.

    Raises:
        InputError: a method or an option is not known or lacks an input, the text is too short for the steps or shares
            text with the held-out one, or ``out`` holds something else; nothing has been written then.
        KeyboardInterrupt: a signal came; finished runs are kept.
    """
    require("accelerate", "adapt", "compare")
    report = progress or (lambda stage, done, total: None)
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
    from .chart import draw_chart
    from .results import summarize

    with folder.opened(plan.identity, force=plan.config.force):
        try:
            results: list[dict[str, Any]] = []
            for cell in plan.cells:
                results += _runs(plan, cell, folder, results, report)
        except KeyboardInterrupt:
            kept = f"finished runs are kept in {folder.out}; the same command goes on" if folder.runs else ""
            raise KeyboardInterrupt(kept or "no run was finished, and nothing was left behind") from None
        content = {
            "format": 1,
            **_described(plan),
            **summarize(plan.cells, results, plan.config.confidence),
            "results": results,
            "warnings": list(plan.warnings),
        }
        write_json_whole(folder.out / RESULT, content)
        draw_chart(content, folder.out / CHART)
    for warning in plan.warnings:
        _LOGGER.warning("%s", warning)
    return Comparison(folder.out, content)


def _runs(
    plan: _Plan, cell: Cell, folder: CompareFolder, others: Sequence[Mapping[str, Any]], report: Report
) -> list[dict[str, Any]]:
    """The runs of a cell by seed, those that an earlier call finished taken from the folder."""
    from .probe import run_cell

    found: list[dict[str, Any]] = []
    place, count = plan.cells.index(cell), len(plan.config.seed_list)
    for number, seed in enumerate(plan.config.seed_list, place * count + 1):
        stage = f"{number} of {len(plan.cells) * count}: {cell.label}, seed {seed}"
        content = {
            "identity": plan.identity,
            "seed": seed,
            "cell": None,
            "files": [sampled_digest(p) for p in cell.files()],
        }
        if cell.config is not None:
            content["cell"] = {**plain_transfer(cell.config), **cell.own(), "reads": cell.reads()}
        key = folder.key(content)
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
                        earlier=found,
                        others=others,
                        config=plan.config.adaptation(plan.adaptation, seed, length),
                        report=lambda part, done, total, stage=stage: report(f"{stage}, {part}", done, total),
                    )
                except InputError as error:
                    raise InputError(f"method {cell.label!r}: {error}") from error
            folder.save(key, run)
        else:
            report(f"{stage}, kept from before", 1, 1)
        found.append({"method": cell.label, "seed": seed, **run})
    return found


def _plan(
    inputs: tuple[Any, Any, Any],
    methods: Sequence[str],
    texts: Sources,
    folder: CompareFolder,
    config: CompareConfig,
    held_out: tuple[Sources | None, Sources | None],
    base: TransferConfig,
    adaptation: AdaptConfig,
    report: Report,
) -> _Plan:
    """Check everything that can be checked before the first run, the cheap before the slow."""
    from ..model.causal_lm import positions_in
    from ..model.gguf import convert
    from ..model.locate import resolve_model
    from ..pipeline import transfer
    from ..rows.rules import check_method
    from .probe import fitted_blocks, text_at_hand, tuning_documents

    check_base(adaptation)
    cells = parse_cells(methods, base)
    for cell in cells[1:]:
        try:
            check_method(cell.config, cell.inputs(inputs)[2])
        except InputError as error:
            raise InputError(f"method {cell.label!r}: {error}") from None
    files = [Path(name) for name in _existing(inputs[2])]
    source, target = (
        resolve_model(str(name), f"{side} {name}", revision, gguf)[0]
        for side, name, revision, gguf in (
            ("source", inputs[0], base.source_revision, base.gguf_file),
            ("target", inputs[1], base.target_revision, None),
        )
    )
    folder.check([source, target, *files, *(file for cell in cells for file in cell.files())])
    report("text", 0, 0)
    text = read_text(texts, *held_out, None, adaptation)
    if not text.heldout:
        raise input_error("held-out text", "none", "text to measure on", "give --eval-text, or a larger --heldout")
    for cell in cells[1:]:
        if cell.config.tune_text is not None:
            try:
                tuning_documents(cell.config.tune_text, text)
            except InputError as error:
                raise InputError(f"method {cell.label!r}: {error}") from None
    if any(cell.tunes for cell in cells) and not text_at_hand(text):
        cells = [dataclasses.replace(cell, tunes=False) for cell in cells]
    report("inputs", 0, 0)
    dry = transfer(
        *cells[1].inputs(inputs), config=dataclasses.replace(cells[1].config, seed=config.seed), dry_run=True
    )
    original = convert(source / base.gguf_file)[0] if base.gguf_file else source
    report("counting tokens", 0, 0)
    positions = positions_in(original, f"source {inputs[0]}", trust_remote_code=base.trust_remote_code)
    tokenizers = (dry.tokenizer, _tokenizer(original, base))
    blocks = fitted_blocks(text, tokenizers, adaptation, config.probe_steps, positions)
    adaptation = dataclasses.replace(adaptation, seq_length=blocks.length)
    identity = _identity(original, target, inputs[2], text, config, base, adaptation)
    folder.refuse_other(identity, force=config.force)
    read = any(cell.reads_vectors and cell.auxiliary is None for cell in cells)
    warnings = [] if read or inputs[2] is None else [_unread(inputs[2])]
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
    """Files of the vectors as far as they are there: one that no method reads may be missing, and counts by its name."""
    # os.path's test, unlike pathlib's, takes a name that is too long for one that is not there.
    return [name for name in auxiliary_files(auxiliary) if os.path.exists(name)]


def _unread(auxiliary: str | Path) -> str:
    return f"no method of this comparison reads these auxiliary vectors: {auxiliary} changes nothing"


def _identity(
    original: Path,
    target: Path,
    auxiliary: Any,
    text: TrainingText,
    config: CompareConfig,
    base: TransferConfig,
    adaptation: AdaptConfig,
) -> dict[str, Any]:
    """What makes runs comparable: inputs by their content, and all options but methods and seeds."""
    from .. import __version__
    from ..rows.methods import METHODS

    def content(entries: Any) -> Any:
        return None if entries is None else [entry["sha256"] or entry["path"] for entry in entries]

    optional = {name for method in METHODS.values() for name in method.options}
    probe = {name: getattr(config, name) for name in ("probe", "probe_steps", "eval_steps")}
    adapting = {name: value for name, value in config_identity(adaptation).items() if name not in OWN_ADAPT}
    transferring = plain_transfer(base, leave_out=["method", *optional])
    names = _existing(auxiliary)
    return {
        "version": __version__,
        "source": model_identity(original),
        "target": model_identity(target),
        "auxiliary": [sampled_digest(Path(name)) for name in names] or str(auxiliary),
        "text": content(text.identity["text"]),
        "evaluation": [content(entries) for entries in text.identity["evaluation"]],
        "options": {**{f"transfer {name}": value for name, value in transferring.items()}, **adapting, **probe},
    }


def _tokenizer(folder: Path, base: TransferConfig) -> Any:
    """The source's tokenizer as an adaptation reads it."""
    from transformers import AutoTokenizer

    from ..environment import quiet_transformers

    with quiet_transformers():
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=base.trust_remote_code)


def _described(plan: _Plan) -> dict[str, Any]:
    """What was compared, for whoever reads the file later."""
    from ..environment import versions

    new, own = plan.blocks.tokens_per_byte
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
        "training_tokens_per_byte": {"new": round(new, 6), "original": round(own, 6)},
        "seq_lengths": {"new": plan.blocks.length, "original": plan.blocks.original},
    }
