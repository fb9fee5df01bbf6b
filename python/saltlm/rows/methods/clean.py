"""Anchors cleaned of false friends: tokens spelled alike whose source row says something else."""

from __future__ import annotations

import numpy as np
import torch

from ...model.stored_rows import block_rows
from ..job import Job, have_row, rows_at
from .whole import RIDGE


def cleaned(job: Job) -> np.ndarray:
    """int64: the job's anchors without the share ``clean_anchors`` of them that the global ridge map predicts worst.

    Each is predicted by the map fitted without it. With H the hat matrix of the ridge regression with intercept, that needs
    no second fit: the error is ``(y_i - g(x_i)) / (1 - H_ii)``. It is measured against the row's own length. Anchors
    without a PLM row cannot be judged and stay, and the input rows alone decide.
    """
    count = int(len(job.anchors) * job.config.clean_anchors)
    judged = np.flatnonzero(have_row(job.plm_rows, job.anchors))
    count = min(count, len(judged) - 1)
    if count < 1:
        return job.anchors
    errors = leave_one_out(
        rows_at(job.plm_rows, job.anchors[judged], job.device),
        rows_at(job.source_rows, job.alignment.source_id[job.anchors[judged]].astype(np.int64), job.device),
        RIDGE if job.config.map_ridge is None else job.config.map_ridge,
    )
    worst = errors.sort(descending=True, stable=True).indices[:count].cpu().numpy()
    return np.delete(job.anchors, judged[worst])


def leave_one_out(plm: torch.Tensor, lm: torch.Tensor, ridge: float) -> torch.Tensor:
    """Float64 [A]: relative error of each row of ``lm`` by the ridge map with intercept fitted to all the others.

    Args:
        plm: float32 [A, E].
        lm: float32 [A, D].
        ridge: fraction of the mean squared norm of the centred ``plm``; the penalty is the one of the fit to all rows.
    """
    count, width = plm.shape
    block = block_rows(max(width, lm.shape[1]))
    mean, offset = (sum(part.double().sum(dim=0) for part in rows.split(block)) / count for rows in (plm, lm))
    gram = torch.zeros(width, width, dtype=torch.float64, device=plm.device)
    cross = torch.zeros(width, lm.shape[1], dtype=torch.float64, device=plm.device)
    for rows, wanted in zip(plm.split(block), lm.split(block), strict=True):
        gram.addmm_((rows.double() - mean).T, rows.double() - mean)
        cross.addmm_((rows.double() - mean).T, wanted.double() - offset)
    penalty = ridge * gram.trace() / count
    inverse = torch.linalg.pinv(gram + penalty * torch.eye(width, dtype=gram.dtype, device=gram.device), hermitian=True)
    fitted, errors = inverse @ cross, []
    for rows, wanted in zip(plm.split(block), lm.split(block), strict=True):
        centred, wanted = rows.double() - mean, wanted.double()
        leverage = 1 / count + ((centred @ inverse) * centred).sum(dim=1)
        missed = (wanted - offset - centred @ fitted).norm(dim=1) / (1 - leverage).clamp_min(1e-9)
        errors.append(missed / wanted.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny))
    return torch.cat(errors)
