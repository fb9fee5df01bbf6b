"""Jobs files: all faults are reported together, with their lines, before any job runs."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saltlm.batches.check import plan
from saltlm.batches.config import BatchConfig, memory_bytes
from saltlm.batches.jobs_file import read_drafts
from saltlm.batches.toml_lines import parse, toml_lines
from saltlm.cli.main import main
from saltlm.errors import InputError
from saltlm.files.output_folder import whole_folder
from saltlm.files.output_lock import locked_output

LARGE_BUDGET = 10**13  # bytes


def faults(tmp_path: Path, text: str, budget: int = LARGE_BUDGET) -> dict[int, list[str]]:
    """Read a file that must be refused; returns line -> messages."""
    (tmp_path / "jobs.toml").write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as refused:
        plan(*read_drafts(tmp_path / "jobs.toml"), budget)
    messages: dict[int, list[str]] = {}
    for line in str(refused.value).splitlines()[1:]:
        match = re.fullmatch(r"  line (\d+): (.*)", line)
        messages.setdefault(int(match[1]), []).append(match[2])
    count = int(re.search(r": (\d+) fault", str(refused.value))[1])
    assert count == sum(map(len, messages.values()))
    return messages


def head(pair, auxiliary: bool = True) -> str:
    """Lines 1 to 4 of a jobs file: its defaults."""
    vectors = f"auxiliary = '{pair.vectors}'" if auxiliary else "# none"
    return f"[defaults]\nsource = '{pair.source}'\ntarget = '{pair.target}'\n{vectors}\n"


def test_every_fault_is_reported_with_its_line(pair, tmp_path) -> None:
    text = (
        head(pair)
        + f"""# line 5
