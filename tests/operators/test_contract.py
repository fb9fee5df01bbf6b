"""The numeric contract in cuda_ext/csrc/contract.h: stated once in the sources, and the same in Python."""

import re
from pathlib import Path

from saltlm.operators import profile as ops_profile
from saltlm.operators import reference
from saltlm.operators import results as ops_results

CSRC = Path(__file__).parents[2] / "cuda_ext" / "csrc"
CONTRACT = (CSRC / "contract.h").read_text(encoding="utf-8")
CONSTANTS = dict(re.findall(r"^constexpr \w+ (k\w+) = ([\w.+-]+);$", CONTRACT, re.MULTILINE))
STATUSES = re.findall(r"^  (k\w+) = (\d+),", CONTRACT, re.MULTILINE)


def snake_case(name: str) -> str:
    """``kFullRank`` -> ``full_rank``."""
    return re.sub(r"(?<!^)([A-Z])", r"_\1", name[1:]).lower()


def test_status_names_are_in_the_order_of_their_codes() -> None:
    assert [int(code) for _, code in STATUSES] == list(range(len(STATUSES)))
    assert tuple(snake_case(name) for name, _ in STATUSES) == ops_results.STATUSES
    for name, code in STATUSES:
        assert getattr(reference, snake_case(name).upper()) == int(code)


def test_the_reference_uses_the_tolerances_of_the_contract() -> None:
    assert float(CONSTANTS["kEpsilon"]) == reference.EPSILON
    assert float(CONSTANTS["kIllCondition"]) == reference.ILL_CONDITION
    assert float(CONSTANTS["kNothingExplained"].rstrip("f")) == reference.NOTHING_EXPLAINED


def test_no_other_source_defines_a_constant_of_the_contract() -> None:
    names = [*CONSTANTS, *(name for name, _ in STATUSES)]
    assert len(names) > 12
    definition = re.compile(rf"\b({'|'.join(names)})\s*(=[^=]|,|\}})")
    for file in sorted(CSRC.rglob("*.*")):
        if file.name == "contract.h":
            continue
        for line in file.read_text(encoding="utf-8").splitlines():
            is_definition = definition.search(line) and re.match(r"\s*(constexpr|enum|#define)", line)
            assert not is_definition, f"{file.name}: {line}"


def test_every_stage_of_the_profile_has_a_name() -> None:
    kernels = (CSRC / "cpu" / "kernels.h").read_text(encoding="utf-8")
    members = re.findall(r"k\w+", re.search(r"enum Stage \{(.*?)\}", kernels, re.DOTALL)[1])
    assert members.pop() == "kStageCount"
    assert len(members) == len(ops_profile.STAGES)
