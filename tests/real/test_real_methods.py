"""Methods on the real Finnish pair against the packages of those who published them; these are fetched, never installed."""

import importlib
import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from saltlm_demo import finnish
from saltlm_demo.inputs import Package, fetch

pytestmark = pytest.mark.real

MERGEKIT = Package(
    name="mergekit",
    version="0.1.5",
    sha256="776a1a1dd0673fad16a8ccfee6880c511c54c94ca30038a8adf29c3ae7af2fc2",
    size=219_588,
    members=("mergekit/tokensurgeon/omp.py", "mergekit/tokensurgeon/rope_helpers.py"),
    licence="LGPL-3.0",
)
ENTMAX = Package(
    name="entmax",
    version="1.3",
    sha256="41bb1edbd497a1b53b1f0fc80befd543499dc704b4e5436ddf6c5728a2d00546",
    size=13_359,
    members=("entmax/*.py",),
    licence="MIT",
)
SAMPLE = 150


def module(package: Package, folder: str, name: str) -> ModuleType:
    """One file of a fetched package, in a package of our own that runs nothing when it is imported."""
    parent = ModuleType(f"fetched_{package.name}")
    parent.__path__ = [str(fetch(package) / folder)]
    sys.modules[parent.__name__] = parent
    return importlib.import_module(f"{parent.__name__}.{name}")


@pytest.fixture(scope="module")
def problem():
    return finnish.finnish_problem(finnish.finnish_pair())


@pytest.fixture(scope="module")
def sample(problem) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).choice(len(problem.new), SAMPLE, replace=False))


def test_pursuit_equals_tokensurgeons(problem, sample) -> None:
    from saltlm.operators.ops import combine, support_lstsq
    from saltlm.rows.methods.pursuit import pursue

    tokensurgeon = module(MERGEKIT, "mergekit/tokensurgeon", "omp")
    new, anchors, lm = problem.new_plm[sample], problem.anchor_plm, problem.anchor_lm
    picks, coefficients = tokensurgeon.batch_omp(new.double(), anchors.double(), 64)
    support = pursue(new, anchors, 64)
    assert (support.offsets.diff() == 64).all()
    same = torch.tensor(
        [set(a) == set(b) for a, b in zip(support.ids.view(-1, 64).tolist(), picks.tolist(), strict=True)]
    )
    # Two products within float32 rounding of each other may be picked in either order, and then the rest differs too.
    assert same.float().mean() > 0.98
    rows = combine(support, support_lstsq(new, anchors, support).coefficients, lm)
    expected = (coefficients[:, None] @ lm[picks].double())[:, 0]
    off = (rows.double() - expected).norm(dim=1) / expected.norm(dim=1)
    assert off[same].max() < 1e-5


@pytest.mark.parametrize("method", ["focus", "clp-plus"])
def test_convex_rows_equal_those_of_entmaxs_weights(method: str, problem, sample) -> None:
    from saltlm.operators.ops import combine, sparsemax_support

    entmax = module(ENTMAX, "entmax", "activations")
    new, anchors = (
        (problem.new_auxiliary, problem.anchor_auxiliary)
        if method == "focus"
        else (problem.new_plm, problem.anchor_plm)
    )
    support = sparsemax_support(new[sample], anchors)
    unit, others = (torch.nn.functional.normalize(side.double(), dim=1) for side in (new[sample], anchors))
    expected = entmax.sparsemax(unit @ others.T, dim=1) @ problem.anchor_lm.double()
    rows = combine(support, support.weights, problem.anchor_lm).double()
    assert ((rows - expected).norm(dim=1) / expected.norm(dim=1)).max() < 1e-4
