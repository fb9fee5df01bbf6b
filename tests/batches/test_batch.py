"""Batches: folders equal those of single transfers, finished jobs are skipped, and failed jobs do not stop the others."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models_tiny import save_llama
from safetensors.numpy import load_file, save_file
from tokenizers_tiny import tiny

from saltlm import TransferConfig, transfer
from saltlm.batches.config import BatchConfig
from saltlm.batches.jobs_file import BatchJob
from saltlm.batches.pool import Pool, in_order
from saltlm.batches.run import Watcher, batch
from saltlm.batches.worker import Outcome
from saltlm.cli.main import main
from saltlm.shared import Shared

ONE = BatchConfig(workers=1)
SALT = TransferConfig(method="salt")


def write_jobs(path: Path, pair, jobs: dict[str, str], more: str = "") -> Path:
    text = f"[defaults]\nsource = '{pair.source}'\ntarget = '{pair.target}'\nauxiliary = '{pair.vectors}'\n"
    text += f"{more}\n" if "method" in more else f"method = 'salt'\n{more}\n"
    path.write_text(text + "".join(f"[[job]]\nout = '{path.parent}/{out}'\n{rest}\n" for out, rest in jobs.items()))
    return path


def content(folder: Path) -> dict[str, object]:
    """Contents of the files of a written folder, without the seconds of the run."""
    files: dict[str, object] = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {**files, "saltlm.json": {**json.loads(files["saltlm.json"]), "seconds": None}}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def ran(pair, untied, tmp_path_factory) -> dict[str, object]:
    """Seven jobs with one worker: five succeed, one has a broken source, and one exceeds the limit of file sizes."""
    root = tmp_path_factory.mktemp("batch")
    source = shutil.copytree(pair.source, root / "nan")
    rows = load_file(source / "model.safetensors")
    rows["model.embed_tokens.weight"][3] = float("nan")
    save_file(rows, source / "model.safetensors", metadata={"format": "pt"})
    save_llama(root / "wide", tiny("byte_level_bpe"), width=256)
    jobs = {
        "salt": "",
        "other": f"source = '{untied.source}'\ntarget = '{untied.target}'\nauxiliary = '{untied.vectors}'",
        "pieces": "method = 'subword-mean'",
        "broken": f"source = '{root / 'nan'}'",
        "deep/er/plm": "auxiliary = 'plm'\nridge = 0.1",
        "full": f"source = '{root / 'wide'}'",
        "case": "overlap = 'case'\nchat-template = 'none'",
    }
    path = write_jobs(root / "jobs.toml", pair, jobs)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The workers inherit the limit; writing a larger file fails.
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, before[1]))
    try:
        done = batch(path, ONE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    return {"root": root, "path": path, "done": done, "names": names(root)}


def test_folders_equal_those_of_single_transfers(ran, pair, untied, tmp_path) -> None:
    singles = {
        "salt": (pair, SALT, pair.vectors),
        "other": (untied, SALT, untied.vectors),
        "pieces": (pair, TransferConfig(method="subword-mean"), pair.vectors),
        "deep/er/plm": (pair, TransferConfig(method="salt", ridge=0.1), "plm"),
        "case": (pair, TransferConfig(method="salt", overlap="case", chat_template="none"), pair.vectors),
    }
    for name, (case, config, vectors) in singles.items():
        transfer(str(case.source), str(case.target), str(vectors), tmp_path / "single", config)
        assert content(ran["root"] / name) == content(tmp_path / "single"), name
        shutil.rmtree(tmp_path / "single")


def test_the_limit_of_open_files_is_raised_for_many_jobs() -> None:
    script = """
import resource
from saltlm.batches.run import _allow_files
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
_allow_files(50)
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (64, hard)
_allow_files(200)
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (200, hard)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 100))
_allow_files(200)
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (100, 100)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_failures_are_reported_and_the_other_jobs_run(ran) -> None:
    result = ran["done"].to_json()
    assert (result["done"], result["failed"], result["skipped"]) == (5, 2, 0)
    failed = {Path(job["out"]).name: job["error"] for job in result["jobs"] if job["status"] == "failed"}
    assert set(failed) == {"broken", "full"}
    assert "NaN or infinity in rows 3" in failed["broken"] and "limit on the size of files" in failed["full"]
    assert ran["names"] == ["case", "deep", "jobs.toml", "nan", "other", "pieces", "salt", "wide"]


