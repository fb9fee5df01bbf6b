"""Estimates the memory of a job from the sizes of its inputs, and measures the free memory.

The tests check that the peak resident size of a worker that runs one job lies between half of the estimate and the estimate
(tests/batches/test_batch.py with tiny models, tests/real/test_real_batch.py with the Finnish pair).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from pathlib import Path

from ..files.json_files import read_json
from ..folder.reload_check import full_bytes
from ..model.gguf import converted
from ..model.locate import local_folder
from ..model.tokenizer import TOKENIZER_FILES
from ..model.weights import find_weights
from ..rows.methods import method_of
from ..shared import stamp
from ..vectors.auxiliary import auxiliary_files
from ..vectors.train import trained_file
from .jobs_file import BatchJob

# Bytes of the interpreter, torch, transformers and the classes of two models. 0.82 to 1.08 GB were measured on different
# machines; half of it is mapped files that processes share.
PROCESS_BYTES = 1_250_000_000
# Bytes of memory for each byte of the tokenizer files: tables of the tokenizers library while it loads, saltlm's tables, and
# the tables of the new tokenizer.
TOKENIZER_FACTOR = 40
# Bytes of memory for each byte of a GGUF file. GGUF takes 4 to 8 bits for a weight; the converted model takes two bytes for a
# weight, and is in memory twice while it is saved.
GGUF_FACTOR = 8
# Methods whose coefficients are shared by jobs with equal tokenizers, and the bytes of a row's coefficients: about 64
# neighbours of 20 bytes each.
WITH_COEFFICIENTS = ("salt", "focus", "clp-plus", "omp")
COEFFICIENT_BYTES = 1280


def with_memory(job: BatchJob) -> BatchJob:
    """Set ``memory``, ``shared`` and ``prepares`` of a job.

    The estimate sums the process, the tokenizers, the vocabulary rows of both models (mapped from their files, and resident
    because all are read), the files of the auxiliary vectors, the new matrices, the float32 copies that the rules compute
    with, and the model that the reload check loads. Only the headers and sizes of the files are read.

    Args:
        job: a job without an estimate.

    Returns:
        A copy of the job with the three fields set.

    Raises:
        InputError: an input cannot be read.
    """
    config = job.config
    source, target = _folder(job, "source"), _folder(job, "target")
    prepares = []
    file = None if config.gguf_file is None else source / config.gguf_file
    if file is not None and (folder := _converted(file, stamp(file))) is not None:
        source, file = folder, None
    if file is not None:
        # The sizes of the tensors are known only after the conversion, which needs more memory than the transfer.
        rows, width, size, tokens = 0, 0, GGUF_FACTOR * file.stat().st_size, 0
        prepares.append(str(file))
    else:
        rows, width, size, tokens = _model(source, f"source {job.source}")
    new_rows, plm_width, plm_size, plm_tokens = _model(target, f"target {job.target}")
    new_rows += rows if config.keep_source_vocabulary else 0
    files, vector_width = 0, 0
    auxiliary = job.auxiliary if method_of(config).vectors else None  # other methods do not read them
    for spec in (auxiliary, config.source_auxiliary):
        paths = [path for name in auxiliary_files(spec) for path in _files(Path(name))]
        files += sum(path.stat().st_size for path in paths)
        if spec is not None and spec.startswith("train:"):
            if not trained_file([Path(name) for name in auxiliary_files(spec)]).is_file():
                prepares.append(spec)
            files += 250_000_000  # gensim's tables and the vectors that are written
        vector_width = max(vector_width, 300 if auxiliary_files(spec) else plm_width if spec == "plm" else 0)
    working = new_rows * 4 * (3 * max(width, 1) + 3 * plm_width + 3 * vector_width) + rows * 4 * vector_width
    vocabulary = TOKENIZER_FACTOR * (tokens + plm_tokens)
    shared = {
        f"source {job.source} {config.source_revision} {config.gguf_file} {stamp(job.source)}": size
        + TOKENIZER_FACTOR * tokens,
        f"target {job.target} {config.target_revision} {stamp(job.target)}": plm_size + TOKENIZER_FACTOR * plm_tokens,
    }
    if auxiliary is not None:
        shared[f"vectors {auxiliary} {job.target}"] = files + 1
    coefficients = 0
    if (config.blend_with or config.method) in WITH_COEFFICIENTS:
        coefficients = COEFFICIENT_BYTES * new_rows
        shared[f"coefficients {config.method} {job.target} {job.auxiliary}"] = coefficients + 1
    if config.tune_text is not None:  # the model in float32, and the matrices of two trials
        working += 4 * _weights(source, f"source {job.source}") + 2 * new_rows * 4 * width
    if file is None:
        working += full_bytes(find_weights(source, f"source {job.source}"), config.reload_check)
    memory = PROCESS_BYTES + vocabulary + size + plm_size + files + working + coefficients
    return dataclasses.replace(job, memory=int(memory), shared=shared, prepares=tuple(prepares))


@functools.lru_cache(maxsize=64)
def _converted(file: Path, stamped: object) -> Path | None:
    """Folder of the converted GGUF file in the cache; ``stamped`` is the cache key that changes with the file."""
    return converted(file)


def _folder(job: BatchJob, side: str) -> Path:
    """Local folder of the job's source or target model."""
    gguf_file = job.config.gguf_file if side == "source" else None
    revision = getattr(job.config, f"{side}_revision")
    return local_folder(getattr(job, side), side, revision=revision, gguf_file=gguf_file)


def _model(folder: Path, side: str) -> tuple[int, int, int, int]:
    """Sizes of a model.

    Returns:
        Rows of its vocabulary matrices, the sum of their widths, the sum of their bytes, and the bytes of its tokenizer files.
    """
    config = read_json(folder / "config.json")
    nested = [config, *(value for value in config.values() if isinstance(value, dict))]
    sizes = {entry["vocab_size"] for entry in nested if isinstance(entry.get("vocab_size"), int)}
    entries = [entry for header in find_weights(folder, side).headers.values() for entry in header.entries.values()]
    matrices = [entry for entry in entries if len(entry.shape) == 2 and entry.shape[0] in sizes]
    if not matrices:  # config.json has no vocab_size; the largest matrix is at least as large as the vocabulary matrix
        matrices = sorted((e for e in entries if len(e.shape) == 2), key=lambda e: math.prod(e.shape))[-1:]
    tokens = sum(path.stat().st_size for name in TOKENIZER_FILES if (path := folder / name).is_file())
    return (
        max((entry.shape[0] for entry in matrices), default=0),
        sum(entry.shape[1] for entry in matrices),
        sum(entry.end - entry.start for entry in matrices),
        tokens,
    )


def _weights(folder: Path, side: str) -> int:
    """Number of weights of a model, from the headers of its files."""
    headers = find_weights(folder, side).headers.values()
    return sum(math.prod(entry.shape) for header in headers for entry in header.entries.values())


def _files(path: Path) -> list[Path]:
    """The file itself, or all files below a folder."""
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]


def peak_bytes() -> int:
    """Peak resident size of this process in bytes; 0 if /proc is not available."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    return 0
