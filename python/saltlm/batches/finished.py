"""Decides from the saltlm.json of an output folder whether the folder already holds the result of a job.

Compared are the version of saltlm, every option except ``force``, and the names and contents of the inputs. Contents are
compared by SHA-256 where saltlm.json records it: configuration and tokenizer files, vectors up to 1 GiB, dictionaries, GGUF
files and training texts. Weights and larger vectors are compared by size and modification time, because hashing them would
take longer than the transfer. The machine, its libraries and the number of threads are not compared.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..environment import versions
from ..errors import InputError
from ..files.hashing import sha256_file
from ..files.json_files import parse_json
from ..files.open_file import FileKind, read_file
from ..files.summary_file import FORMAT, SCHEMA_VERSION, SUMMARY, Inputs, ModelInput, Summary, schema_version_of
from ..model.checkpoint import hash_files
from ..model.locate import local_folder
from ..model.tokenizer_alone import find_alone
from ..model.weights import find_weights
from ..rows.methods import method_of
from ..rows.tune import free_options
from ..rows.tune_text import digest_of
from ..shared import stamp
from ..vectors.auxiliary import auxiliary_files, file_digest
from ..vectors.train import trained_file
from .jobs_file import BatchJob

WRITTEN = ("config.json", SUMMARY, "provenance.safetensors", "README.md", "tokenizer_config.json")


def difference(job: BatchJob) -> str | None:
    """Compare the output folder of a job with the job.

    Args:
        job: the job; its output path is resolved.

    Returns:
        The first difference, which is the reason to run the job; ``None`` if the folder holds the result of the job; the empty
        string if there is no folder.

    Raises:
        InputError: an input cannot be read.
    """
    if not os.path.isdir(job.out):
        return ""
    missing = [name for name in WRITTEN if not (job.out / name).is_file()]
    if missing or not any(job.out.glob("*.safetensors")):
        return f"it has no {missing[0] if missing else 'weights'}"
    try:
        summary: Summary = parse_json(read_file(job.out / SUMMARY, FileKind.SETTINGS))
        config = json.loads(json.dumps(job.config.to_json()))  # as values read from a JSON file
        is_tuned = job.config.tune or job.config.tune_text is not None
        chosen = free_options(job.config) if is_tuned else ()
        return _options(summary, config, chosen) or _inputs(summary["inputs"], job) or _texts(summary, job)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        if isinstance(error, InputError):
            raise
        return f"its saltlm.json cannot be read ({error})"


def _options(summary: Summary, config: Mapping[str, Any], chosen: Collection[str]) -> str | None:
    """First difference in format, version or options; the options in ``chosen``, which tuning sets, are not compared."""
    recorded: Mapping[str, Any] = {**summary, "schema_version": schema_version_of(summary)}
    expected = {"format": FORMAT, "schema_version": SCHEMA_VERSION, "saltlm_version": versions()["saltlm"]}
    for name, value in expected.items():
        if recorded[name] != value:
            return f"its {name} is {recorded[name]}, here {value}"
    for name in sorted(config.keys() | summary["config"].keys()):
        if name != "force" and name not in chosen and summary["config"].get(name) != config.get(name):
            return f"its {name} is {summary['config'].get(name)!r}, the job's {config.get(name)!r}"
    return None


def _inputs(recorded: Inputs, job: BatchJob) -> str | None:
    """First difference between the recorded models, vectors and dictionary and those of the job."""
    if changed := _model(recorded["source"], job, "source") or _model(recorded["target"], job, "target"):
        return changed
    method = method_of(job.config)
    if method.vectors and job.auxiliary is not None and (changed := _vectors(recorded["auxiliary"], job.auxiliary)):
        return f"auxiliary: {changed}"
    if method.source_vectors == "segmented" and (changed := _vectors(recorded["source_auxiliary"], job.auxiliary)):
        return f"auxiliary: {changed}"
    if method.source_vectors == "dictionary":
        entry, config = recorded["source_auxiliary"], job.config
        if changed := _vectors(entry, config.source_auxiliary):
            return f"source_auxiliary: {changed}"
        dictionary = config.dictionary or ""  # rules.check_method requires one for such a method
        if entry["dictionary"] != config.dictionary or entry["dictionary_sha256"] != _digest(Path(dictionary)):
            return f"dictionary: another than {config.dictionary}"
    return None


def _texts(summary: Summary, job: BatchJob) -> str | None:
    """First difference in the texts of ``unigram_text`` and ``tune_text``."""
    unigram_text, tune_text = job.config.unigram_text, job.config.tune_text
    if unigram_text is not None and summary["unigram_shift"]["sha256"] != _digest(Path(unigram_text)):
        return f"{unigram_text} has changed"
    tuning = summary["tuning"]
    scored = None if tuning is None else tuning["text"]
    if tune_text is not None and (scored is None or scored["sha256"] != digest_of(tune_text)):
        return f"{tune_text} has changed"
    return None


def _model(entry: ModelInput, job: BatchJob, side: str) -> str | None:
    """First difference between a recorded model and the model that the job names."""
    name, gguf_file = getattr(job, side), job.config.gguf_file if side == "source" else None
    if entry["path"] != name:
        return f"its {side} is {entry['path']}"
    if side == "target" and (alone := find_alone(name)):
        return _changed(entry, alone.hashes(), side)
    folder = local_folder(name, f"{side} {name}", revision=getattr(job.config, f"{side}_revision"), gguf_file=gguf_file)
    if entry["revision"] is not None and entry["revision"] != folder.name:
        return f"its {side} is of revision {entry['revision']}, now {folder.name}"
    if gguf_file is not None:
        same = entry["sha256"].get(gguf_file) == _digest(folder / gguf_file)
        return None if same else f"{side}: {gguf_file} has changed"
    return _changed(entry, hash_files(folder, find_weights(folder, side)), side)


def _changed(entry: Mapping[str, Any], current: Mapping[str, str], side: str) -> str | None:
    """First file of a recorded model that differs from the file as it is now."""
    # Hashes of single tensors (FILE#KEY) are left out: size and modification time of their file are compared.
    previous = {file: digest for file, digest in entry["sha256"].items() if "#" not in file}
    changed = sorted(file for file in current.keys() | previous.keys() if current.get(file) != previous.get(file))
    return f"{side}: {changed[0]} has changed" if changed else None


def _vectors(entry: Mapping[str, Any], spec: str | None) -> str | None:
    """First difference between recorded vectors and the vectors that ``spec`` names."""
    if spec == "plm":
        return None if entry["kind"] == "plm" else f"its vectors are {entry['path']}"
    if entry.get("path") != spec:
        return f"its vectors are {entry.get('path', entry['kind'])}"
    path = Path(str(spec))
    if str(spec).startswith("train:"):
        # Vectors of the source language are trained with the dimension of the target-language vectors.
        path = trained_file([Path(name) for name in auxiliary_files(spec)], entry["dimension"])
        if not path.is_file():
            return "the vectors trained on these texts are not in the cache"
    current = _file_digest(path, stamp(path))
    return None if all(entry.get(name) == value for name, value in current.items()) else f"{path} has changed"


def _digest(path: Path) -> str:
    return _sha256(path, stamp(path))


# Many jobs name the same inputs; the cache reads each file once, until its stamp changes.
@functools.lru_cache(maxsize=256)
def _sha256(path: Path, stamped: object) -> str:
    return sha256_file(path)


@functools.lru_cache(maxsize=256)
def _file_digest(path: Path, stamped: object) -> Mapping[str, Any]:
    return file_digest(path)
