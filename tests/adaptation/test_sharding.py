"""A sharded model trains, resumes and is gathered with the results of a whole model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from saltlm.adaptation.sharding import fsdp_modules, full_state, local_rows


@pytest.fixture(scope="module")
def checks(tmp_path_factory) -> list[dict[str, bool]]:
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            str(Path(__file__).parents[1] / "support" / "sharding_two.py"),
            str(tmp_path_factory.mktemp("two")),
        ],
        text=True,
        capture_output=True,
        check=False,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_two_processes_with_shards_equal_one_with_the_whole_model(checks):
    assert len(checks) == 2
    for rank, results in enumerate(checks):
        assert results == dict.fromkeys(results, True) and len(results) == 10, (rank, results)


def test_a_model_that_is_not_sharded_is_not_copied():
    model = torch.nn.Linear(3, 2)
    assert fsdp_modules(model) == [] and local_rows(model.weight)[0] is model.weight
    assert full_state(model)["weight"].data_ptr() == model.weight.data_ptr()
