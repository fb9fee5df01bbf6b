"""The shapes and dtypes in the annotations of the operators hold for their arguments and their results."""

from __future__ import annotations

import types
import typing

import jaxtyping
import pytest
import torch
from beartype import beartype
from operator_problems import IMPLEMENTATIONS, Runner, full_support, normal

from saltlm.operators import ops, reference
from saltlm.operators.results import SaltRows, Solution, Support

# The operators import jaxtyping for type checkers alone, so its names are added where annotations are resolved.
NAMES = {**vars(jaxtyping), "Tensor": torch.Tensor}


@pytest.fixture(params=IMPLEMENTATIONS, ids="-".join, scope="module")
def runner(request) -> Runner:
    return Runner(*request.param)


def checked(function):
    """The function with a check of its annotations at each call."""
    copy = types.FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__)
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__annotations__ = typing.get_type_hints(function, {**NAMES, **function.__globals__})
    return jaxtyping.jaxtyped(typechecker=beartype)(copy)


def assert_fields(result: Support | Solution | SaltRows) -> None:
    """Check the fields of a result against their annotations, with the same sizes for the same letters."""
    hints = typing.get_type_hints(type(result), NAMES)
    with jaxtyping.jaxtyped("context"):
        for name, value in vars(result).items():
            assert isinstance(value, hints[name]), (name, value.dtype, value.shape)


# N, A, P, E, D, D'.
SIZES = [(4, 20, 6, 5, 3, 2), (1, 1, 1, 1, 1, 1), (0, 5, 3, 2, 4, 4), (3, 0, 3, 2, 4, 1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_public_operators(runner: Runner, sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    n, a, p, e, d, d_out = sizes
    shapes = ((n, p), (a, p), (n, e), (a, e), (a, d), (a, d_out))
    new_aux, anchor_aux, new, anchors, lm, output = (
        normal(seed, *shape, dtype=dtype).to(runner.device) for seed, shape in enumerate(shapes)
    )
    with runner.running():
        support = checked(ops.sparsemax_support)(new_aux, anchor_aux)
        solution = checked(ops.support_lstsq)(new, anchors, support)
        rows = checked(ops.combine)(support, solution.coefficients, lm)
        result = checked(ops.salt_rows)(new_aux, anchor_aux, new, anchors, lm, anchor_output=output)
        chunks = list(checked(ops.salt_coefficients)(new_aux, anchor_aux, new, anchors))
        supports = list(checked(ops.support_chunks)(new_aux, anchor_aux))
    for part in (support, solution, result, *supports, *(part for chunk in chunks for part in chunk)):
        assert_fields(part)
    assert rows.shape == result.rows.shape == (n, d) and result.output_rows.shape == (n, d_out)
    assert len(support) == len(solution.rank) == n and len(support.ids) == len(solution.coefficients)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_reference(sizes: tuple[int, ...]) -> None:
    n, a, p, e, d, _ = sizes
    offsets, ids, _ = checked(reference.sparsemax_support)(normal(0, n, p), normal(1, a, p))
    coefficients, *_ = checked(reference.support_lstsq)(normal(2, n, e), normal(3, a, e), offsets, ids)
    checked(reference.combine)(offsets, ids, coefficients, normal(4, a, d))


def test_other_shapes_and_dtypes_are_noticed() -> None:
    support = full_support([0], [1])
    with pytest.raises(jaxtyping.TypeCheckError, match=r"new_auxiliary|anchor_auxiliary"):
        checked(reference.sparsemax_support)(normal(0, 2, 3), normal(1, 4, 5))
    with pytest.raises(jaxtyping.TypeCheckError, match="offsets"):
        checked(reference.support_lstsq)(normal(0, 3, 2), normal(1, 2, 2), support.offsets, support.ids)
    with pytest.raises(jaxtyping.TypeCheckError, match="coefficients"):
        checked(reference.combine)(support.offsets, support.ids, torch.ones(2), normal(0, 2, 2))
    solution = ops.support_lstsq(normal(0, 2, 3), normal(1, 2, 3), support)
    for change in ({"rank": solution.rank[:1]}, {"residual": solution.residual.double()}):
        with pytest.raises(AssertionError):
            assert_fields(Solution(**{**vars(solution), **change}))
