"""Laws of the streaming copy: tensors that are not replaced keep their bits, replaced ones have the given values."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from saltlm.errors import BackendError, InputError
from saltlm.files.copy import copy_file
from saltlm.model.safetensors_header import read_header
from saltlm.model.safetensors_stream import rewrite

ALL_DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]
FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]

shapes = st.lists(st.integers(0, 5), min_size=0, max_size=3).map(tuple)


@st.composite
def tensors(draw, dtypes=tuple(ALL_DTYPES), shape=None):
    dtype = draw(st.sampled_from(dtypes))
    shape = draw(shapes) if shape is None else shape
    count = int(torch.tensor(shape).prod()) if shape else 1
    data = draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
    if dtype is torch.bool:
        data = bytes(byte & 1 for byte in data)
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)


def bits(tensor: torch.Tensor) -> tuple:
    return tensor.dtype, tuple(tensor.shape), tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


@given(
    content=st.dictionaries(st.text(min_size=1, max_size=8), tensors(), min_size=1, max_size=5),
    metadata=st.none() | st.dictionaries(st.text(max_size=5), st.text(max_size=5), min_size=1, max_size=2),
    data=st.data(),
)
def test_a_copy_holds_the_same_bits_except_replaced_tensors(tmp_path_factory, content, metadata, data) -> None:
    content.pop("__metadata__", None)
    folder = tmp_path_factory.mktemp("stream")
    save_file(content, folder / "a.safetensors", metadata=metadata)
    names = data.draw(st.lists(st.sampled_from(sorted(content)), unique=True)) if content else []
    new = {name: data.draw(tensors(dtypes=FLOATS)) for name in names}
    rewrite(read_header(folder / "a.safetensors"), folder / "b.safetensors", new)
    expected = {name: bits(tensor) for name, tensor in (content | new).items()}
    assert {name: bits(tensor) for name, tensor in load_file(folder / "b.safetensors").items()} == expected
    with safe_open(folder / "b.safetensors", framework="pt") as file:
        assert file.metadata() == metadata
    header = read_header(folder / "b.safetensors")
    assert header.data_start % 8 == 0
    assert all(entry.start % entry.item_bytes == 0 for entry in header.entries.values() if entry.item_bytes)


def test_replacing_nothing_copies_the_file_byte_for_byte(tmp_path: Path) -> None:
    content = {"b": torch.arange(5.0), "a": torch.arange(7), "c": torch.ones(3, dtype=torch.bfloat16)}
    save_file(content, tmp_path / "a", metadata={"format": "pt"})
    rewrite(read_header(tmp_path / "a"), tmp_path / "b", {})
    copy_file(tmp_path / "a", tmp_path / "c")
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes() == (tmp_path / "c").read_bytes()


def test_progress_counts_every_byte_once(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1000), "b": torch.zeros(70, 3)}, tmp_path / "a")
    counts: list[int] = []
    rewrite(read_header(tmp_path / "a"), tmp_path / "b", {"b": torch.ones(90, 3)}, progress=counts.append)
    assert sum(counts) == 4000 + 90 * 3 * 4


@pytest.mark.parametrize("code", [errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_kernel_copy_the_bytes_are_the_same(tmp_path: Path, monkeypatch, code: int) -> None:
    def refuse(*arguments) -> int:
        raise OSError(code, "refused")

    save_file({"a": torch.randn(3000), "b": torch.randn(40, 3)}, tmp_path / "a")
    rewrite(read_header(tmp_path / "a"), tmp_path / "b", {"b": torch.ones(9, 3)})
    monkeypatch.setattr(os, "copy_file_range", refuse)
    rewrite(read_header(tmp_path / "a"), tmp_path / "c", {"b": torch.ones(9, 3)})
    assert (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()


def test_a_file_that_shrinks_meanwhile_is_an_error(tmp_path: Path) -> None:
    save_file({"a": torch.randn(3000), "b": torch.randn(40, 3)}, tmp_path / "a")
    header = read_header(tmp_path / "a")
    os.truncate(tmp_path / "a", 2000)
    with pytest.raises(BackendError, match="changed while it was read"):
        rewrite(header, tmp_path / "b", {})


def damage_cut(data: bytes) -> bytes:
    return data[:-1]


def damage_longer(data: bytes) -> bytes:
    return data + b"\0"


def damage_in_header(data: bytes) -> bytes:
    return data[:30]


def damage_empty(data: bytes) -> bytes:
    return b""


def damage_zip(data: bytes) -> bytes:
    return b"PK\x03\x04" + data


def damage_json(data: bytes) -> bytes:
    return data[:8] + b"[" + data[9:]


def damage_hole(data: bytes) -> bytes:
    return data.replace(b"[0,12]", b"[4,12]")


def damage_lfs(data: bytes) -> bytes:
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_cut, "a file of .* bytes; expected .* as its header says"),
        (damage_longer, "a file of .* bytes; expected .* as its header says"),
        (damage_in_header, "30 bytes, which ends inside the header"),
        (damage_empty, "0 bytes, which ends inside the header"),
        (damage_zip, "a header length of"),
        (damage_json, "corrupt"),
        (damage_hole, "tensor 'a' of shape"),
        (damage_lfs, "git-LFS pointer"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, damage, message: str) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(3)}, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=message):
        read_header(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_header(tmp_path / "a.safetensors")


@given(st.binary(max_size=120))
def test_random_bytes_are_refused(tmp_path_factory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("random") / "a"
    path.write_bytes(data)
    with pytest.raises(InputError):
        read_header(path)


# VmHWM and not ru_maxrss: the latter starts at the size of the test run, which would hide any growth below it.
MEASURE = """
import errno, os, sys
from pathlib import Path
import torch
import saltlm.model.checkpoint, saltlm.folder.write
from saltlm.model.safetensors_header import read_header
from saltlm.model.safetensors_stream import rewrite
assert "transformers" not in sys.modules
folder = Path(sys.argv[1])
def refuse(*arguments):
    raise OSError(errno.EXDEV, "refused")
