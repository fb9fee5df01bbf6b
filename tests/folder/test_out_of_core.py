"""Laws of writing without copying: links, shared blocks, holes, the disk space counted for them, and mapped memory."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models_tiny import save_llama
from safetensors.torch import load_file, save_file
from tokenizers_tiny import tiny

from saltlm.errors import InputError
from saltlm.files.copy import PAGE, copy_file, shares_blocks
from saltlm.folder.write import write_folder
from saltlm.model.checkpoint import load_source
from saltlm.model.safetensors_header import read_header
from saltlm.model.safetensors_stream import kept_bytes, rewrite
from saltlm.model.weights import find_weights, release_pages
from saltlm.operators.checks import all_finite, finite_rows
from saltlm.rows.matrices import NewMatrices

BPE = tiny("byte_level_bpe")
SMALL = 20_000  # bytes a shard
HOLE = 1 << 20
BAD = (float("nan"), float("inf"), -float("inf"))


@pytest.fixture
def source(tmp_path: Path):
    return load_source(save_llama(tmp_path / "model", BPE, tied=False, max_shard_size=SMALL))


def write(out: Path, source, **options) -> Path:
    new = NewMatrices(input_rows=source.input_rows[:300] + 1, output_rows=source.output_rows[:300] + 1)
    write_folder(out, source, new, tokenizer=BPE, config_changes={}, **options)
    return out


def shards(source) -> tuple[list[str], list[str]]:
    """Names of the shards with vocabulary rows, and of the others."""
    with_rows = {source.shards[source.input_name], source.shards[source.output_name]}
    return sorted(with_rows), sorted(set(source.weights.headers) - with_rows)


def test_links_are_the_sources_files_and_all_other_files_are_new(tmp_path: Path, source) -> None:
    with_rows, others = shards(source)
    for path in source.folder.iterdir():
        path.chmod(0o640)
    before = {path.name: path.read_bytes() for path in source.folder.iterdir()}
    out = write(tmp_path / "out", source, link="hard")
    assert others
    assert all(os.path.samefile(out / name, source.folder / name) for name in others)
    assert all((out / name).stat().st_nlink == 1 for name in (*with_rows, "config.json", "tokenizer.json"))
    copied = write(tmp_path / "copied", source)
    for name in (*with_rows, *others):
        assert (out / name).read_bytes() == (copied / name).read_bytes()
        assert (copied / name).stat().st_nlink == 1
    modes = {path.stat().st_mode & 0o777 for path in source.folder.iterdir()}
    assert modes == {0o640}, "a hard link has the permissions of the source file"
    write(tmp_path / "out", source, link="hard", force=True)
    shutil.rmtree(tmp_path / "out")
    assert {path.name: path.read_bytes() for path in source.folder.iterdir()} == before


def test_a_hard_link_to_a_symlink_links_its_file(tmp_path: Path) -> None:
    """The hub's cache is a folder of symlinks."""
    model = save_llama(tmp_path / "blobs", BPE, tied=False, max_shard_size=SMALL)
    snapshot = tmp_path / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for path in model.iterdir():
        (snapshot / path.name).symlink_to(path)
    source = load_source(snapshot)
    out = write(tmp_path / "out", source, link="hard")
    for name in shards(source)[1]:
        assert not (out / name).is_symlink() and os.path.samefile(out / name, model / name)


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.EMLINK])
def test_a_link_that_is_refused_leaves_nothing(tmp_path: Path, monkeypatch, source, code: int) -> None:
    def refuse(*arguments, **options) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(InputError, match="leave --link out to copy"):
        write(tmp_path / "room" / "out", source, link="hard")
    assert not (tmp_path / "room").exists()


def test_another_file_system_is_an_error_before_any_row_is_built(tmp_path: Path, pair) -> None:
    from saltlm import TransferConfig, transfer

    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev or not os.access(memory, os.W_OK):
        pytest.skip("no second file system")
    stages: list[str] = []
    out = memory / f"saltlm-test-{os.getpid()}" / "out"
    with pytest.raises(InputError, match="another file system"):
        transfer(
            pair.source,
            pair.target,
            pair.vectors,
            out,
            TransferConfig(link="hard"),
            progress=lambda stage, done, total: stages.append(stage),
        )
    assert stages == ["load"] and not out.parent.exists()


