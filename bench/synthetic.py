"""Made-up regression problems of any size whose supports are like those of the real Finnish pair (2 to 79, median 30)."""

import numpy as np
import torch

from demo.finnish import Problem


def problem(new: int, anchors: int, width: int, plm: int, lm: int, *, dense: bool = False, seed: int = 0) -> Problem:
    """Vectors in clusters, as words of one field are; PLM rows near a linear image of them, LLM rows near one of those.

    Clusters are of very different sizes, and a token's distance from the centre of its own is drawn between near and far:
    some cosines stand out, others lie close together, and sparsemax keeps few or many. Directions have a falling spectrum.
    ``dense`` adds one large vector to all, as vectors trained on little text have it: every cosine is then near 1 and
    nearly every anchor is kept.

    Args:
        new: N, tokens to build.
        anchors: A.
        width: P, of the auxiliary vectors.
        plm: E.
        lm: D.
        dense: the case of weak vectors.
        seed: of the draws.
    """
    draw = torch.Generator().manual_seed(seed)
    spectrum = (1 + torch.arange(width)) ** -0.5
    centres = torch.randn(max(2, anchors // 60), width, generator=draw) * spectrum

    def vectors(count: int) -> torch.Tensor:
        near = centres[(torch.rand(count, generator=draw) ** 2 * len(centres)).long()]
        distance = 0.3 * 10 ** torch.rand(count, 1, generator=draw)
        return near + distance * torch.randn(count, width, generator=draw) * spectrum

    auxiliary = vectors(new), vectors(anchors)
    to_plm = torch.randn(width, plm, generator=draw) / width**0.5
    to_lm = torch.randn(plm, lm, generator=draw) / plm**0.5
    rows = [side @ to_plm + 0.5 * torch.randn(len(side), plm, generator=draw) for side in auxiliary]
    answer = rows[1] @ to_lm + 0.2 * torch.randn(anchors, lm, generator=draw)
    shift = 300 * torch.randn(width, generator=draw) * spectrum if dense else torch.zeros(width)
    return Problem(
        new_auxiliary=auxiliary[0] + shift,
        anchor_auxiliary=auxiliary[1] + shift,
        new_plm=rows[0],
        anchor_plm=rows[1],
        anchor_lm=answer,
        new=np.arange(new),
        anchors=np.arange(anchors),
    )
