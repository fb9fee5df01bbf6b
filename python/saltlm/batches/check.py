"""What is checked of a batch's jobs together, before anything runs: inputs there, outputs apart, memory enough."""

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
from ..model.weights import find_weights
from ..vectors.auxiliary import auxiliary_files
from .finished import difference
from .jobs_file import BatchJob, Draft, Faults, build
from .memory import with_memory


@dataclasses.dataclass(frozen=True)
class Plan:
    """Jobs to run, and those whose folder holds already what they would make."""

    jobs: Sequence[BatchJob]
    finished: Sequence[BatchJob]


def plan(drafts: Sequence[Draft], faults: Faults, budget: int) -> Plan:
    """Check all jobs, and part those that are finished from those to run.

    Args:
        drafts: as the file has them.
        faults: what is wrong with them so far; completed here.
        budget: bytes of memory that all processes together may take.

    Raises:
        InputError: lists every fault.
    """
    built = [(draft, job) for draft in drafts if (job := build(draft, faults)) is not None]
    _apart(drafts, faults)
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
            why = difference(job)
            if why is None:
                finished.append(job)
                continue
            _check_output(job, why, inputs)
            job = with_memory(job)
        except InputError as error:
            faults.add(draft.at("out") if str(error).startswith("output") else draft.line, error, job.number)
            continue
        if job.memory > budget:
            faults.add(
                draft.line,
                input_error(
                    "memory", f"a job that needs about {job.memory / 1e9:.1f} GB", f"at most {budget / 1e9:.1f} GB",
                    "give more with --memory, or leave the job out",
                ),
                job.number,
            )  # fmt: skip
        to_run.append(job)
    faults.check()
    return Plan(to_run, finished)


def _models(draft: Draft) -> Iterator[tuple[str, str, str | None, str | None]]:
    for side in ("source", "target"):
        name, gguf_file = draft.values.get(side), draft.values.get("gguf_file") if side == "source" else None
        if name is not None:
            yield side, name, draft.values.get(f"{side}_revision"), gguf_file


def _model_fault(side: str, name: str, revision: str | None, gguf_file: str | None) -> InputError | None:
    """Whether a model is there with config, weights and a vocabulary; what is in them is for the job to find.

    A name of the hub is fetched here, once for all jobs.
    """
    what = f"{side} {name}"
    try:
        folder = local_folder(name, what, revision=revision, gguf_file=gguf_file)
        if gguf_file is not None:
            if not os.path.isfile(folder / gguf_file):
                found = ", ".join(sorted(path.name for path in folder.glob("*.gguf"))[:5]) or "none"
                raise input_error(what, f"no {gguf_file}", f"one of the GGUF files there: {found}", "check the name")
            return None
        read_json(folder / "config.json")
        find_weights(folder, what)
        if not any((folder / file).is_file() for file in VOCABULARIES):
            raise input_error(what, "no tokenizer", "tokenizer.json or a vocabulary file", "save it into the folder")
    except InputError as error:
        return error
    return None


def _check_output(job: BatchJob, why: str, inputs: Sequence[Path]) -> None:
    """The output may be written, touches no job's inputs, and no other process writes it."""
    if os.path.lexists(job.out) and not job.config.force and why:
        raise input_error(
            f"output {job.out}", f"an existing folder of another run ({why})", "a new one, or what this job makes",
            "set force = true to replace it",
        )  # fmt: skip
    check_output(job.out, protected=inputs, force=job.config.force)
    refuse_written(job.out)


def input_paths(job: BatchJob) -> list[str]:
    """The local files and folders that a job reads."""
    config = job.config
    named = [job.source, job.target, *auxiliary_files(job.auxiliary), *auxiliary_files(config.source_auxiliary)]
    named += [name for name in (config.dictionary, config.unigram_text, config.tune_text) if name is not None]
    return [name for name in named if os.path.exists(name)]


def _apart(drafts: Sequence[Draft], faults: Faults) -> None:
    """No two jobs write to one folder, by whatever names and links, nor one into another's."""
    places: dict[Path, Draft] = {}
    above: dict[Path, Draft] = {}  # every folder that holds one of them
    for draft in drafts:
        out = draft.values.get("out")
        if not isinstance(out, str) or not out:
            continue
        place = Path(os.path.realpath(Path(out).expanduser()))
        outer = next((parent for parent in place.parents if parent in places), None)
        first = places.get(place) or (places[outer] if outer else above.get(place))
        if first is not None:
            relation = "is" if place in places else "lies in" if outer else "holds"
            whose = f"that of job {first.number} (line {first.at('out')})"
            faults.add(
                draft.at("out"),
                input_error(f"output {place}", f"that it {relation} {whose}", "a folder of its own", "rename one"),
                draft.number,
            )
        places.setdefault(place, draft)
        for parent in place.parents:
            above.setdefault(parent, draft)
