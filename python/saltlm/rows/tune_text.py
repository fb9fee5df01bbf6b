"""Options chosen by a short text: those whose rows let the source model predict it with the fewest bits, without training."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import InputError, input_error
from ..evaluation.evaluate import evaluate
from ..files.hashing import sha256_file
from ..model.architecture import TABLE_SIZE
from ..model.causal_lm import load_causal_lm
from ..model.checkpoint import Table
from ..progress import Progress
from ..protocols import LanguageModel, Tokenizer
from ..text.documents import read_documents
from .assembly import Assembly
from .matrices import NewMatrices
from .methods import Job
from .tune import Options, Tuning, effective_values, free_options, search

TEXT_BYTES = 4000  # scored in a trial: options differ by 0.05 to 0.3 bits per byte, and a trial takes seconds
LEAST_BYTES = 500
READ_BYTES = 1 << 22  # read from the beginning of a text, which may be the whole corpus of an adaptation
# Bits per byte that an option must gain to leave its default: 4 kB cannot show a smaller difference, and rows that were ahead
# by less before training were behind after it (bench/LOG.md).
GAIN = 0.02
MAX_DOCUMENT = 1000  # characters of a document, so that a long one is not the whole sample


def tune_by_text(
    job: Job,
    assembly: Assembly,
    tokenizer: Tokenizer,
    fill: Callable[[Job, Assembly], object],
    report: Progress,
) -> Tuning:
    """Choose options by bits per byte, with :func:`~saltlm.rows.tune.search`.

    An option changes only if another value gains :data:`GAIN`. Rows with which the model's predictions are not finite lose to
    all others.

    Args:
        job: the search starts at its options; its ``tune_text`` is the text.
        assembly: rows under construction, which do not change; its source model is loaded as a whole.
        tokenizer: the new one.
        fill: builds the open rows of an assembly by a job.
        report: called with (trials done, trials expected).

    Returns:
        The choice, and ``bits_per_byte`` of all trials.

    Raises:
        InputError: the text cannot be read or is too short, or the model cannot be loaded.
    """
    config = job.config
    if config.tune_text is None:
        raise RuntimeError("tune_by_text was called without a text")
    documents = check_text(config.tune_text)
    lm = load_causal_lm(assembly.source.folder, device=config.device, trust_remote_code=config.trust_remote_code)
    grid = free_options(config)
    silent = dataclasses.replace(job, progress=lambda done, total: None)
    trials: dict[tuple[Any, ...], tuple[Options, float]] = {}
    # By the digest of the rows: where a method cannot use a part of its input, the options of that part change no row.
    bits_by_rows: dict[str, float] = {}
    faults: list[InputError] = []
    expected = 1 + sum(len(values) - 1 for values in grid.values())

    def bits(options: Options) -> float:
        key = effective_values(config, options)
        if key not in trials:
            trial = assembly.copy()
            fill(dataclasses.replace(silent, config=dataclasses.replace(config, **options)), trial)
            digest = digest_of_rows(trial.matrices())
            if digest not in bits_by_rows:
                put_rows(lm.model, trial.matrices(), assembly.source.tables)
                try:
                    bits_by_rows[digest] = evaluate((lm.model, tokenizer), documents=documents).bits_per_byte
                except (
                    InputError
                ) as error:  # an error of the text or the tokenizer occurs in each trial and is raised below
                    faults.append(error)
                    bits_by_rows[digest] = float("inf")
            trials[key] = options, bits_by_rows[digest]
            report(len(trials), max(expected, len(trials)))
        return trials[key][1]

    choice = search(grid, config, lambda options: -bits(options), lambda merit, present: merit > present + GAIN)
    if not np.isfinite(bits(choice)):
        raise InputError(f"tune_text: no choice can score it: {faults[0]}")
    return Tuning(
        grid=grid,
        trials=[
            {"options": dict(options), "bits_per_byte": value if np.isfinite(value) else None}
            for options, value in trials.values()
        ],
        choice=choice,
        text={
            "path": str(config.tune_text),
            "sha256": digest_of(config.tune_text),
            "documents": len(documents),
            "bytes": size_of(documents),
        },
    )


def check_text(path: str) -> list[str]:
    """The documents of a file that a trial scores, from :func:`sample`.

    Raises:
        InputError: the file cannot be read or is too short.
    """
    return sample(read_documents(path, READ_BYTES), TEXT_BYTES)


def digest_of(path: str | Path) -> str:
    """Hexadecimal sha256 of the first :data:`READ_BYTES` bytes of a file, the part that is read."""
    return sha256_file(path, limit=READ_BYTES)


def sample(documents: Sequence[str], size: int) -> list[str]:
    """Documents from all parts of a text, cut to :data:`MAX_DOCUMENT` characters, about ``size`` bytes in all.

    Where the cut documents together are shorter than ``size``, the rest of a long document counts as further documents: a
    text without blank lines is one document.

    Args:
        documents: of the text.
        size: bytes after which no further document is taken.

    Returns:
        The documents in the order of the text; which ones depends only on their number and sizes.

    Raises:
        InputError: the text is shorter than :data:`LEAST_BYTES`.
    """
    parts = [document[:MAX_DOCUMENT] for document in documents]
    if size_of(parts) < size:
        parts = [
            document[start : start + MAX_DOCUMENT]
            for document in documents
            for start in range(0, len(document), MAX_DOCUMENT)
        ]
    chosen, total = [], 0
    for position in np.random.default_rng(0).permutation(len(parts)).tolist():
        if total >= size:
            break
        chosen.append(position)
        total += size_of([parts[position]])
    if total < LEAST_BYTES:
        raise input_error(
            "tune_text", f"{total} bytes of text", f"at least {LEAST_BYTES}, better {TEXT_BYTES:,}", "give more text"
        )
    return [parts[position] for position in sorted(chosen)]


def size_of(documents: Sequence[str]) -> int:
    """Bytes of UTF-8."""
    return sum(len(document.encode()) for document in documents)


def digest_of_rows(matrices: Any) -> str:
    """Hexadecimal sha256 of the ``input_rows``, ``output_rows`` and ``output_bias`` of an object.

    Tables are built by the same method and options, so that they differ only where these differ.
    """
    digest = hashlib.sha256()
    for matrix in (matrices.input_rows, matrices.output_rows, matrices.output_bias):
        if matrix is not None:
            digest.update(matrix.contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def put_rows(model: LanguageModel, matrices: NewMatrices, tables: Sequence[Table] = ()) -> None:
    """Replace the vocabulary rows of a loaded model, in its dtype and on its device; a tied head stays tied.

    Args:
        model: a transformers causal LM.
        matrices: the new rows.
        tables: the source's further matrices of vocabulary rows; those that the model class has are replaced as well.
    """
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    old = embeddings.weight

    def parameter(matrix: torch.Tensor) -> torch.nn.Parameter:
        return torch.nn.Parameter(matrix.to(old.device, old.dtype), requires_grad=False)

    embeddings.weight = parameter(matrices.input_rows)
    embeddings.padding_idx = None  # an id of the old tokenizer, which may exceed the number of new rows
    head.weight = embeddings.weight if matrices.output_rows is None else parameter(matrices.output_rows)
    if matrices.output_bias is not None:
        head.bias = parameter(matrices.output_bias)
    for table in tables:
        for name in table.names:
            module: Any = model.get_submodule(name.removesuffix(".weight"))
            module.weight = parameter(matrices.tables[table.key])
            module.padding_idx = None
    for config in [module.config for module in model.modules() if hasattr(module, "config")] if tables else ():
        for key in [key for key in vars(config) if key.startswith(TABLE_SIZE)]:  # models read it when they run
            setattr(config, key, len(matrices.input_rows))