rigde = 0.1
[[job]]                       # 7: no out
method = "slat"
[[job]]
out = "{tmp_path}/a"
method = "subword-mean"
ridge = 1
note = \"\"\"
[[job]]
out = 3
\"\"\"
[[job]]                       # 17
out = "{tmp_path}/b"
source = "{tmp_path}/nowhere/at/all"
max-support = 0
center = "yes"
seed = 1.5
[[job]]                       # 23
out = "{tmp_path}/c"
method = "wechsel"
auxiliary = "{tmp_path}/none.vec"
[[job]]
out = ""
device = "tpu"
[job.special_overrides]
"</s>" = 3
[default]
"""
    )
    messages = faults(tmp_path, text)
    expected = {
        6: ["'rigde'.*did you mean 'ridge'"],
        7: ["job 1: out: found nothing"],
        8: ["did you mean 'salt'"],
        12: ["job 2: ridge: found 1 for method 'subword-mean'"],
        13: ["'note'"],
        19: ["nowhere/at/all"],
        20: ["job 3: max_support: found 0"],
        21: ["job 3: center: found 'yes'; expected true or false"],
        22: ["seed: found 1.5"],
        25: ["source-auxiliary: found none", "dictionary: found none"],
        26: ["auxiliary vectors: found nothing"],
        28: ["job 5: out: found an empty name"],
        29: ["tpu"],
        30: ["special_overrides"],
        32: ["'default'.*did you mean 'defaults'"],
    }
    for line, patterns in expected.items():
        for pattern in patterns:
            assert any(re.search(pattern, message) for message in messages.get(line, [])), (line, pattern, messages)
    assert set(messages) == set(expected), messages
    assert [path.name for path in tmp_path.iterdir()] == ["jobs.toml"]


def test_equal_and_nested_outputs_are_refused_under_any_name(pair, tmp_path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    outs = ("real/x", "link/x", "real/x/../x/y", "z", "./z", str(pair.source / "in"))
    text = head(pair) + "".join(f'[[job]]\nout = "{out if out[0] == "/" else f"{tmp_path}/{out}"}"\n' for out in outs)
    messages = faults(tmp_path, text)
    assert "job 2: output" in messages[8][0] and "is the output of job 1 (line 6)" in messages[8][0]
    assert "lies in the output of job 1" in messages[10][0] and "is the output of job 4 (line 12)" in messages[14][0]
    assert "lies in the input folder" in messages[16][0] and len(messages) == 4


def test_a_fault_of_several_jobs_is_reported_once(pair, tmp_path) -> None:
    text = (
        head(pair) + 'ridge = 0.1\nmethod = "mean"\n' + "".join(f'[[job]]\nout = "{tmp_path}/{i}"\n' for i in range(3))
    )
    assert list(faults(tmp_path, text)) == [5]
    assert faults(tmp_path, text)[5][0].startswith("jobs 1, 2, 3: ridge")


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("[[job]]\nout = \n", 2, "TOML"),
        ("[[job]\n", 1, "TOML"),
        ("", 1, "at least one"),
        ("[job]\nout = 'x'\n", 1, "double"),
        ("job = 3\n", 1, r"\[\[job\]\]"),
        ("defaults = 3\n[[job]]\nout = 'o'\nsource = 's/s/s'\ntarget = 't/t/t'", 1, "table"),
    ],
)
def test_files_that_are_not_jobs_files_are_refused(text: str, line: int, words: str, tmp_path) -> None:
    (tmp_path / "jobs.toml").write_text(text)
    with pytest.raises(InputError, match=rf"(?s)line {line}: .*{words}"):
        plan(*read_drafts(tmp_path / "jobs.toml"), LARGE_BUDGET)


def test_a_missing_file_and_a_file_that_is_not_utf8_are_refused(tmp_path, capsys) -> None:
    assert main(["batch", str(tmp_path / "none.toml")]) == 2
    assert "none.toml: found No such file" in capsys.readouterr().err
    (tmp_path / "jobs.toml").write_bytes(b"[[job]]\nout = '\xff'\n")
    assert main(["batch", str(tmp_path / "jobs.toml")]) == 2
    assert "line 2: found bytes that are not UTF-8" in capsys.readouterr().err


def test_a_job_larger_than_the_memory_limit_is_refused(pair, tmp_path) -> None:
    text = head(pair) + f'[[job]]\nout = "{tmp_path}/a"\n'
    messages = faults(tmp_path, text, budget=10**8)
    assert re.search(r"needs about 1\.3 GB; expected at most 0\.1 GB", messages[5][0])


def test_broken_model_folders_are_refused_before_any_job_runs(pair, tmp_path) -> None:
    broken = shutil.copytree(pair.target, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"short")
    (tmp_path / "empty").mkdir()
    text = head(pair) + "".join(
        f'[[job]]\nout = "{tmp_path}/{i}"\ntarget = "{tmp_path}/{name}"\n' for i, name in enumerate(("broken", "empty"))
    )
    messages = faults(tmp_path, text)
    assert "model.safetensors" in messages[7][0] and "no config.json" in messages[10][0]


def test_a_locked_output_is_refused_with_the_id_of_its_process(pair, tmp_path, capsys) -> None:
    (tmp_path / "jobs.toml").write_text(head(pair) + f'[[job]]\nout = "{tmp_path}/a"\n[[job]]\nout = "{tmp_path}/b"\n')
    with locked_output(tmp_path / "a"), whole_folder(tmp_path / "b"):
        assert main(["batch", str(tmp_path / "jobs.toml")]) == 2
        message = capsys.readouterr().err
        for line, name in ((6, "a"), (8, "b")):
            assert re.search(rf"line {line}: .*/{name}: found it locked: process {os.getpid()} is writing it", message)
        assert main(pair.arguments(tmp_path / "a")) == 2 and "locked" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "jobs.toml"]
    assert main(["batch", str(tmp_path / "jobs.toml"), "--dry-run"]) == 2  # b exists now and is not a model


def test_a_lock_is_removed_with_the_folders_that_it_created(tmp_path) -> None:
    with locked_output(tmp_path / "x" / "y" / "out"):
        assert (tmp_path / "x" / "y" / ".out.saltlm-lock").read_text() == str(os.getpid())
        with pytest.raises(InputError, match="locked"), locked_output(tmp_path / "x" / "y" / "out"):
            pass
    assert not list(tmp_path.iterdir())
    (tmp_path / ".out.saltlm-lock").write_text("1")  # left by a killed run
    with locked_output(tmp_path / "out"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_missing_ray_package_or_cluster_is_refused(pair, tmp_path, capsys, monkeypatch) -> None:
    (tmp_path / "jobs.toml").write_text(head(pair) + f'[[job]]\nout = "{tmp_path}/a"\n')
    monkeypatch.setattr("saltlm.environment.is_installed", lambda module: False)
    assert main(["batch", str(tmp_path / "jobs.toml"), "--ray", "auto"]) == 2
    assert 'pip install "saltlm[ray]"' in capsys.readouterr().err
    monkeypatch.setattr("saltlm.environment.is_installed", lambda module: True)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("saltlm.batches.ray.CLUSTER_FILE", tmp_path / "none")
    for address, words in {"auto": "no cluster runs here", "127.0.0.1:9": "refused", "somewhere": "HOST:PORT"}.items():
        assert main(["batch", str(tmp_path / "jobs.toml"), "--ray", address]) == 2
        assert words in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["jobs.toml"]


def test_memory_sizes_are_parsed_and_bad_options_refused() -> None:
    sizes = {"12G": 12 * 10**9, "1.5 GB": 15 * 10**8, "16GiB": 2**34, "800m": 8 * 10**8, "7": 7}
    assert {text: memory_bytes(text) for text in sizes} == sizes
    for wrong in (
        {"memory": "much"},
        {"memory": "0G"},
        {"memory": "-1G"},
        {"memory": "3I"},
        {"workers": 0},
        {"ray": ""},
    ):
        with pytest.raises(InputError):
            BatchConfig(**wrong)


KEYS = st.sampled_from(["out", "method", '"a b"', "'c.d'", "max-support", '"\\u00e9"'])
VALUES = st.sampled_from(
    [
        "3",
        "'x' # c",
        '"""\n[[job]]\nout = 1\n"""',
        "'''\n[defaults]\n'''",
        "[1,\n # ]\n '''[[job]]''', 2\n]",
        "{a = 1, b = '}'}",
        '"\\"[[job]]"',
        '""',
        "''",
        '"""a"""""',
        "1979-05-27T07:32:00Z",
    ]
)
TABLES = st.lists(
    st.tuples(
        st.sampled_from(["[[job]]", "[[ job ]] # x", "[[job]]  "]),
        st.dictionaries(KEYS, VALUES, max_size=4),
        st.integers(0, 2),
    )
)


@given(TABLES)
def test_lines_of_tables_and_keys(tables) -> None:
    lines: list[str] = []
    expected = {}
    for index, (header, entries, blank) in enumerate(tables):
        lines += [""] * blank
        expected["job", index] = len(lines) + 1
        lines.append(header)
        for key, value in entries.items():
            name = next(iter(parse(f"{key} = 1")))
            expected["job", index, name] = len(lines) + 1
            lines += f"  {key} = {value}".split("\n")
    text = "\n".join(lines) + "\n"
    parse(text)
    assert toml_lines(text) == expected


def test_lines_of_dotted_keys_and_tables_within_tables() -> None:
    text = "a.b = 1\n[[job]]\n[job.x]\ny = 2\n[[job]]\nx.y = 3\n[defaults]\n"
    assert toml_lines(text) == {
        ("a",): 1,
        ("a", "b"): 1,
        ("job", 0): 2,
        ("job", 0, "x"): 3,
        ("job", 0, "x", "y"): 4,
        ("job", 1): 5,
        ("job", 1, "x"): 6,
        ("job", 1, "x", "y"): 6,
        ("defaults",): 7,
    }
