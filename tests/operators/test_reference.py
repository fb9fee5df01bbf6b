"""The stock-torch operators against closed forms and numpy: the compiled operators are compared with them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_problems import auxiliaries, conditioned, cosines, entries, full_support, normal, projected, regressions

from saltlm.operators import ops, reference

SLOW = settings(deadline=None, max_examples=25)


def _support(new: torch.Tensor, anchors: torch.Tensor, cap: int = 0) -> ops.Support:
    offsets, ids, weights = reference.sparsemax_support(new, anchors, cap)
    return ops.Support(offsets=offsets, ids=ids, weights=weights)


@given(st.floats(-1, 1))
@SLOW
def test_two_anchors_give_the_published_curve(cosine: float) -> None:
    # Martins and Astudillo 2016, section 2: sparsemax(t, 0) = ((t + 1) / 2, (1 - t) / 2) for |t| <= 1.
    anchors = torch.tensor([[cosine, math.sqrt(1 - cosine**2)], [0.0, 1.0]], dtype=torch.float64)
    new = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    weights = torch.zeros(2, dtype=torch.float64)
    support = _support(new, anchors)
    weights[support.ids.long()] = support.weights
    assert weights.tolist() == pytest.approx([(cosine + 1) / 2, (1 - cosine) / 2], abs=1e-12)


def test_a_hand_computed_row() -> None:
    # cosines 1, .6, 0, -.8: 1 + 2 * .6 > 1.6, 1 + 0 < 1.6, so two are in and tau = (1.6 - 1) / 2
    anchors = torch.tensor([[0.0, 2.0], [3.0, 0.0], [-0.8, 0.6], [0.6, 0.8]])
    support = _support(torch.tensor([[5.0, 0.0]]), anchors)
    assert support.ids.tolist() == [1, 3]
    assert support.weights.tolist() == pytest.approx([0.7, 0.3], abs=1e-7)


@given(auxiliaries())
@SLOW
def test_sparsemax_is_the_projection_onto_the_simplex(problem) -> None:
    new, anchors = problem
    support = _support(new, anchors)
    for row, values in enumerate(cosines(new, anchors).numpy()):
        weights = np.zeros(len(anchors))
        weights[entries(support, support.ids, row).numpy()] = entries(support, support.weights, row).numpy()
        np.testing.assert_allclose(weights, projected(values), atol=1e-10)


@given(regressions(), st.booleans())
@SLOW
def test_coefficients_are_those_of_torch_pinv(problem, center: bool) -> None:
    new, anchors, support = problem
    coefficients, rank, _, _ = reference.support_lstsq(new, anchors, support.offsets, support.ids, 0.0, center)
    for row in range(len(new)):
        rows = anchors[entries(support, support.ids, row).long()].double()
        mean = rows.mean(dim=0) if center else torch.zeros(rows.shape[1], dtype=torch.float64)
        expected = (new[row].double() - mean) @ torch.linalg.pinv(rows - mean, rtol=1e-13)
        if center:
            expected += (1 - expected.sum()) / len(rows)
        scale = 1 + expected.abs().max()
        condition = torch.linalg.cond(rows - mean) if rank[row] == min(rows.shape) else 1e4
        torch.testing.assert_close(
            entries(support, coefficients, row), expected, rtol=0, atol=float(1e-13 * scale * max(1, condition))
        )


@pytest.mark.parametrize("size", [3, 6, 9])
def test_ridge_has_its_closed_form(size: int) -> None:
    new, anchors = normal(0, 1, 6), normal(1, 9, 6)
    support = full_support(list(range(size)))
    coefficients = reference.support_lstsq(new, anchors, support.offsets, support.ids, 0.3, False)[0]
    rows = anchors[:size].double()
    penalty = 0.3 * rows.square().sum() / size * torch.eye(size, dtype=torch.float64)
    torch.testing.assert_close(coefficients, torch.linalg.solve(rows @ rows.T + penalty, rows @ new[0].double()))


@pytest.mark.parametrize(("condition", "expected"), [(10.0, 0), (1e3, 0), (1e5, 1), (1e9, 1), (1e15, 2)])
def test_status_follows_the_condition_number(condition: float, expected: int) -> None:
    anchors = conditioned(3, 8, 12, condition)
    support = full_support(list(range(8)))
    status = reference.support_lstsq(normal(4, 1, 12).double(), anchors, support.offsets, support.ids)[3]
    assert status.tolist() == [expected]


def test_combination_is_the_plain_product() -> None:
    anchors = normal(0, 5, 7)
    support = full_support([4, 0, 2], [], [1])
    coefficients = torch.tensor([0.5, -2.0, 1.0, 3.0], dtype=torch.float64)
    rows = reference.combine(support.offsets, support.ids, coefficients, anchors)
    expected = torch.stack([0.5 * anchors[4] - 2 * anchors[0] + anchors[2], torch.zeros(7), 3 * anchors[1]])
    torch.testing.assert_close(rows, expected)
