"""Guards of the finished rows: norms far above the source's, and supports of about as many neighbours as PLM dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..config import NormGuard
from ..files.summary_file import GuardedSide
from ..model.stored_rows import lengths_of
from .assembly import COMPOSED, DRAWN, SOLVED, Assembly
from .methods import Method

# The bound on the norm of a built row: TIMES the QUANTILE of the source rows' norms. Not TIMES the largest norm: one broken row
# of the source would hide a thousand broken ones. The largest norm of real sources is 1.2 to 1.6 times this quantile.
TIMES, QUANTILE = 3.0, 0.999
NAMED = 10  # tokens that are named
# Least squares without a ridge is ill-posed where the size of a support is within this share of the PLM's width.
NEAR = 0.2


def guard_norms(
    assembly: Assembly, used: np.ndarray, mode: NormGuard, words: Sequence[str | None], *, bias: bool = True
) -> dict[str, GuardedSide]:
    """Count built rows whose norm exceeds the bound; with mode ``shrink`` scale them down to it.

    The bound is 3 times the 99.9 % quantile of the norms of the source rows in use; input rows, output rows and the head's
    bias each have their own. Copied rows are not counted and not scaled.

    Args:
        assembly: finished rows, which ``shrink`` changes.
        used: int64, ids of the source tokens that the quantile is taken of.
        mode: ``warn`` or ``shrink``.
        words: text of each row's token.
        bias: whether the head's bias is checked as well.

    Returns:
        By side (``input``, ``output``, ``bias``): ``bound``; ``rows``, the number of rows above it; ``largest``, the largest
        norm of these rows before they were scaled (0.0 if there are none); ``tokens``, id and text of up to ten of these
        rows, those of largest norm first.
    """
    built = torch.from_numpy(np.flatnonzero(np.isin(assembly.origin, (SOLVED, COMPOSED, DRAWN))))
    report: dict[str, GuardedSide] = {}
    for (source, matrix), side in zip(assembly.sides(), _side_names(assembly), strict=True):
        if side == "bias" and not bias:
            continue
        bound = TIMES * float(np.quantile(lengths_of(source, torch.from_numpy(used)), QUANTILE))
        lengths = lengths_of(matrix, built)
        far = np.flatnonzero(lengths > bound)
        far = far[np.argsort(-lengths[far], kind="stable")]
        if mode == "shrink" and len(far):
            _scale(matrix, built[torch.from_numpy(far)], bound / torch.from_numpy(lengths[far]))
        named = built.numpy()[far[:NAMED]].tolist()
        report[side] = {
            "bound": bound,
            "rows": len(far),
            "largest": float(lengths[far[0]]) if len(far) else 0.0,
            "tokens": [[token, words[token] if token < len(words) else None] for token in named],
        }
    return report


def _side_names(assembly: Assembly) -> list[str]:
    present = {"input": True, "output": assembly.output_rows is not None, "bias": assembly.output_bias is not None}
    return [side for side, is_present in present.items() if is_present]


def _scale(matrix: torch.Tensor, ids: torch.Tensor, factor: torch.Tensor) -> None:
    """Multiply rows by factors; the rounding to the stored dtype may leave a norm one unit of that dtype above the bound."""
    rows = matrix[ids].double().reshape(len(ids), -1) * factor[:, None]
    matrix[ids] = rows.reshape(len(ids), *matrix.shape[1:]).to(matrix.dtype)


def norm_warnings(report: dict[str, GuardedSide], mode: NormGuard, advice: str) -> list[str]:
    """One sentence for each side that has rows above the bound.

    Args:
        report: from :func:`guard_norms`.
        mode: ``warn`` or ``shrink``.
        advice: what may bring the norms of built rows nearer to the source's.
    """
    sentences = []
    for side, entry in report.items():
        if entry["rows"]:
            names = ", ".join(repr(word) if word else f"id {token}" for token, word in entry["tokens"][:3])
            remedy = (
                "they were scaled to it" if mode == "shrink" else f"--norm-guard shrink scales them to it; {advice}"
            )
            sentences.append(
                f"{entry['rows']} built {side} rows are far longer than the source's ({names}; the largest has norm"
                f" {entry['largest']:.1f}, the bound is {entry['bound']:.1f}): {remedy}"
            )
    return sentences


def support_warnings(assembly: Assembly, method: Method, width: int, ridge: float | None) -> list[str]:
    """Warn of tokens with about as many neighbours as the PLM has dimensions, if their regression has no ridge.

    Args:
        assembly: finished rows.
        method: the method as configured.
        width: E, dimensions of the PLM's rows.
        ridge: as configured.
    """
    # Of the methods that interpolate, only local-map (the one with support_rule) has a ridge by default. The option map_ridge
    # does not identify it: each method whose anchors are cleaned has that option.
    has_ridge = (ridge is not None and ridge > 0) or (ridge is None and "support_rule" in method.options)
    if not method.interpolates or has_ridge:
        return []
    sizes = assembly.support_size[assembly.origin == SOLVED]
    count = int((np.abs(sizes - width) <= NEAR * width).sum())
    if not count:
        return []
    return [
        f"{count} tokens have about as many neighbours as the PLM has dimensions ({width}), where least squares is"
        f" ill-posed and rows explode: --max-support {max(1, width // 4)} or --ridge 0.01 holds them"
    ]
