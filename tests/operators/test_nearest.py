"""Equal rows tie, and the smaller position comes first, whatever the matrix product of the machine does."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from operator_problems import auxiliaries, entries, normal
from planted import draw
from torch.utils._python_dispatch import TorchDispatchMode

from saltlm.operators import ops, reference
from saltlm.operators.nearest import EqualRows, largest
from saltlm.rows.methods import pursuit, words
from saltlm.rows.methods.local_map import nearest
from saltlm.vectors.bilingual import load_source_vectors


class UnevenProducts(TorchDispatchMode):
    """Every matrix product rounds by position: the later an entry's column and row, the larger its last bits.

    Some BLAS libraries do so for the rows at the edge of a block; with this mode every machine does.
    """

    def __init__(self, step: float) -> None:
        super().__init__()
        self.step, self.products = step, 0

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        result = operator(*arguments, **(options or {}))
        if operator.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.mv, torch.ops.aten.addmm):
            self.products += 1
            step = self.step or torch.finfo(result.dtype).eps / 8
            for dimension in range(result.dim()):
                shape = [1] * result.dim()
                shape[dimension] = -1
                result = result * (1 + step * torch.arange(result.shape[dimension]).reshape(shape).to(result.dtype))
        return result


@contextlib.contextmanager
def uneven_products(step: float = 0.0):
    with UnevenProducts(step) as mode:
        yield
    assert mode.products, "nothing was multiplied"


def doubled(rows: torch.Tensor) -> torch.Tensor:
    return torch.cat([rows, rows])


def test_uneven_products_differ_between_equal_rows() -> None:
    rows = normal(0, 7, 5, dtype=torch.float64)
    with uneven_products():
        product = normal(1, 3, 5, dtype=torch.float64) @ doubled(rows).T
    assert (product[:, :7] != product[:, 7:]).any(dim=1).all()


@given(auxiliaries())
def test_the_reference_takes_equal_anchors_by_position(problem) -> None:
    new, anchors = problem
    with uneven_products():
        offsets, ids, weights = reference.sparsemax_support(new, doubled(anchors))
    support = ops.Support(offsets=offsets, ids=ids, weights=weights)
    for row in range(len(new)):
        picked = entries(support, ids, row).tolist()
        assert picked
        for position, anchor in enumerate(picked):
            assert anchor < len(anchors) or anchor - len(anchors) in picked[:position]
        both = dict(zip(picked, entries(support, weights, row).tolist(), strict=True))
        assert all(weight == both[i - len(anchors)] for i, weight in both.items() if i >= len(anchors))


@given(st.integers(0, 10**6), st.integers(1, 40))
def test_the_nearest_take_equal_anchors_by_position(seed: int, count: int) -> None:
    anchors, new = doubled(draw(20, 6, seed=seed)), draw(4, 6, seed=seed + 1)
    with uneven_products():
        support = nearest(new, anchors, count, EqualRows.of(anchors))
    order = (new.double() @ anchors[:20].double().T).argsort(dim=1, descending=True)
    expected = torch.stack([order, order + 20], dim=2).flatten(1)[:, :count]
    assert torch.equal(support.ids.view(4, count).long(), expected)


@given(st.integers(0, 10**6), st.integers(1, 19))
@pytest.mark.parametrize("backend", ["compiled", "reference"])
def test_a_pursuit_picks_the_first_of_equal_anchors(backend: str, seed: int, max_picks: int) -> None:
    if ops.backend("cpu").name != "compiled" and backend == "compiled":
        pytest.skip("no compiled operators")
    anchors, new = draw(300, 20, seed=seed), draw(5, 20, seed=seed + 1)
    with ops.forced(backend), uneven_products():
        both = doubled(anchors)
        assert (pursuit.gram_of(both, max_picks, EqualRows.of(both)) is None) == (backend == "reference")
        support = pursuit.pursue(new, both, max_picks)
    assert support.offsets.diff().min() >= 1
    assert support.ids.max() < 300


@given(st.integers(0, 10**6), st.integers(1, 30))
def test_neighbours_of_another_language_are_taken_by_position(seed: int, copies: int) -> None:
    space = torch.nn.functional.normalize(draw(12, 6, seed=seed), dim=1).repeat(copies, 1)
    new = torch.nn.functional.normalize(draw(4, 6, seed=seed + 1), dim=1)
    with uneven_products():
        cosines, positions = words.nearest_source_tokens(new, space, EqualRows.of(space))
    order = (new.double() @ space[:12].double().T).argsort(dim=1, descending=True)
    expected = (order[:, :, None] + 12 * torch.arange(copies)).flatten(1)[:, : words.NEIGHBOURS]
    assert torch.equal(positions, expected)
    for row in range(4):
        for column in range(1, positions.shape[1]):
            if positions[row, column] % 12 == positions[row, column - 1] % 12:
                assert cosines[row, column] == cosines[row, column - 1]


def test_equal_source_vectors_stay_equal_after_the_rotation(tmp_path) -> None:
    names = [f"word{number}" for number in range(9)]
    for side, seed in (("source", 1), ("target", 2)):
        rows = [
            f"{name} {' '.join(map(str, row))}" for name, row in zip(names, draw(9, 5, seed=seed).tolist(), strict=True)
        ]
        (tmp_path / f"{side}.vec").write_text("\n".join(["9 5", *rows, ""]))
    (tmp_path / "pairs.txt").write_text("".join(f"{name}\t{name}\n" for name in names))
    tokens = SimpleNamespace(words=lambda: [*names, *names])
    files = [str(tmp_path / name) for name in ("source.vec", "pairs.txt", "target.vec")]
    with uneven_products(step=1e-4):
        rotated = load_source_vectors(*files, SimpleNamespace(source=tokens, target=tokens), 5).vectors
    assert rotated.any(dim=1).all() and torch.equal(rotated[:9], rotated[9:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_equal_rows_are_found(dtype: torch.dtype) -> None:
    rows = normal(0, 12, 20).to(dtype)
    rows[:9, :10] = 1  # equal in the first columns only
    rows[[4, 7, 11]] = rows[2].clone()
    rows[8] = rows[5]
    rows[0, 15] = 0.0
    rows[10] = rows[0]
    rows[10, 15] = -0.0
    rows[[1, 3]] = float("nan")
    equal = EqualRows.of(rows)
    assert equal.first.tolist() == [0, 1, 2, 1, 2, 5, 6, 2, 5, 9, 0, 2]
    assert equal.later.tolist() == [3, 4, 7, 8, 10, 11]


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (1, 1)])
def test_matrices_without_equal_rows(shape: tuple[int, int]) -> None:
    equal = EqualRows.of(torch.ones(shape))
    assert equal.first.tolist() == list(range(shape[0])) and len(equal.later) == 0


@given(st.lists(st.lists(st.integers(-2, 2), min_size=9, max_size=9), min_size=1, max_size=4), st.integers(1, 9))
def test_the_largest_are_those_of_a_stable_sort(values: list[list[int]], count: int) -> None:
    product = torch.tensor(values, dtype=torch.float32)
    largest_values, positions = largest(product, count)
    expected = product.sort(dim=1, descending=True, stable=True)
    assert torch.equal(largest_values, expected.values[:, :count]) and torch.equal(
        positions, expected.indices[:, :count]
    )
