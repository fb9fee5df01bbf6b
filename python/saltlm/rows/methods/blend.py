"""The average of a subword mean and a regression, whose errors differ; and the default method, which is such an average."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping

import torch

from ...config import BlendRule, RegressionName, TransferConfig
from ...model.stored_rows import gather
from ...operators.checks import finite_rows
from ...operators.linear import mean_of_rows
from ..assembly import COMPOSED, SOLVED, Block
from ..hidden import hide_in
from ..job import Job, row_blocks
from .pieces import Pieces, subword_mean

Regression = Callable[[Job], Iterator[Block]]
DEFAULT: RegressionName = "ridge-map"


@dataclasses.dataclass(frozen=True)
class Mix:
    """Weight of the pieces' mean in an average, or the rule that gives it, and the length of the average."""

    weight: float | BlendRule
    length: float


# Values of options that the user leaves at None. Those of auto are near the best for each of six languages before any training
# (bench/LOG.md, "weight and length of a blend").
BLEND_DEFAULTS: Mapping[str, Mix] = {"blend": Mix(weight=0.5, length=1.0), "auto": Mix(weight=0.35, length=1.4)}
# Rule of a row of the regression -> rule of its average with the mean of pieces.
BLENDED_RULES = {
    "map": "pieces and map",
    "anchors": "pieces and anchors",
    "all anchors": "pieces and all anchors",
    "map and anchors": "pieces, map and anchors",
    "none": "none",
}
# The rules "pieces" and "support" give each side half at this number of pieces or neighbours, about the medians of real pairs.
HALF_PIECES, HALF_SUPPORT = 2, 32
HIDDEN_SHARE = 0.2  # of the anchors, hidden by the rule "precision" to measure both sides
# The rule "precision" has one weight for tokens of 1, 2 and 3 pieces each, and one for tokens of 4 and more.
PIECE_COUNTS = 4
MIN_TOKENS = 10  # hidden tokens; a weight measured on fewer is replaced by the weight measured on all


def mix_of(config: TransferConfig) -> Mix:
    """Weight and length that a configuration of ``blend`` or ``auto`` has."""
    default = BLEND_DEFAULTS[config.method]
    return Mix(
        weight=default.weight if config.blend_weight is None else config.blend_weight,
        length=default.length if config.blend_length is None else config.blend_length,
    )


def as_blend(config: TransferConfig) -> TransferConfig:
    """The configuration of ``blend`` that one of ``blend`` or ``auto`` stands for, with its weight and length set."""
    mix = mix_of(config)
    return dataclasses.replace(config, method="blend", blend_weight=mix.weight, blend_length=mix.length)


def auto(job: Job, regression: Regression) -> Iterator[Block]:
    """``y + 0.49 (m - y) + 0.91 W^T (e - x)``, or m alone where there are no PLM rows or too few anchors.

    m is the mean of the source pieces that spell the token, e its PLM row, x and y the means of the anchors' PLM and source
    rows, and W [E, D] the regression of the source rows on the PLM rows with a ridge of 1: a ``blend`` with weight 0.35 and
    length 1.4. With fewer anchors than PLM dimensions W would be determined by the ridge alone. On real pairs of six languages
    this method gave the best start without training (README).

    Args:
        job: the method's input.
        regression: builder of ``ridge-map``.
    """
    if not len(job.plm_rows) or len(job.anchors) < job.plm_rows.shape[1]:
        yield from subword_mean(job)
    else:
        yield from blend(job, regression)


def blend(job: Job, regression: Regression) -> Iterator[Block]:
    """``y + l (w (m - y) + (1 - w) (g - y))``: m the mean of the source pieces, g the row of the regression.

    w is ``blend_weight``, a number or a rule for each token. l is ``blend_length``, and y the mean of the anchors' rows: the
    row is l times as far from y as the plain average. A token that has only m or only g gets that row as it is; a row g that
    is not finite counts as missing. A token without both is not built.

    Args:
        job: the method's input.
        regression: builder of the rows g, the one that ``blend_with`` names.
    """
    mix = mix_of(job.config)
    job = dataclasses.replace(job, config=as_blend(job.config))
    average = _Average(job, mix, regression)
    for block in regression(job):
        has_pieces = average.pieces.spelled(block.ids)
        has_row = torch.zeros_like(has_pieces) if block.rows is None else finite_rows(block.rows)
        if block.head is not None:
            has_row &= finite_rows(block.head)
        for with_pieces, with_row in itertools.product((True, False), repeat=2):
            part = block.part((has_pieces == with_pieces) & (has_row == with_row))
            if not len(part.ids):
                continue
            if not with_pieces:
                yield part
            elif with_row and part.rows is not None:
                yield average(part, part.rows)
            else:
                yield average.pieces_alone(part.ids)