def test_the_disk_space_is_counted_as_it_will_be_used(tmp_path: Path, monkeypatch, source) -> None:
    needed: list[int] = []

    class Usage:
        free = 0

    def usage(path: Path) -> type[Usage]:
        return Usage

    monkeypatch.setattr(shutil, "disk_usage", usage)
    from saltlm.files import output_folder

    whole = output_folder.whole_folder
    monkeypatch.setattr(
        "saltlm.folder.write.whole_folder",
        lambda out, **options: needed.append(options["needed"]) or whole(out, **options),
    )
    for link in ("copy", "hard"):
        with pytest.raises(InputError, match="no space left"):
            write(tmp_path / "out", source, link=link)
    with_rows, others = shards(source)
    shared = shares_blocks(source.folder / others[0], tmp_path)
    size = sum((source.folder / name).stat().st_size for name in others)
    assert needed[0] - needed[1] == (0 if shared else size)
    from saltlm.folder.write import ROOM

    new = {name: torch.zeros(300, source.input_rows.shape[1]) for name in (source.input_name, source.output_name)}
    kept = 0
    for header in (source.weights.headers[name] for name in with_rows):
        kept += kept_bytes(header, {name: rows for name, rows in new.items() if name in header.entries}, shared=shared)
    assert needed[1] == ROOM + kept + 2 * 300 * source.input_rows.shape[1] * 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"], "the trial copy leaves nothing"


def sparse(path: Path) -> None:
    """Write a file with an embedding, a tensor of 3 MiB whose middle MiB is a hole, and a short tensor."""
    header = {
        "embed": {"dtype": "F32", "shape": [16, 1024], "data_offsets": [0, 65536]},
        "body": {"dtype": "F32", "shape": [3, HOLE // 4], "data_offsets": [65536, 65536 + 3 * HOLE]},
        "short": {"dtype": "F32", "shape": [3], "data_offsets": [65536 + 3 * HOLE, 65536 + 3 * HOLE + 12]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + bytes([1]) * (65536 + HOLE))
        file.seek(HOLE, os.SEEK_CUR)
        file.write(bytes([2]) * (HOLE + 12))


@pytest.mark.parametrize("rows", [16, 40])
def test_holes_stay_and_copied_bytes_keep_their_offset_within_a_block(tmp_path: Path, rows: int) -> None:
    sparse(tmp_path / "a")
    old = read_header(tmp_path / "a")
    rewrite(old, tmp_path / "b", {"embed": torch.ones(rows, 1024)})
    new = read_header(tmp_path / "b")
    offsets = [header.data_start + header.entries["body"].start for header in (old, new)]
    assert offsets[0] % PAGE == offsets[1] % PAGE
    one, other = load_file(tmp_path / "a"), load_file(tmp_path / "b")
    assert torch.equal(one["body"], other["body"]) and torch.equal(one["short"], other["short"])
    assert torch.equal(other["embed"], torch.ones(rows, 1024))
    knows_holes = (tmp_path / "a").stat().st_blocks * 512 < 2.5 * HOLE  # the file system of this test
    dense = new.data_start + 3 * HOLE + 12
    counted = kept_bytes(old, {"embed": torch.ones(rows, 1024)})
    assert kept_bytes(old, {"embed": torch.ones(rows, 1024)}, shared=True) < 5 * PAGE
    assert dense - HOLE <= counted <= dense - HOLE + 2 * PAGE if knows_holes else counted == dense
    copy_file(tmp_path / "a", tmp_path / "c")
    for name in "bc" if knows_holes else "":
        assert (tmp_path / name).stat().st_blocks * 512 < 2.5 * HOLE, "the hole was filled"


def test_a_file_that_cannot_be_read_counts_as_one_without_holes(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1000)}, tmp_path / "a")
    header = read_header(tmp_path / "a")
    (tmp_path / "a").unlink()
    assert kept_bytes(header, {}) == header.data_start + 4000


@given(
    dtype=st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
    shape=st.tuples(st.integers(0, 9), st.integers(1, 70)),
    bad=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 69), st.sampled_from(BAD))),
)
def test_finite_rows_agree_with_torch(dtype, shape, bad) -> None:
    matrix = torch.arange(shape[0] * shape[1]).reshape(shape).to(dtype)
    for row, column, value in bad:
        if row < shape[0] and column < shape[1]:
            matrix[row, column] = value
    expected = matrix.isfinite().all(dim=1)
    assert torch.equal(finite_rows(matrix), expected)
    assert all_finite(matrix) == bool(expected.all())


