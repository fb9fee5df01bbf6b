"""Headers of safetensors files: every dtype of the format is read, every contradiction is one clear error."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from models_tiny import save_bert, save_llama
from safetensors import SafetensorError, safe_open
from tokenizers_tiny import tiny

from saltlm import evaluate
from saltlm.errors import InputError
from saltlm.model.checkpoint import load_donor, load_source
from saltlm.model.safetensors_header import ITEM_BITS, read_header
from saltlm.model.safetensors_stream import rewrite


def write(path: Path, header: object, data: bytes = b"", *, raw: bytes | None = None) -> Path:
    """A file with this header, as JSON or as the bytes given, and this data."""
    text = json.dumps(header).encode() if raw is None else raw
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: Any = "F32", shape: Any = (3,), offsets: Any = (0, 12)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize("dtype", ITEM_BITS)
def test_every_dtype_of_the_format_is_read_and_copied(tmp_path: Path, dtype: str) -> None:
    count = 8 * ITEM_BITS[dtype] // 8
    data = bytes(range(count)) + bytes(4)
    path = write(
        tmp_path / "a", {"a": entry(dtype, [2, 4], [0, count]), "b": entry("F32", [], [count, count + 4])}, data
    )
    header = read_header(path)
    assert header.entries["a"].shape == (2, 4) and header.entries["a"].end == count
    try:
        with safe_open(path, framework="pt") as file:
            assert set(file.keys()) == {"a", "b"}
    except SafetensorError as error:  # an older safetensors may not have the dtype yet
        assert "dtype" in str(error) or "variant" in str(error)
    rewrite(header, tmp_path / "b", {"b": torch.ones(2)})
    copied = read_header(tmp_path / "b")
    start = copied.data_start + copied.entries["a"].start
    assert (tmp_path / "b").read_bytes()[start : start + count] == data[:count]


ZEROS = bytes(12)
WRONG: dict[str, tuple[object, str]] = {
    "unknown dtype": ({"a": entry("F99")}, "unknown dtype 'F99'"),
    "dtype of a number": ({"a": entry(7)}, "an entry of another form for tensor 'a'"),
    "dtype missing": ({"a": {"shape": [3], "data_offsets": [0, 12]}}, "an entry of another form"),
    "shape too large": ({"a": entry(shape=[4])}, r"16 bytes from 0"),
    "shape too small": ({"a": entry(shape=[2])}, r"8 bytes from 0"),
    "size of another dtype": ({"a": entry("I8")}, r"3 bytes from 0"),
    "half a byte": ({"a": entry("F4", [1], [0, 1])}, "a whole number of bytes"),
    "negative dimensions": ({"a": entry(shape=[-1, -3])}, "another form"),
    "fractional dimension": ({"a": entry(shape=[3.0])}, "another form"),
    "dimension true": ({"a": entry(shape=[True, 3])}, "another form"),
    "dimension as text": ({"a": entry(shape=["3"])}, "another form"),
    "shape no list": ({"a": entry(shape=3)}, "another form"),
    "shape nested": ({"a": entry(shape=[[3]])}, "another form"),
    "huge dimension": ({"a": entry(shape=[1 << 64, 0], offsets=[0, 0])}, "another form"),
    "too many dimensions": ({"a": entry(shape=[1] * 65)}, "another form"),
    "negative offset": ({"a": entry(offsets=[-12, 0])}, "another form"),
    "one offset": ({"a": entry(offsets=[12])}, "another form"),
    "three offsets": ({"a": entry(offsets=[0, 6, 12])}, "another form"),
    "reversed offsets": ({"a": entry(offsets=[12, 0])}, r"12 bytes from 0"),
    "offsets past the end": ({"a": entry(shape=[6], offsets=[0, 24])}, "as its header says"),
    "gap": ({"a": entry(offsets=[4, 16])}, r"12 bytes from 0"),
    "overlap": ({"a": entry(), "b": entry(offsets=[0, 12])}, r"12 bytes from 12"),
    "nested metadata": ({"__metadata__": {"a": {"b": "c"}}, "a": entry()}, "__metadata__ of another form"),
    "metadata of numbers": ({"__metadata__": {"a": 1}, "a": entry()}, "__metadata__ of another form"),
    "metadata a list": ({"__metadata__": ["a"], "a": entry()}, "__metadata__ of another form"),
    "entry no object": ({"a": [1, 2]}, "another form for tensor 'a'"),
    "no object": ([entry()], "corrupt"),
    "half a character": ({"\ud800": entry()}, "another form"),
}
RAW = {
    "twice": (
        b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]},"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}',
        "'a' twice",
    ),
    "field twice": (b'{"a":{"dtype":"F32","dtype":"I32","shape":[3],"data_offsets":[0,12]}}', "'dtype' twice"),
    "NaN": (b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,12]}}', "another form"),
    "many digits": (b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,12]}}', "not JSON"),
    "deep": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not JSON|another form"),
    "no UTF-8": (b'{"\xff":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}', "not JSON"),
    "spaces before": (b' {"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}', "does not begin with"),
}


@pytest.mark.parametrize("kind", [*WRONG, *RAW])
def test_contradictions_in_a_header_are_one_error(tmp_path: Path, kind: str) -> None:
    header, message = WRONG.get(kind, (None, ""))
    raw = None
    if kind in RAW:
        raw, message = RAW[kind]
    path = write(tmp_path / "a.safetensors", header, ZEROS, raw=raw)
    with pytest.raises(InputError, match=message) as caught:
        read_header(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_the_reader_is_as_strict_as_safetensors(tmp_path: Path) -> None:
    """What safetensors refuses is refused here, so that no file is copied that cannot be loaded."""
    for kind, (header, _) in WRONG.items():
        path = write(tmp_path / "a.safetensors", header, ZEROS)
        with pytest.raises(InputError):
            read_header(path)
        if kind in ("too many dimensions", "huge dimension"):
            continue  # safetensors alone would read these
        with pytest.raises(SafetensorError), safe_open(path, framework="pt"):
            pass


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("models")
    save_llama(root / "source", tiny("byte_level_bpe"), tied=False)
    save_llama(root / "sharded", tiny("byte_level_bpe"), tied=False, max_shard_size=20_000)
    save_bert(root / "donor", tiny("wordpiece"))
    return root


def damage_body(path: Path, **changes: object) -> None:
    """Change the header's entry of a tensor that holds no vocabulary rows."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    name = next(key for key in header if "norm" in key.lower())
    header[name].update(changes)
    write(path, header, data[8 + length :])


