"""Rows of fixed room: on every device those that are settled are salt_rows' own, and settle makes the rest the same."""

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_problems import clustered, normal
from torch._subclasses.fake_tensor import FakeTensorMode

from saltlm.errors import InputError
from saltlm.operators import ops
from saltlm.operators.fixed import salt_rows_fixed, settle

FIELDS = ("rows", "output_rows", "support_size", "rank", "residual", "status")
CUDA = Path(__file__).parents[1] / "cuda_ext" / "csrc" / "cuda"


def problem(seed: int, new: int = 40, anchors: int = 150) -> list[torch.Tensor]:
    """Clusters of supports of all sizes, and rows that are zero or not finite."""
    tensors = [clustered(seed, new, 12), clustered(seed + 1, anchors, 12), normal(seed + 2, new, 20)]
    tensors += [normal(seed + 3, anchors, 20), normal(seed + 4, anchors, 7)]
    tensors[0][1], tensors[2][3, 0], tensors[4][5] = 0, float("nan"), float("inf")
    return tensors


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    capacity=st.sampled_from([1, 6, 30, 1024]),
    ridge=st.sampled_from([None, 0.1]),
    center=st.booleans(),
    max_support=st.sampled_from([None, 4]),
    head=st.booleans(),
)
def test_settled_rows_are_salt_rows_and_settle_makes_the_rest_so(
    seed, capacity, ridge, center, max_support, head
) -> None:
    tensors = problem(seed)
    output = normal(seed + 5, len(tensors[1]), 3) if head else None
    options = {"anchor_output": output, "ridge": ridge, "center": center, "max_support": max_support}
    fixed = salt_rows_fixed(*tensors, capacity=capacity, **options)
    whole = ops.salt_rows(*tensors, **options)
    assert torch.equal(fixed.settled, whole.support_size <= capacity)
    assert not fixed.rows[~fixed.settled].any() and (fixed.status[~fixed.settled] == 255).all()
    for name in FIELDS:
        mine, theirs = getattr(fixed, name), getattr(whole, name)
        if theirs is None:
            assert mine is None
            continue
        assert torch.equal(mine[fixed.settled], theirs[fixed.settled]), name
        assert torch.equal(getattr(settle(fixed, *tensors, **options), name), theirs), name


def test_no_rows_and_no_anchors() -> None:
    for new, anchors in ((0, 20), (4, 0)):
        tensors = [t[: (new if i % 2 == 0 and i < 4 else anchors)] for i, t in enumerate(problem(3))]
        fixed = salt_rows_fixed(*tensors)
        assert torch.equal(settle(fixed, *tensors).rows, ops.salt_rows(*tensors).rows)


@pytest.mark.parametrize("capacity", [0, 1025, True, 4.0])
def test_a_capacity_out_of_range_is_refused(capacity) -> None:
    with pytest.raises(
        InputError, match=r"salt_rows_fixed, capacity: found .*; expected a whole number in \[1, 1024\]"
    ):
        salt_rows_fixed(*problem(0), capacity=capacity)


def test_a_result_of_other_rows_is_refused() -> None:
    tensors = problem(0)
    fixed = salt_rows_fixed(tensors[0][:5], tensors[1], tensors[2][:5], *tensors[3:])
    with pytest.raises(InputError, match="settle, fixed: found 5 rows; expected 40"):
        settle(fixed, *tensors)


def test_another_head_than_before_is_refused() -> None:
    tensors, output = problem(0), normal(5, 150, 3)
    for before, after in ((output, None), (None, output)):
        fixed = salt_rows_fixed(*tensors, anchor_output=before)
        with pytest.raises(InputError, match="settle, anchor_output"):
            settle(fixed, *tensors, anchor_output=after)


@pytest.mark.skipif(ops.backend("cpu").name != "compiled", reason="needs the compiled operators")
def test_shapes_are_known_without_values() -> None:
    with FakeTensorMode():
        aux, plm, lm = (torch.empty(9, width, device="cuda") for width in (4, 6, 8))
        new = [torch.empty(5, width, device="cuda") for width in (4, 6)]
        output = lm[:, :3].bfloat16()
        made = torch.ops.saltlm.salt_rows_fixed(new[0], aux, new[1], plm, lm.double(), output, 0, 1e-5, 16, 0.0, False)
    assert [(tuple(t.shape), t.dtype, t.device.type) for t in made] == [
        ((5, 8), torch.float64, "cuda"),
        ((5, 3), torch.float32, "cuda"),
        ((5,), torch.int32, "cuda"),
        ((5,), torch.int32, "cuda"),
        ((5,), torch.float32, "cuda"),
        ((5,), torch.uint8, "cuda"),
    ]


def included(file: Path) -> set[Path]:
    """A source file and all of ours that it includes."""
    found = {file}
    for name in re.findall(r'#include "([^"]+)"', file.read_text(encoding="utf-8")):
        found |= included((file.parent / name).resolve())
    return found


def test_nothing_that_a_graph_captures_waits_for_the_device() -> None:
    waiting = re.compile(r"Synchronize|DeviceToHost|HostToDevice|cudaMalloc|cudaFree|\bto_host\b|\bto_device\b")
    files = included(CUDA / "salt_rows_fixed.cu")
    assert len(files) > 8
    assert {file.name for file in files if waiting.search(file.read_text(encoding="utf-8"))} == set()
    assert waiting.search((CUDA / "waiting.cuh").read_text(encoding="utf-8"))
