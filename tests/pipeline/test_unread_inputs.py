"""Options and inputs that the chosen method does not read: unread vectors give a warning, every other one is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from saltlm.batches.check import plan
from saltlm.batches.jobs_file import read_drafts
from saltlm.cli.main import main
from saltlm.comparison.config import parse_cells
from saltlm.config import TransferConfig
from saltlm.errors import InputError
from saltlm.pipeline import transfer
from saltlm.rows.methods import METHODS, method_of
from saltlm.rows.rules import METHOD_OPTIONS, method_faults, unread_auxiliary

# A value of each option of METHOD_OPTIONS that is not its default.
VALUES = {
    "ridge": 0.1,
    "center": True,
    "max_support": 3,
    "support_rule": "plm",
    "map_ridge": 0.5,
    "blend_with": "ridge-map",
    "blend_weight": 0.2,
    "blend_length": 1.1,
    "clean_anchors": 0.1,
    "source_auxiliary": "a.vec",
    "dictionary": "pairs.txt",
}
READERS = [name for name, method in METHODS.items() if method.vectors]
OTHERS = [name for name in METHODS if name not in READERS]


def vectors_of(vectors: str, folder: Path, pair) -> str:
    """A value of ``--auxiliary`` by the name of its fault."""
    (folder / "broken.bin").write_bytes(b"\x00not fastText")
    (folder / "empty.vec").touch()
    (folder / "folder").mkdir()
    return {
        "whole": str(pair.vectors),
        "missing": str(folder / "missing.vec"),
        "broken": str(folder / "broken.bin"),
        "empty": str(folder / "empty.vec"),
        "folder": str(folder / "folder"),
        "plm": "plm",
        "train": f"train:{folder / 'missing.txt'}",
        "long": "x" * 300,
    }[vectors]


def test_the_readers_and_the_others_are_not_empty() -> None:
    assert {"salt", "focus", "wechsel", "ofa"} <= set(READERS) and {"auto", "mean", "ridge-map"} <= set(OTHERS)


@pytest.mark.parametrize("vectors", ["missing", "broken", "folder", "train"])
@pytest.mark.parametrize("method", METHODS)
def test_bad_vectors_are_a_fault_for_readers_and_a_warning_for_the_others(
    tmp_path, pair, method: str, vectors: str
) -> None:
    config, auxiliary = TransferConfig(method=method), vectors_of(vectors, tmp_path, pair)
    refused = [name for name, _ in method_faults(config, auxiliary)]
    warnings = unread_auxiliary(config, auxiliary)
    assert ("auxiliary" in refused) == (method in READERS)
    assert len(warnings) == (method in OTHERS)
    assert all(repr(method) in warning and auxiliary in warning for warning in warnings)
    assert not unread_auxiliary(config, None)


@pytest.mark.parametrize(
    ("options", "reads"),
    [
        ({"method": "local-map"}, False),
        ({"method": "local-map", "support_rule": "auxiliary"}, True),
        ({"method": "blend"}, False),
        ({"method": "blend", "blend_with": "salt"}, True),
        ({"method": "blend", "blend_with": "local-map"}, False),
        ({"method": "blend", "blend_with": "local-map", "support_rule": "auxiliary"}, True),
    ],
)
def test_whether_vectors_are_read_may_hang_on_another_option(options: dict, reads: bool) -> None:
    config = TransferConfig(**options)
    assert bool(unread_auxiliary(config, "v.vec")) == (not reads)
    assert any(name == "auxiliary" for name, _ in method_faults(config, None)) == reads


def test_every_option_of_a_method_has_a_rule() -> None:
    assert set(VALUES) == set(METHOD_OPTIONS)
    assert {name for method in METHODS for name in method_of(TransferConfig(method=method)).options} <= set(
        METHOD_OPTIONS
    )


@pytest.mark.parametrize("option", METHOD_OPTIONS)
def test_an_option_that_the_method_does_not_read_is_refused(option: str) -> None:
    refusing = 0
    for method in METHODS:
        config = TransferConfig(method=method, **{option: VALUES[option]})
        faults = [str(fault) for name, fault in method_faults(config, "plm") if "has no use for it" in str(fault)]
        assert bool(faults) == (option not in method_of(config).options), (method, faults)
        assert all(option in fault and repr(method) in fault for fault in faults)
        refusing += bool(faults)
    assert 0 < refusing < len(METHODS)


@pytest.mark.parametrize("vectors", ["whole", "missing", "broken", "empty", "folder", "plm", "train", "long"])
@pytest.mark.parametrize("method", ["auto", "subword-mean"])
def test_a_transfer_tells_of_vectors_it_does_not_read(tmp_path, pair, method: str, vectors: str) -> None:
    auxiliary = vectors_of(vectors, tmp_path, pair)
    config = TransferConfig(method=method, heldout=0.0)
    done = transfer(pair.source, pair.target, auxiliary, config=config, dry_run=True)
    (warning,) = [text for text in done.summary["warnings"] if auxiliary in text]
    assert f"method {method!r} does not read auxiliary vectors" in warning
    assert not [
        w for w in transfer(pair.source, pair.target, config=config, dry_run=True).summary["warnings"] if "vectors" in w
    ]


@pytest.mark.parametrize("more", [(), ("--json",), ("--quiet",)])
def test_the_command_tells_on_stderr_and_ends_with_0(tmp_path, pair, capsys, more: tuple[str, ...]) -> None:
    auxiliary = tmp_path / "missing.vec"
    words = ["transfer", "--source", pair.source, "--target", pair.target, "--auxiliary", auxiliary]
    words += ["--method", "subword-mean", "--heldout", 0, "--out", tmp_path / "out", *more]
    assert main(list(map(str, words))) == 0
    out, err = capsys.readouterr()
    notes = [line for line in err.splitlines() if str(auxiliary) in line]
    assert len(notes) == 1 and notes[0].startswith("note: method 'subword-mean' does not read auxiliary vectors")
    written = json.loads((tmp_path / "out" / "saltlm.json").read_text())["warnings"]
    assert [notes[0].removeprefix("note: ")] == [warning for warning in written if str(auxiliary) in warning]
    if more == ("--json",):
        assert json.loads(out)["warnings"] == written
    else:
        assert "does not read" not in out


def test_a_batch_names_one_file_for_all_of_its_jobs(tmp_path, pair) -> None:
    head = f"[defaults]\nsource = '{pair.source}'\ntarget = '{pair.target}'\nauxiliary = '{{}}'\n"
    jobs = "".join(f"[[job]]\nout = '{tmp_path / name}'\nmethod = '{name}'\n" for name in ("auto", "mean"))
    file = tmp_path / "jobs.toml"
    file.write_text(head.format(tmp_path / "missing.vec") + jobs)
    batch_plan = plan(*read_drafts(file), 10**13)
    assert len(batch_plan.jobs) == 2
    assert not any("vectors" in what for job in batch_plan.jobs for what in job.shared)
    file.write_text(
        head.format(tmp_path / "missing.vec") + jobs + f"[[job]]\nout = '{tmp_path / 'c'}'\nmethod = 'salt'\n"
    )
    with pytest.raises(InputError, match=r"1 fault.*\n  line 4: job 3: auxiliary vectors: found nothing"):
        plan(*read_drafts(file), 10**13)


def test_cells_of_a_comparison_get_the_vectors_that_they_read() -> None:
    cells = parse_cells(
        ["focus", "focus:auxiliary=other.vec", "mean", "auto", "blend:blend-with=salt"], TransferConfig()
    )
    given = {cell.label: cell.inputs(("s", "t", "v.vec")) for cell in cells}
    assert {inputs[:2] for inputs in given.values()} == {("s", "t")}
    assert {label: inputs[2] for label, inputs in given.items()} == {
        "original": None,
        "focus": "v.vec",
        "focus:auxiliary=other.vec": "other.vec",
        "mean": None,
        "auto": None,
        "blend:blend-with=salt": "v.vec",
    }