class _Average:
    """The weighted average of both rows of a token."""

    def __init__(self, job: Job, mix: Mix, regression: Regression) -> None:
        self.job, self.length, self.pieces = job, mix.length, Pieces(job)
        self.weight = weigher(job, mix.weight, regression)
        self.anchor_mean, self.anchor_head_mean = mean_anchor_rows(job)

    def __call__(self, block: Block, rows: torch.Tensor) -> Block:
        """The block with the average of its ``rows`` [n, D] and the means of its tokens' pieces."""
        means, head_means = self.piece_means(block.ids)
        share = self.weight(block).cpu().double()
        # The summand (1 - l) y is the same in every row and is left out of the recipes.
        recipe = self.pieces.recipe(block.ids, self.length * share)
        if block.recipe is not None:
            recipe = recipe.plus(block.recipe, self.length * (1 - share))
        share = share[:, None]
        average = self._lengthened(share * means + (1 - share) * rows.double(), self.anchor_mean)
        head = None
        if head_means is not None and block.head is not None and self.anchor_head_mean is not None:
            head = share * head_means + (1 - share) * block.head.double()
            head = self._lengthened(head, self.anchor_head_mean).float()
        return dataclasses.replace(
            block, rows=average.float(), head=head, origin=SOLVED, rule=BLENDED_RULES[block.rule], recipe=recipe
        )

    def _lengthened(self, rows: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        """Rows moved away from the mean, to ``length`` times their distance."""
        return rows if self.length == 1 else mean + self.length * (rows - mean)

    def pieces_alone(self, ids: torch.Tensor) -> Block:
        """The means of the tokens' pieces, for tokens without a row of the regression."""
        means, head = self.piece_means(ids)
        return Block(
            ids,
            means.float(),
            None if head is None else head.float(),
            origin=COMPOSED,
            support_size=self.pieces.count(ids).int(),
            rule="pieces",
            recipe=self.pieces.recipe(ids),
        )

    def piece_means(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Mean input and output rows of the pieces of each token, float64 [n, D] and [n, D']; all tokens have pieces."""
        flat = self.pieces.flat(ids)
        head = self.job.head.gather(flat)
        return (
            self.pieces.mean(ids, gather(self.job.source_rows, flat)),
            None if head is None else self.pieces.mean(ids, head),
        )


def mean_anchor_rows(job: Job) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Means of the anchors' input rows, float64 [D], and output rows [D']; ``None`` for a tied head."""
    ids = job.source_ids(job.anchors)
    blocks = row_blocks(job, ids)
    mean = mean_of_rows((gather(job.source_rows, part) for part in blocks), len(ids))
    if not job.head.present:
        return mean, None
    heads = (head for part in blocks if (head := job.head.gather(part)) is not None)
    return mean, mean_of_rows(heads, len(ids))


def weigher(job: Job, weight: float | BlendRule, regression: Regression) -> Callable[[Block], torch.Tensor]:
    """A function that gives the weight of the pieces' mean, in [0, 1], for each token of a block [M].

    - a number: the same for all tokens;
    - ``pieces``: ``2 / (2 + n)`` for a token of n pieces;
    - ``support``: ``32 / (32 + K)`` for a token with K neighbours;
    - ``precision``: from :func:`fitted_shares`, by the token's number of pieces.
    """
    pieces = Pieces(job)
    if weight == "pieces":
        return lambda block: HALF_PIECES / (HALF_PIECES + pieces.count(block.ids).double())
    if weight == "support":
        return _by_support
    if weight == "precision":
        shares = fitted_shares(job, regression)
        return lambda block: shares[pieces.count(block.ids).clamp(1, PIECE_COUNTS) - 1]
    return lambda block: torch.full((len(block.ids),), float(weight), dtype=torch.float64)


def _by_support(block: Block) -> torch.Tensor:
    if block.support_size is None:
        raise RuntimeError("the regression of a blend weighted by support reports no support sizes")
    return HALF_SUPPORT / (HALF_SUPPORT + block.support_size.double())


def fitted_shares(job: Job, regression: Regression) -> torch.Tensor:
    """The weight of the pieces' mean that fits hidden shared tokens best, by number of pieces, float64 [PIECE_COUNTS].

    Groups of twins are hidden as in the self-check. The regression predicts rows g of the hidden tokens from the other
    anchors, and pieces other than the token and its twins give their means m. With t the true rows, the weight that minimises
    the sum of ``|w m + (1 - w) g - t|^2`` is ``sum (m - g)(t - g) / sum |m - g|^2``, clamped to [0, 1]. A number of pieces
    with few hidden tokens takes the weight of all of them; without any hidden token the weight is 1/2.
    """
    hidden = hide_in(job, HIDDEN_SHARE, job.config.seed)
    sums = torch.zeros(PIECE_COUNTS, 3, dtype=torch.float64)
    if hidden is not None:
        hidden_job = dataclasses.replace(hidden.job, new=hidden.tokens)
        sums = _error_sums(hidden_job, regression(hidden_job))
    sums = torch.where(sums[:, 2:] >= MIN_TOKENS, sums, sums.sum(dim=0))
    return torch.where(sums[:, 1] > 0, sums[:, 0] / sums[:, 1], 0.5).clamp(0, 1)


def _error_sums(job: Job, blocks: Iterator[Block]) -> torch.Tensor:
    """By number of pieces: sums of (m - g)(t - g) and of |m - g|^2, and the number of tokens, [PIECE_COUNTS, 3]."""
    pieces, sums = Pieces(job), torch.zeros(PIECE_COUNTS, 3, dtype=torch.float64)
    for block in blocks:
        spelled = pieces.spelled(block.ids)
        if block.rows is None or not spelled.any():
            continue
        ids = block.ids[spelled]
        predicted = block.rows[spelled].double()
        difference = pieces.mean(ids, gather(job.source_rows, pieces.flat(ids))) - predicted
        error = gather(job.source_rows, job.source_ids(ids.numpy())).double() - predicted
        ones = torch.ones(len(ids), dtype=torch.float64)
        values = torch.stack([(difference * error).sum(dim=1), difference.square().sum(dim=1), ones], dim=1)
        sums.index_add_(0, pieces.count(ids).clamp_max(PIECE_COUNTS) - 1, values)
    return sums