BODY = {
    "unknown dtype": {"dtype": "Q4_K"},
    "another shape": {"shape": [31]},
    "negative shape": {"shape": [-1]},
    "nested shape": {"shape": [[32]]},
}


@pytest.mark.parametrize("kind", BODY)
def test_damaged_body_tensors_are_refused_everywhere(tmp_path: Path, models: Path, kind: str) -> None:
    for side, load in (("source", load_source), ("donor", load_donor)):
        shutil.copytree(models / side, tmp_path / side)
        damage_body(tmp_path / side / "model.safetensors", **BODY[kind])
        with pytest.raises(InputError, match=r"norm|Norm"):
            load(tmp_path / side)
    with pytest.raises(InputError, match="norm"):
        evaluate(tmp_path / "source", documents=["text"])


def change_index(folder: Path, change) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


def same_tensor_in_two_shards(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    first, second = sorted(folder.glob("model-*.safetensors"))[:2]
    key, value = next(iter(load_file(first).items()))
    save_file({**load_file(second), key: value}, second, metadata={"format": "pt"})


INDEX = {
    "missing shard": (lambda i: i["weight_map"].update(a="model-9.safetensors"), "no model-9.safetensors"),
    "missing key": (
        lambda i: i["weight_map"].update(ghost=next(iter(i["weight_map"].values()))),
        "no tensor 'ghost'",
    ),
    "file of a number": (lambda i: i["weight_map"].update(a=7), "no weight_map"),
    "map a list": (lambda i: i.update(weight_map=["a"]), "no weight_map"),
    "metadata a list": (lambda i: i.update(metadata=["a"]), "metadata that is a list"),
    "a path": (lambda i: i["weight_map"].update(a="../source/model.safetensors"), "the name of a file in the folder"),
}


@pytest.mark.parametrize("kind", [*INDEX, "two shards"])
def test_damaged_indexes_are_refused(tmp_path: Path, models: Path, kind: str) -> None:
    shutil.copytree(models / "sharded", tmp_path / "model")
    message = "each tensor in one file"
    if kind == "two shards":
        same_tensor_in_two_shards(tmp_path / "model")
    else:
        change, message = INDEX[kind]
        change_index(tmp_path / "model", change)
    with pytest.raises(InputError, match=message):
        load_source(tmp_path / "model")
