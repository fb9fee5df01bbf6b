"""Every source of auxiliary vectors, from files made here, and what is refused."""

from __future__ import annotations

import gzip
import json
import struct

import numpy as np
import pytest
import torch
from saltlm.auxiliary import Auxiliary, check_auxiliary, load_auxiliary
from saltlm.errors import InputError
from test_fasttext import write as write_fasttext

WORDS = ["talo", None, "kissa", "talo", "zzz", "a b"]
LINES = ["talo 1 2 3", "kissa 0.5 -1e-3 4", "muu 9 9 9", "a b 7 8 9"]


def write_text(path, lines=tuple(LINES), header=True, end="\n") -> None:
    text = (f"{len(lines)} 3\n" if header else "") + "\n".join(lines) + end
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        file.write(text)


@pytest.mark.parametrize("name", ["v.vec", "v.txt", "v.vec.gz"])
@pytest.mark.parametrize("header", [True, False])
def test_text_files(tmp_path, name: str, header: bool) -> None:
    write_text(tmp_path / name, header=header)
    found = load_auxiliary(tmp_path / name, WORDS)
    assert found.known.tolist() == [True, False, True, True, False, True]
    assert found.vectors.tolist()[0] == found.vectors.tolist()[3] == [1, 2, 3]
    assert found.vectors.tolist()[5] == [7, 8, 9]
    assert not found.vectors[[1, 4]].any()
    assert found.description["kind"] == "text" and len(found.description["sha256"]) == 64
    assert found.description["known"] == 4


def test_fasttext(tmp_path) -> None:
    write_fasttext(tmp_path / "m.bin")
    found = load_auxiliary(str(tmp_path / "m.bin"), WORDS)
    assert found.known.tolist() == [True, False, True, True, True, True]
    assert found.description["kind"] == "fasttext" and found.vectors.shape == (6, 3)


def test_the_plms_own_rows() -> None:
    rows = torch.tensor([[1.0, 2], [0, 0], [3, float("nan")], [4, 5]])
    found = load_auxiliary("plm", [None] * 4, plm_rows=rows)
    assert found.known.tolist() == [True, False, False, True]
    assert found.vectors.isfinite().all()
    with pytest.raises(InputError, match="plm_rows"):
        load_auxiliary("plm", [None] * 3, plm_rows=rows)


def murmur64a(data: bytes, seed: int = 1) -> int:
    """The string hash of spaCy's tables, written apart from the Rust one."""
    m, mask = 0xC6A4A7935BD1E995, (1 << 64) - 1
    h = (seed ^ (len(data) * m)) & mask
    whole = len(data) // 8 * 8
    for i in range(0, whole, 8):
        k = int.from_bytes(data[i : i + 8], "little") * m & mask
        k = (k ^ (k >> 47)) * m & mask
        h = (h ^ k) * m & mask
    if data[whole:]:
        h = (h ^ int.from_bytes(data[whole:], "little")) * m & mask
    h = (h ^ (h >> 47)) * m & mask
    return h ^ (h >> 47)


def write_table(folder, words: list[str], table: np.ndarray) -> None:
    folder.mkdir(parents=True)
    with (folder / "vectors").open("wb") as file:
        np.save(file, table)
    entries = b"".join(b"\xcf" + struct.pack(">Q", murmur64a(w.encode())) + bytes([i]) for i, w in enumerate(words))
    (folder / "key2row").write_bytes(b"\xdf" + struct.pack(">I", len(words)) + entries)
    (folder / "vectors.cfg").write_text(json.dumps({"mode": "default"}), encoding="utf-8")


@pytest.mark.parametrize("inside", ["", "vocab", "model/vocab"])
def test_spacy_word_tables(tmp_path, inside: str) -> None:
    table = np.arange(1, 10, dtype=np.float32).reshape(3, 3)
    write_table(tmp_path / "spacy" / inside, ["kissa", "talo", "pitkäsananen"], table)
    found = load_auxiliary(tmp_path / "spacy", [*WORDS, "pitkäsananen"])
    assert found.known.tolist() == [True, False, True, True, False, False, True]
    assert found.vectors.tolist()[0] == [4, 5, 6] and found.vectors.tolist()[6] == [7, 8, 9]
    assert found.description["kind"] == "spacy"


def test_floret_tables_give_every_word_a_vector(tmp_path) -> None:
    write_table(tmp_path / "f", ["x"], np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32))
    config = {"mode": "floret", "minn": 3, "maxn": 4, "hash_count": 2, "hash_seed": 7, "bow": "<", "eow": ">"}
    (tmp_path / "f" / "vectors.cfg").write_text(json.dumps(config), encoding="utf-8")
    found = load_auxiliary(tmp_path / "f", [*WORDS, "käärme"])
    assert found.known.tolist() == [True, False, True, True, True, True, True]


