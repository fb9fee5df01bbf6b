"""Content of saltlm.json and provenance.safetensors, and the figures of the rows in them."""

from __future__ import annotations

import numpy as np

from .._rust import Vocabulary
from ..files.json_files import json_bytes
from ..files.summary_file import NormFigures, Summary, SupportSizes
from ..model.stored_rows import lengths_of
from ..rows.assembly import COMPOSED, ORIGINS, SOLVED, STATUSES, Assembly


def support_summary(assembly: Assembly, neighbours: str) -> SupportSizes | None:
    """Minimum, median, 95th percentile and maximum support size; ``None`` where there are no supports.

    Args:
        assembly: finished rows.
        neighbours: what the sizes count (``anchors``, ``pieces``), saved as ``of``.

    Returns:
        The figures of the solved rows, or of the composed ones where none is solved.
    """
    sizes = assembly.support_size[assembly.origin == SOLVED]
    if not len(sizes):
        sizes = assembly.support_size[(assembly.origin == COMPOSED) & (assembly.support_size > 0)]
    if not len(sizes):
        return None
    return {
        "of": neighbours,
        "min": int(sizes.min()),
        "median": float(np.median(sizes)),
        "p95": float(np.percentile(sizes, 95)),
        "max": int(sizes.max()),
    }


def counts(assembly: Assembly) -> dict[str, int]:
    """Number of rows by origin; rows that are not built yet are not counted."""
    rows = np.bincount(assembly.origin[~assembly.open], minlength=len(ORIGINS))
    return {name: int(rows[code]) for code, name in enumerate(ORIGINS)}


def statuses(assembly: Assembly) -> dict[str, int]:
    """Number of rows by status."""
    rows = np.bincount(assembly.status, minlength=len(STATUSES))
    return {name: int(rows[code]) for code, name in enumerate(STATUSES)}


def norms(assembly: Assembly) -> dict[str, NormFigures]:
    """Median and largest Euclidean norm of the input rows by origin.

    Built rows with norms far from those of copied rows are a bad start.
    """
    import torch

    lengths = lengths_of(assembly.input_rows, torch.arange(len(assembly.input_rows)))
    result: dict[str, NormFigures] = {}
    for code, name in enumerate(ORIGINS):
        of_origin = lengths[(assembly.origin == code) & ~assembly.open]
        if len(of_origin):
            result[name] = {"median": float(np.median(of_origin)), "max": float(of_origin.max())}
    return result


def provenance_bytes(assembly: Assembly, source: Vocabulary) -> bytes:
    """Content of provenance.safetensors.

    One entry for each row: ``origin``, ``source_id``, ``support_size``, ``rank``, ``residual``, ``status`` and ``rule`` (index
    into ``rules`` of the summary). The recipes of the rows in compressed form (:class:`~saltlm.rows.recipe.Recipe`):
    ``rule_offsets``, ``rule_ids`` (source ids), ``rule_weights``, and ``rule_kept`` with one entry for each row. The
    canonical bytes of the source tokens: ``source_bytes``, split at ``source_offsets``, so that ids can be read without
    the source.
    """
    from safetensors.numpy import save

    recipe = assembly.recipe()
    tensors: dict[str, np.ndarray] = {
        "origin": assembly.origin,
        "source_id": assembly.source_id,
        "support_size": assembly.support_size,
        "rank": assembly.rank,
        "residual": assembly.residual.astype(np.float32),
        "status": assembly.status,
        "rule": assembly.rule,
        "rule_offsets": recipe.offsets.numpy(),
        "rule_ids": recipe.ids.numpy(),
        "rule_weights": recipe.weights.numpy(),
        "rule_kept": recipe.kept.numpy(),
        **dict(zip(("source_bytes", "source_offsets"), source.token_bytes(), strict=True)),
    }
    return save(tensors, metadata={"format": "np"})


def summary_bytes(summary: Summary) -> bytes:
    """Content of saltlm.json."""
    return json_bytes(summary, allow_nan=False)