rows = torch.ones(1000, 64)
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
for how in ("kernel", "blocks"):
    if how == "blocks":
        os.copy_file_range = refuse
    before = peak()
    rewrite(read_header(folder / "big.safetensors"), folder / (how + ".safetensors"), {"embed": rows})
    print(peak() - before)
"""


def make_big(folder: Path) -> Path:
    """A shard of 2 GiB: a hole between two stretches of 80 MiB of written bytes."""
    length, island = 2 << 30, 80 << 20
    header = {
        "body": {"dtype": "F32", "shape": [length // 4], "data_offsets": [0, length]},
        "embed": {"dtype": "F32", "shape": [10, 64], "data_offsets": [length, length + 2560]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "big.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        start = file.tell()
        for begin in (start, start + length - island):
            file.seek(begin)
            for number in range(island >> 20):
                file.write(bytes([number + 1]) * (1 << 20))
        file.write(bytes(2560))
    return folder


def test_a_large_shard_passes_through_in_little_memory(tmp_path: Path) -> None:
    """Copied by the kernel, and block by block; and none of this needs transformers in memory."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = [sys.executable, "-c", MEASURE, str(make_big(tmp_path))]
    result = subprocess.run(run, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for how, grown in zip(("kernel", "blocks"), map(int, result.stdout.split()), strict=True):
        assert grown < 40 << 10, f"{how}: more than 40 MiB for a file of 2 GiB, of which 160 MiB are no hole"
        old, new = tmp_path / "big.safetensors", tmp_path / f"{how}.safetensors"
        start, moved = read_header(old).data_start, read_header(new)
        assert (moved.entries["body"].start, moved.data_bytes) == (0, (2 << 30) + 1000 * 64 * 4)
        with old.open("rb") as one, new.open("rb") as other:
            for offset in (0, (80 << 20) - 500, (2 << 30) - (80 << 20) - 500, (2 << 30) - 1000):
                one.seek(start + offset)
                other.seek(moved.data_start + offset)
                assert one.read(1000) == other.read(1000)
        assert new.stat().st_blocks * 512 < 400 << 20, "the hole was filled"
        new.unlink()
    (tmp_path / "big.safetensors").unlink()
