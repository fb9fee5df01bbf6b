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
from .expand import expand
from .heldout import check, hide_in
from .methods import Job, anchors_of, build, method_of
from .new_tokenizer import IdChanges, id_changes
from .norm_guard import guard_norms, norm_warnings, support_warnings
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
from .recipe import RULES
from .rules import rule_faults
from .segmented_vectors import check_words, segmented_vectors
from .shared import Shared
from .source_vectors import check_dictionary, check_source_vectors, load_source_vectors
from .status import versions
from .train_vectors import sha256_of
from .tune import Tuning, tune
from .unigram_shift import check_unigram, log_unigram, shift_unigram
from .weights import release_pages
from .write_folder import check_link, write_folder

Progress = Callable[[str, int, int], None]

NO_END = (
    "the new tokenizer has no token that ends a text (neither eos nor sep): generation goes on to its length, and documents"
    " packed by adapt have no end"
)


@dataclasses.dataclass(frozen=True)
class Transfer:
    """A finished transfer.

    Attributes:
        input_rows: [T', D], new input rows in the dtype as written; ``T'`` is ``T`` (or ``S`` and the
            added tokens), rounded up as asked.
        output_rows: [T', D] of an untied head, ``None`` for a tied one.
        output_bias: [T'] of the head, ``None`` where it has none.
        alignment: source id and verdict of each target token.
        origin: uint8 [T'], of each row: index into :data:`~saltlm.assemble.ORIGINS`.
        summary: what ``saltlm.json`` holds.
        tokenizer: the new tokenizer, the target's or the source's with tokens added.
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
    destination = _destination(source, target, auxiliary, out, config, locked)
    check_method(config, auxiliary)
    device = resolve_device(config.device)
    with clock("load"):
        model, donor = shared.source(source, config), shared.donor(target, config)
        if destination is not None and config.link == "hard":
            check_link(model, destination)
    with clock("align"):
        tokenizer, alignment = shared.aligned(model, donor, config)
        expansion = expand(model.tokenizer, alignment, len(model.input_rows)) if config.keep_source_vocabulary else None
    with clock("vectors"):
        vectors, source_vectors = _all_vectors(config, auxiliary, alignment, (model, donor, tokenizer), shared)
    size = alignment.target.size if expansion is None else expansion.first + len(expansion.added)
    rows = -(-size // (config.pad_to_multiple_of or 1)) * (config.pad_to_multiple_of or 1)
    assembly = Assembly(model, alignment, rows, getattr(torch, config.dtype) if config.dtype else None, expansion)
    job = _job(assembly, model, donor, alignment, vectors, config, device, clock)
    job = dataclasses.replace(job, source_auxiliary=source_vectors)
    if config.unigram_shift is not None:
        check_unigram(assembly)
        logs, counted = log_unigram(tokenizer, alignment, config.unigram_text)
    posts: dict[str, Any] = {}
    heldout, tuning = None, None
    if config.tune and not dry_run:
        heldout, tuning = _self_check(job, clock)
        config = dataclasses.replace(config, **(tuning.choice if tuning else {}))
        job = dataclasses.replace(job, config=config)
    if not dry_run:
        with clock("rows"):
            for block in build(job):
                assembly.put(block)
            assembly.draw(config.seed, job.used)
            if config.unigram_shift is not None:
                posts["unigram_shift"] = shift_unigram(assembly, alignment, logs, config.unigram_shift) | {
                    "from": counted,
                    "sha256": None if config.unigram_text is None else sha256_of(Path(config.unigram_text)),
                }
            posts["norm_guard"] = guard_norms(
                assembly, job.used, config.norm_guard, _words(assembly, alignment), bias=config.unigram_shift is None
            )
            assembly.pad(job.used)
            matrices = assembly.matrices()
    if not (config.tune or dry_run):
        heldout, _ = _self_check(job, clock)
    summary = _summary(config, model, donor, vectors, alignment, assembly, job, heldout, tuning, clock)
    summary["expansion"] = None if expansion is None else expansion.counts
    summary |= posts
    summary["warnings"] += _rule_warnings(summary, config, assembly, donor) + _unused(config, auxiliary, model, donor)
    if expansion is not None:
        tokenizer = expansion.tokenizer
    if tokenizer.eos_token_id is None:
        summary["warnings"].append(NO_END)
    if not dry_run and destination is not None:
        changes = IdChanges(config={}, generation=None)  # with the source's tokens every id means what it meant
        if expansion is None:
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
                    "provenance.safetensors": provenance_bytes(assembly, alignment.source),
                    "README.md": model_card(summary),
                },
                link=config.link,
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


def _self_check(job: Job, clock: _Clock) -> tuple[dict[str, Any] | None, Tuning | None]:
    """The figures of the start, and how its options were chosen where that was asked for."""
    if not job.config.heldout:
        return None, None
    with clock("self-check"):
        hidden = hide_in(job, job.config.heldout, job.config.seed)
        if hidden is None:
            return None, None
        if not job.config.tune:
            return check(hidden), None
        tuning = tune(hidden)
        return tuning.check, tuning


def _check_named(**given: str | Path | None) -> None:
    """An empty name, as an unset variable in a shell gives it, would stand for the current folder."""
    for name, value in given.items():
        if value is not None and not str(value):
            raise input_error(
                name, "an empty name", "a folder, a file or a hub name", "check the variable it came from"
            )


def _destination(
    source: str | Path, target: str | Path, auxiliary: str | Path | None, out: str | Path | None, config: TransferConfig,
    locked: bool,
) -> Path | None:  # fmt: skip
    """The folder to write, resolved, after a look that it may be."""
    if out is None:
        return None
    # Names of the hub are not files and cannot be overwritten.
    named = (source, target, *auxiliary_files(auxiliary), *_source_files(config))
    found = check_output(Path(out), protected=[Path(n) for n in named if os.path.exists(n)], force=config.force)
    if not locked:
        refuse_written(found)
    return found


def _source_files(config: TransferConfig) -> list[str]:
    return auxiliary_files(config.source_auxiliary) + ([str(config.dictionary)] if config.dictionary else [])


def check_method(config: TransferConfig, auxiliary: str | Path | None) -> None:
    """Whether the method has what it needs and takes what it is given; before anything large is loaded.

    Raises:
        InputError: the first of its faults.
    """
    for _, fault in method_faults(config, auxiliary):
        raise fault


def method_faults(config: TransferConfig, auxiliary: str | Path | None) -> Iterator[tuple[str, InputError]]:
    """What the method lacks of what it needs, and what it is given and cannot use; before anything large is loaded.

    Yields:
        The name of the option, and what is wrong with it.
    """
    method = method_of(config)
    yield from rule_faults(config)
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


def _all_vectors(
    config: TransferConfig, auxiliary: str | Path | None, alignment: Alignment, read: tuple[Source, Donor, Any], shared: Shared
) -> tuple[Auxiliary | None, Auxiliary | None]:  # fmt: skip
    """Vectors of the target's tokens, and of the source's for methods that compare across languages."""
    model, donor, tokenizer = read
    kind = method_of(config).source_vectors
    if kind == "segmented":
        sizes = (alignment.target.size, alignment.source.size)
        target, source = segmented_vectors(auxiliary, (tokenizer, model.tokenizer), sizes)
        return target, source
    vectors = _vectors(config, auxiliary, alignment, model, donor, shared)
    if kind != "dictionary":
        return vectors, None
    width = vectors.vectors.shape[1]
    return vectors, load_source_vectors(config.source_auxiliary, config.dictionary, auxiliary, alignment, width)


def _vectors(
    config: TransferConfig, auxiliary: str | Path | None, alignment: Alignment, model: Source, donor: Donor, shared: Shared
) -> Auxiliary | None:  # fmt: skip
    if auxiliary is None or not method_of(config).vectors:
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

    def progress(done: int, total: int) -> None:
        release_pages()
        clock.progress("rows", done, total)

    flags = alignment.source.flags()[: len(model.input_rows)]
    method = method_of(config)
    anchors = anchors_of(assembly, alignment, vectors, donor.input_rows if method.plm or not method.anchors else None)
    if method.anchors and not len(anchors):
        shared = int(assembly.shared.sum())
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
        new=assembly.new,
        config=config,
        device=device,
        progress=progress,
    )


def _summary(
    config: TransferConfig, model: Source, donor: Donor, vectors: Auxiliary | None, alignment: Alignment,
    assembly: Assembly, job: Job, heldout: dict[str, Any] | None, tuning: Tuning | None,
    clock: _Clock,
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
        "rules": list(RULES),
        "counts": counts(assembly),
        "overlap": alignment.counts(),
        "anchors": len(job.anchors),
        "new_tokens": len(job.new),
        "support": support_summary(assembly, method_of(config).neighbours),
        "statuses": [{"name": name, "count": count} for name, count in statuses(assembly).items()],
        "norms": norms(assembly),
        "heldout": heldout,
        "tuning": None if tuning is None else tuning.to_json(),
        "seconds": dict(clock.seconds),
        "environment": {**versions(), "device": str(job.device), "operators": _operators(job.device)},
    }
    summary["warnings"] = _warnings(summary, model, config)
    return summary


def _words(assembly: Assembly, alignment: Alignment) -> list[str | None]:
    """Text of each row's token, where it is one of the target's."""
    words: list[str | None] = [None] * len(assembly.origin)
    for row, word in zip(assembly.row_of.tolist(), alignment.target.words(), strict=True):
        if row >= 0:
            words[row] = word
    return words


def _operators(device: torch.device) -> str:
    from .ops import backend

    return backend(device.type).name


def _rule_warnings(summary: dict[str, Any], config: TransferConfig, assembly: Assembly, donor: Donor) -> list[str]:
    """What the guards found, and what a shift is good for."""
    method, found = method_of(config), []
    if "norm_guard" in summary:
        found += norm_warnings(summary["norm_guard"], config.norm_guard, f"or try {_advice(method.options)}")
        found += support_warnings(assembly, method, donor.input_rows.shape[1], config.ridge)
    if config.unigram_shift is not None:
        found.append("unigram_shift helps before any training alone: leave it out of a start that will be adapted")
    return found


def _unused(config: TransferConfig, auxiliary: str | Path | None, model: Source, donor: Donor) -> list[str]:
    """What was given and has no effect: the user may believe that it has."""
    found = []
    if auxiliary is not None and not method_of(config).vectors:
        found.append(f"method {config.method} does not use auxiliary")
    if config.keep_source_vocabulary:
        default = TransferConfig()
        found += [
            f"{name} has no effect with keep_source_vocabulary"
            for name in ("chat_template", "special_overrides")
            if getattr(config, name) != getattr(default, name)
        ]
    for side, loaded, revision in (
        ("source", model, config.source_revision),
        ("target", donor, config.target_revision),
    ):
        if revision is not None and loaded.revision is None:
            found.append(f"{side}_revision has no effect on a local folder")
    return found


def _warnings(summary: dict[str, Any], model: Source, config: TransferConfig) -> list[str]:
    """What a user should know before trusting this start."""
    found = []
    method = method_of(config)
    support, length = summary["support"], summary["norms"]
    if support and method.sparse and support["median"] > summary["anchors"] / 4:
        found.append(
            f"the median token has {support['median']:.0f} of {summary['anchors']} anchors as neighbours: the vectors hardly"
            " tell words apart; better vectors or --max-support would help"
        )
    held = summary["heldout"]
    if held and held["broken"]:
        found.append(
            f"method {summary['method']} makes a broken start here: {held['broken']}; try {_advice(method.options)}"
        )
    else:
        for origin in ("solved", "composed"):
            found += _norm_warnings(length, origin, method.options)
    if summary["config"]["tune"] and not held:
        found.append("nothing was tuned: too few shared tokens to hide any")
    if summary["method"] == "subword-asymmetric" and model.output_rows is None:
        found.append(
            "the head is tied: its rows are the input rows, so only the input's rule of subword-asymmetric applies"
        )
    drawn = summary["counts"]["drawn"] / max(1, summary["new_tokens"])
    if summary["method"] not in ("normal", "multivariate") and drawn > 0.05:
        found.append(f"{drawn:.0%} of the new tokens got a random row (see statuses)")
    replaced = not summary["config"]["keep_source_vocabulary"]
    if replaced and model.tokenizer.chat_template and summary["config"]["chat_template"] == "target":
        found.append("the source's chat template is left out; --chat-template source keeps it")
    return found


def _norm_warnings(length: dict[str, dict[str, float]], origin: str, options: tuple[str, ...]) -> list[str]:
    """Rows of this origin that are nearly all far shorter than most of the copied ones; longer ones the guard names."""
    if origin not in length or "copied" not in length:
        return []
    own, copied = length[origin]["median"], length["copied"]["median"]
    if own >= copied / 4:
        return []
    return [f"the median {origin} row has norm {own:.2g}, the median copied one {copied:.2g}: try {_advice(options)}"]


def _advice(options: tuple[str, ...]) -> str:
    helpful = [text for name, text in (("center", "--center"), ("ridge", "--ridge 0.01")) if name in options]
    return " or ".join([*helpful, "another --method such as blend"])
