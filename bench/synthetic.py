"""Generated regression problems of any size, with supports like those of the real Finnish pair (2 to 79, median 30)."""

import numpy as np
import torch

from saltlm_demo.finnish import Problem


def problem(new: int, anchors: int, width: int, plm: int, lm: int, *, dense: bool = False, seed: int = 0) -> Problem:
    """Generate auxiliary vectors in clusters, PLM rows as a noisy linear image of them, and source rows as one of the PLM rows.

    The clusters have very different sizes, and the distance of a token from its centre is drawn between near and far.
    So some cosines stand out and others are close together, and sparsemax keeps few anchors or many. The spectrum of
    the directions falls.

    Args:
        new: N, number of tokens to build.
        anchors: A, number of anchors.
        width: P, width of the auxiliary vectors.
        plm: E, width of the PLM rows.
        lm: D, width of the source rows.
        dense: add one large vector to all auxiliary vectors, as in vectors trained on little text: every cosine is then near 1,
            and nearly every anchor is kept.
        seed: seed of the generator.
    """
    generator = torch.Generator().manual_seed(seed)
    spectrum = (1 + torch.arange(width)) ** -0.5
    centres = torch.randn(max(2, anchors // 60), width, generator=generator) * spectrum

    def vectors(count: int) -> torch.Tensor:
        centre = centres[(torch.rand(count, generator=generator) ** 2 * len(centres)).long()]
        distance = 0.3 * 10 ** torch.rand(count, 1, generator=generator)
        return centre + distance * torch.randn(count, width, generator=generator) * spectrum

    auxiliary = vectors(new), vectors(anchors)
    to_plm = torch.randn(width, plm, generator=generator) / width**0.5
    to_lm = torch.randn(plm, lm, generator=generator) / plm**0.5
    rows = [side @ to_plm + 0.5 * torch.randn(len(side), plm, generator=generator) for side in auxiliary]
    anchor_lm = rows[1] @ to_lm + 0.2 * torch.randn(anchors, lm, generator=generator)
    shift = 300 * torch.randn(width, generator=generator) * spectrum if dense else torch.zeros(width)
    return Problem(
        new_auxiliary=auxiliary[0] + shift,
        anchor_auxiliary=auxiliary[1] + shift,
        new_plm=rows[0],
        anchor_plm=rows[1],
        anchor_lm=anchor_lm,
        new=np.arange(new),
        anchors=np.arange(anchors),
    )
