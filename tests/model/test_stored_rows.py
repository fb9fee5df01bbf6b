"""Laws of reading rows in blocks: rows, and the rows that methods build from them, do not depend on the block size."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import built, draw, planted

from saltlm.model import stored_rows
from saltlm.model.stored_rows import blocks_of, gather


@contextlib.contextmanager
def small(rows: int, width: int) -> Iterator[None]:
    """Set the block size to this many rows of a width; scattered rows are read three at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored_rows, "BLOCK_BYTES", 8 * rows * width)
        patch.setattr(stored_rows, "NEAR_BYTES", 8 * width)
        patch.setattr(stored_rows, "FAR_ROWS", 3)
        yield


@given(
    st.integers(0, 10**6),
    st.integers(1, 9),
    st.integers(1, 40),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.booleans(),
)
def test_gathered_rows_equal_the_matrix(seed: int, block: int, count: int, dtype: torch.dtype, flat: bool) -> None:
    matrix = draw(20, *([] if flat else [4]), seed=seed).to(dtype)
    ids = torch.randint(20, (count,), generator=torch.Generator().manual_seed(seed))
    with small(block, 4):
        for chosen in (ids, ids.sort().values, ids[:0]):
            rows = gather(matrix, chosen)
            assert rows.dtype == dtype and torch.equal(rows, matrix[chosen])
            blocks = list(blocks_of(matrix, chosen))
            assert torch.equal(torch.cat([matrix[:0].double(), *blocks]), matrix[chosen].double())
            assert all(len(one) for one in blocks)


@settings(max_examples=10)
@given(st.integers(0, 10**6), st.integers(1, 7))
@pytest.mark.parametrize(
    "method",
    [
        "salt",
        "focus",
        "clp",
        "clp-plus",
        "omp",
        "sava-affine",
        "sava-orthogonal",
        "ridge-map",
        "local-map",
        "mean",
        "zero",
    ],
)
def test_the_block_size_does_not_change_built_rows(method: str, seed: int, rows: int) -> None:
    head = draw(30, 5, seed=seed + 2)
    case = planted(draw(41, 6, seed=seed) + 1, draw(30, 6, seed=seed + 1), 30, method=method, head=head)
    whole = built(case), built(case, "head")
    with small(rows, case.job.width):
        parts = built(case), built(case, "head")
    # Methods that solve token by token give the same bits; sums over all anchors are added in another order.
    exact = method in ("salt", "focus", "clp-plus", "omp", "zero")
    for one, other in zip(whole, parts, strict=True):
        if exact:
            assert torch.equal(one, other)
        else:
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
