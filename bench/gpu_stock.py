"""SALT rows as one would write them in stock torch for a GPU, without a loop over tokens: the rival of the bench.

Whole rows are sorted for sparsemax; supports are padded to the longest of their block and solved through batched Gram
matrices in float64. Supports near the PLM's width make it fail or lose digits; it has no ranks and no statuses.
"""

import torch
from torch import Tensor

BYTES = 1 << 30  # of the largest array of a block


def stock_rows(
    new_auxiliary: Tensor, anchor_auxiliary: Tensor, new_plm: Tensor, anchor_plm: Tensor, anchor_lm: Tensor
) -> Tensor:
    """Rows [N, D] in float32."""
    anchors = torch.nn.functional.normalize(anchor_auxiliary, dim=1)
    block = max(1, min(1024, BYTES // (16 * len(anchors))))
    rows = [
        part
        for auxiliary, plm in zip(new_auxiliary.split(block), new_plm.split(block), strict=True)
        for part in _block(torch.nn.functional.normalize(auxiliary, dim=1) @ anchors.T, plm, anchor_plm, anchor_lm)
    ]
    return torch.cat(rows)


def _block(cosines: Tensor, plm: Tensor, anchor_plm: Tensor, anchor_lm: Tensor) -> list[Tensor]:
    ordered, order = cosines.sort(dim=1, descending=True)
    counts = torch.arange(1, ordered.shape[1] + 1, device=cosines.device)
    sizes = (1 + counts * ordered > ordered.cumsum(1)).sum(1)
    longest = int(sizes.max())
    ids, inside = order[:, :longest], counts[:longest] <= sizes[:, None]
    step = max(1, BYTES // (8 * longest * max(longest, anchor_plm.shape[1], anchor_lm.shape[1])))
    parts = zip(ids.split(step), inside.split(step), plm.split(step), strict=True)
    return [_solve(i, m, e.double(), anchor_plm, anchor_lm) for i, m, e in parts]


def _solve(ids: Tensor, inside: Tensor, e: Tensor, anchor_plm: Tensor, anchor_lm: Tensor) -> Tensor:
    support = anchor_plm[ids].double() * inside[..., None]
    gram = support @ support.mT + torch.diag_embed((~inside).double())  # padding: an identity block
    factor, _ = torch.linalg.cholesky_ex(gram)
    c = torch.cholesky_solve(support @ e[..., None], factor)
    return (c.mT @ anchor_lm[ids].double()).squeeze(1).float()
