"""Guards of the finished rows: norms far outside the source's, and supports about as large as the PLM is wide."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..model.stored_rows import lengths_of
from .assembly import COMPOSED, DRAWN, SOLVED, Assembly
from .methods import Method

# A built row is far out beyond TIMES the QUANTILE of the source rows' norms. A quantile rather than the largest: one broken
# row of the source must not excuse a thousand broken ones. Real sources have their largest row at 1.2 to 1.6 times it.
TIMES, QUANTILE = 3.0, 0.999
NAMED = 10
# Least squares without a ridge blows up where a support's size is within this share of the PLM's width.
NEAR = 0.2


def guard_norms(
    assembly: Assembly, used: np.ndarray, mode: str, words: list[str | None], *, bias: bool = True
) -> dict[str, Any]:
    """Find built rows that are far out; with mode ``shrink`` scale them to the bound.

    The bound is 3 times the 99.9 % quantile of the norms of the source rows in use, for input rows, output rows and the
    head's bias each by their own. Copied rows are the source's and stay.

    Args:
        assembly: finished rows, changed in place by ``shrink``.
        used: int64, ids of the source tokens whose rows count.
        mode: ``warn`` or ``shrink``.
        words: text of each target token.
        bias: whether the head's bias is guarded too.

    Returns:
        By side (``input``, ``output``, ``bias``): ``bound``, ``rows`` far out, the ``largest`` norm among them before they
        were shrunk (0.0 without any), and up to ten ``tokens``, the farthest first, as id and text.
    """
    built = torch.from_numpy(np.flatnonzero(np.isin(assembly.origin, (SOLVED, COMPOSED, DRAWN))))
    found = {}
    for (source, made), name in zip(assembly.sides(), _names(assembly), strict=True):
        if name == "bias" and not bias:
            continue
        bound = TIMES * float(np.quantile(lengths_of(source, torch.from_numpy(used)), QUANTILE))
        lengths = lengths_of(made, built)
        far = np.flatnonzero(lengths > bound)
        far = far[np.argsort(-lengths[far], kind="stable")]
        if mode == "shrink" and len(far):
            _shrink(made, built[torch.from_numpy(far)], bound / torch.from_numpy(lengths[far]))
        first = built.numpy()[far[:NAMED]].tolist()
        found[name] = {
            "bound": bound,
            "rows": len(far),
            "largest": float(lengths[far[0]]) if len(far) else 0.0,
            "tokens": [[token, words[token] if token < len(words) else None] for token in first],
        }
    return found


def _names(assembly: Assembly) -> list[str]:
    present = {"input": True, "output": assembly.output_rows is not None, "bias": assembly.output_bias is not None}
    return [name for name, there in present.items() if there]


def _shrink(matrix: torch.Tensor, ids: torch.Tensor, factor: torch.Tensor) -> None:
    """Scale rows down; what rounding to the stored dtype may leave above the bound is one unit of it."""
    rows = matrix[ids].double().reshape(len(ids), -1) * factor[:, None]
    matrix[ids] = rows.reshape(len(ids), *matrix.shape[1:]).to(matrix.dtype)


def norm_warnings(found: dict[str, Any], mode: str, advice: str) -> list[str]:
    """One sentence for each side that had rows far out.

    Args:
        found: of :func:`guard_norms`.
        mode: ``warn`` or ``shrink``.
        advice: what may keep rows near the source's.
    """
    sentences = []
    for side, entry in found.items():
        if entry["rows"]:
            names = ", ".join(repr(word) if word else f"id {token}" for token, word in entry["tokens"][:3])
            done = "they were scaled to it" if mode == "shrink" else f"--norm-guard shrink scales them to it; {advice}"
            sentences.append(
                f"{entry['rows']} built {side} rows are far longer than the source's ({names}; the largest has norm"
                f" {entry['largest']:.1f}, the bound is {entry['bound']:.1f}): {done}"
            )
    return sentences


def support_warnings(assembly: Assembly, method: Method, width: int, ridge: float | None) -> list[str]:
    """Warn of tokens with about as many neighbours as the PLM has dimensions, where no ridge holds their regression.

    Args:
        assembly: finished rows.
        method: the method as configured.
        width: E.
        ridge: as configured.
    """
    # Of these methods local-map alone has a ridge of its own; map_ridge is also an option of any whose anchors are cleaned.
    held = (ridge is not None and ridge > 0) or (ridge is None and "support_rule" in method.options)
    if not method.interpolates or held:
        return []
    sizes = assembly.support_size[assembly.origin == SOLVED]
    near = int((np.abs(sizes - width) <= NEAR * width).sum())
    if not near:
        return []
    return [
        f"{near} tokens have about as many neighbours as the PLM has dimensions ({width}), where least squares is"
        f" ill-posed and rows explode: --max-support {max(1, width // 4)} or --ridge 0.01 holds them"
    ]
