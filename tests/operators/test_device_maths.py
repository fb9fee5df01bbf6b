"""The CUDA kernels' row maths, compiled for the host: one thread, and several with a barrier, against numpy in float64."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

SOURCE = Path(__file__).parents[1] / "support" / "device_maths.cpp"
TEAMS = [0, 1, 5]  # 0: the team without a barrier
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture(scope="module")
def maths(tmp_path_factory):
    library = tmp_path_factory.mktemp("device_maths") / "maths.so"
    command = ["g++", "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-pthread"]
    subprocess.run([*command, str(SOURCE), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def pointer(array):
    return array.ctypes.data_as(ctypes.c_void_p)


def measured(x, anchors, noise, seed):
    """Cosines that are off by up to ``noise`` and by how much at most, and the true ones."""
    A = len(anchors)
    norms = np.sqrt((anchors**2).sum(1))
    valid = (np.isfinite(norms) & (norms > 0)).astype(np.uint8)
    inverses = np.where(valid, 1 / np.where(valid, norms, 1), 0)
    inverse = 1 / np.sqrt((x**2).sum())
    exact = np.where(valid, np.nan_to_num(anchors) @ x * inverse * inverses, 0)
    shift = np.random.default_rng(seed).uniform(-noise, noise, A)
    approximate = (exact + shift).astype(np.float32)
    return inverse, valid, inverses, approximate, float(noise + 2**-22), exact


def sparsemax_row(maths, team, x, anchors, *, noise=0.0, capacity=4096, max_support=0, seed=0):
    """Support ids and weights of one row by the device code, from cosines that are off by up to ``noise``."""
    A, P = anchors.shape
    inverse, valid, inverses, approximate, slack, exact = measured(x, anchors, noise, seed)
    ids, weights, survivors = np.full(A, -1, np.int32), np.full(A, np.nan), ctypes.c_int(-1)
    size = maths.sparsemax_row(
        team,
        pointer(approximate),
        pointer(valid),
        ctypes.c_int64(A),
        ctypes.c_double(slack),
        capacity,
        pointer(x),
        ctypes.c_double(inverse),
        pointer(anchors),
        pointer(inverses),
        ctypes.c_int64(P),
        ctypes.c_int64(max_support),
        pointer(ids),
        pointer(weights),
        ctypes.byref(survivors),
    )
    return ids[:size], weights[:size], survivors.value, exact


def sparsemax(z):
    """Weights of every entry, by the definition."""
    ordered = np.sort(z)[::-1]
    sums, counts = np.cumsum(ordered), np.arange(1, len(z) + 1)
    k = counts[1 + counts * ordered > sums][-1]
    return np.maximum(z - (sums[k - 1] - 1) / k, 0)


@pytest.mark.parametrize("team", TEAMS)
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    A=st.integers(1, 300),
    P=st.integers(1, 12),
    noise=st.sampled_from([0.0, 1e-6, 1e-2]),
    capacity=st.sampled_from([1, 7, 4096]),
    pull=st.sampled_from([0.0, 1.0, 30.0]),
)
def test_support_is_sparsemax_whatever_the_noise(maths, team, seed, A, P, noise, capacity, pull):
    random = np.random.default_rng(seed)
    x = random.standard_normal(P) + 0.01
    anchors = random.standard_normal((A, P)) + pull * x  # pull: all cosines close together, so a large support
    ids, weights, survivors, exact = sparsemax_row(maths, team, x, anchors, noise=noise, capacity=capacity)
    expected = sparsemax(exact)
    all_weights = np.zeros(A)
    all_weights[ids] = weights
    assert np.abs(all_weights - expected).max() < 1e-12
    assert survivors >= len(ids)
    assert abs(weights.sum() - 1) < 1e-12
    assert (np.diff(weights) <= 0).all()


@pytest.mark.parametrize("team", TEAMS)
def test_equal_anchors_come_by_position_and_bad_ones_never(maths, team):
    random = np.random.default_rng(3)
    x = random.standard_normal(6)
    anchors = np.tile(x + 0.1 * random.standard_normal(6), (40, 1))
    anchors[[4, 9]] = [[0.0] * 6, [np.nan] * 6]
    ids, weights, *_ = sparsemax_row(maths, team, x, anchors, noise=1e-4)
    assert ids.tolist() == [i for i in range(40) if i not in (4, 9)]
    assert np.ptp(weights) == 0


@pytest.mark.parametrize("team", TEAMS)
def test_cap_keeps_the_nearest_and_weighs_them_anew(maths, team):
    random = np.random.default_rng(4)
    x = random.standard_normal(8)
    anchors = random.standard_normal((200, 8)) + 3 * x
    whole, *_ = sparsemax_row(maths, team, x, anchors)
    ids, weights, _, exact = sparsemax_row(maths, team, x, anchors, max_support=5)
    assert len(whole) > 5 and ids.tolist() == whole[:5].tolist()
    np.testing.assert_allclose(weights, sparsemax(exact[ids]), atol=1e-14)


def narrowed(maths, row, factor=None):
    """A row's direction in bfloat16 as float32, padded, and what the rounding took away."""
    stride = len(row) + 3
    bits = np.full(stride, 7, np.uint16)
    maths.round_to_bfloat16.restype = ctypes.c_double
    factor = 1 / np.sqrt((row**2).sum()) if factor is None else factor
    lost = maths.round_to_bfloat16(
        pointer(row), ctypes.c_double(factor), ctypes.c_int64(len(row)), ctypes.c_int64(stride), pointer(bits)
    )
    return (bits.astype(np.uint32) << 16).view(np.float32), lost


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), P=st.integers(1, 400), alike=st.sampled_from([0.0, 1.0, 100.0]))
def test_a_product_of_bfloat16_is_within_its_bound(maths, seed, P, alike):
    random = np.random.default_rng(seed)
    r = random.standard_normal(P) * 10.0 ** random.integers(-3, 4, P)
    a = random.standard_normal(P) + alike * r
    (R, x), (A, y) = narrowed(maths, r), narrowed(maths, a)
    for rounded, row, lost in ((R, r, x), (A, a, y)):
        direction = row / np.sqrt((row**2).sum())
        assert not rounded[P:].any() and abs(np.linalg.norm(rounded[:P] - direction) - lost) < 1e-12 and lost < 2**-8
    total = np.float32(0)
    for group in range(0, P, 4):  # cut off at the bits of the largest, as tensor cores add
        terms = [float(total), *(R[group : group + 4].astype(float) * A[group : group + 4])]
        unit = 2.0 ** (np.frexp(max(map(abs, terms)))[1] - 24)
        total = np.float32(sum(np.trunc(term / unit) * unit for term in terms))
    maths.bfloat16_error_bound.restype = ctypes.c_double
    bound = maths.bfloat16_error_bound(ctypes.c_double(x), ctypes.c_double(y), ctypes.c_int64(P))
    cosine = (r @ a) / np.sqrt((r**2).sum() * (a**2).sum())
    assert abs(float(total) - cosine) <= bound and bound < 2**-7 + 1e-3


