"""The CUDA operators on an emulated device, beyond the properties in the operators' own tests, which run there too."""

import ctypes
import re
from unittest import mock

import cuda_emulated
import numpy as np
import pytest
import torch
from operator_problems import clustered, normal

from saltlm.operators import ops

pytestmark = pytest.mark.skipif(cuda_emulated.missing() is not None, reason=str(cuda_emulated.missing()))


def problem(seed: int, new: int = 50, anchors: int = 900, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """The five matrices of salt_rows, with rows that only the CPU solves and rows without a direction."""
    aux, plm = clustered(seed, anchors, 20), normal(seed + 1, anchors, 40)
    new_aux, new_plm = clustered(seed + 2, new, 20), normal(seed + 3, new, 40)
    aux[21], plm[21] = aux[20], plm[20]  # twins: a support that holds both is rank deficient
    new_aux[5], new_aux[1], aux[3] = aux[20], 0, 0
    return [tensor.to(dtype) for tensor in (new_aux, aux, new_plm, plm, normal(seed + 4, anchors, 30))]


def same(one: ops.SaltRows, other: ops.SaltRows) -> bool:
    names = ("rows", "output_rows", "support_size", "rank", "residual", "status")
    pairs = ((getattr(one, name), getattr(other, name)) for name in names)
    return all(a is b or torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    "device",
    [{"order": 0}, {"order": 1}, {"order": 3}, {"multiprocessors": 1}, {"shared_bytes": 1536}],
    ids=lambda device: "-".join(map(str, next(iter(device.items())))),
)
@pytest.mark.parametrize("options", [{}, {"center": True, "ridge": 0.02}], ids=["plain", "centred"])
def test_results_do_not_depend_on_thread_order_or_device(device: dict, options: dict) -> None:
    # shared_bytes: a token's memory does not fit and is in the workspace.
    tensors = problem(0, new=24)
    with ops.forced("compiled"):
        with cuda_emulated.in_use():
            whole = ops.salt_rows(*tensors, **options)
        with cuda_emulated.in_use(**device):
            assert same(ops.salt_rows(*tensors, **options), whole)


def test_the_kernel_solves_most_tokens_itself() -> None:
    # Tokens that the kernel leaves to the CPU operator have that operator's bits; the kernel's own bits differ from them.
    tensors = problem(0, new=24, dtype=torch.float64)
    with ops.forced("compiled"):
        cpu = ops.salt_rows(*tensors)
        with cuda_emulated.in_use():
            cuda = ops.salt_rows(*tensors)
    torch.testing.assert_close(cuda.rows, cpu.rows, rtol=1e-9, atol=1e-9)
    assert (cuda.rows != cpu.rows).any(dim=1).sum() > 14


def test_rows_may_begin_at_any_address() -> None:
    def shifted(tensor: torch.Tensor) -> torch.Tensor:
        memory = torch.empty(tensor.numel() + 1)
        memory[1:] = tensor.flatten()
        assert memory[1:].data_ptr() % 16
        return memory[1:].view_as(tensor)

    tensors = problem(2)
    with ops.forced("compiled"), cuda_emulated.in_use():
        assert same(ops.salt_rows(*map(shifted, tensors)), ops.salt_rows(*tensors))


@pytest.mark.parametrize("product", ["bfloat16", "float32"])
def test_results_do_not_depend_on_the_block_size(product: str) -> None:
    tensors = problem(1, new=70, anchors=5003)  # 1 MB holds the cosines of 52 rows
    with ops.forced("compiled"), cuda_emulated.in_use(races=False):
        with mock.patch.dict("os.environ", {"SALTLM_CUDA_PRODUCT": product}):
            whole = ops.salt_rows(*tensors)
        with mock.patch.dict("os.environ", {"SALTLM_CUDA_PRODUCT": product, "SALTLM_CUDA_BUFFER_MB": "1"}):
            assert same(ops.salt_rows(*tensors), whole)


@pytest.mark.parametrize("op", ["combine", "support_lstsq"])
@pytest.mark.parametrize(
    ("offsets", "ids"),
    [([0, 1, 2], [0, 2]), ([0, 1, 2], [-1, 0]), ([0, 2, 1], [0, 1]), ([0, 1, 3], [0, 1]), ([1, 1, 2], [0, 1])],
)
def test_supports_outside_the_anchors_are_refused_before_any_kernel(op: str, offsets: list, ids: list) -> None:
    cuda_emulated.device()
    support = torch.tensor(offsets), torch.tensor(ids, dtype=torch.int32)
    rows = torch.ones(2, 4)
    rest = {"combine": (torch.ones(2, dtype=torch.float64), rows), "support_lstsq": (0.0, False)}[op]
    arguments = (*support, *rest) if op == "combine" else (rows, rows, *support, *rest)
    with pytest.raises(RuntimeError, match=f"{op}, (offsets|ids)"):
        getattr(torch.ops.saltlm_emulated, op)(*arguments)


def fault(which: int, order: int = 0) -> tuple[str, np.ndarray]:
    library = cuda_emulated.device()
    library.choose(order, 2, 227 << 10, True)
    library.fault.restype = ctypes.c_char_p
    out = np.full(128, -5, np.int32)
    return library.fault(which, out.ctypes.data_as(ctypes.c_void_p)).decode(), out


def test_the_device_runs_a_correct_kernel() -> None:
    for order in (0, 1, 5):
        message, out = fault(0, order)
        assert message == ""
        assert out.tolist() == [127 - i + (i ^ 16) for i in range(128)]


def test_the_device_reports_a_missing_barrier() -> None:
    message, out = fault(1, 0)
    assert (out == 7).all()  # correct by chance, because the first thread runs first
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
def test_the_device_reports_threads_that_do_not_meet(which: int, message: str) -> None:
    reported, _ = fault(which)
    assert re.search(message, reported), reported
    assert fault(0)[0] == ""  # the device can still be used
