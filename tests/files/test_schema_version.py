"""``saltlm.json`` says which schema it follows; a file from before the entry is of the first version."""

from __future__ import annotations

import json

import pytest

from saltlm.adaptation.output import adapted_summary
from saltlm.batches.finished import difference
from saltlm.batches.jobs_file import BatchJob
from saltlm.config import TransferConfig
from saltlm.files.summary_file import FORMAT, SCHEMA_VERSION, schema_version_of
from saltlm.pipeline import transfer

CONFIG = TransferConfig(method="subword-mean", heldout=0.0)


@pytest.fixture(scope="module")
def job(pair, tmp_path_factory) -> BatchJob:
    """A job whose folder is finished."""
    out = tmp_path_factory.mktemp("schema") / "out"
    transfer(pair.source, pair.target, out=out, config=CONFIG)
    return BatchJob(number=1, source=str(pair.source), target=str(pair.target), auxiliary=None, out=out, config=CONFIG)


def test_the_version_stands_beside_the_format(job) -> None:
    written = json.loads((job.out / "saltlm.json").read_text())
    assert written["format"] == FORMAT == 1
    assert written["schema_version"] == SCHEMA_VERSION == 1 and type(written["schema_version"]) is int


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"schema_version": ...}, None),  # written before there was an entry
        ({"schema_version": SCHEMA_VERSION + 1}, "its schema_version is 2, here 1"),
        ({"schema_version": "1"}, "its schema_version is 1, here 1"),
        ({"schema_version": None}, "its schema_version is None, here 1"),
        ({"format": FORMAT + 1}, "its format is 2, here 1"),
        ({"format": ...}, "its saltlm.json cannot be read ('format')"),
        ({"saltlm_version": "0.0"}, "its saltlm_version is 0.0, here"),
    ],
)
def test_a_batch_takes_a_folder_of_another_schema_for_another_run(job, change: dict, reason: str | None) -> None:
    path = job.out / "saltlm.json"
    before = path.read_bytes()
    content = {**json.loads(before), **change}
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))
    try:
        result = difference(job)
    finally:
        path.write_bytes(before)
    assert (result is None) == (reason is None), result
    assert reason is None or result.startswith(reason)


@pytest.mark.parametrize(
    ("before", "version"),
    [
        (None, SCHEMA_VERSION),
        ({"format": 1}, 1),
        ({"format": 1, "schema_version": 1}, 1),
        ({"format": 1, "schema_version": 7}, 7),
    ],
)
def test_an_adaptation_keeps_the_version_of_what_it_takes_over(tmp_path, before: dict | None, version: int) -> None:
    if before is not None:
        (tmp_path / "saltlm.json").write_text(json.dumps({**before, "method": "salt"}))
    result = adapted_summary(tmp_path, {"saltlm_version": "0.1.0", "steps": 3})
    assert result["schema_version"] == version and result["format"] == 1 and result["adapted"]["steps"] == 3
    assert schema_version_of(result) == version
    assert before is None or result["method"] == "salt"