def test_a_row_without_a_direction_is_zeros(maths):
    rounded, lost = narrowed(maths, np.array([np.nan, 1.0, np.inf]), factor=0.0)
    assert not rounded.any() and lost == 0


@pytest.mark.parametrize("team", TEAMS)
def test_no_valid_anchor_gives_no_support(maths, team):
    ids, *_ = sparsemax_row(maths, team, np.ones(3), np.zeros((5, 3)))
    assert len(ids) == 0


@pytest.mark.parametrize("team", TEAMS)
@settings(max_examples=20, deadline=None)
@given(values=st.lists(st.integers(-4, 4), max_size=150))
def test_sort_is_by_value_then_position(maths, team, values):
    ids = np.random.default_rng(len(values)).permutation(len(values)).astype(np.int32)
    keys = np.array(values, dtype=np.float64)
    expected = sorted(zip(-keys, ids, strict=True))
    maths.sort_row(team, pointer(keys), pointer(ids), len(values))
    assert [(-k, i) for k, i in zip(keys, ids, strict=True)] == expected


def solve(maths, team, e, anchors, ids, *, ridge=0.0, center=False):
    """(coefficients, residual), or None where the device leaves the token to the CPU."""
    width = -(-anchors.shape[1] // 4) * 4
    e, anchors = (np.ascontiguousarray(np.pad(m, ((0, 0), (0, width - m.shape[1])))) for m in (e[None], anchors))
    call = maths.solve_float if anchors.dtype == np.float32 else maths.solve_double
    ids = np.asarray(ids, np.int32)
    coefficients, residual = np.full(len(ids), np.nan), ctypes.c_float(np.nan)
    settled = call(
        team,
        pointer(e),
        pointer(anchors),
        pointer(ids),
        len(ids),
        width,
        ctypes.c_double(ridge),
        int(center),
        pointer(coefficients),
        ctypes.byref(residual),
    )
    return (coefficients, residual.value) if settled else None


def solution(e, rows, ridge, center):
    """Minimum-norm (ridge) coefficients of the plain rows, in float64."""
    K = len(rows)
    mean = rows.mean(0) if center else np.zeros(rows.shape[1])
    P, y = rows - mean, e - mean
    if ridge:
        weight = ridge * (P**2).sum() / K
        c = np.linalg.solve(P @ P.T + weight * np.eye(K), P @ y)
    else:
        c = y @ np.linalg.pinv(P)
    return c + (1 - c.sum()) / K if center else c


@pytest.mark.parametrize("team", TEAMS)
@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    K=st.integers(1, 45),
    extra=st.integers(4, 20),
    ridge=st.sampled_from([0.0, 0.1]),
    center=st.booleans(),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_coefficients_are_those_of_pinv(maths, team, seed, K, extra, ridge, center, dtype):
    random = np.random.default_rng(seed)
    E = K + extra
    anchors = (random.standard_normal((K + 5, E)) * np.geomspace(0.1, 10, K + 5)[:, None]).astype(dtype)
    e = random.standard_normal(E).astype(dtype)
    ids = random.permutation(K + 5)[:K]
    result = solve(maths, team, e, anchors, ids, ridge=ridge, center=center)
    if center and K == 1:
        assert result is None
        return
    rows, new_row = anchors[ids].astype(np.float64), e.astype(np.float64)
    expected = solution(new_row, rows, ridge, center)
    assert result is not None
    np.testing.assert_allclose(result[0], expected, rtol=1e-7, atol=1e-8 * np.abs(expected).max())
    left = np.linalg.norm(new_row - expected @ rows) / np.linalg.norm(new_row)
    assert abs(result[1] - left) < 1e-6


def doubtful():
    random = np.random.default_rng(5)
    rows, other = random.standard_normal((6, 16)), random.standard_normal(16)
    yield "a row twice", np.vstack([rows, rows[:1]])
    yield "a zero row", np.vstack([rows, np.zeros((1, 16))])
    yield "a NaN", np.vstack([rows, np.full((1, 16), np.nan)])
    yield "an infinity", np.vstack([rows, np.full((1, 16), np.inf)])
    yield "nearly dependent", np.vstack([rows, rows[0] + 1e-5 * other])
    yield "perhaps ill-conditioned", np.vstack([rows, rows[0] + 1e-3 * other])
    yield "one in the span of two", np.vstack([rows, rows[0] + rows[1]])
    yield "more rows than columns", random.standard_normal((17, 16))
    yield "rows of very different size", np.vstack([rows, 1e-9 * random.standard_normal((1, 16))])


@pytest.mark.parametrize("team", TEAMS)
@pytest.mark.parametrize(("name", "rows"), list(doubtful()), ids=lambda value: value if isinstance(value, str) else "")
def test_doubtful_tokens_are_left_to_the_cpu(maths, team, name, rows):
    assert solve(maths, team, np.ones(16), rows, range(len(rows))) is None


@pytest.mark.parametrize("team", TEAMS)
def test_a_token_that_is_not_finite_is_left_to_the_cpu(maths, team):
    rows = np.random.default_rng(6).standard_normal((4, 8))
    assert solve(maths, team, np.array([np.nan] + [1.0] * 7), rows, range(4)) is None


def test_the_team_changes_nothing_but_the_last_bits(maths):
    random = np.random.default_rng(7)
    rows, e = random.standard_normal((33, 64)), random.standard_normal(64)
    alone, again, many = (solve(maths, team, e, rows, range(33))[0] for team in (0, 1, 5))
    assert np.array_equal(alone, again)
    np.testing.assert_allclose(many, alone, rtol=1e-12)
