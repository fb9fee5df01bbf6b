"""SALT rows in stock torch for a GPU, without a loop over tokens: the rival of saltlm's operators in the benchmarks.

Whole rows of cosines are sorted for sparsemax. Supports are padded to the longest of their block and solved by batched
Gram matrices in float64. Supports about as large as the PLM's width make it fail or lose digits. It returns no ranks
and no statuses.
"""

import torch
from torch import Tensor

MAX_BYTES = 1 << 30  # size of the largest array of a block


def stock_rows(
    new_auxiliary: Tensor, anchor_auxiliary: Tensor, new_plm: Tensor, anchor_plm: Tensor, anchor_lm: Tensor
) -> Tensor:
    """Build SALT rows.

    Args:
        new_auxiliary: [N, P], auxiliary vectors of the tokens to build.
        anchor_auxiliary: [A, P], auxiliary vectors of the anchors.
        new_plm: [N, E], PLM rows of the tokens to build.
        anchor_plm: [A, E], PLM rows of the anchors.
        anchor_lm: [A, D], source rows of the anchors.

    Returns:
        Rows [N, D] in float32.
    """
    anchors = torch.nn.functional.normalize(anchor_auxiliary, dim=1)
    block = max(1, min(1024, MAX_BYTES // (16 * len(anchors))))
    rows = [
        part
        for auxiliary, plm in zip(new_auxiliary.split(block), new_plm.split(block), strict=True)
        for part in _block(torch.nn.functional.normalize(auxiliary, dim=1) @ anchors.T, plm, anchor_plm, anchor_lm)
    ]
    return torch.cat(rows)


def _block(cosines: Tensor, plm: Tensor, anchor_plm: Tensor, anchor_lm: Tensor) -> list[Tensor]:
    """Rows of one block of tokens; ``cosines`` is [n, A]."""
    ordered, order = cosines.sort(dim=1, descending=True)
    counts = torch.arange(1, ordered.shape[1] + 1, device=cosines.device)
    sizes = (1 + counts * ordered > ordered.cumsum(1)).sum(1)
    longest = int(sizes.max())
    ids, in_support = order[:, :longest], counts[:longest] <= sizes[:, None]
    step = max(1, MAX_BYTES // (8 * longest * max(longest, anchor_plm.shape[1], anchor_lm.shape[1])))
    parts = zip(ids.split(step), in_support.split(step), plm.split(step), strict=True)
    return [_solve(i, m, e.double(), anchor_plm, anchor_lm) for i, m, e in parts]


def _solve(ids: Tensor, in_support: Tensor, e: Tensor, anchor_plm: Tensor, anchor_lm: Tensor) -> Tensor:
    """Least squares on the padded supports ``ids`` [n, K], whose entries outside the support are masked."""
    support = anchor_plm[ids].double() * in_support[..., None]
    gram = support @ support.mT + torch.diag_embed((~in_support).double())  # padding is an identity block
    factor, _ = torch.linalg.cholesky_ex(gram)
    c = torch.cholesky_solve(support @ e[..., None], factor)
    return (c.mT @ anchor_lm[ids].double()).squeeze(1).float()