def test_a_broken_table_is_named(tmp_path) -> None:
    write_table(tmp_path / "f", ["x"], np.ones((1, 3), dtype=np.float32))
    (tmp_path / "f" / "key2row").write_bytes(b"\xdf\0\0\0\x09\xcf")
    with pytest.raises(InputError, match="key2row"):
        load_auxiliary(tmp_path / "f", WORDS)


def test_training_on_text_is_deterministic_and_kept(tmp_path, monkeypatch) -> None:
    pytest.importorskip("gensim")
    monkeypatch.setenv("SALTLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("saltlm.train_vectors.SETTINGS", {**train_settings(), "bucket": 100, "vector_size": 8})
    (tmp_path / "a.txt").write_text("talo ja kissa istuu talo\n" * 30, encoding="utf-8")
    spec = f"train:{tmp_path / 'a.txt'}"
    first = load_auxiliary(spec, WORDS)
    (kept,) = (tmp_path / "cache" / "trained").iterdir()
    data = kept.read_bytes()
    assert torch.equal(load_auxiliary(spec, WORDS).vectors, first.vectors)
    kept.unlink()
    assert torch.equal(load_auxiliary(spec, WORDS).vectors, first.vectors)
    assert kept.read_bytes() == data
    (tmp_path / "b.txt").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="too little text"):
        load_auxiliary(f"train:{tmp_path / 'b.txt'}", WORDS)


def train_settings() -> dict:
    from saltlm.train_vectors import SETTINGS

    return SETTINGS


@pytest.mark.parametrize(
    ("lines", "header", "words"),
    [
        (["talo 1 2"], True, "found 3 fields"),
        (["talo 1 2 x"], True, "'talo'|\"talo\""),
        (["talo 1 nan 3"], True, "talo"),
        (["talo 1 inf 3"], True, "talo"),
        ([], False, "no vector|expected a header"),
        (["just some words here"], False, "expected a header"),
    ],
)
def test_bad_lines_are_named(tmp_path, lines, header, words) -> None:
    write_text(tmp_path / "v.vec", lines, header, end="\n" if lines else "")
    with pytest.raises(InputError, match=words) as caught:
        load_auxiliary(tmp_path / "v.vec", WORDS)
    assert "v.vec, line" in str(caught.value)


def test_a_short_file_is_truncated(tmp_path) -> None:
    (tmp_path / "v.vec").write_text("5 3\n" + "\n".join(LINES), encoding="utf-8")
    with pytest.raises(InputError, match="5 vectors, as its first line says; the file is truncated"):
        load_auxiliary(tmp_path / "v.vec", WORDS)


def test_a_cut_gzip_is_named(tmp_path) -> None:
    write_text(tmp_path / "v.vec.gz")
    (tmp_path / "v.vec.gz").write_bytes((tmp_path / "v.vec.gz").read_bytes()[:-12])
    with pytest.raises(InputError, match="unreadable"):
        load_auxiliary(tmp_path / "v.vec.gz", WORDS)


def test_nan_in_a_binary_file_is_named(tmp_path) -> None:
    matrix = write_fasttext(tmp_path / "m.bin", buckets=0, grams=(0, 0))
    data = (tmp_path / "m.bin").read_bytes()
    (tmp_path / "m.bin").write_bytes(data.replace(matrix[1].tobytes(), np.full(3, np.nan, "<f4").tobytes()))
    with pytest.raises(InputError, match=r"NaN or inf in the vectors of \['talo'\]"):
        load_auxiliary(tmp_path / "m.bin", WORDS)


def test_vectors_of_another_script(tmp_path) -> None:
    write_text(tmp_path / "v.vec")
    with pytest.raises(InputError, match="a vector for none of the 2 words"):
        load_auxiliary(tmp_path / "v.vec", ["слово", "ещё", None])


def test_missing_sources(tmp_path) -> None:
    for spec in (tmp_path / "no.bin", "train:" + str(tmp_path / "no.txt"), tmp_path):
        with pytest.raises(InputError, match=r"nothing at|no file at|no files"):
            check_auxiliary(spec)
    (tmp_path / "x.ftz").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="magic number"):
        check_auxiliary(tmp_path / "x.ftz")


def test_a_result_checks_and_prints_its_shapes() -> None:
    found = Auxiliary(torch.zeros(3, 2), torch.ones(3, dtype=torch.bool), {"kind": "text"})
    assert repr(found) == "Auxiliary(T=3, P=2, known=3, kind='text')"
    with pytest.raises(ValueError, match="do not agree"):
        Auxiliary(torch.zeros(3, 2), torch.ones(2, dtype=torch.bool), {})
