"""New rows computed again: from their recipes, and by the method with the reference operators."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch

from ..files.summary_file import Summary
from ..inspection.rows import Rows
from ..model.checkpoint import Source
from ..model.stored_rows import gather
from ..operators.ops import forced
from ..pipeline import Prepared
from ..rows.assembly import STATUSES, Block
from ..rows.build import table_job
from ..rows.methods import Job, build
from ..rows.recipe import Recipe
from .config import VerifyConfig
from .matrices import BIAS, INPUT, OUTPUT, Side, sides_of
from .record import COPIES
from .results import Check, RowDifference, judged

# Rules whose rows are nothing but the recorded weighted sum.
SUMS = ("anchors", "pieces", "source tokens")
# Rules by which a row is computed from the inputs; random rows are not.
COMPUTED = ("solved", "composed")
# Rounding of float32 weights and of a sum in another order, as a share of the sum of the absolute products.
SUM_ROUNDING = 2.0**-22
# Largest distance of a row that is built again, as a share of its norm, besides the rounding of its dtype: the compiled
# operators and the reference differ in the last bits of float64, which the conditioning of a regression multiplies.
BUILT_ROUNDING = 1e-6
# Methods whose neighbours are the largest of float32 products: two neighbours that are equally near may be exchanged.
PICKING = ("omp", "local-map")
MAX_PICKED = 0.02  # largest share of the sample whose neighbours may be others
ILL_CONDITIONED = STATUSES.index("ill_conditioned")
_GATHERED_VALUES = 1 << 23  # float64 values of source rows in memory together


def check_recipes(rows: Rows, written: Source, source: Source, config: VerifyConfig) -> Check:
    """Compare rows that are weighted sums of source rows with the sums by the recorded weights.

    Args:
        rows: the record.
        written: the folder.
        source: the source model.
        config: size and seed of the sample; ``full`` takes all rows.
    """
    name, summary, arrays = "recipes", rows.summary, rows.arrays
    rules = list(SUMS)
    if _blend_length(summary) == 1:
        rules.append("pieces and anchors")  # a longer average has a share of the mean row, which recipes leave out
    by_sum = np.isin(np.array(summary["rules"], dtype=object)[arrays["rule"]], rules)
    ids = np.flatnonzero(by_sum & (arrays["rule_kept"] == 1) & (np.diff(arrays["rule_offsets"]) > 0))
    sample = ids if config.full else _sample(ids, config)
    recipe = Recipe(
        *(torch.from_numpy(arrays[key]) for key in ("rule_offsets", "rule_ids", "rule_weights", "rule_kept"))
    )
    sides, problems = sides_of(written, source)
    sides = [side for side in sides if not side.table and _is_sum(summary, side)]
    if len(arrays["rule_ids"]) and int(arrays["rule_ids"].max()) >= len(source.input_rows):
        return judged(name, "weights", names=["a recipe names a token that has no source row"])
    differences = []
    for block in torch.from_numpy(sample).split(max(1, _GATHERED_VALUES // (64 * source.input_rows.shape[1]))):
        part = recipe.pick(block)
        for side in sides:
            differences += _sum_differences(rows, side, block, part)
    counted = f"{len(sample):,} of {len(ids):,} rows that are weighted sums"
    return judged(name, counted, differences, problems)


def _is_sum(summary: Summary, side: Side) -> bool:
    """Whether the rows of a matrix are the sums by the weights of the recipe: later steps may change output rows."""
    if side.role == INPUT:
        return True
    if summary["method"] == "subword-asymmetric":
        return False
    return not _is_shifted(summary, side)


def _is_shifted(summary: Summary, side: Side) -> bool:
    """Whether the unigram shift may have changed the matrix: the bias, or the output rows of a head without bias."""
    return "unigram_shift" in summary and side.role != INPUT


def _sum_differences(rows: Rows, side: Side, ids: torch.Tensor, recipe: Recipe) -> list[RowDifference]:
    if not len(ids):
        return []
    entry = recipe.row_of_entry
    values = gather(side.source, recipe.ids.long()).double().reshape(len(recipe.ids), -1)
    products = values * recipe.weights.double()[:, None]
    zeros = torch.zeros(len(ids), products.shape[1], dtype=torch.float64)
    expected, size = zeros.index_add(0, entry, products), zeros.index_add(0, entry, products.abs())
    expected, scaled = _guarded(rows.summary, side, expected)
    actual = gather(side.written, ids).double().reshape(len(ids), -1)
    precision = torch.finfo(side.written.dtype)
    rounding = precision.eps * (1 + 3 * scaled[:, None].double())
    allowed = rounding * expected.abs() + SUM_ROUNDING * size + precision.smallest_normal * precision.eps
    difference = (actual - expected).abs()
    wrong = ~(difference <= allowed).all(dim=1)
    return _named(rows, side, ids, difference.amax(dim=1), wrong)


def _guarded(summary: Summary, side: Side, expected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as the norm guard leaves them, and bool [n], which it scaled down."""
    scaled = torch.zeros(len(expected), dtype=torch.bool)
    guard: Mapping[str, object] = summary.get("norm_guard", {})
    if summary["config"].get("norm_guard") != "shrink" or side.name not in guard:
        return expected, scaled
    bound = float(summary["norm_guard"][side.name]["bound"])
    length = expected.norm(dim=1)
    scaled = length > bound
    return torch.where(scaled[:, None], expected * (bound / length.clamp_min(1e-300))[:, None], expected), scaled


