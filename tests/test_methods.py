"""Every method against its formula in float64 on tiny models, and the laws that tell the methods apart."""

from __future__ import annotations

import dataclasses
import gzip
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from saltlm import ops
from saltlm.align import WORD_START, Alignment, MatchKind
from saltlm.assemble import COMPOSED, DRAWN, SOLVED, Head
from saltlm.auxiliary import Auxiliary, load_auxiliary
from saltlm.batch_done import _vectors
from saltlm.checkpoint import load_donor, load_source
from saltlm.config import METHODS as NAMES
from saltlm.config import TransferConfig
from saltlm.errors import InputError
from saltlm.heldout import heldout_check
from saltlm.methods import METHODS, NEEDS_VECTORS, Job, Method, anchors_of, pursuit
from saltlm.methods.pieces import characters
from saltlm.methods.pursuit import pursue
from saltlm.source_vectors import procrustes, read_dictionary
from saltlm.transfer import transfer

ANCHORED = [name for name, method in METHODS.items() if method.anchors]


@dataclasses.dataclass(frozen=True)
class Planted:
    """A job over drawn matrices: the alignment is a stand-in that only names anchors."""

    job: Job
    plm: torch.Tensor
    anchors: np.ndarray
    new: np.ndarray


class _Ids:
    """The part of an alignment that anchor methods read."""

    def __init__(self, source_id: np.ndarray) -> None:
        self.source_id = source_id
        self.cover_offsets = np.zeros(len(source_id) + 1, dtype=np.int64)
        self.cover_ids = np.zeros(0, dtype=np.int32)


class _Side:
    """The part of a source that a head reads."""

    def __init__(self, rows: torch.Tensor | None = None, bias: torch.Tensor | None = None) -> None:
        self.output_rows, self.output_bias = rows, bias


def planted(
    plm: torch.Tensor, lm: torch.Tensor, count: int, *, method: str, head: torch.Tensor | None = None, **options
):
    """The first ``count`` tokens are anchors with the rows ``lm`` [count, D]; the others are to be built."""
    source_id = np.full(len(plm), -1, dtype=np.int32)
    source_id[:count] = np.arange(count)
    vectors = Auxiliary(plm.float(), torch.ones(len(plm), dtype=torch.bool), {})
    job = Job(
        alignment=_Ids(source_id), source_rows=lm, head=Head(_Side(head)), used=np.arange(len(lm)), auxiliary=vectors,
        plm_rows=plm, anchors=np.arange(count), new=np.arange(count, len(plm)),
        config=TransferConfig(method=method, **options), device=torch.device("cpu"),
    )  # fmt: skip
    return Planted(job, plm, job.anchors, job.new)


