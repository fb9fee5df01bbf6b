"""Checks of all jobs of a batch before the first one runs: the inputs exist, the outputs are separate, the memory suffices."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import InputError, input_error
from ..files.json_files import read_json
from ..files.output_folder import check_output
from ..files.output_lock import refuse_written
from ..model.locate import local_folder
from ..model.tokenizer import VOCABULARIES
from ..model.tokenizer_alone import find_alone
from ..model.weights import find_weights
from ..rows.rules import check_plm_rows
from ..vectors.auxiliary import auxiliary_files
from .finished import difference
from .jobs_file import BatchJob, Draft, Faults, build
from .memory import with_memory


@dataclasses.dataclass(frozen=True)
class Plan:
    """The checked jobs of a batch.

    Attributes:
        jobs: jobs to run.
        finished: jobs whose output folder already holds their result.
    """

    jobs: Sequence[BatchJob]
    finished: Sequence[BatchJob]


def plan(drafts: Sequence[Draft], faults: Faults, budget: int) -> Plan:
    """Check all jobs, and separate the finished jobs from the jobs to run.

    Args:
        drafts: the jobs as the file describes them.
        faults: faults that reading the file found; the faults that the checks find are added.
        budget: memory limit of all processes together, in bytes.

    Raises:
        InputError: there are faults; the message lists them all.
    """
    built = [(draft, job) for draft in drafts if (job := build(draft, faults)) is not None]
    _check_separate_outputs(drafts, faults)
    seen: dict[tuple[str | None, ...], InputError | None] = {}
    for draft in drafts:
        for key in _models(draft):
            if key not in seen:
                seen[key] = _model_fault(*key)
            if seen[key] is not None:
                faults.add(draft.at(key[0]), seen[key], draft.number)
    inputs = sorted({Path(name) for _, job in built for name in input_paths(job)})
    to_run, finished = [], []
    for draft, job in built:
        if faults.of(job.number):
            continue
        try:
            reason = difference(job)
            if reason is None:
                finished.append(job)
                continue
            if find_alone(job.target):
                check_plm_rows(job.config, job.auxiliary, f"target {job.target}")
            _check_output(job, reason, inputs)
            job = with_memory(job)
        except InputError as error:
            faults.add(draft.at("out") if str(error).startswith("output") else draft.line, error, job.number)
            continue
        if job.memory > budget:
            faults.add(
                draft.line,
                input_error(
                    "memory",
                    f"a job that needs about {job.memory / 1e9:.1f} GB",
                    f"at most {budget / 1e9:.1f} GB",
                    "give more with --memory, or leave the job out",
                ),
                job.number,
            )
        to_run.append(job)
    faults.check()
    return Plan(to_run, finished)


def _models(draft: Draft) -> Iterator[tuple[str, str, str | None, str | None]]:
    """Side, name, revision and GGUF file of each model that the draft names."""
    for side in ("source", "target"):
        name, gguf_file = draft.values.get(side), draft.values.get("gguf_file") if side == "source" else None
        if name is not None:
            yield side, name, draft.values.get(f"{side}_revision"), gguf_file


def _model_fault(side: str, name: str, revision: str | None, gguf_file: str | None) -> InputError | None:
    """The fault of a model folder without a config, weights or a vocabulary; ``None`` if it has all three.

    The contents of the files are checked when the job runs. A model of the hub is downloaded here, once for all jobs.
    """
    what = f"{side} {name}"
    if side == "target" and find_alone(name):
        return None
    try:
        folder = local_folder(name, what, revision=revision, gguf_file=gguf_file)
        if gguf_file is not None:
            if not os.path.isfile(folder / gguf_file):
                names = ", ".join(sorted(path.name for path in folder.glob("*.gguf"))[:5]) or "none"
                raise input_error(what, f"no {gguf_file}", f"one of its GGUF files: {names}", "check the name")
            return None
        read_json(folder / "config.json")
        find_weights(folder, what)
        if not any((folder / file).is_file() for file in VOCABULARIES):
            raise input_error(what, "no tokenizer", "tokenizer.json or a vocabulary file", "save it into the folder")
    except InputError as error:
        return error
    return None


def _check_output(job: BatchJob, reason: str, inputs: Sequence[Path]) -> None:
    """Check that the job may write its output folder.

    Args:
        job: the job.
        reason: why the existing folder does not hold the job's result; empty if there is no folder.
        inputs: inputs of all jobs, which no output may contain or replace.

    Raises:
        InputError: the folder exists, overlaps an input, or is being written by another process.
    """
    if os.path.lexists(job.out) and not job.config.force and reason:
        raise input_error(
            f"output {job.out}",
            f"an existing folder of another run ({reason})",
            "a new folder, or the result of this job",
            "set force = true to replace it",
        )
    check_output(job.out, protected=inputs, force=job.config.force)
    refuse_written(job.out)


def input_paths(job: BatchJob) -> list[str]:
    """Local files and folders that a job reads."""
    config = job.config
    names = [job.source, job.target, *auxiliary_files(job.auxiliary), *auxiliary_files(config.source_auxiliary)]
    names += [name for name in (config.dictionary, config.unigram_text, config.tune_text) if name is not None]
    return [name for name in names if os.path.exists(name)]


def _check_separate_outputs(drafts: Sequence[Draft], faults: Faults) -> None:
    """Add a fault for each output that equals, contains or lies in the output of an earlier job; links are resolved."""
    outputs: dict[Path, Draft] = {}
    ancestors: dict[Path, Draft] = {}  # every parent folder of an output
    for draft in drafts:
        out = draft.values.get("out")
        if not isinstance(out, str) or not out:
            continue
        folder = Path(os.path.realpath(Path(out).expanduser()))
        outer = next((parent for parent in folder.parents if parent in outputs), None)
        first = outputs.get(folder) or (outputs[outer] if outer else ancestors.get(folder))
        if first is not None:
            relation = "is" if folder in outputs else "lies in" if outer else "contains"
            other = f"the output of job {first.number} (line {first.at('out')})"
            faults.add(
                draft.at("out"),
                input_error(f"output {folder}", f"that it {relation} {other}", "a separate folder", "rename one"),
                draft.number,
            )
        outputs.setdefault(folder, draft)
        for parent in folder.parents:
            ancestors.setdefault(parent, draft)
