"""The operators' surface: arguments refused by name, backends, torch.compile, instruction-set levels."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from operator_problems import clustered, full_support, normal

from saltlm.errors import BackendError, InputError
from saltlm.operators import loading as ops_load
from saltlm.operators import ops, reference
from saltlm.operators import profile as ops_profile

compiled = pytest.mark.skipif(
    ops.backend("cpu").name != "compiled", reason=f"no compiled operators: {ops.backend('cpu').reason}"
)
A23, A43, B24 = torch.ones(2, 3), torch.ones(4, 3), torch.ones(2, 4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ops.sparsemax_support([[1.0]], A43), "sparsemax_support, new_auxiliary: found list"),
        (lambda: ops.sparsemax_support(A23.int(), A43), "new_auxiliary: found int32"),
        (lambda: ops.sparsemax_support(A23, A43.bool()), "anchor_auxiliary: found bool"),
        (lambda: ops.sparsemax_support(A23.to(torch.complex64), A43), "found complex64"),
        (lambda: ops.sparsemax_support(A23[0], A43), r"found shape \[3\]"),
        (lambda: ops.sparsemax_support(A23, B24), "anchor_auxiliary: found width 4; expected 3"),
        (lambda: ops.sparsemax_support(A23.to("meta"), A43), "found device meta"),
        (lambda: ops.sparsemax_support(A23.to_sparse(), A43), "found torch.sparse_coo"),
        (lambda: ops.sparsemax_support(A23, A43, max_support=0), "max_support: found 0"),
        (lambda: ops.sparsemax_support(A23, A43, max_support=2.0), "max_support: found 2.0"),
        (lambda: ops.support_lstsq(A23, A43, full_support([0], [1]), ridge=-1.0), "ridge: found -1.0"),
        (lambda: ops.support_lstsq(A23, A43, full_support([0], [1]), ridge=float("nan")), "ridge: found nan"),
        (lambda: ops.support_lstsq(A23, A43, full_support([0])), "support: found 1 rows; expected 2"),
        (lambda: ops.support_lstsq(A23, A43, full_support([0], [4])), r"positions in \[0, 4\)"),
        (lambda: ops.support_lstsq(A23, A43, full_support([0], [-1])), "ids from -1"),
        (lambda: ops.combine(full_support([0]), torch.ones(1), A43), "combine, coefficients: found torch.float32"),
        (lambda: ops.combine(full_support([0]), torch.ones(2).double(), A43), "found 2; expected 1"),
        (lambda: ops.salt_rows(A23, A43, B24[:1], torch.ones(4, 4), A43), "new_plm: found 1 rows; expected 2"),
        (lambda: ops.salt_rows(A23, A43, B24, torch.ones(4, 4), A23), "anchor_lm: found 2 rows; expected 4"),
        (
            lambda: ops.salt_rows(A23, A43, B24, torch.ones(4, 4), A43, anchor_output=A43.long()),
            "anchor_output: found int64",
        ),
    ],
)
def test_bad_arguments_are_named(call, words: str) -> None:
    with pytest.raises(InputError, match=words):
        call()


def test_a_regression_on_rows_of_no_width_is_refused() -> None:
    with pytest.raises(InputError, match="support_lstsq, new_plm: found width 0"):
        ops.support_lstsq(A23[:, :0], A43[:, :0], full_support([0], [1]))
    with pytest.raises(InputError, match="salt_rows, new_plm: found width 0"):
        ops.salt_rows(A23, A43, A23[:, :0], A43[:, :0], A43)


def test_offsets_out_of_order_are_refused() -> None:
    support = full_support([0, 1], [2])
    broken = ops.Support(offsets=torch.tensor([0, 3, 2]), ids=support.ids, weights=support.weights)
    with pytest.raises(InputError, match="ascending"):
        ops.combine(broken, torch.ones(3).double(), A43)


def test_inputs_with_gradients_are_detached() -> None:
    result = ops.salt_rows(*(normal(i, 5, 4).requires_grad_() for i in range(5)))
    assert not result.rows.requires_grad


def test_results_show_shapes_not_values() -> None:
    result = ops.salt_rows(*(normal(i, 5, 4) for i in range(5)))
    assert repr(result).startswith("SaltRows(rows=float32[5, 4], output_rows=None, support_size=int32[5]")


def test_a_built_library_loads() -> None:
    if (ops_load.LIBRARY_FOLDER / "_ops_cpu.so").is_file() and not os.environ.get(ops_load.VARIABLE):
        assert ops.backend("cpu").name == "compiled"


def test_forcing_and_the_environment(monkeypatch) -> None:
    monkeypatch.setenv(ops_load.VARIABLE, "reference")
    assert ops.backend().name == "reference"
    monkeypatch.setenv(ops_load.VARIABLE, "fast")
    with pytest.raises(InputError, match="SALTLM_BACKEND: found 'fast'"):
        ops.backend()
    with ops.forced("reference"):
        assert ops.backend() == ops.Backend(name="reference", reason="asked for (forced)")
    with pytest.raises(InputError, match="found 'other'"), ops.forced("other"):
        pass


def test_a_library_that_cannot_load_leaves_the_reference(monkeypatch, tmp_path) -> None:
    (tmp_path / "_ops_cpu.so").write_bytes(b"not a library")
    broken = ops_load._load(tmp_path / "_ops_cpu.so")
    missing = ops_load._load(tmp_path / "_ops_cuda.so")
    assert not broken.loaded and "_ops_cpu.so does not load" in broken.reason
    assert not missing.loaded and "was not built" in missing.reason
    monkeypatch.setattr(ops_load, "_cpu_library", lambda: broken)
    monkeypatch.setattr(ops_load, "_library", lambda device_type: broken)
    assert ops.backend() == ops.Backend(name="reference", reason=broken.reason)
    with ops.forced("compiled"), pytest.raises(BackendError, match="does not load"):
        ops.backend()
    assert ops.sparsemax_support(A23, A43).offsets.tolist() == [0, 4, 8]


def test_the_report_covers_both_devices() -> None:
    report = ops.backends()
    assert set(report) == {"cpu", "cuda"}
    for entry in report.values():
        assert entry["name"] in ("compiled", "reference", "none")
        assert entry["reason"]


def _arguments() -> tuple[torch.Tensor, ...]:
    new, anchors = clustered(0, 6, 8), clustered(1, 50, 8)
    support = ops.sparsemax_support(new, anchors)
    return new, anchors, support.offsets, support.ids, normal(2, 50, 5)


@compiled
def test_opcheck() -> None:
    new, anchors, offsets, ids, lm = _arguments()
    operators = torch.ops.saltlm
    torch.library.opcheck(operators.sparsemax_support.default, (new, anchors, 0, 1e-5, 0))
    torch.library.opcheck(operators.sparsemax_support.default, (new, anchors, 0, 1e-5, 40))
    torch.library.opcheck(operators.support_lstsq.default, (new, anchors, offsets, ids, 0.0, True))
    coefficients = operators.support_lstsq(new, anchors, offsets, ids, 0.0, False)[0]
    torch.library.opcheck(operators.combine.default, (offsets, ids, coefficients, lm))
    torch.library.opcheck(operators.combine.default, (offsets, ids, coefficients, lm.double()))
    into = torch.empty(len(new), lm.shape[1])
    torch.library.opcheck(operators.combine_into.default, (offsets, ids, coefficients, lm, into))  # on copies
    assert operators.combine_into(offsets, ids, coefficients, lm, into).all()
    assert torch.equal(into, operators.combine(offsets, ids, coefficients, lm))
    lm[ids[offsets[2]]] = 3e38  # finite in float64's sums, not in float32
    lm[ids[offsets[4]], 3] = float("nan")
    finite = operators.combine_into(offsets, ids, 2 + coefficients.abs(), lm, into)
    assert torch.equal(finite, into.isfinite().all(dim=1)) and not finite[2] and not finite[4]


@compiled
def test_torch_compile_of_the_operators() -> None:
    def rows(new, anchors, lm):
        operators = torch.ops.saltlm
        offsets, ids, _ = operators.sparsemax_support(new, anchors, 0, 1e-5, 0)
        coefficients = operators.support_lstsq(new, anchors, offsets, ids, 0.0, False)[0]
        return operators.combine(offsets, ids, coefficients, lm) * 2

    new, anchors, _, _, lm = _arguments()
    together = torch.compile(rows, backend="aot_eager", fullgraph=True)
    assert torch.equal(together(new, anchors, lm), rows(new, anchors, lm))


@compiled
def test_the_compiled_operators_check_by_themselves() -> None:
    new, anchors, offsets, ids, lm = _arguments()
    operators = torch.ops.saltlm
    with pytest.raises(RuntimeError, match="expected width 8, found 5"):
        operators.sparsemax_support(new, lm, 0, 1e-5, 0)
    with pytest.raises(RuntimeError, match=r"positions in \[0, 50\)"):
        operators.combine(offsets, ids + 50, ids.double(), lm)
    for rows in (torch.empty(len(new), 4), torch.empty(5, len(new)).T, torch.empty(len(new), 5).double()):
        with pytest.raises(RuntimeError, match="combine_into, rows: expected a contiguous"):
            operators.combine_into(offsets, ids, ids.double(), lm, rows)
    with pytest.raises(RuntimeError, match="ascending"):
        operators.support_lstsq(new, anchors, offsets.flip(0), ids, 0.0, False)


@compiled
def test_an_unknown_product_is_refused(monkeypatch) -> None:
    monkeypatch.setenv("SALTLM_CPU_PRODUCT", "int8")
    with pytest.raises(RuntimeError, match="SALTLM_CPU_PRODUCT: found int8; expected bfloat16, float32"):
        ops.sparsemax_support(A23, A43)


@compiled
def test_a_profile_counts_every_stage_and_changes_nothing() -> None:
    problem = (clustered(0, 400, 20), clustered(1, 900, 20), normal(2, 400, 16), normal(3, 900, 16), normal(4, 900, 9))
    plain = ops.salt_rows(*problem)
    with ops_profile.stage_times() as times:
        assert torch.equal(ops.salt_rows(*problem).rows, plain.rows)
    assert list(times) == list(ops_profile.STAGES) and min(times.values()) > 0
    ops.salt_rows(*problem)
    with ops_profile.stage_times() as nothing:
        pass
    assert set(nothing.values()) == {0.0}
    with ops.forced("reference"), pytest.raises(BackendError, match="profile"), ops_profile.stage_times():
        pass


@compiled
def test_every_instruction_set_gives_the_same_rows(tmp_path) -> None:
    problem = (clustered(0, 40, 20), clustered(1, 300, 20), normal(2, 40, 16), normal(3, 300, 16), normal(4, 300, 9))
    torch.save(problem, tmp_path / "problem.pt")
    code = (
        "import sys, torch\nfrom saltlm.operators import ops\n"
        "result = ops.salt_rows(*torch.load(sys.argv[1]), center=True)\n"
        "assert ops.backends()['cpu']['level'] == 'base'\n"
        "torch.save([result.rows, result.support_size, result.status], sys.argv[2])\n"
    )
    environment = {**os.environ, "SALTLM_CPU_LEVEL": "base", "OMP_NUM_THREADS": "1"}
    paths = [str(tmp_path / "problem.pt"), str(tmp_path / "rows.pt")]
    subprocess.run([sys.executable, "-c", code, *paths], env=environment, check=True, timeout=100)
    rows, size, status = torch.load(paths[1])
    result = ops.salt_rows(*problem, center=True)
    torch.testing.assert_close(rows, result.rows, rtol=1e-6, atol=1e-7)
    assert torch.equal(size, result.support_size)
    assert torch.equal(status, result.status)


def test_operators_are_not_first_loaded_inside_a_capture(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(ops_load, "_cuda_library", ops_load._cuda_library.__wrapped__)
    with pytest.raises(BackendError, match="outside of the capture"):
        ops.backend("cuda")
    assert "outside of the capture" in ops.backends()["cuda"]["reason"]


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 8, 63, 64, 65, 136, 200])
def test_rows_of_every_width_from_supports_of_every_size(dtype: torch.dtype, width: int) -> None:
    counts = [0, 1, 64, 65, 0, 128, 129]
    lm = normal(0, 150, width).to(dtype)
    ids = torch.cat([torch.randperm(150, generator=torch.Generator().manual_seed(n))[:n] for n in counts]).int()
    offsets = torch.tensor([0, *counts]).cumsum(0)
    coefficients = normal(1, 1, len(ids))[0].double()
    expected = reference.combine(offsets, ids, coefficients, lm)
    torch.testing.assert_close(torch.ops.saltlm.combine(offsets, ids, coefficients, lm), expected, rtol=1e-5, atol=1e-5)
    into = torch.empty_like(expected)
    for column in (0, width // 2, width - 1):
        for bad in (float("inf"), float("nan")):
            broken = lm.clone()
            broken[ids[offsets[4] - 1], column] = bad  # of the row of 65, perhaps of others
            finite = torch.ops.saltlm.combine_into(offsets, ids, coefficients, broken, into)
            assert torch.equal(finite, into.isfinite().all(dim=1)) and not finite[3] and finite[0]
    if dtype != torch.float64:  # finite sums that float32 cannot hold
        finite = torch.ops.saltlm.combine_into(offsets, ids, coefficients * 1e40, lm, into)
        assert torch.equal(finite, into.isfinite().all(dim=1)) and not finite[2:4].any()


@compiled
def test_a_library_of_an_older_build_is_told(monkeypatch) -> None:
    monkeypatch.setattr(torch._C, "_jit_get_schemas_for_operator", lambda name: ["saltlm::sparsemax_support(Tensor a)"])
    library = ops_load._cpu_library.__wrapped__()
    assert not library.loaded and "older build" in library.reason


def test_chunks_take_about_a_second() -> None:
    assert ops._next_chunk(100, 8192, 1.2) == 100
    assert ops._next_chunk(256, 8192, 0.01) == 4096
    assert ops._next_chunk(4096, 8192, 8.0) == 512
    assert ops._next_chunk(100, 8192, 30.0) == 64
    assert ops._next_chunk(1, 20, 3.0) == 20