def built(case: Planted, part: str = "rows") -> torch.Tensor:
    """Float64 rows of the new tokens, in order; every one must be built."""
    blocks = [block for block in METHODS[case.job.config.method].build(case.job) if block.rows is not None]
    ids = torch.cat([block.ids for block in blocks])
    assert ids.sort().values.tolist() == case.new.tolist()
    return torch.cat([getattr(block, part) for block in blocks])[ids.argsort()].double()


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def orthogonal(size: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(draw(size, size, seed=seed).double())[0]


def cosines(case: Planted) -> torch.Tensor:
    unit = torch.nn.functional.normalize(case.plm.float().double(), dim=1)
    return unit[case.new] @ unit[case.anchors].T


def sparsemax(z: torch.Tensor) -> torch.Tensor:
    """By bisection on the threshold, which shares no step with the sorting that the operators do."""
    low, high = z.min() - 1, z.max()
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if (z - middle).clamp_min(0).sum() > 1 else (low, middle)
    return (z - low).clamp_min(0)


# The laws of each rule, on planted problems.


@given(st.integers(0, 10**6))
@pytest.mark.parametrize("method", ["focus", "clp-plus"])
def test_sparsemax_weights_make_the_row(method: str, seed: int) -> None:
    head = draw(40, 5, seed=seed + 2)
    case = planted(draw(43, 8, seed=seed), draw(40, 6, seed=seed + 1), 40, method=method, head=head)
    weight = torch.stack([sparsemax(row) for row in cosines(case)])
    torch.testing.assert_close(built(case), weight @ case.job.source_rows.double(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(built(case, "head"), weight @ head.double(), atol=1e-5, rtol=1e-4)


@given(st.integers(0, 10**6))
def test_clp_sums_over_all_anchors(seed: int) -> None:
    plm = draw(45, 8, seed=seed) + 1  # a common direction, as real rows have: the cosines' sum stays off zero
    case = planted(plm, draw(40, 6, seed=seed + 1), 40, method="clp", head=draw(40, 3, seed=seed + 2))
    weight = cosines(case) / cosines(case).sum(dim=1, keepdim=True)
    torch.testing.assert_close(built(case), weight @ case.job.source_rows.double(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(built(case, "head"), weight @ case.job.head.rows.double(), atol=1e-4, rtol=1e-4)
    # Leaving out the farthest anchor changes rows: none is outside the sum.
    farthest = cosines(case).argmin(dim=1)[0]
    kept = np.delete(case.anchors, int(farthest))
    other = Planted(dataclasses.replace(case.job, anchors=kept), case.plm, kept, case.new)
    assert not torch.allclose(built(other)[0], built(case)[0])


@given(st.integers(0, 10**6), st.integers(3, 12), st.integers(2, 15))
def test_the_affine_map_recovers_a_planted_one(seed: int, width: int, out: int) -> None:
    plm = draw(60, width, seed=seed).double()
    image = plm @ draw(width, out, seed=seed + 1).double() + draw(out, seed=seed + 2).double()
    for method, options in (("sava-affine", {}), ("blend", {"ridge": 0.0})):
        case = planted(plm, image[:50].double(), 50, method=method, head=2 * image[:50] - 1, **options)
        torch.testing.assert_close(built(case), image[50:], atol=2e-4, rtol=2e-4)
        torch.testing.assert_close(built(case, "head"), 2 * image[50:] - 1, atol=4e-4, rtol=4e-4)


@given(st.integers(0, 10**6), st.integers(3, 12))
def test_the_orthogonal_map_recovers_a_planted_one_and_the_affine_one_too(seed: int, width: int) -> None:
    centred = draw(60, width, seed=seed).double()
    centred = centred - centred[:50].mean(dim=0)
    values, vectors = torch.linalg.eigh(centred[:50].T @ centred[:50])
    white = centred @ (vectors / values.sqrt()) * 7  # equal variances: scaling a dimension must not bend the turn
    image = 3 * white @ orthogonal(width, seed + 1) + draw(width, seed=seed + 2).double()
    for method in ("sava-orthogonal", "sava-affine"):
        torch.testing.assert_close(
            built(planted(white + 5, image[:50], 50, method=method)), image[50:], atol=1e-4, rtol=1e-4
        )
    # A general map is no turn: the orthogonal one must miss it.
    bent = white @ torch.diag(torch.arange(1, width + 1).double()) @ orthogonal(width, seed + 3)
    bent = bent @ draw(width, width, seed=seed + 4).double()
    off = built(planted(white, bent[:50], 50, method="sava-orthogonal")) - bent[50:]
    assert off.norm() > 0.01 * bent[50:].norm()


@pytest.mark.parametrize(("width", "out"), [(6, 9), (9, 6)])
def test_the_orthogonal_map_is_procrustes_between_scaled_padded_spaces(width: int, out: int) -> None:
    plm, lm = draw(60, width, seed=0) * torch.arange(1, width + 1), draw(50, out, seed=1) + 2

    def scaling(rows):
        mean, deviation = rows.mean(0), rows.std(0)
        return mean, deviation, ((rows - mean) / deviation).norm(dim=1).mean()

    x, y = plm[:50].double(), lm.double()
    (mx, sx, nx), (my, sy, ny) = scaling(x), scaling(y)
    size = max(width, out)

    def pad(rows):
        return torch.nn.functional.pad(rows, (0, size - rows.shape[1]))

    a, b = pad((x - mx) / sx / nx), pad((y - my) / sy / ny)
    left, _, right = torch.linalg.svd(a.T @ b)
    expected = (pad((plm[50:].double() - mx) / sx / nx) @ left @ right)[:, :out] * ny * sy + my
    torch.testing.assert_close(built(planted(plm, lm, 50, method="sava-orthogonal")), expected, atol=1e-4, rtol=1e-4)


@given(st.integers(0, 10**6), st.floats(0.01, 100))
def test_the_ridge_map_minimises_its_objective(seed: int, ridge: float) -> None:
    case = planted(draw(50, 7, seed=seed), draw(40, 5, seed=seed + 1), 40, method="sava-affine", ridge=ridge)
    x, y = case.plm[:40].double(), case.job.source_rows.double()
    cx, cy = x - x.mean(0), y - y.mean(0)
    # The ridge as rows of data: sqrt(lambda) I with zeros for targets.
    strength = (ridge * cx.square().sum() / 40).sqrt()
    stacked = torch.cat([cx, strength * torch.eye(7).double()])
    solution = torch.linalg.lstsq(stacked, torch.cat([cy, torch.zeros(7, 5).double()])).solution
    expected = (case.plm[40:].double() - x.mean(0)) @ solution + y.mean(0)
    torch.testing.assert_close(built(case), expected, atol=1e-5, rtol=1e-4)


def test_a_map_from_fewer_anchors_than_dimensions_is_of_least_norm_and_says_so() -> None:
    case = planted(draw(20, 12, seed=0), draw(6, 5, seed=1), 6, method="sava-affine")
    x, y = case.plm[:6].double(), case.job.source_rows.double()
    expected = (case.plm[6:].double() - x.mean(0)) @ torch.linalg.pinv(x - x.mean(0)) @ (y - y.mean(0)) + y.mean(0)
    torch.testing.assert_close(built(case), expected, atol=1e-4, rtol=1e-4)
    (block,) = METHODS["sava-affine"].build(case.job)
    assert set(block.rank.tolist()) == {5} and set(block.support_size.tolist()) == {6}
    basis = torch.linalg.svd(x - x.mean(0), full_matrices=False).Vh[:5]
    centred = case.plm[6:].double() - x.mean(0)
    missed = (centred - centred @ basis.T @ basis).norm(dim=1) / case.plm[6:].double().norm(dim=1)
    torch.testing.assert_close(block.residual.double(), missed, atol=1e-5, rtol=1e-4)


@given(st.integers(0, 10**6))
def test_pursuit_recovers_sparse_combinations_exactly(seed: int) -> None:
    anchors = draw(80, 64, seed=seed)
    generator = np.random.default_rng(seed)
    members = np.stack([generator.choice(80, 3, replace=False) for _ in range(4)])
    coefficients = torch.from_numpy(generator.choice([-1, 1], (4, 3)) * generator.uniform(1, 2, (4, 3)))
    new = (coefficients[:, :, None] * anchors[torch.from_numpy(members)].double()).sum(dim=1)
    lm = draw(80, 9, seed=seed + 1)
    expected = (coefficients[:, :, None] * lm[torch.from_numpy(members)].double()).sum(dim=1)
    case = planted(torch.cat([anchors, new.float()]), lm, 80, method="omp")
    torch.testing.assert_close(built(case), expected, atol=1e-3, rtol=1e-3)
    support = pursue(new.float(), anchors, 40)
    for row in range(4):
        assert set(members[row]) <= set(support.ids[support.offsets[row] : support.offsets[row + 1]].tolist())


@given(st.integers(0, 10**6), st.integers(1, 12))
def test_pursuit_takes_the_largest_product_with_what_is_left(seed: int, most: int) -> None:
    anchors, new = draw(60, 20, seed=seed).double(), draw(2, 20, seed=seed + 1).double()
    support = pursue(new, anchors, most)
    assert support.offsets.diff().tolist() == [most] * 2
    for row in range(2):
        picks = support.ids[row * most : (row + 1) * most].long()
        for step in range(most):
            chosen = anchors[picks[:step]]
            rest = new[row] - (new[row] @ torch.linalg.pinv(chosen) @ chosen if step else 0)
            products = (anchors @ rest).abs()
            products[picks[:step]] = 0
            assert products[picks[step]] >= products.max() * (1 - 1e-9)


def test_pursuit_stops_when_nothing_is_left_and_never_repeats_a_direction() -> None:
    anchors = torch.cat([torch.eye(4), torch.eye(4)])  # every direction twice
    support = pursue(torch.tensor([[0.0, 3, 0, 0], [1, 2, 3, 4], [0, 0, 0, 0]]), anchors, 8)
    assert support.offsets.diff().tolist() == [1, 4, 0]
    assert sorted(i % 4 for i in support.ids[1:].tolist()) == [0, 1, 2, 3]
    assert len(pursue(torch.zeros(0, 4), anchors, 3).ids) == 0


def test_the_chunks_of_a_pursuit_change_nothing(monkeypatch) -> None:
    anchors, new = draw(50, 12, seed=0), draw(30, 12, seed=1)
    whole = pursue(new, anchors, 6)
    monkeypatch.setattr("saltlm.methods.pursuit.CHUNK_VALUES", 150)
    assert torch.equal(pursue(new, anchors, 6).ids, whole.ids)


@pytest.mark.skipif(ops.backend("cpu").name != "compiled", reason="no compiled operators")
@settings(max_examples=10)
@given(st.integers(0, 10**6), st.integers(1, 40))
def test_the_compiled_pursuit_picks_as_the_products_do(seed: int, most: int) -> None:
    """From the Gram matrix, with guesses: rows in general position, one of zeros, and one that three anchors explain."""
    anchors, new = draw(333, 96, seed=seed) + 0.5, draw(12, 96, seed=seed + 1)
    new[3] = 0
    new[5] = anchors[[7, 70, 300]].T @ torch.tensor([2.0, -1.5, 1.0])
    anchors[200] = anchors[100]  # twins
    found = pursue(new, anchors, most)
    assert pursuit._by_gram(anchors, most)
    size, picks = pursuit._pursue(new.double(), anchors.double(), most)
    sizes = found.offsets.diff()
    assert sizes[3] == 0 and sizes.tolist() == [min(int(n), int(m)) for n, m in zip(sizes, size, strict=True)]
    for row in set(range(12)) - {3, 5}:
        own = found.ids[found.offsets[row] : found.offsets[row + 1]].tolist()
        assert own == picks[row].tolist()
    assert set(found.ids[found.offsets[5] :][: min(3, most)].tolist()) <= set(picks[5].tolist())


@pytest.mark.skipif(ops.backend("cpu").name != "compiled", reason="no compiled operators")
def test_the_pursuit_operator_refuses_what_does_not_fit() -> None:
    gram, products, squares = torch.eye(5), torch.ones(2, 5), torch.ones(2).double()
    for arguments, words in (
        ((products, gram[:4], squares, 3), "pursue, gram: expected 5 rows and columns"),
        ((products.double(), gram, squares, 3), "expected float32"),
        ((products, gram, squares[:1], 3), "pursue, squares: expected 2 values"),
        ((products, gram, squares, 0), "pursue, most: expected a number in"),
    ):
        with pytest.raises(RuntimeError, match=words):
            torch.ops.saltlm.pursue(*arguments)
    torch.library.opcheck(torch.ops.saltlm.pursue.default, (products, gram, squares, 3))
    picks, size = torch.ops.saltlm.pursue(products[:0], gram, squares[:0], 3)
    assert picks.shape == (0, 3) and size.shape == (0,)


# The methods on whole tiny models, against the formula.


@pytest.fixture(scope="module")
def untied_parts(untied):
    """Source, donor, alignment and vectors of the untied pair."""
    done = transfer(untied.source, untied.target, untied.vectors, config=TransferConfig(method="salt"))
    vectors = load_auxiliary(untied.vectors, done.alignment.target.words())
    return load_source(untied.source), load_donor(untied.target), done.alignment, vectors


def anchors_by_definition(alignment: Alignment, known: torch.Tensor | None) -> np.ndarray:
    shared = alignment.shared & (alignment.kind != MatchKind.ROLE)
    return np.flatnonzero(shared if known is None else shared & known.numpy())


@pytest.mark.parametrize("method", ["focus", "clp", "clp-plus", "sava-affine", "omp"])
def test_whole_transfers_follow_the_formula(method: str, untied, untied_parts) -> None:
    source, donor, alignment, vectors = untied_parts
    # Few picks: once nearly nothing is left of a row, float32 and float64 rightly differ in what they pick last.
    config = TransferConfig(method=method, max_support=8 if method == "omp" else None)
    done = transfer(untied.source, untied.target, untied.vectors, config=config)
    anchors = anchors_by_definition(alignment, vectors.known if method == "focus" else None)
    tokens = np.flatnonzero(np.isin(done.origin, (COMPOSED, SOLVED)))
    open_tokens = int((~alignment.shared).sum())
    drawn = int((done.origin == DRAWN).sum())
    assert len(tokens) + drawn == open_tokens and len(tokens) > 30
    assert (drawn > 0) == (method == "focus")  # some words have no vector, every token has a PLM row
    space = (vectors.vectors if method == "focus" else donor.input_rows).double()
    ids = torch.from_numpy(alignment.source_id[anchors].astype(np.int64))
    unit = torch.nn.functional.normalize(space, dim=1)
    for token in tokens[::5]:
        z = unit[anchors] @ unit[token]
        if method in ("focus", "clp-plus"):
            weight = sparsemax(z)
        elif method == "clp":
            weight = z / z.sum()
        elif method == "omp":
            support = pursue(space[token][None], space[anchors], 8).ids.long()
            weight = torch.zeros(len(anchors)).double()
            weight[support] = space[token] @ torch.linalg.pinv(space[anchors][support])
        else:
            x = space[anchors]
            weight = (space[token] - x.mean(0)) @ torch.linalg.pinv(x - x.mean(0))
            weight = weight + (1 - weight.sum()) / len(anchors)
        for rows, made in ((source.input_rows, done.input_rows), (source.output_rows, done.output_rows)):
            expected = weight @ rows[ids].double()
            assert (made[token].double() - expected).norm() <= 1e-3 * expected.norm(), (token, method)


def test_length_weighted_means(untied, untied_parts) -> None:
    source, _, alignment, _ = untied_parts
    done = transfer(untied.source, untied.target, config=TransferConfig(method="subword-length"))
    data, offsets = alignment.source.token_bytes()

    def length(piece: int) -> int:
        spelled = bytes(data[offsets[piece] : offsets[piece + 1]])
        try:
            return max(1, len(spelled.decode()))
        except UnicodeDecodeError:
            return 1  # byte pieces

    composed = np.flatnonzero(done.origin == COMPOSED)
    weighted = 0
    for token in composed:
        pieces = alignment.cover(token)
        weight = torch.tensor([length(piece) for piece in pieces]).double()
        weighted += len(set(weight.tolist())) > 1
        for rows, made in ((source.input_rows, done.input_rows), (source.output_rows, done.output_rows)):
            expected = (weight / weight.sum()) @ rows[torch.from_numpy(pieces.astype(np.int64))].double()
            torch.testing.assert_close(made[token].double(), expected, atol=1e-5, rtol=1e-4)
    assert weighted > 10


def test_asymmetric_composition(untied, pair) -> None:
    def run(method: str, case=untied):
        return transfer(case.source, case.target, config=TransferConfig(method=method))

    plain, weighted, done = run("subword-mean"), run("subword-length"), run("subword-asymmetric")
    at = torch.from_numpy(done.origin == COMPOSED)
    typical = load_source(untied.source).input_rows.double().norm(dim=1).median()
    torch.testing.assert_close(done.input_rows[at].double().norm(dim=1), typical.expand(int(at.sum())))
    cosine = torch.nn.functional.cosine_similarity(done.input_rows[at], plain.input_rows[at])
    assert (cosine > 1 - 1e-5).all()
    assert torch.equal(done.output_rows, weighted.output_rows)
    assert not any("tied" in warning for warning in done.summary["warnings"])
    assert any("the head is tied" in warning for warning in run("subword-asymmetric", pair).summary["warnings"])


def test_the_default_is_a_longer_blend_and_pieces_alone_where_anchors_are_few(untied, monkeypatch) -> None:
    def run(**options):
        return transfer(untied.source, untied.target, config=TransferConfig(heldout=0.0, **options))

    default = run()
    same = run(method="blend", blend_with="ridge-map", blend_weight=0.35, blend_length=1.4, ridge=1.0)
    assert torch.equal(default.input_rows, same.input_rows) and torch.equal(default.output_rows, same.output_rows)
    assert default.summary["blend"] == {"weight": 0.35, "length": 1.4}
    set_by_user = run(blend_weight=0.5, blend_length=1.0, ridge=1.0)
    assert torch.equal(set_by_user.input_rows, run(method="blend").input_rows)
    width = load_donor(untied.target).input_rows.shape[1]
    assert default.summary["anchors"] >= width and default.summary["counts"]["solved"] > 0
    for few in (width - 1, 0):
        with monkeypatch.context() as patched:
            patched.setattr(
                sys.modules["saltlm.transfer"], "anchors_of", lambda *inputs, few=few: anchors_of(*inputs)[:few]
            )
            alone = run()
            if not few:
                with pytest.raises(InputError, match="at least one shared token"):
                    run(method="blend")
        assert torch.equal(alone.input_rows, run(method="subword-mean").input_rows)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_a_blend_is_the_weighted_mean_of_its_parts(untied, weight: float) -> None:
    def run(**options):
        return transfer(untied.source, untied.target, config=TransferConfig(heldout=0.0, **options))

    pieces, mapped = run(method="subword-mean"), run(method="sava-affine", ridge=0.5)
    done = run(method="blend", ridge=0.5, blend_weight=weight)
    both = torch.from_numpy(pieces.origin == COMPOSED)
    alone = torch.from_numpy((mapped.origin == SOLVED) & (pieces.origin != COMPOSED))
    assert both.any() and (done.origin[both.numpy()] == SOLVED).all()
    for side in ("input_rows", "output_rows"):
        made, one, other = (getattr(result, side) for result in (done, pieces, mapped))
        torch.testing.assert_close(made[both], weight * one[both] + (1 - weight) * other[both], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(made[alone], other[alone])


@pytest.mark.parametrize("other", ["ridge-map", "salt"])
def test_the_length_of_a_blend_counts_from_the_mean_anchor_row(other: str, untied) -> None:
    def run(method="blend", **options):
        vectors = untied.vectors if other == "salt" else None
        return transfer(untied.source, untied.target, vectors, config=TransferConfig(method=method, heldout=0.0, **options))

    plain, longer, shorter = (run(blend_with=other, blend_length=length) for length in (None, 1.75, 0.25))
    both = (run("subword-mean").origin == COMPOSED) & np.isin(run(other).origin, (SOLVED, COMPOSED))
    assert both.sum() > 30
    source, tokens = load_source(untied.source), plain.alignment
    anchors = tokens.shared & (tokens.kind != MatchKind.ROLE)
    anchors[len(load_donor(untied.target).input_rows) :] = False
    if other == "salt":
        anchors &= load_auxiliary(untied.vectors, tokens.target.words()).known.numpy()
    assert anchors.sum() == plain.summary["anchors"]
    ids = torch.from_numpy(tokens.source_id[anchors].astype(np.int64))
    for side in ("input_rows", "output_rows"):
        middle = getattr(source, side)[ids].double().mean(dim=0)
        one, far, near = (getattr(done, side).double() - middle for done in (plain, longer, shorter))
        torch.testing.assert_close(far[both], 1.75 * one[both], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(near[both], 0.25 * one[both], atol=1e-5, rtol=1e-4)
        assert torch.equal(far[~both], one[~both])


def test_a_blend_takes_whole_what_it_has() -> None:
    """A token beyond the PLM's rows takes the pieces alone, one without pieces the map alone, one with neither is drawn."""
    case = planted(draw(30, 4, seed=0), draw(25, 6, seed=1), 20, method="blend", ridge=0.0)
    ids = case.job.alignment
    ids.source_id = np.concatenate([ids.source_id, [-1, -1]]).astype(np.int32)
    ids.cover_offsets = np.concatenate([np.zeros(31, dtype=np.int64), [2, 2]])
    ids.cover_ids = np.array([21, 24], dtype=np.int32)
    job = dataclasses.replace(case.job, new=np.arange(20, 32))
    blocks = list(METHODS["blend"].build(job))
    by_id = {int(token): block for block in blocks for token in block.ids}
    rows = by_id[30].rows[by_id[30].ids.tolist().index(30)]
    torch.testing.assert_close(rows, case.job.source_rows[[21, 24]].mean(dim=0))
    assert by_id[30].origin == COMPOSED and by_id[31].rows is None and by_id[20].origin == SOLVED


def test_multivariate_draws_have_the_mean_and_covariance_of_the_source(untied) -> None:
    lm = draw(400, 6, seed=0) @ draw(6, 6, seed=1) + torch.arange(6)
    case = planted(torch.zeros(20_000, 2), lm, 10, method="multivariate", head=2 * lm, seed=3)
    for part, scale in (("rows", 1), ("head", 2)):
        made = built(case, part)
        spread = (scale * lm.double()).T.cov()
        assert (made.mean(dim=0) - scale * lm.double().mean(dim=0)).norm() < 0.05 * spread.trace().sqrt()
        assert (made.T.cov() - spread).norm() < 0.05 * spread.norm()
    assert torch.equal(built(case), built(case))
    assert abs(np.corrcoef(built(case)[:, 0], built(case, "head")[:, 0])[0, 1]) < 0.05
    done = transfer(untied.source, untied.target, config=TransferConfig(method="multivariate"))
    assert done.summary["counts"]["composed"] == 0 < done.summary["counts"]["drawn"]
    assert not any("random row" in warning for warning in done.summary["warnings"])


def test_characters_of_pieces(untied_parts) -> None:
    alignment = untied_parts[2]
    found = characters(alignment)
    assert len(found) == alignment.source.size and found.min() == 1
    words = alignment.source.words()
    # A word's text has its characters, whatever the bytes ("ß" and "Ü" are two); a word start has its space beside them.
    start = alignment.source.flags() & WORD_START > 0
    plain = [i for i, word in enumerate(words) if word and word.isalpha() and len(word) > 1]
    assert len(plain) > 50 and any(not words[i].isascii() for i in plain)
    assert start[plain].any() and all(found[i] == len(words[i]) + start[i] for i in plain)


@pytest.fixture(scope="module")
def bilingual(untied_parts, tmp_path_factory) -> dict[str, str]:
    """Vectors of the source's words, and a dictionary that names a few of them twice."""
    folder = tmp_path_factory.mktemp("bilingual")
    alignment, vectors = untied_parts[2:]
    words = sorted({word for word in alignment.source.words() if word and " " not in word})
    values = np.random.default_rng(5).normal(size=(len(words), vectors.vectors.shape[1]))
    lines = [f"{word} {' '.join(f'{x:.5f}' for x in row)}" for word, row in zip(words, values, strict=True)]
    (folder / "source.vec").write_text(f"{len(lines)} {values.shape[1]}\n" + "\n".join(lines) + "\n", encoding="utf-8")
    known = [word for word, have in zip(alignment.target.words(), vectors.known.tolist(), strict=True) if word and have]
    chosen = [word for word in words if len(word) > 1][:40]
    pairs = [f"{one}\t{other}" for one, other in zip(chosen, known[-40:], strict=True)]
    (folder / "pairs.txt").write_text("\n".join([*pairs, "", "two words"]) + "\n", encoding="utf-8")
    return {"source_auxiliary": str(folder / "source.vec"), "dictionary": str(folder / "pairs.txt")}


def test_wechsel_follows_the_formula(untied, untied_parts, bilingual) -> None:
    source, _, alignment, vectors = untied_parts
    config = TransferConfig(method="wechsel", **bilingual)
    done = transfer(untied.source, untied.target, untied.vectors, config=config)
    path = bilingual["source_auxiliary"]
    own = load_auxiliary(path, alignment.source.words())
    pairs = read_dictionary(bilingual["dictionary"])
    left, right = (load_auxiliary(f, [p[i] for p in pairs]) for i, f in enumerate((path, untied.vectors)))
    both = left.known & right.known
    assert int(both.sum()) > 40  # lower-case words count more than once
    u, _, v = np.linalg.svd(left.vectors[both].double().numpy().T @ right.vectors[both].double().numpy())
    turned = torch.nn.functional.normalize(own.vectors.double() @ torch.from_numpy(u @ v), dim=1)
    composed = np.flatnonzero(done.origin == COMPOSED)
    assert len(composed) > 30
    for token in composed:
        z = turned @ torch.nn.functional.normalize(vectors.vectors[token].double(), dim=0)
        z[~own.known] = -2
        near = z.sort(descending=True, stable=True)  # twins share a vector: the smaller id comes first
        weight = (near.values[:10] / 0.1).softmax(dim=0)
        for rows, made in ((source.input_rows, done.input_rows), (source.output_rows, done.output_rows)):
            expected = weight @ rows[near.indices[:10]].double()
            torch.testing.assert_close(made[token].double(), expected, atol=1e-4, rtol=1e-3)
    assert done.summary["inputs"]["source_auxiliary"]["pairs"] == int(both.sum())


def test_source_vectors_trained_on_text_have_the_targets_width(untied, bilingual, tmp_path, monkeypatch) -> None:
    pytest.importorskip("gensim")
    from saltlm import train_vectors

    monkeypatch.setenv("SALTLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(train_vectors, "SETTINGS", {**train_vectors.SETTINGS, "bucket": 100, "vector_size": 7})
    (tmp_path / "text.txt").write_text("the queen of the city found a house in the city\n" * 30, encoding="utf-8")
    known = [line.split()[0] for line in Path(untied.vectors).read_text(encoding="utf-8").splitlines()[1:5]]
    (tmp_path / "pairs.txt").write_text("\n".join(f"city\t{word}" for word in known), encoding="utf-8")
    config = TransferConfig(
        method="wechsel", source_auxiliary=f"train:{tmp_path / 'text.txt'}", dictionary=str(tmp_path / "pairs.txt")
    )
    done = transfer(untied.source, untied.target, untied.vectors, config=config)
    width = done.summary["inputs"]["auxiliary"]["dimension"]
    assert done.summary["inputs"]["source_auxiliary"]["dimension"] == width != 7
    assert done.summary["inputs"]["source_auxiliary"]["pairs"] >= len(known)
    assert train_vectors.trained_file([tmp_path / "text.txt"], width).is_file()
    # A batch finds them again and takes the job for finished.
    assert _vectors(done.summary["inputs"]["source_auxiliary"], config.source_auxiliary) is None


def test_source_tokens_without_vectors_leave_all_to_be_drawn() -> None:
    case = planted(draw(30, 4, seed=0), draw(25, 6, seed=1), 20, method="wechsel")
    empty = Auxiliary(torch.zeros(25, 4), torch.zeros(25, dtype=torch.bool), {})
    (block,) = METHODS["wechsel"].build(dataclasses.replace(case.job, source_auxiliary=empty))
    assert block.rows is None and len(block.ids) == 10


@given(st.integers(0, 10**6))
def test_procrustes_recovers_a_turn(seed: int) -> None:
    turn, words = orthogonal(5, seed), draw(20, 5, seed=seed + 1).double()
    torch.testing.assert_close(procrustes(words, words @ turn), turn)


def test_the_self_check_hides_twins_among_the_source_tokens(untied, bilingual, monkeypatch) -> None:
    seen = []
    build = METHODS["wechsel"].build

    def spy(job):
        seen.append(job)
        return build(job)

    monkeypatch.setitem(METHODS, "wechsel", dataclasses.replace(METHODS["wechsel"], build=spy))
    transfer(
        untied.source, untied.target, untied.vectors, config=TransferConfig(method="wechsel", heldout=0.3, **bilingual)
    )
    whole, check = seen
    hidden_tokens = check.new[check.alignment.shared[check.new]]
    assert not len(whole.hidden) and len(check.hidden) >= len(hidden_tokens) > 0
    words, others = check.alignment.target.words(), check.alignment.source.words()
    hidden = {words[token].casefold() for token in hidden_tokens if words[token]}
    assert all(i in check.hidden for i, word in enumerate(others) if word and word.casefold() in hidden)


@pytest.mark.parametrize("missing", ["source_auxiliary", "dictionary"])
def test_what_wechsel_lacks_is_named_at_once(missing: str, bilingual, untied, tmp_path) -> None:
    config = TransferConfig(method="wechsel", **{k: v for k, v in bilingual.items() if k != missing})
    flag = missing.replace("_", "-")
    with pytest.raises(InputError, match=f"{flag}: found none for method 'wechsel'.*--{flag}"):
        transfer(tmp_path / "no", tmp_path / "such", untied.vectors, config=config)
    for bad in ({missing: str(tmp_path / "absent")}, {"source_auxiliary": "plm"}):
        with pytest.raises(InputError, match=r"nothing at|no file at|'plm'"):
            config = TransferConfig(method="wechsel", **{**bilingual, **bad})
            transfer(tmp_path / "no", tmp_path / "such", untied.vectors, config=config)


@pytest.mark.parametrize(
    ("content", "words"),
    [("a\tb\tc d e\n", "line 1"), ("a b\n\nonly\n", "line 3"), ("qqq\tzzz\n", "none with a vector")],
)
def test_a_bad_dictionary_is_named(content: str, words: str, untied, bilingual, tmp_path) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text(content)
    config = TransferConfig(method="wechsel", source_auxiliary=bilingual["source_auxiliary"], dictionary=str(path))
    with pytest.raises(InputError, match=words):
        transfer(untied.source, untied.target, untied.vectors, config=config)


def test_ofa_follows_the_formula(untied, untied_parts, tmp_path) -> None:
    source, _, alignment, _ = untied_parts
    lines = {word: np.random.default_rng(i).normal(size=6) for i, word in enumerate(
        ["the", "fin:$kissa", "fin:talossa", "deu:$katze", "eng:$house", "river", "Glück", "eng:a$road", "tietä"]
    )}  # fmt: skip
    path = tmp_path / "many.vec"
    written = [f"{word} {' '.join(map(repr, map(float, row)))}" for word, row in lines.items()]
    path.write_text(f"{len(lines)} 6\n" + "\n".join(written) + "\n", encoding="utf-8")
    done = transfer(untied.source, untied.target, path, config=TransferConfig(method="ofa"))

    def space(tokenizer, size: int) -> torch.Tensor:
        members: list[list[np.ndarray]] = [[] for _ in range(size)]
        for word, row in lines.items():
            text = word.split(":")[-1].replace("$", " ")
            other = text[1].upper() + text[2:] if text[0] == " " else " " + text[0].upper() + text[1:]
            for way in (text, " " + text, other):
                for token in set(tokenizer.encode(way, add_special_tokens=False)):
                    members[token].append(row)
        return torch.tensor(np.stack([np.mean(rows, axis=0) if rows else np.zeros(6) for rows in members]))

    ours, theirs = space(done.tokenizer, alignment.target.size), space(source.tokenizer, alignment.source.size)
    unit = torch.nn.functional.normalize(theirs, dim=1)
    composed, checked = np.flatnonzero(done.origin == COMPOSED), 0
    assert len(composed) >= 5
    assert set(composed) == set(np.flatnonzero(~alignment.shared & (ours != 0).any(dim=1).numpy()))
    for token in composed:
        z = unit @ torch.nn.functional.normalize(ours[token], dim=0)
        z[(theirs == 0).all(dim=1)] = -2
        near = z.sort(descending=True)
        if near.values[9] - near.values[10] < 1e-6:
            continue  # tokens of the same words share a vector: either may be the tenth
        checked += 1
        weight = (near.values[:10] / 0.1).softmax(dim=0)
        expected = weight @ source.output_rows[near.indices[:10]].double()
        torch.testing.assert_close(done.output_rows[token].double(), expected, atol=1e-4, rtol=1e-3)
    assert checked >= 3
    with pytest.raises(InputError, match=r"of kind plm.*'ofa'"):
        transfer(untied.source, untied.target, "plm", config=TransferConfig(method="ofa"))


def test_ofa_reads_gzip_by_its_content_and_names_a_damaged_file(untied, tmp_path) -> None:
    plain = untied.vectors.read_bytes()
    packed = gzip.compress(plain)
    config = TransferConfig(method="ofa", heldout=0.0)
    wanted = transfer(untied.source, untied.target, untied.vectors, config=config)
    for name, content in (("a.vec.gz", packed), ("packed.vec", packed), ("plain.gz", plain)):
        (tmp_path / name).write_bytes(content)
        done = transfer(untied.source, untied.target, tmp_path / name, config=config)
        assert torch.equal(done.input_rows, wanted.input_rows), name
    for name, content in (("cut.gz", packed[:-200]), ("bad.gz", packed[:300] + b"\0" * 8 + packed[308:])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name}.*a damaged gzip file"):
            transfer(untied.source, untied.target, tmp_path / name, config=config)


# What every method owes.


def test_the_names_are_those_of_the_options() -> None:
    assert tuple(METHODS) == NAMES and NAMES[0] == TransferConfig().method == "auto"
    assert set(NEEDS_VECTORS) < set(NAMES)


@pytest.mark.parametrize("method", NAMES)
def test_the_head_and_the_summary_are_whole(method: str, untied, bilingual) -> None:
    options = bilingual if METHODS[method].source_vectors == "dictionary" else {}
    done = transfer(untied.source, untied.target, untied.vectors, config=TransferConfig(method=method, **options))
    assert done.input_rows.isfinite().all() and done.output_rows.isfinite().all()
    summary = done.summary
    assert sum(summary["counts"].values()) == len(done.origin)
    support = summary["support"]
    assert (support is not None) == bool(METHODS[method].neighbours)
    if support:
        assert support["of"] == METHODS[method].neighbours and 1 <= support["min"] <= support["max"]
        assert support["of"] != "anchors" or support["max"] <= summary["anchors"]
    assert summary["heldout"]["tokens"] > 0


@pytest.mark.parametrize("method", ANCHORED)
def test_the_self_check_never_looks_at_what_it_hides(method: str) -> None:
    """Rows of hidden anchors are changed after the fact: the prediction must not move."""
    plm, lm = draw(80, 6, seed=0), draw(60, 5, seed=1)
    case = planted(plm, lm, 60, method=method)
    kept, hidden = case.anchors[:50], case.anchors[50:]
    job = dataclasses.replace(case.job, anchors=kept, new=hidden)
    before = torch.cat([block.rows for block in METHODS[method].build(job)])
    changed = lm.clone()
    changed[50:] = 1e6
    job = dataclasses.replace(job, source_rows=changed)
    assert torch.equal(torch.cat([block.rows for block in METHODS[method].build(job)]), before)


def test_the_self_check_finds_a_planted_map(untied_parts) -> None:
    alignment = untied_parts[2]
    anchors = anchors_by_definition(alignment, None)
    plm = draw(alignment.target.size, 6, seed=0)
    rows = torch.zeros(alignment.source.size, 4)
    rows[torch.from_numpy(alignment.source_id[anchors].astype(np.int64))] = plm[anchors] @ draw(6, 4, seed=1) + 1
    job = Job(
        alignment=alignment, source_rows=rows, head=Head(_Side()), used=np.arange(len(rows)), auxiliary=None,
        plm_rows=plm, anchors=anchors, new=np.zeros(0, dtype=np.int64), config=TransferConfig(method="sava-affine"),
        device=torch.device("cpu"),
    )  # fmt: skip
    found = heldout_check(job, 0.2, 0)
    assert found["relative_error"] < 1e-4 and found["rank"] == 1 and found["top1"] == 1


@pytest.mark.parametrize(
    ("method", "option"),
    [
        ("focus", {"ridge": 0.1}), ("subword-mean", {"max_support": 3}), ("clp", {"center": True}),
        ("sava-orthogonal", {"ridge": 1.0}), ("salt", {"blend_weight": 0.2}), ("zero", {"ridge": 0.0}),
    ],
)  # fmt: skip
def test_an_option_without_use_is_refused_at_once(method: str, option: dict, tmp_path) -> None:
    name = next(iter(option))
    with pytest.raises(InputError, match=f"^{name}: found .* for method '{method}'.*--{name.replace('_', '-')}"):
        transfer(tmp_path / "no", tmp_path / "such", "plm", config=TransferConfig(method=method, **option))


@pytest.mark.parametrize("method", NEEDS_VECTORS)
def test_missing_vectors_are_named_at_once(method: str, tmp_path) -> None:
    with pytest.raises(InputError, match=f"auxiliary: found none for method '{method}'"):
        transfer(tmp_path / "no", tmp_path / "such", config=TransferConfig(method=method))


@pytest.mark.parametrize(
    ("typed", "meant"), [("fokus", "focus"), ("clp+", "clp"), ("sava-afine", "sava-affine"), ("blnd", "blend")]
)
def test_a_misspelt_method_names_the_nearest(typed: str, meant: str) -> None:
    with pytest.raises(InputError, match=f"did you mean '{meant}'"):
        TransferConfig(method=typed)


def test_rows_far_from_the_sources_are_told(pair) -> None:
    """CLP divides by the sum of cosines, which may be next to nothing: the summary must say what became of the rows."""
    done = transfer(pair.source, pair.target, config=TransferConfig(method="zero"))
    assert any("method zero makes a broken start" in warning for warning in done.summary["warnings"])
    unchecked = transfer(pair.source, pair.target, config=TransferConfig(method="zero", heldout=0.0))
    assert any("median composed row has norm 0" in warning for warning in unchecked.summary["warnings"])
    plain = transfer(pair.source, pair.target, config=TransferConfig(method="clp"))
    guard = plain.summary["norm_guard"]["input"]
    assert any("built input rows are far longer" in warning for warning in plain.summary["warnings"])
    broken = plain.summary["heldout"]["broken"]
    assert any("method clp makes a broken start" in warning for warning in plain.summary["warnings"]) == bool(broken)
    assert guard["rows"] > 0 and guard["largest"] == plain.summary["norms"]["composed"]["max"] > guard["bound"]


@pytest.mark.parametrize("cleaned", [0.0, 0.1])
def test_supports_near_the_plms_width_are_told_unless_a_ridge_holds_them(pair, cleaned: float) -> None:
    def told(**options) -> list[str]:
        config = TransferConfig(max_support=32, clean_anchors=cleaned, heldout=0.0, **options)
        warnings = transfer(pair.source, pair.target, config=config).summary["warnings"]
        return [warning for warning in warnings if "about as many neighbours as the PLM has dimensions (32)" in warning]

    assert len(told(method="omp")) == len(told(method="local-map", ridge=0.0)) == 1
    assert told(method="omp", ridge=0.1) == told(method="local-map") == []


def test_a_plm_row_of_zeros_builds_nothing(pair, tmp_path) -> None:
    """Least squares would make a row of zeros of it, under a tied head a token as likely as the average one or more."""
    done = transfer(pair.source, pair.target, pair.vectors, config=TransferConfig(method="salt"))
    token = int(np.flatnonzero(done.origin == SOLVED)[0])
    shutil.copytree(pair.target, tmp_path / "target")
    rows = load_file(tmp_path / "target" / "model.safetensors")
    rows["embeddings.word_embeddings.weight"][token] = 0
    save_file(rows, tmp_path / "target" / "model.safetensors", metadata={"format": "pt"})
    for config in (TransferConfig(method="salt"), TransferConfig(method="salt", center=True)):
        again = transfer(pair.source, tmp_path / "target", pair.vectors, config=config)
        assert again.origin[token] == DRAWN and again.input_rows[token].any()
        assert {entry["name"]: entry["count"] for entry in again.summary["statuses"]}["no_plm_row"] == 1


def test_the_example_of_a_new_method_works(untied, untied_parts) -> None:
    """What CONTRIBUTING.md shows: one function in one file of methods/, named in METHODS."""
    from saltlm.methods import local

    text = (Path(__file__).resolve().parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(def nearest.*?)^```", text, re.MULTILINE | re.DOTALL)
    names = dict(vars(local))
    exec(code, names)
    entry = re.search(r"`(Method\(build=local\.nearest.*?\))`", text)[1]
    method = eval(entry, {"Method": Method, "local": SimpleNamespace(nearest=names["nearest"])})
    assert method.vectors and method.anchors and not method.plm
    case = planted(draw(50, 7, seed=0), draw(40, 5, seed=1), 40, method="focus", head=draw(40, 3, seed=2))
    (block,) = method.build(case.job)
    near = cosines(case).argmax(dim=1)
    torch.testing.assert_close(block.rows, case.job.source_rows[near])
    torch.testing.assert_close(block.head, case.job.head.rows[near])
    assert block.ids.tolist() == case.new.tolist() and set(block.support_size.tolist()) == {1}
