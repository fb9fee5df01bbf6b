"""The CUDA operators on an emulated device: what the laws of the operators' own tests, which run there too, leave open."""

import ctypes
import re
from unittest import mock

import cuda_emulated
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from operator_problems import clustered, normal

from saltlm.operators import fixed as ops_fixed
from saltlm.operators import ops

pytestmark = pytest.mark.skipif(cuda_emulated.missing() is not None, reason=str(cuda_emulated.missing()))


def problem(seed: int, new: int = 50, anchors: int = 900, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """The five matrices of salt_rows, with rows that only the CPU settles and rows without a direction."""
    aux, plm = clustered(seed, anchors, 20), normal(seed + 1, anchors, 40)
    new_aux, new_plm = clustered(seed + 2, new, 20), normal(seed + 3, new, 40)
    aux[21], plm[21] = aux[20], plm[20]  # twins: a support that holds both is rank deficient
    new_aux[5], new_aux[1], aux[3] = aux[20], 0, 0
    return [tensor.to(dtype) for tensor in (new_aux, aux, new_plm, plm, normal(seed + 4, anchors, 30))]


def same(one: ops.SaltRows, other: ops.SaltRows, rows: torch.Tensor | slice = slice(None)) -> bool:
    names = ("rows", "output_rows", "support_size", "rank", "residual", "status")
    pairs = ((getattr(one, name), getattr(other, name)) for name in names)
    return all(a is b or torch.equal(a[rows], b[rows]) for a, b in pairs)


def fixed_rows(tensors: list[torch.Tensor], capacity: int, **options) -> ops_fixed.FixedRows:
    """salt_rows_fixed by the device's operator; CPU tensors would be given to salt_rows."""
    options = {"anchor_output": None, "ridge": None, "center": False, "max_support": None} | options
    return ops_fixed._on_device(*tensors, capacity, **options)


@pytest.mark.parametrize(
    "device",
    [{"order": 0}, {"order": 1}, {"order": 3}, {"multiprocessors": 1}, {"shared_bytes": 1536}],
    ids=lambda device: "-".join(map(str, next(iter(device.items())))),
)
@pytest.mark.parametrize("options", [{}, {"center": True, "ridge": 0.02}], ids=["plain", "centred"])
def test_neither_the_order_of_threads_nor_the_device_shows(device: dict, options: dict) -> None:
    # shared_bytes: what a token needs no longer fits and spills to the workspace.
    tensors = problem(0, new=24)
    with ops.forced("compiled"):
        with cuda_emulated.in_use():
            whole = ops.salt_rows(*tensors, **options)
            room = fixed_rows(tensors, 40, **options)
            assert len(room.settled) - room.settled.sum() < 10
        with cuda_emulated.in_use(**device):
            assert same(ops.salt_rows(*tensors, **options), whole)
            assert same(fixed_rows(tensors, 40, **options), room)


def test_rows_may_begin_anywhere_in_memory() -> None:
    def shifted(tensor: torch.Tensor) -> torch.Tensor:
        memory = torch.empty(tensor.numel() + 1)
        memory[1:] = tensor.flatten()
        assert memory[1:].data_ptr() % 16
        return memory[1:].view_as(tensor)

    tensors = problem(2)
    with ops.forced("compiled"), cuda_emulated.in_use():
        assert same(ops.salt_rows(*map(shifted, tensors)), ops.salt_rows(*tensors))


@pytest.mark.parametrize("product", ["bfloat16", "float32"])
def test_blocks_of_cosines_do_not_show(product: str) -> None:
    tensors = problem(1, new=70, anchors=5003)  # of which 1 MB holds the cosines of 52 rows
    with ops.forced("compiled"), cuda_emulated.in_use(races=False):
        with mock.patch.dict("os.environ", {"SALTLM_CUDA_PRODUCT": product}):
            whole, room = ops.salt_rows(*tensors), fixed_rows(tensors, 64)
        with mock.patch.dict("os.environ", {"SALTLM_CUDA_PRODUCT": product, "SALTLM_CUDA_BUFFER_MB": "1"}):
            assert same(ops.salt_rows(*tensors), whole)
            assert same(fixed_rows(tensors, 64), room)


@given(
    seed=st.integers(0, 1000),
    anchors=st.integers(1, 300),
    capacity=st.sampled_from([1, 6, 64, 1024]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    head=st.booleans(),
    options=st.sampled_from([{}, {"center": True}, {"ridge": 0.1}, {"max_support": 4}]),
)
def test_rows_of_fixed_room_are_salt_rows_where_settled(seed, anchors, capacity, dtype, head, options) -> None:
    tensors = problem(seed, new=8, anchors=max(anchors, 22), dtype=dtype)
    tensors = [tensors[0], tensors[1][:anchors], tensors[2], tensors[3][:anchors], tensors[4][:anchors]]
    options = options | {"anchor_output": normal(seed, anchors, 7).to(dtype) if head else None}
    with ops.forced("compiled"), cuda_emulated.in_use(order=seed):
        whole, room = ops.salt_rows(*tensors, **options), fixed_rows(tensors, capacity, **options)
        assert same(room, whole, room.settled)
        assert room.rows[~room.settled].abs().sum() == 0
        assert not (room.settled & ((whole.status != 0) | (whole.support_size > capacity))).any()
        assert same(ops_fixed.settle(room, *tensors, **options), whole)


@pytest.mark.parametrize("op", ["combine", "support_lstsq"])
@pytest.mark.parametrize(
    ("offsets", "ids"),
    [([0, 1, 2], [0, 2]), ([0, 1, 2], [-1, 0]), ([0, 2, 1], [0, 1]), ([0, 1, 3], [0, 1]), ([1, 1, 2], [0, 1])],
)
def test_supports_outside_the_anchors_are_refused_before_any_kernel(op: str, offsets: list, ids: list) -> None:
    cuda_emulated.device()
    places = torch.tensor(offsets), torch.tensor(ids, dtype=torch.int32)
    rows = torch.ones(2, 4)
    rest = {"combine": (torch.ones(2, dtype=torch.float64), rows), "support_lstsq": (0.0, False)}[op]
    given = (*places, *rest) if op == "combine" else (rows, rows, *places, *rest)
    with pytest.raises(RuntimeError, match=f"{op}, (offsets|ids)"):
        getattr(torch.ops.saltlm_emulated, op)(*given)


def fault(which: int, order: int = 0) -> tuple[str, np.ndarray]:
    library = cuda_emulated.device()
    library.choose(order, 2, 227 << 10, True)
    library.fault.restype = ctypes.c_char_p
    out = np.full(128, -5, np.int32)
    return library.fault(which, out.ctypes.data_as(ctypes.c_void_p)).decode(), out


def test_the_device_runs_what_is_right() -> None:
    for order in (0, 1, 5):
        message, out = fault(0, order)
        assert message == ""
        assert out.tolist() == [127 - i + (i ^ 16) for i in range(128)]


def test_the_device_shows_a_missing_barrier() -> None:
    message, out = fault(1, 0)
    assert (out == 7).all()  # by luck: the first thread runs first
    assert "thread 1 reads what thread 0 wrote" in message
    message, out = fault(1, 1)
    assert out[0] == 7 and (out[1:] == -1).all()
    assert "thread 0 writes what thread 2 read" in message


@pytest.mark.parametrize(
    ("which", "message"),
    [
        (2, "thread 0 waits at cuda_emulated_faults.cu:.*, thread 64 has ended"),
        (3, "thread 0 waits at cuda_emulated_faults.cu:.*, thread 64 waits at cuda_emulated_faults.cu:"),
        (4, "thread 0 shuffles at cuda_emulated_faults.cu:.*, thread 3 has ended"),
        (5, "not launched"),
    ],
)
def test_the_device_tells_threads_that_do_not_meet(which: int, message: str) -> None:
    found, _ = fault(which)
    assert re.search(message, found), found
    assert fault(0)[0] == ""  # and goes on
