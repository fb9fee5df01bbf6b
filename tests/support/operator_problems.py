"""Problems for the operators' tests: drawn matrices, supports, slow independent answers in float64."""

from __future__ import annotations

import contextlib
import os
from unittest import mock

import cuda_emulated
import numpy as np
import torch
from hypothesis import strategies as st

from saltlm.operators import ops

# Every operator test runs with each of these pairs of implementation and device; a machine with a GPU adds its pair.
IMPLEMENTATIONS = [("reference", "cpu")]
if ops.backend("cpu").name == "compiled":
    IMPLEMENTATIONS.append(("compiled", "cpu"))
if torch.cuda.is_available() and ops.backend("cuda").name == "compiled":
    IMPLEMENTATIONS.append(("compiled", "cuda"))


# The sources of the CUDA operators on an emulated device: everything but the hardware.
if cuda_emulated.missing() is None:
    IMPLEMENTATIONS.append(("compiled", "emulated"))


# The compiled support with each product, not only the default of the machine: slow ones are exact too.
PRODUCTS = [("compiled", "cpu", name) for name in ("bfloat16", "float32") if ("compiled", "cpu") in IMPLEMENTATIONS]
PRODUCTS += [("compiled", "emulated", name) for name in ("float32",) if ("compiled", "emulated") in IMPLEMENTATIONS]


class Runner:
    """Runs the operators by one implementation, device and product; moves the arguments there and the results back."""

    def __init__(self, name: str, device_name: str, product: str = "") -> None:
        self.name, self.device_name, self.product = name, device_name, product
        self.device = "cpu" if device_name == "emulated" else device_name

    @contextlib.contextmanager
    def running(self):
        """Within the body, the operators run by this implementation on this device."""
        products = {"SALTLM_CPU_PRODUCT": self.product, "SALTLM_CUDA_PRODUCT": self.product}
        emulated = cuda_emulated.in_use(races=False) if self.device_name == "emulated" else contextlib.nullcontext()
        with ops.forced(self.name), mock.patch.dict(os.environ, products), emulated:
            yield

    def _run(self, function, *args, **options):
        with self.running():
            return _moved(function(*(_moved(a, self.device) for a in args), **options), "cpu")

    def support(self, *args, **options) -> ops.Support:
        return self._run(ops.sparsemax_support, *args, **options)

    def lstsq(self, *args, **options) -> ops.Solution:
        return self._run(ops.support_lstsq, *args, **options)

    def combine(self, *args) -> torch.Tensor:
        return self._run(ops.combine, *args)

    def rows(self, *args, anchor_output=None, **options) -> ops.SaltRows:
        return self._run(ops.salt_rows, *args, anchor_output=_moved(anchor_output, self.device), **options)


def _moved(value, device: str):
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, (ops.Support, ops.Solution, ops.SaltRows)):
        return type(value)(**{key: _moved(part, device) for key, part in vars(value).items()})
    return value


@contextlib.contextmanager
def threads(count: int):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def clustered(seed: int, rows: int, width: int, clusters: int = 12, spread: float = 0.7) -> torch.Tensor:
    """Vectors around a few centres that every seed shares, as word vectors are: supports of some tens of anchors."""
    centres = normal(10**6, clusters, width)
    picked = torch.randint(clusters, (rows,), generator=torch.Generator().manual_seed(seed))
    return centres[picked] + spread * normal(seed + 1, rows, width)


def conditioned(seed: int, rows: int, width: int, condition: float) -> torch.Tensor:
    """A float64 matrix with singular values spread evenly in logarithm from 1 down to 1 / condition."""
    size = min(rows, width)
    left = torch.linalg.qr(normal(seed, rows, size, dtype=torch.float64))[0]
    right = torch.linalg.qr(normal(seed + 1, width, size, dtype=torch.float64))[0]
    return (left * torch.logspace(0, -np.log10(condition), size, dtype=torch.float64)) @ right.T


def full_support(*rows: list[int]) -> ops.Support:
    """A support given by hand, equal weights."""
    sizes = torch.tensor([0] + [len(row) for row in rows])
    ids = torch.tensor([i for row in rows for i in row], dtype=torch.int32)
    weights = torch.tensor([1 / len(row) for row in rows for _ in row], dtype=torch.float64)
    return ops.Support(offsets=sizes.cumsum(0), ids=ids, weights=weights)


def entries(support: ops.Support, values: torch.Tensor, row: int) -> torch.Tensor:
    """One row's part of a vector over the support's entries."""
    return values[int(support.offsets[row]) : int(support.offsets[row + 1])]


def dense(support: ops.Support, anchors: int) -> torch.Tensor:
    """The weights as a float64 matrix [N, A]."""
    sizes = support.offsets.diff()
    matrix = torch.zeros(len(sizes), anchors, dtype=torch.float64)
    matrix[torch.repeat_interleave(torch.arange(len(sizes)), sizes), support.ids.long()] = support.weights
    return matrix


def projected(values: np.ndarray) -> np.ndarray:
    """Sparsemax by bisection on the threshold: no sort, nothing shared with the operators."""
    low, high = values.max() - 1, values.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(values - middle, 0).sum() > 1 else (low, middle)
    return np.maximum(values - high, 0)


def cosines(new: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
    new, anchors = new.double(), anchors.double()
    return (new / new.norm(dim=1, keepdim=True)) @ (anchors / anchors.norm(dim=1, keepdim=True)).T


@st.composite
def auxiliaries(draw) -> tuple[torch.Tensor, torch.Tensor]:
    """New and anchor vectors: normal, clustered, nearly parallel (dense supports), or small whole numbers (many ties)."""
    new, anchors, width = draw(st.integers(1, 5)), draw(st.integers(1, 90)), draw(st.integers(1, 17))
    seed, layout = draw(st.integers(0, 10**5)), draw(st.sampled_from(["normal", "clustered", "parallel", "whole"]))
    if layout == "clustered":
        return clustered(seed, new, width), clustered(seed + 7, anchors, width)
    rows, others = normal(seed, new, width), normal(seed + 7, anchors, width)
    if layout == "parallel":
        return 1 + rows * 0.05, 1 + others * 0.05
    if layout == "whole":
        rows, others = rows.round(), others.round()
        rows[:, 0] += (rows == 0).all(dim=1).float()
        others[:, 0] += (others == 0).all(dim=1).float()
    return rows, others


@st.composite
def regressions(draw) -> tuple[torch.Tensor, torch.Tensor, ops.Support]:
    """Well-conditioned new and anchor PLM rows with supports below, around and above the width."""
    width, rows, seed = draw(st.integers(1, 20)), draw(st.integers(1, 4)), draw(st.integers(0, 10**5))
    anchors = draw(st.integers(2, 60))
    sizes = [draw(st.integers(1, anchors)) for _ in range(rows)]
    order = torch.Generator().manual_seed(seed)
    chosen = [torch.randperm(anchors, generator=order)[:size].tolist() for size in sizes]
    return normal(seed, rows, width), normal(seed + 1, anchors, width), full_support(*chosen)
