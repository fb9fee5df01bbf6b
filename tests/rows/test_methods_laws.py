"""Laws of each rule in float64, on planted problems."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import Planted, built, cosines, draw, orthogonal, planted, sparsemax

from saltlm.operators import ops
from saltlm.operators.nearest import EqualRows
from saltlm.rows.methods import METHODS, pursuit
from saltlm.rows.methods.pursuit import pursue


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
    # Rows change without the farthest anchor: every anchor is in the sum.
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
    # Equal variances, so that the scaling of dimensions keeps the rotation.
    white = centred @ (vectors / values.sqrt()) * 7
    image = 3 * white @ orthogonal(width, seed + 1) + draw(width, seed=seed + 2).double()
    for method in ("sava-orthogonal", "sava-affine"):
        torch.testing.assert_close(
            built(planted(white + 5, image[:50], 50, method=method)), image[50:], atol=1e-4, rtol=1e-4
        )
    # A general map is not orthogonal, so the orthogonal map must miss it.
    general = white @ torch.diag(torch.arange(1, width + 1).double()) @ orthogonal(width, seed + 3)
    general = general @ draw(width, width, seed=seed + 4).double()
    error = built(planted(white, general[:50], 50, method="sava-orthogonal")) - general[50:]
    assert error.norm() > 0.01 * general[50:].norm()


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


def test_a_map_from_fewer_anchors_than_dimensions_has_least_norm_and_reports_its_rank() -> None:
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
def test_pursuit_picks_the_largest_product_with_the_residual(seed: int, max_picks: int) -> None:
    anchors, new = draw(60, 20, seed=seed).double(), draw(2, 20, seed=seed + 1).double()
    support = pursue(new, anchors, max_picks)
    assert support.offsets.diff().tolist() == [max_picks] * 2
    for row in range(2):
        picks = support.ids[row * max_picks : (row + 1) * max_picks].long()
        for step in range(max_picks):
            chosen = anchors[picks[:step]]
            residual = new[row] - (new[row] @ torch.linalg.pinv(chosen) @ chosen if step else 0)
            products = (anchors @ residual).abs()
            products[picks[:step]] = 0
            assert products[picks[step]] >= products.max() * (1 - 1e-9)


def test_pursuit_stops_at_a_zero_residual_and_never_repeats_a_direction() -> None:
    anchors = torch.cat([torch.eye(4), torch.eye(4)])  # every direction twice
    support = pursue(torch.tensor([[0.0, 3, 0, 0], [1, 2, 3, 4], [0, 0, 0, 0]]), anchors, 8)
    assert support.offsets.diff().tolist() == [1, 4, 0]
    assert sorted(i % 4 for i in support.ids[1:].tolist()) == [0, 1, 2, 3]
    assert len(pursue(torch.zeros(0, 4), anchors, 3).ids) == 0


def test_the_chunks_of_a_pursuit_change_nothing(monkeypatch) -> None:
    anchors, new = draw(50, 12, seed=0), draw(30, 12, seed=1)
    whole = pursue(new, anchors, 6)
    monkeypatch.setattr("saltlm.rows.methods.pursuit.CHUNK_VALUES", 150)
    assert torch.equal(pursue(new, anchors, 6).ids, whole.ids)


@pytest.mark.skipif(ops.backend("cpu").name != "compiled", reason="no compiled operators")
@settings(max_examples=10)
@given(st.integers(0, 10**6), st.integers(1, 40))
def test_the_compiled_pursuit_picks_as_the_products_do(seed: int, max_picks: int) -> None:
    """Random rows, a row of zeros, and a row that is a combination of three anchors."""
    anchors, new = draw(333, 96, seed=seed) + 0.5, draw(12, 96, seed=seed + 1)
    new[3] = 0
    new[5] = anchors[[7, 70, 300]].T @ torch.tensor([2.0, -1.5, 1.0])
    anchors[200] = anchors[100]  # equal anchors
    support = pursue(new, anchors, max_picks)
    assert pursuit.uses_gram(anchors, max_picks)
    size, picks = pursuit.pursue_by_products(new.double(), anchors.double(), max_picks, EqualRows.of(anchors))
    sizes = support.offsets.diff()
    assert sizes[3] == 0 and sizes.tolist() == [min(int(n), int(m)) for n, m in zip(sizes, size, strict=True)]
    for row in set(range(12)) - {3, 5}:
        picked = support.ids[support.offsets[row] : support.offsets[row + 1]].long()
        # Only products that are equal in float32 may be picked in another order: from there on, each pick is the largest.
        first = [*(picked != picks[row]).nonzero().flatten().tolist(), len(picked)][0]
        for step in range(first, len(picked)):
            chosen, residual = anchors[picked[:step]].double(), new[row].double()
            residual = residual - residual @ torch.linalg.pinv(chosen) @ chosen if step else residual
            products = (anchors.double() @ residual).abs()
            products[picked[:step]] = 0
            assert products[picked[step]] >= products.max() * (1 - 1e-5), (row, step)
    assert set(support.ids[support.offsets[5] :][: min(3, max_picks)].tolist()) <= set(picks[5].tolist())


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
