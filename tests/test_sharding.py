"""A sharded model trains, is stopped, goes on and is gathered as a whole one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from saltlm.adaptation.sharding import groups, rows_here, whole_state


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict[str, bool]]:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(Path(__file__).parent / "sharding_two.py"), str(tmp_path_factory.mktemp("two"))],
        text=True, capture_output=True, check=False, timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_two_processes_with_slices_are_one_with_the_whole(found):
    for rank, facts in enumerate(found):
        assert facts == dict.fromkeys(facts, True) and len(facts) == 10, (rank, facts)


def test_a_model_that_is_not_sharded_is_left_as_it_is():
    model = torch.nn.Linear(3, 2)
    assert groups(model) == [] and rows_here(model.weight)[0] is model.weight
    assert whole_state(model)["weight"].data_ptr() == model.weight.data_ptr()
