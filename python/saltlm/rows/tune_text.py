"""Options chosen by a little text: those whose rows let the source model say it in the fewest bits, before any training."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import InputError, input_error
from ..evaluation.evaluate import evaluate
from ..files.hashing import sha256_file
from ..model.causal_lm import load_causal_lm
from ..text.documents import read_documents
from .assembly import Assembly
from .matrices import NewMatrices
from .methods import Job
from .tune import Tuning, free_options, meant, search

TEXT_BYTES = 4000  # of text a trial scores: options part by .05 to .3 bits per byte, and a trial takes seconds
LEAST_BYTES = 500
READ_BYTES = 1 << 22  # of a text, from which they are taken: it may be the whole corpus of an adaptation
# Bits per byte that an option must gain to leave its default: 4 kB cannot tell less, and a start that was less than this ahead
# before training was behind after it (bench/LOG.md).
GAIN = 0.02
LONGEST = 1000  # characters of a document: one long one must not be all of the text


def tune_by_text(
    job: Job, assembly: Assembly, tokenizer: Any, fill: Callable[[Job, Assembly], object],
    report: Callable[[int, int], None],
) -> Tuning:  # fmt: skip
    """Choose options by bits per byte.

    The search is :func:`~saltlm.rows.tune.search`, but an option stays as it is unless another value gains :data:`GAIN`. A
    start whose predictions are not finite loses to any other.

    Args:
        job: its options are where the search starts, and ``tune_text`` is the text.
        assembly: rows under construction, which stay as they are; its source model is loaded whole.
        tokenizer: the new one.
        fill: finishes an assembly by a job's options.
        report: called with (trials done, trials foreseen).

    Returns:
        The choice, and ``bits_per_byte`` of all trials.

    Raises:
        InputError: the text cannot be read or is too short, or the model cannot be loaded.
    """
    config = job.config
    documents = check_text(config.tune_text)
    lm = load_causal_lm(assembly.source.folder, device=config.device, trust_remote_code=config.trust_remote_code)
    grid = free_options(config)
    quiet = dataclasses.replace(job, progress=lambda done, total: None)
    found: dict[tuple[Any, ...], tuple[Mapping[str, Any], float]] = {}
    values: dict[str, float] = {}  # by the rows: where the method has to do without a part, its options change nothing
    faults: list[InputError] = []
    foreseen = 1 + sum(len(values) - 1 for values in grid.values())

    def bits(options: Mapping[str, Any]) -> float:
        key = meant(config, options)
        if key not in found:
            made = assembly.copy()
            fill(dataclasses.replace(quiet, config=dataclasses.replace(config, **options)), made)
            rows = digest_of_rows(made.matrices())
            if rows not in values:
                put_rows(lm.model, made.matrices())
                try:
                    values[rows] = evaluate((lm.model, tokenizer), documents=documents).bits_per_byte
                except InputError as error:  # of the text or the tokenizer it is one for every start, and told below
                    faults.append(error)
                    values[rows] = float("inf")
            found[key] = options, values[rows]
            report(len(found), max(foreseen, len(found)))
        return found[key][1]

    best = search(grid, config, lambda options: -bits(options), lambda tried, present: tried > present + GAIN)
    if not np.isfinite(bits(best)):
        raise InputError(f"tune_text: no choice can score it: {faults[0]}")
    return Tuning(
        grid=grid,
        trials=[
            {"options": dict(tried), "bits_per_byte": value if np.isfinite(value) else None}
            for tried, value in found.values()
        ],
        choice=best,
        text={
            "path": str(config.tune_text), "sha256": digest_of(config.tune_text), "documents": len(documents),
            "bytes": size_of(documents),
        },
    )  # fmt: skip


def check_text(path: str) -> list[str]:
    """The documents of a file that a trial scores, as :func:`sample` takes them.

    Raises:
        InputError: it cannot be read or is too short.
    """
    return sample(read_documents(path, READ_BYTES), TEXT_BYTES)


def digest_of(path: str | Path) -> str:
    """Hexadecimal sha256 of what is read of a file: all of one that has no more than :data:`READ_BYTES`."""
    return sha256_file(path, limit=READ_BYTES)


def sample(documents: Sequence[str], size: int) -> list[str]:
    """Documents from all over a text, cut to :data:`LONGEST` characters, about ``size`` bytes of them.

    Where that is all too little, what follows in long documents counts as documents too: a text without blank lines is one.

    Args:
        documents: of the text.
        size: bytes after which no further document is taken.

    Returns:
        The documents in the text's order; which ones depends on their number and sizes alone.

    Raises:
        InputError: the text is shorter than :data:`LEAST_BYTES`.
    """
    parts = [document[:LONGEST] for document in documents]
    if size_of(parts) < size:  # few documents: of the long ones more than their beginning
        parts = [document[at : at + LONGEST] for document in documents for at in range(0, len(document), LONGEST)]
    chosen, total = [], 0
    for at in np.random.default_rng(0).permutation(len(parts)).tolist():
        if total >= size:
            break
        chosen.append(at)
        total += size_of([parts[at]])
    if total < LEAST_BYTES:
        raise input_error(
            "tune_text", f"{total} bytes of text", f"at least {LEAST_BYTES}, better {TEXT_BYTES:,}", "give more text"
        )
    return [parts[at] for at in sorted(chosen)]


def size_of(documents: Sequence[str]) -> int:
    """Bytes of UTF-8."""
    return sum(len(document.encode()) for document in documents)


def digest_of_rows(made: Any) -> str:
    """Hexadecimal sha256 of what has ``input_rows``, ``output_rows`` and ``output_bias``."""
    total = hashlib.sha256()
    for matrix in (made.input_rows, made.output_rows, made.output_bias):
        if matrix is not None:
            total.update(matrix.contiguous().view(torch.uint8).numpy())
    return total.hexdigest()


def put_rows(model: Any, made: NewMatrices) -> None:
    """Give a loaded model new matrices, in the model's dtype and on its device; a tied head stays tied."""
    rows, head = model.get_input_embeddings(), model.get_output_embeddings()
    like = rows.weight

    def placed(matrix: torch.Tensor) -> torch.nn.Parameter:
        return torch.nn.Parameter(matrix.to(like.device, like.dtype), requires_grad=False)

    rows.weight = placed(made.input_rows)
    rows.padding_idx = None  # of the old tokenizer, and maybe beyond the new rows
    head.weight = rows.weight if made.output_rows is None else placed(made.output_rows)
    if made.output_bias is not None:
        head.bias = placed(made.output_bias)