def check_solved(rows: Rows, written: Source, prepared: Prepared, config: VerifyConfig) -> Check:
    """Build a sample of new rows again, with the reference operators in float64, and compare them.

    Args:
        rows: the record.
        written: the folder.
        prepared: the inputs of the transfer, with the recorded options.
        config: size and seed of the sample.
    """
    name, summary, arrays = "solved again", rows.summary, rows.arrays
    assembly, job = prepared.assembly, prepared.job
    if len(assembly.origin) != len(arrays["origin"]):
        sizes = f"{len(assembly.origin):,} rows by the inputs, {len(arrays['origin']):,} by the record"
        return judged(name, "the alignment", names=[sizes])
    origins = np.array(summary["origins"], dtype=object)[arrays["origin"]]
    copied = np.isin(origins, COPIES)
    other = (assembly.source_id != arrays["source_id"]) | (assembly.open != ~(copied | (origins == "padding")))
    if other.any():
        named = [RowDifference(id=int(r), token=rows.texts[r], tensor="record") for r in np.flatnonzero(other)]
        return judged(name, "the alignment of source and target", named)
    token_of = np.full(len(origins), -1, dtype=np.int64)
    token_of[assembly.row_of[assembly.new]] = assembly.new
    computed, drawn = np.flatnonzero(np.isin(origins, COMPUTED)), int((origins == "drawn").sum())
    ill = arrays["status"][computed] == ILL_CONDITIONED
    sample = _sample(computed[~ill], config)
    job = dataclasses.replace(job, new=np.sort(token_of[sample]))
    sides, problems = sides_of(written, prepared.model)
    compared = _Compared(rows=rows, row_of=assembly.row_of, picking=_picks(summary))
    with forced("reference"):
        compared.add([side for side in sides if not side.table], job)
        for table in prepared.model.tables:
            key = prepared.model.weights.unwrapped.get(table.key, table.key)
            table_sides = [side for side in sides if side.table and side.name == key]
            if table_sides and summary["config"].get("norm_guard") != "shrink":  # the record has no bound of a table
                compared.add(table_sides, table_job(job, assembly, table)[1], partial=True)
    parts = [f"{len(sample):,} of {len(computed):,} computed rows, in float64"]
    parts += [f"{drawn:,} random rows are left out"] if drawn else []
    parts += [f"{int(ill.sum()):,} ill-conditioned rows are left out"] if ill.any() else []
    if compared.exchanged:
        parts.append(f"{len(compared.exchanged):,} rows have other, equally near neighbours")
        if len(compared.exchanged) > max(1, MAX_PICKED * len(sample)):
            problems.append(f"{len(compared.exchanged):,} rows have other neighbours than recorded")
    return judged(name, "; ".join(parts), compared.differences, problems)


