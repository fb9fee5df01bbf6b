"""Every kind of auxiliary vectors, from files that the tests write, and the inputs that are refused."""

from __future__ import annotations

import gzip
import json
import struct

import numpy as np
import pytest
import torch
from test_fasttext import write as write_fasttext

from saltlm.errors import InputError
from saltlm.vectors.auxiliary import Auxiliary, check_auxiliary, load_auxiliary

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
    auxiliary = load_auxiliary(tmp_path / name, WORDS)
    assert auxiliary.known.tolist() == [True, False, True, True, False, True]
    assert auxiliary.vectors.tolist()[0] == auxiliary.vectors.tolist()[3] == [1, 2, 3]
    assert auxiliary.vectors.tolist()[5] == [7, 8, 9]
    assert not auxiliary.vectors[[1, 4]].any()
    assert auxiliary.description["kind"] == "text" and len(auxiliary.description["sha256"]) == 64
    assert auxiliary.description["known"] == 4


def test_fasttext(tmp_path) -> None:
    write_fasttext(tmp_path / "m.bin")
    auxiliary = load_auxiliary(str(tmp_path / "m.bin"), WORDS)
    assert auxiliary.known.tolist() == [True, False, True, True, True, True]
    assert auxiliary.description["kind"] == "fasttext" and auxiliary.vectors.shape == (6, 3)


def test_rows_of_the_plm() -> None:
    rows = torch.tensor([[1.0, 2], [0, 0], [3, float("nan")], [4, 5]])
    auxiliary = load_auxiliary("plm", [None] * 4, plm_rows=rows)
    assert auxiliary.known.tolist() == [True, False, False, True]
    assert auxiliary.vectors.isfinite().all()
    with pytest.raises(InputError, match="plm_rows"):
        load_auxiliary("plm", [None] * 3, plm_rows=rows)


def murmur64a(data: bytes, seed: int = 1) -> int:
    """The string hash of spaCy's tables, independent of the Rust implementation."""
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
    auxiliary = load_auxiliary(tmp_path / "spacy", [*WORDS, "pitkäsananen"])
    assert auxiliary.known.tolist() == [True, False, True, True, False, False, True]
    assert auxiliary.vectors.tolist()[0] == [4, 5, 6] and auxiliary.vectors.tolist()[6] == [7, 8, 9]
    assert auxiliary.description["kind"] == "spacy"


def murmur3(data: bytes, seed: int) -> list[int]:
    """Four 32-bit hashes as floret computes them, independent of the Rust implementation."""
    c1, c2, mask = 0x87C37B91114253D5, 0x4CF5AD432745937F, (1 << 64) - 1

    def rotate(x: int, r: int) -> int:
        return (x << r | x >> (64 - r)) & mask

    def final(k: int) -> int:
        k = (k ^ (k >> 33)) * 0xFF51AFD7ED558CCD & mask
        k = (k ^ (k >> 33)) * 0xC4CEB9FE1A85EC53 & mask
        return k ^ (k >> 33)

    h1 = h2 = seed
    for i in range(0, len(data) // 16 * 16, 16):
        k1, k2 = struct.unpack_from("<2Q", data, i)
        h1 = (rotate(h1 ^ (rotate(k1 * c1 & mask, 31) * c2 & mask), 27) + h2) * 5 + 0x52DCE729 & mask
        h2 = (rotate(h2 ^ (rotate(k2 * c2 & mask, 33) * c1 & mask), 31) + h1) * 5 + 0x38495AB5 & mask
    tail = data[len(data) // 16 * 16 :]
    k1, k2 = (int.from_bytes(part, "little") for part in (tail[:8], tail[8:]))
    h2 ^= rotate(k2 * c2 & mask, 33) * c1 & mask
    h1 ^= rotate(k1 * c1 & mask, 31) * c2 & mask
    h1, h2 = h1 ^ len(data), h2 ^ len(data)
    h1 = (h1 + h2) & mask
    h2 = (h2 + h1) & mask
    h1, h2 = final(h1), final(h2)
    h1 = (h1 + h2) & mask
    h2 = (h2 + h1) & mask
    return [h1 & 0xFFFFFFFF, h1 >> 32, h2 & 0xFFFFFFFF, h2 >> 32]


@pytest.mark.parametrize("dtype", ["<f4", "<f2"])
@pytest.mark.parametrize("hashes", [1, 2, 4])
def test_floret_vectors_are_means_of_hashed_rows(tmp_path, dtype: str, hashes: int) -> None:
    table = np.random.default_rng(0).normal(size=(50, 4)).astype(dtype)
    write_table(tmp_path / "f", ["x"], table)
    config = {"mode": "floret", "minn": 3, "maxn": 4, "hash_count": hashes, "hash_seed": 7, "bow": "<", "eow": ">"}
    (tmp_path / "f" / "vectors.cfg").write_text(json.dumps(config), encoding="utf-8")
    words = [*WORDS, "käärme", "pitkäsananenkin"]
    auxiliary = load_auxiliary(tmp_path / "f", words)
    assert auxiliary.known.tolist() == [word is not None for word in words]
    for word, vector in zip(words, auxiliary.vectors, strict=True):
        if word is None:
            assert not vector.any()
            continue
        marked = f"<{word}>"
        grams = [marked, *(marked[i : i + n] for n in (3, 4) for i in range(len(marked) - n + 1))]
        rows = [h % 50 for gram in grams for h in murmur3(gram.encode(), 7)[:hashes]]
        np.testing.assert_array_equal(vector, table[rows].astype(np.float32).mean(axis=0))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ('{"mode": "floret", "minn": 3}', "KeyError: 'maxn'"),
        ("{", "JSONDecodeError"),
        ("[]", "AttributeError"),
    ],
)
def test_the_error_names_broken_floret_settings(tmp_path, config: str, words: str) -> None:
    write_table(tmp_path / "f", ["x"], np.ones((2, 3), dtype=np.float32))
    (tmp_path / "f" / "vectors.cfg").write_text(config, encoding="utf-8")
    with pytest.raises(InputError, match=rf"vectors\.cfg: found a broken file \({words}"):
        load_auxiliary(tmp_path / "f", WORDS)


