"""Batches on real inputs and on a real cluster."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from saltlm.batches.config import BatchConfig
from saltlm.batches.run import batch
from saltlm_demo.finnish import finnish_pair

pytestmark = pytest.mark.real


def test_all_jobs_are_done_though_one_of_two_nodes_is_killed(pair, tmp_path) -> None:
    jobs = "".join(f"[[job]]\nout = '{tmp_path}/o{index}'\nseed = {index}\n" for index in range(8))
    head = f"[defaults]\nsource = '{pair.source}'\ntarget = '{pair.target}'\nmethod = 'normal'\n"
    (tmp_path / "jobs.toml").write_text(head + jobs)
    script = Path(__file__).parents[1] / "support" / "batch_ray_cluster.py"
    command = [sys.executable, str(script), str(tmp_path / "jobs.toml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert (report["done"], report["failed"]) == (8, 0), report
    assert report["killed"] and report["lost"] >= 1
    assert max(job["attempts"] for job in report["jobs"]) >= 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["jobs.toml", *(f"o{index}" for index in range(8))]


def test_the_memory_of_a_real_job_is_as_estimated(tmp_path) -> None:
    pair = finnish_pair()
    (tmp_path / "jobs.toml").write_text(
        f"[defaults]\nsource = '{pair.source}'\ngguf-file = '{pair.gguf_file}'\ntarget = '{pair.donor}'\n"
        f"auxiliary = '{pair.vectors}'\n[[job]]\nout = '{tmp_path}/salt'\n[[job]]\nout = '{tmp_path}/pieces'\n"
        "method = 'subword-mean'\n"
    )
    done = batch(tmp_path / "jobs.toml", BatchConfig(workers=1))
    assert not done.failed
    for job in done.jobs:
        assert job.memory / 2 < done.outcomes[job.number].peak < job.memory