def test_jobs_with_equal_inputs_share_results_and_memory_is_within_the_estimate(ran) -> None:
    done = ran["done"]
    order = [next(job for job in done.jobs if job.number == number).source for number in done.order]
    assert (
        len([source for source, following in itertools.pairwise(order) if source != following]) == len(set(order)) - 1
    )
    assert done.to_json()["shared"]["found"] >= 10
    assert len({outcome.process for outcome in done.outcomes.values()}) == 1
    for job in done.jobs:
        assert job.memory / 2 < done.outcomes[job.number].peak < job.memory


def test_a_second_run_does_the_remaining_jobs(ran, pair, untied, capsys) -> None:
    def states(text: str | None = None) -> dict[str, str]:
        path = ran["path"] if text is None else ran["path"].with_name("again.toml")
        if text is not None:
            path.write_text(text)
        assert main(["batch", str(path), "--dry-run", "--json"]) == 0, capsys.readouterr().err
        out, err = capsys.readouterr()
        assert not err
        return {Path(job["out"]).name: job["status"] for job in json.loads(out)["jobs"]}

    finished = dict.fromkeys(("salt", "other", "pieces", "plm", "case"), "skipped")
    assert states() == finished | {"broken": "waiting", "full": "waiting"}
    text = ran["path"].read_text()
    changed = text.replace("ridge = 0.1", "ridge = 0.2\nforce = true")
    assert states(changed) == states() | {"plm": "waiting"}
    assert main(["batch", str(ran["path"].with_name("again.toml")), "--dry-run"]) == 0
    ran["path"].with_name("again.toml").write_text(changed.replace("force = true", ""))
    assert main(["batch", str(ran["path"].with_name("again.toml"))]) == 2
    assert "an existing folder of another run (its ridge is 0.1, the job's 0.2)" in capsys.readouterr().err
    forced = text.replace("[[job]]", "force = true\n[[job]]", 1)
    now = time.time()
    for file, touch in (
        (pair.vectors, lambda: pair.vectors.write_text(pair.vectors.read_text().replace("0.1", "0.2", 1))),
        (
            pair.source / "config.json",
            lambda: (pair.source / "config.json").write_bytes((pair.source / "config.json").read_bytes() + b" "),
        ),
        (pair.target / "model.safetensors", lambda: os.utime(pair.target / "model.safetensors", (now, now - 99))),
    ):
        before, stat = file.read_bytes(), file.stat()
        touch()
        assert states(forced)["salt"] == "waiting" and states(forced)["other"] == "skipped", file
        file.write_bytes(before)
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    os.utime(pair.vectors, (now, now))  # vectors are compared by content, not by time
    assert states()["salt"] == "skipped"
    (ran["root"] / "salt" / "config.json").rename(ran["root"] / "moved")
    assert states(forced)["salt"] == "waiting"
    (ran["root"] / "moved").rename(ran["root"] / "salt" / "config.json")


class Killer(Watcher):
    """Kills the process of some jobs when their stage ``align`` starts, and records all stages.

    Attributes:
        times: name of the output folder -> how many times the process is still to be killed.
        stages: (name of the output folder, stage) of each call.
    """

    def __init__(self, **times: int) -> None:
        self.times: dict[str, int] = times
        self.stages: list[tuple[str, str]] = []

    def tell(self, job: BatchJob, stage: str) -> None:
        self.stages.append((job.out.name, stage))
        if stage == "align" and self.times.get(job.out.name, 0):
            self.times[job.out.name] -= 1
            for process in multiprocessing.active_children():
                os.kill(process.pid, signal.SIGKILL)


def test_the_job_of_a_killed_worker_is_tried_once_more_then_failed(pair, tmp_path) -> None:
    path = write_jobs(tmp_path / "jobs.toml", pair, {"once": "", "twice": "", "never": ""})
    watcher = Killer(once=1, twice=2)
    done = batch(path, ONE, watcher=watcher)
    outcomes = {job.out.name: done.outcomes[job.number] for job in done.jobs}
    assert [(outcomes[name].status, outcomes[name].attempts) for name in ("once", "twice", "never")] == [
        ("done", 2),
        ("failed", 2),
        ("done", 1),
    ]
    assert "killed by SIGKILL, 2 times" in outcomes["twice"].error
    assert ("once", "its process was killed by SIGKILL; tried again") in watcher.stages
    assert names(tmp_path) == ["jobs.toml", "never", "once"]
    assert not multiprocessing.active_children()