def test_mapped_tensors_equal_the_stored_ones_also_after_their_pages_are_released(tmp_path: Path) -> None:
    content = {
        "wide": torch.randn(300, 70),
        "half": torch.randn(33, 5).half(),
        "brain": torch.randn(1000).bfloat16(),
        "double": torch.randn(7, 3).double(),
        "none": torch.empty(0, 4),
        "one": torch.tensor(2.5),
        "whole": torch.arange(9),
    }
    save_file(content, tmp_path / "model.safetensors")
    weights = find_weights(tmp_path, "model")
    for _ in range(2):
        mapped = {name: weights.tensor(name) for name in content}
        for _ in range(2):
            assert all(
                mapped[name].dtype == tensor.dtype and torch.equal(mapped[name], tensor)
                for name, tensor in content.items()
            )
            release_pages()


MEASURE = """
import sys
from pathlib import Path
import torch
from saltlm.model import stored_rows
from saltlm.model.vocabulary_rows import check_rows
from saltlm.model.weights import find_weights
weights = find_weights(Path(sys.argv[1]), "model")
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
check_rows(torch.ones(9, 1024), "warm", "model", {})
before = peak()
matrix = weights.tensor("embed")
check_rows(matrix, "embed", "model", {})
stored_rows.NEAR_BYTES, stored_rows.FAR_ROWS = 8 << 20, 8  # scaled to a matrix a tenth as large as real ones
stored_rows.gather(matrix, torch.randperm(len(matrix), generator=torch.Generator().manual_seed(0))[:4000])
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs /proc/self/status")
def test_reading_a_large_matrix_takes_little_memory(tmp_path: Path) -> None:
    size = 256 << 20
    header = json.dumps({"embed": {"dtype": "BF16", "shape": [size // 2048, 1024], "data_offsets": [0, size]}}).encode()
    header += b" " * (-len(header) % 8)
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    run = [sys.executable, "-c", MEASURE, str(tmp_path)]
    result = subprocess.run(run, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 64 << 10, "more than 64 MiB for a matrix of 256"


SHARED = """
import os, subprocess, sys
from pathlib import Path
import torch
from saltlm.files.copy import copy_file, shares_blocks
from saltlm.model.safetensors_header import read_header
from saltlm.model.safetensors_stream import rewrite
room = Path(sys.argv[1])
from safetensors.torch import load_file, save_file
body = torch.randn(10 << 20)
save_file({"body": body, "embed": torch.zeros(16, 1024)}, room / "a")
def used():
    os.sync()
    status = os.statvfs(room)
    return (status.f_blocks - status.f_bfree) * status.f_frsize
before = used()
assert shares_blocks(room / "a", room)
copy_file(room / "a", room / "b")
copied = used() - before
rewrite(read_header(room / "a"), room / "c", {"embed": torch.ones(40, 1024)})
print(copied, used() - before - copied)
assert (room / "a").read_bytes() == (room / "b").read_bytes()
assert torch.equal(load_file(room / "c")["body"], body)
"""


@pytest.mark.real
@pytest.mark.parametrize("file_system", ["btrfs", "xfs"])
def test_blocks_are_shared_where_the_file_system_can(tmp_path: Path, file_system: str) -> None:
    """Needs root, mkfs of this file system and a loop device to mount it from a file."""
    make = shutil.which(f"mkfs.{file_system}", path=os.environ.get("PATH", "") + ":/sbin:/usr/sbin")
    if make is None or os.geteuid() != 0:
        pytest.skip(f"needs root and mkfs.{file_system}")
    image, room = tmp_path / "image", tmp_path / "room"
    with image.open("wb") as file:
        file.truncate(400 << 20)
    room.mkdir()
    subprocess.run([make, "-q", str(image)], check=True, capture_output=True)
    if subprocess.run(["mount", "-o", "loop", str(image), str(room)], capture_output=True).returncode:
        pytest.skip("this system does not allow mounting")
    try:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
        run = [sys.executable, "-c", SHARED, str(room)]
        result = subprocess.run(run, env=environment, capture_output=True, text=True)
    finally:
        subprocess.run(["umount", str(room)], check=True)
    assert result.returncode == 0, result.stderr
    copied, rewritten = map(int, result.stdout.split())
    assert copied < 4 << 20, "a copy of 40 MiB took new blocks"
    assert rewritten < 4 << 20, "the kept tensor of 40 MiB took new blocks"