@dataclasses.dataclass(kw_only=True)
class _Compared:
    """Rows that were built again, compared with those of the folder.

    Attributes:
        rows: the record.
        row_of: row of each target id.
        picking: whether neighbours may be exchanged for equally near ones.
        differences: the rows that differ.
        exchanged: rows that differ because of other neighbours.
    """

    rows: Rows
    row_of: np.ndarray
    picking: bool
    differences: list[RowDifference] = dataclasses.field(default_factory=list)
    exchanged: set[int] = dataclasses.field(default_factory=set)

    def add(self, sides: list[Side], job: Job, *, partial: bool = False) -> None:
        """Build the rows of a job, and compare them.

        Args:
            sides: the matrices that the rows belong to.
            job: with the tokens of the sample.
            partial: whether the method may leave out tokens, as for a table with fewer rows.
        """
        built: set[int] = set()
        for block in build(job):
            if block.rows is None or not len(block.ids):
                continue
            ids = torch.from_numpy(self.row_of[block.ids.numpy()])
            built.update(ids.tolist())
            for side in sides:
                again = _part_of(block, side, job)
                if again is not None and not _is_shifted(self.rows.summary, side):
                    self._compare(side, ids, again, block)
        if not partial:
            lost = sorted(set(self.row_of[job.new].tolist()) - built)
            self.differences += [RowDifference(id=row, token=self.rows.texts[row], tensor="record") for row in lost]

    def _compare(self, side: Side, ids: torch.Tensor, again: torch.Tensor, block: Block) -> None:
        expected, scaled = _guarded(self.rows.summary, side, again)
        actual = gather(side.written, ids).double().reshape(len(ids), -1)
        precision = torch.finfo(side.written.dtype)
        share = precision.eps * (1 + 3 * scaled.double()) + BUILT_ROUNDING
        size = expected.norm(dim=1)
        distance = (actual - expected).norm(dim=1)
        allowed = share * size + precision.smallest_normal * precision.eps * expected.shape[1]
        wrong = ~(distance <= allowed)
        if self.picking and block.recipe is not None and wrong.any():
            exchanged = torch.tensor([self._has_other_neighbours(at, int(row), block) for at, row in enumerate(ids)])
            self.exchanged.update(ids[wrong & exchanged].tolist())
            wrong &= ~exchanged
        self.differences += _named(self.rows, side, ids, (actual - expected).abs().amax(dim=1), wrong)

    def _has_other_neighbours(self, at: int, row: int, block: Block) -> bool:
        """Whether a row of a block has other neighbours than the record says."""
        if block.recipe is None:
            return False
        begin, end = block.recipe.offsets[at : at + 2].tolist()
        return set(block.recipe.ids[begin:end].tolist()) != set(self.rows.parts(row)[0].tolist())


def _part_of(block: Block, side: Side, job: Job) -> torch.Tensor | None:
    """The rows of a block that belong to a matrix, float64 [n, width]; ``None`` where the block has none."""
    if side.role == INPUT:
        return None if block.rows is None else block.rows.double()
    if block.head is None:
        return None
    head = block.head.double()
    if side.role == BIAS:
        return head[:, -1:] if job.head.bias is not None else None
    return head[:, : job.head.width - (job.head.bias is not None)] if side.role == OUTPUT else None


def _picks(summary: Summary) -> bool:
    options = summary["config"]
    return options.get("method") in PICKING or options.get("blend_with") in PICKING


def _blend_length(summary: Summary) -> float:
    """Sum of the weights of the two sides of a blend; 1 where the transfer used no blend."""
    blend = summary.get("blend")
    return float(blend["length"]) if blend else 1.0


def _sample(ids: np.ndarray, config: VerifyConfig) -> np.ndarray:
    """A random sample of rows, ascending; all of them where there are few."""
    return np.sort(np.random.default_rng(config.seed).permutation(ids)[: config.sample])


def _named(
    rows: Rows, side: Side, ids: torch.Tensor, difference: torch.Tensor, wrong: torch.Tensor
) -> list[RowDifference]:
    return [
        RowDifference(
            id=int(ids[at]), token=rows.texts[int(ids[at])], tensor=side.name, difference=_finite(difference[at])
        )
        for at in wrong.nonzero()[:, 0].tolist()
    ]


def _finite(value: torch.Tensor) -> float | None:
    """A float; ``None`` for NaN and infinity, which JSON cannot hold."""
    number = float(value)
    return number if np.isfinite(number) else None