def test_an_interrupt_leaves_no_unfinished_folder_and_the_batch_can_be_continued(pair, tmp_path) -> None:
    jobs = {f"o{index}": f"seed = {index}" for index in range(400)}
    path = write_jobs(tmp_path / "jobs.toml", pair, jobs, "method = 'normal'\nheldout = 0")
    command = [sys.executable, "-m", "saltlm", "batch", str(path), "--workers", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        for line in process.stderr:
            if "done in" in line:
                os.killpg(process.pid, signal.SIGINT)  # as a terminal does; the workers receive it too
                break
        message = process.stderr.read()
    assert process.returncode == 130 and message.splitlines()[-1].startswith("saltlm: interrupted"), message
    written = [name for name in names(tmp_path) if name != "jobs.toml"]
    assert written and all((tmp_path / name / "saltlm.json").is_file() for name in written)
    result = batch(path, ONE, dry_run=True).to_json()
    assert (result["skipped"], result["waiting"]) == (len(written), 400 - len(written)) and result["waiting"]


JOBS = st.lists(st.tuples(st.integers(1, 100), st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=12)


@given(JOBS, st.integers(1, 4), st.integers(100, 300))
def test_jobs_wait_until_their_memory_is_within_the_budget(sizes, workers: int, budget: int) -> None:
    """Threads replace the processes, because only the order and the memory of the jobs are tested."""
    jobs = [
        BatchJob(
            number=number,
            source=str(source),
            target=str(target),
            auxiliary=None,
            out=Path(f"/{number}"),
            config=TransferConfig(),
            memory=memory,
            shared={f"s{source}": 10, f"t{target}": 5},
        )
        for number, (memory, source, target) in enumerate(sizes, 1)
    ]
    reserved: list[int] = []
    pool = Pool(jobs, workers, budget, 1, lambda job, stage: reserved.append(sum(w.reserved for w in pool.workers)))
    pool.context = Threads()
    ended: list[int] = []
    pool.run(lambda job, outcome: ended.append(job.number))
    assert sorted(ended) == [job.number for job in jobs]
    assert max(reserved) <= budget and len(reserved) == len(jobs)


class Thread(threading.Thread):
    """A worker that reports every job as done at once."""

    exitcode = 0

    def __init__(self, target, args, daemon) -> None:
        super().__init__(daemon=daemon)
        self.pipe = Connection(os.dup(args[0].fileno()))  # a copy, because the parent closes the original

    def run(self) -> None:
        with self.pipe:
            while (message := self.pipe.recv()) is not None:
                self.pipe.send(Outcome(number=message[0].number, status="done"))

    def terminate(self) -> None:
        """Not needed: the thread ends when it receives ``None``."""

    kill = terminate


class Threads:
    """Replaces the multiprocessing context of a pool."""

    Pipe = staticmethod(multiprocessing.Pipe)
    Process = Thread


def test_jobs_with_equal_inputs_are_adjacent() -> None:
    jobs = [
        BatchJob(
            number=number,
            source=source,
            target=target,
            auxiliary=None,
            out=Path("/o"),
            config=TransferConfig(),
            shared={source: 1, target: 1},
        )
        for number, (source, target) in enumerate([("a", "x"), ("b", "x"), ("a", "y"), ("b", "y"), ("a", "x")])
    ]
    assert [job.number for job in in_order(jobs)] == [0, 4, 2, 1, 3]


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 50))), st.integers(0, 100))
def test_shared_results_stay_within_their_limit(uses, limit: int) -> None:
    shared = Shared(limit)
    for key, size in uses:
        assert shared.get((key, size), lambda key=key: key, lambda value, size=size: size) == key
        assert shared.bytes <= limit
    assert shared.hits + shared.misses == len(uses)
    if uses and uses[-1][1] <= limit:
        assert shared.get(uses[-1], lambda: None, lambda value: 0) == uses[-1][0], "the latest result is in memory"