def test_a_pickled_table_is_refused(tmp_path) -> None:
    write_table(tmp_path / "f", ["x"], np.array([[object()]], dtype=object))
    with pytest.raises(InputError, match="vectors"):
        load_auxiliary(tmp_path / "f", WORDS)


def test_a_huge_file_is_not_hashed(tmp_path, monkeypatch) -> None:
    write_fasttext(tmp_path / "m.bin")
    whole = load_auxiliary(tmp_path / "m.bin", WORDS).description
    monkeypatch.setattr("saltlm.vectors.auxiliary.MAX_HASHED_BYTES", 100)
    huge = load_auxiliary(tmp_path / "m.bin", WORDS).description
    assert len(whole["sha256"]) == 64 and huge["sha256"] is None
    assert huge["vectors_sha256"] == whole["vectors_sha256"] and huge["bytes"] == whole["bytes"] > 100


def test_the_error_names_a_broken_table(tmp_path) -> None:
    write_table(tmp_path / "f", ["x"], np.ones((1, 3), dtype=np.float32))
    (tmp_path / "f" / "key2row").write_bytes(b"\xdf\0\0\0\x09\xcf")
    with pytest.raises(InputError, match="key2row"):
        load_auxiliary(tmp_path / "f", WORDS)


def test_a_cache_that_cannot_be_written_is_an_error_before_the_training(tmp_path, monkeypatch) -> None:
    gensim = pytest.importorskip("gensim.models")
    monkeypatch.setattr(gensim.FastText, "train", lambda *_, **__: pytest.fail("the training started"))
    (tmp_path / "file").write_text("talo ja kissa\n" * 30)
    monkeypatch.setenv("SALTLM_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"a file where a folder is needed.*SALTLM_CACHE"):
        load_auxiliary(f"train:{tmp_path / 'file'}", WORDS)


def test_training_on_text_is_deterministic_and_kept(tmp_path, monkeypatch) -> None:
    pytest.importorskip("gensim")
    monkeypatch.setenv("SALTLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("saltlm.vectors.train.SETTINGS", {**train_settings(), "bucket": 100, "vector_size": 8})
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
    (tmp_path / "c.txt").write_bytes(b"talo \xff")
    with pytest.raises(InputError, match=r"c\.txt: found bytes that are not UTF-8"):
        load_auxiliary(f"train:{tmp_path / 'a.txt'},{tmp_path / 'c.txt'}", WORDS)


def train_settings() -> dict:
    from saltlm.vectors.train import SETTINGS

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
def test_the_error_names_bad_lines(tmp_path, lines, header, words) -> None:
    write_text(tmp_path / "v.vec", lines, header, end="\n" if lines else "")
    with pytest.raises(InputError, match=words) as caught:
        load_auxiliary(tmp_path / "v.vec", WORDS)
    assert "v.vec, line" in str(caught.value)


def test_a_short_file_is_truncated(tmp_path) -> None:
    (tmp_path / "v.vec").write_text("5 3\n" + "\n".join(LINES), encoding="utf-8")
    with pytest.raises(InputError, match="5 vectors, as its first line says; the file is truncated"):
        load_auxiliary(tmp_path / "v.vec", WORDS)


def test_a_truncated_gzip_file_is_refused(tmp_path) -> None:
    write_text(tmp_path / "v.vec.gz")
    (tmp_path / "v.vec.gz").write_bytes((tmp_path / "v.vec.gz").read_bytes()[:-12])
    with pytest.raises(InputError, match="unreadable"):
        load_auxiliary(tmp_path / "v.vec.gz", WORDS)


def test_the_error_names_a_word_with_nan(tmp_path) -> None:
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
    auxiliary = Auxiliary(torch.zeros(3, 2), torch.ones(3, dtype=torch.bool), {"kind": "text"})
    assert repr(auxiliary) == "Auxiliary(T=3, P=2, known=3, kind='text')"
    with pytest.raises(ValueError, match="do not agree"):
        Auxiliary(torch.zeros(3, 2), torch.ones(2, dtype=torch.bool), {})
