"""Files of vectors in every form: packed, binary, with tabs, a byte order mark or a wrong header; and their limits."""

from __future__ import annotations

import gzip
import json
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from strange_files import put, time_limit
from test_auxiliary import LINES, WORDS, write_table
from test_fasttext import write as write_fasttext

from saltlm import _rust
from saltlm.errors import InputError
from saltlm.vectors.auxiliary import check_auxiliary, load_auxiliary
from saltlm.vectors.segmented import check_words

VECTORS = np.array([[float(x) for x in line.split()[-3:]] for line in LINES], dtype="<f4")
NAMES = [" ".join(line.split()[:-3]) for line in LINES]


def word2vec(count: int | None = None, line_ends: bool = True, words=tuple(NAMES), values=VECTORS) -> bytes:
    """A binary file as word2vec (with line ends) or gensim (without) writes it."""
    data = f"{len(words) if count is None else count} {values.shape[1]}\n".encode()
    for word, row in zip(words, values, strict=True):
        data += word.encode() + b" " + row.tobytes() + b"\n" * line_ends
    return data


def packed(data: bytes, path: Path, member: str = "") -> Path:
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(data))
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(member or path.stem, data)
    else:
        path.write_bytes(data)
    return path


def text(lines=tuple(LINES), header: str = "4 3\n") -> bytes:
    return (header + "\n".join(lines) + "\n").encode()


# No word of a binary file has a space: the space ends the word.
PLAIN = [name.replace(" ", "_") for name in NAMES]
FORMS = {
    "text": text(),
    "without header": text(header=""),
    "byte order mark": b"\xef\xbb\xbf" + text(),
    "byte order mark without header": b"\xef\xbb\xbf" + text(header=""),
    "tabs": text([line[::-1].replace(" ", "\t", 3)[::-1] for line in LINES], "4\t3\n"),
    "tabs without header": text([line[::-1].replace(" ", "\t", 3)[::-1] for line in LINES], ""),
    "tab after the word": text(
        [line[::-1].replace(" ", "@", 2).replace(" ", "\t", 1).replace("@", " ")[::-1] for line in LINES]
    ),
    "runs of blanks": text([line[::-1].replace(" ", "  ", 3)[::-1] for line in LINES]),
    "windows line ends": text([line + "\r" for line in LINES], "4 3\r\n"),
    "header smaller than the file": text(header="2 3\n"),
}


@pytest.mark.parametrize("packing", ["v.vec", "v.vec.gz", "v.vec.zip", "v.bin"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_text_gives_the_same_vectors(tmp_path: Path, form: str, packing: str) -> None:
    if packing == "v.bin" and "without header" in form:
        pytest.skip("a text without a header is not taken for a model")
    path = packed(FORMS[form], tmp_path / packing)
    assert check_auxiliary(path) == "text"
    result = load_auxiliary(path, WORDS)
    assert result.known.tolist() == [True, False, True, True, False, True]
    assert result.vectors[[0, 2, 5]].tolist() == VECTORS[[0, 1, 3]].tolist()
    assert _rust.listed_words(path) == NAMES
    check_words(path)


@pytest.mark.parametrize("packing", ["v.bin", "v.bin.gz", "v.bin.zip", "no-suffix"])
@pytest.mark.parametrize("line_ends", [True, False])
@pytest.mark.parametrize("count", [None, 2], ids=["right count", "smaller count"])
def test_word2vec_binary(tmp_path: Path, packing: str, line_ends: bool, count: int | None) -> None:
    path = packed(word2vec(count, line_ends, PLAIN), tmp_path / packing)
    assert check_auxiliary(path) == "word2vec"
    result = load_auxiliary(path, WORDS)
    assert result.description["kind"] == "word2vec"
    assert result.known.tolist() == [True, False, True, True, False, False]
    assert result.vectors[[0, 2]].tolist() == VECTORS[[0, 1]].tolist()
    assert _rust.listed_words(path) == PLAIN
    check_words(path)


@pytest.mark.parametrize("dimension", [1, 2, 3, 25, 300])
@pytest.mark.parametrize("seed", range(8))
def test_binary_and_text_are_told_apart_by_their_content(tmp_path: Path, dimension: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(5, dimension)).astype("<f4")
    words = ["yksi", "kaksi", "kolme", "neljä", "viisi"]
    (tmp_path / "b").write_bytes(word2vec(words=words, values=values))
    lines = [f"{word} {' '.join(repr(float(x)) for x in row)}" for word, row in zip(words, values, strict=True)]
    (tmp_path / "t").write_bytes(text(lines, f"5 {dimension}\n"))
    assert (_rust.check_vectors(tmp_path / "b"), _rust.check_vectors(tmp_path / "t")) == ("word2vec", "text")
    for name in ("b", "t"):
        result, known = _rust.read_vectors(tmp_path / name, words)
        assert known.all()
        np.testing.assert_array_equal(result, values)


@pytest.mark.parametrize("packing", ["m.bin.gz", "cc.fi.300.bin.gz", "m.zip"])
@pytest.mark.parametrize("grams", [(3, 5), (0, 0), (1, 2)])
def test_a_packed_fasttext_model_gives_the_bits_of_the_mapped_one(tmp_path: Path, packing: str, grams) -> None:
    buckets = 50 if grams[1] else 0
    write_fasttext(tmp_path / "m.bin", dimension=7, grams=grams, buckets=buckets)
    path = packed((tmp_path / "m.bin").read_bytes(), tmp_path / packing, "m.bin")
    words = ["</s>", "talo", "käärme", "kissa", "a", "", None, "pitkäsananenkin"]
    assert check_auxiliary(path) == "fasttext"
    mapped, streamed = (_rust.read_vectors(file, words) for file in (tmp_path / "m.bin", path))
    for one, other in zip(mapped, streamed, strict=True):
        np.testing.assert_array_equal(one, other)
    assert torch.equal(load_auxiliary(path, WORDS[:1]).vectors, load_auxiliary(tmp_path / "m.bin", WORDS[:1]).vectors)


def test_an_archive_of_bin_and_vec_gives_the_model(tmp_path: Path) -> None:
    """fastText's wiki.xx.zip."""
    write_fasttext(tmp_path / "wiki.fi.bin")
    with zipfile.ZipFile(tmp_path / "wiki.fi.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "wiki.fi.bin", "wiki.fi.bin")
        archive.writestr("wiki.fi.vec", text())
        archive.writestr("__MACOSX/._wiki.fi.vec", b"x")
    assert check_auxiliary(tmp_path / "wiki.fi.zip") == "fasttext"
    assert _rust.read_vectors(tmp_path / "wiki.fi.zip", ["tuntematon"])[1].all(), "n-grams of the .bin"


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_ways_to_pack_an_archive(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "v.zip", "w", method) as archive:
        archive.writestr("folder/v.vec", text())
    if method == zipfile.ZIP_STORED:
        assert load_auxiliary(tmp_path / "v.zip", WORDS).known.sum() == 4
    else:
        with pytest.raises(InputError, match=r"found a zip archive packed by .*; unpack it first: unzip"):
            check_auxiliary(tmp_path / "v.zip")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a.vec", "b.vec"], r'2 files \("a\.vec", "b\.vec"\)'),
        ([], r"0 files \(\)"),
        (["\x1b[31ma", "b", "c", "d"], r'4 files \("\\u\{1b\}\[31ma", "b", "c", \.\.\.\)'),
    ],
)
def test_an_archive_of_other_files_is_refused_and_its_names_are_escaped(tmp_path: Path, names, words: str) -> None:
    with zipfile.ZipFile(tmp_path / "v.zip", "w") as archive:
        for name in names:
            archive.writestr(name, text())
    with pytest.raises(InputError, match=f"found a (damaged )?zip archive of {words}|damaged zip") as caught:
        check_auxiliary(tmp_path / "v.zip")
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("name", ["v.vec.gz", "v.vec.zip", "m.bin.gz", "m.zip", "w.bin.gz"])
def test_damaged_packed_files_are_refused(tmp_path: Path, name: str) -> None:
    write_fasttext(tmp_path / "m.bin", dimension=20)
    random = np.random.default_rng(0)
    lines = [f"w{i} {' '.join(f'{x:.6f}' for x in random.normal(size=20))}" for i in range(200)]
    content = {"m": (tmp_path / "m.bin").read_bytes(), "v": text(lines, "200 20\n")}.get(name[0])
    if content is None:
        content = word2vec(words=[f"w{i}" for i in range(200)], values=random.normal(size=(200, 20)).astype("<f4"))
    whole = packed(content, tmp_path / name, "m.bin" if name[0] == "m" else "").read_bytes()
    words = ["w5", "talo"]
    _rust.read_vectors(tmp_path / name, words)
    for cut in (len(whole) // 3, len(whole) - 6, len(whole) - 100):
        (tmp_path / name).write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"truncated|damaged|unreadable"):
            _rust.read_vectors(tmp_path / name, words)
    changed = 0
    for position in range(40, len(whole) - 120, max(1, len(whole) // 40)):
        data = bytearray(whole)
        data[position] ^= 0x55
        (tmp_path / name).write_bytes(data)
        try:
            _rust.read_vectors(tmp_path / name, words)
        except ValueError as error:
            assert "expected" in str(error)
            changed += 1
    assert changed > 20, "the checksum of the content is compared"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"BZh91AY&SY" + bytes(20), "a bzip2 file; .*bunzip2"),
        (b"\xfd7zXZ\0" + bytes(20), "a xz file; .*unxz"),
        (b"\x28\xb5\x2f\xfd" + bytes(20), "a zstd file; .*unzstd"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(20), "a 7z file; .*7z x"),
        (b"\x00\x01\x1b[31m\xff" + bytes(200), "found binary data"),
        (b"\x1b[31mred", r'found "\\u\{1b\}\[31mred"|binary data'),
        (b"talo 1 2 3\n\x1b]0;x\x07 1 2\n", "found 3 fields"),
    ],
)
def test_binary_content_never_reaches_the_message(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "v.vec").write_bytes(data)
    with pytest.raises(
        InputError, match=words.replace("; .*", "; expected a plain, gzip or zip file; unpack it first: ")
    ) as caught:
        load_auxiliary(tmp_path / "v.vec", WORDS)
    assert str(caught.value).isprintable()


def test_a_gzipped_model_of_another_kind_is_not_shown(tmp_path: Path) -> None:
    path = packed(b"\x00\x01\x02\x1b[31m" * 1000, tmp_path / "model.bin.gz")
    with pytest.raises(InputError, match="binary data") as caught:
        load_auxiliary(path, WORDS)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("words", [["talo", "kissa"]])
@pytest.mark.parametrize("name", ["w.bin", "w.bin.gz"])
def test_a_binary_file_that_ends_early_is_truncated(tmp_path: Path, name: str, words: list[str]) -> None:
    whole = word2vec(line_ends=False, words=PLAIN)
    for length in range(len(b"4 3\ntalo") + 6, len(whole)):
        path = packed(whole[:length], tmp_path / name)
        with pytest.raises(ValueError, match=r"4 vectors|4 whole vectors"):
            _rust.read_vectors(path, words)


def test_nan_in_a_binary_file_is_named(tmp_path: Path) -> None:
    values = VECTORS.copy()
    values[0, 1] = np.nan
    (tmp_path / "w.bin").write_bytes(word2vec(words=PLAIN, values=values))
    with pytest.raises(InputError, match=r"NaN or inf in the vectors of \['talo'\]"):
        load_auxiliary(tmp_path / "w.bin", WORDS)


def bomb(path: Path, size: int, first: bytes = b"", unit: bytes = b"talo 1 2 3\n") -> None:
    """A gzip file of a few megabytes that unpacks to ``size`` bytes."""
    block = (unit * (1 + (1 << 20) // len(unit)))[: 1 << 20]
    block = block[: len(block) - len(block) % len(unit)]
    member = gzip.compress(block * 64, 9)
    with path.open("wb") as file:
        file.write(gzip.compress(first))
        for _ in range(size // (64 * len(block)) + 1):
            file.write(member)


def test_a_file_that_unpacks_to_gigabytes_is_stopped(tmp_path: Path) -> None:
    bomb(tmp_path / "v.vec.gz", 1100 << 20)
    assert (tmp_path / "v.vec.gz").stat().st_size < 8 << 20
    start = time.monotonic()
    with pytest.raises(ValueError, match="more than 100 times its size when unpacked; expected at most that, or 1 GiB"):
        _rust.read_vectors(tmp_path / "v.vec.gz", ["kissa"])
    assert time.monotonic() - start < 120


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"1 3\n" + b"a" * (3 << 20), "a longer line; expected lines of at most 1048576 bytes"),
        (b"a" * (3 << 20), "a longer line"),
        (bytes(3 << 20), "binary data"),
        (b"4 20000\ntalo 1 2 3\n", "20000|header or a word|fields"),
    ],
)
def test_lines_and_widths_have_limits(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "v.vec").write_bytes(data)
    with pytest.raises(InputError, match=words):
        load_auxiliary(tmp_path / "v.vec", WORDS)


def test_the_requested_vectors_must_fit_into_memory(tmp_path: Path) -> None:
    row = " ".join(["1"] * 16384)
    (tmp_path / "v.vec").write_bytes(text([f"talo {row}"], "1 16384\n"))
    assert _rust.read_vectors(tmp_path / "v.vec", ["talo"])[0].shape == (1, 16384)
    with pytest.raises(ValueError, match="width 16384 for 70000 words; expected at most 1073741824 values in all"):
        _rust.read_vectors(tmp_path / "v.vec", [f"w{i}" for i in range(70_000)])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dimension": 20_000}, "dimension 20000.*at most dimension 16384"),
        ({"grams": (3, 1000)}, "n-grams 3 to 1000.*at most .* n-grams of 64 characters"),
        ({"grams": (3, 2**31 - 1)}, "n-grams"),
        ({"grams": (-1, 5)}, "n-grams -1"),
    ],
)
@pytest.mark.parametrize("packing", ["m.bin", "m.bin.gz"])
def test_settings_of_models_have_limits(tmp_path: Path, change, words: str, packing: str) -> None:
    write_fasttext(tmp_path / "m.bin", buckets=1, **change)
    path = packed((tmp_path / "m.bin").read_bytes(), tmp_path / packing)
    with pytest.raises(InputError, match=words):
        check_auxiliary(path)


@pytest.mark.parametrize("words", [1 << 30, -1, (1 << 26) + 1])
def test_the_number_of_words_has_a_limit(tmp_path: Path, words: int) -> None:
    write_fasttext(tmp_path / "m.bin")
    data = bytearray((tmp_path / "m.bin").read_bytes())
    data[64:72] = struct.pack("<2i", words, words)
    with (tmp_path / "m.bin").open("wb") as file:
        file.write(data)
        file.truncate(1 << 40)
    with time_limit(20), pytest.raises(InputError, match=r"impossible dictionary .*at most 67108864 words"):
        check_auxiliary(tmp_path / "m.bin")


SETTINGS = {"mode": "floret", "minn": 3, "maxn": 4, "hash_count": 2, "hash_seed": 7, "bow": "<", "eow": ">"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("minn", 0),
        ("maxn", 10**6),
        ("maxn", 10**30),
        ("hash_count", 5),
        ("hash_count", "2"),
        ("hash_seed", -1),
        ("hash_seed", 1.5),
        ("minn", True),
        ("bow", 3),
        ("eow", "x" * 1000),
        ("bow", None),
        ("minn", [3]),
    ],
)
def test_floret_settings_have_types_and_limits(tmp_path: Path, name: str, value: object) -> None:
    write_table(tmp_path / "f", ["x"], np.ones((5, 3), dtype=np.float32))
    (tmp_path / "f" / "vectors.cfg").write_text(json.dumps({**SETTINGS, name: value}))
    with pytest.raises(InputError, match=rf"vectors\.cfg, {name}: found"):
        load_auxiliary(tmp_path / "f", WORDS)


@pytest.mark.parametrize(
    "table",
    [
        np.ones((2, 3), dtype=np.int64),
        np.ones((2, 3), dtype=complex),
        np.array([["a", "b"]]),
        np.zeros((2, 3), dtype=[("a", "<f4")]),
        np.ones(3, dtype=np.float32),
        np.ones((1, 20_000), dtype=np.float32),
        np.ones((0, 3), dtype=np.float32),
    ],
    ids=["int", "complex", "text", "fields", "one dimension", "wide", "empty"],
)
@pytest.mark.parametrize("mode", ["floret", "default"])
def test_tables_of_other_types_are_refused(tmp_path: Path, table: np.ndarray, mode: str) -> None:
    write_table(tmp_path / "f", ["x"], table)
    (tmp_path / "f" / "vectors.cfg").write_text(json.dumps({**SETTINGS, "mode": mode}))
    with pytest.raises(InputError, match="vectors: found shape"):
        load_auxiliary(tmp_path / "f", WORDS)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (10**9, 10**9), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 3), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-5, 3), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': 3, }",
        "{'descr': 5, 'fortran_order': False, 'shape': (1, 3), }",
        "[[[[[[",
        "(" * 5000,
        "",
    ],
)
def test_hostile_numpy_headers_are_refused(tmp_path: Path, header: str) -> None:
    write_table(tmp_path / "f", ["x"], np.ones((2, 3), dtype=np.float32))
    data = header.encode() + b"\n"
    (tmp_path / "f" / "vectors").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(data)) + data + bytes(24))
    with pytest.raises(InputError, match="vectors: found"):
        load_auxiliary(tmp_path / "f", WORDS)


@pytest.mark.parametrize("name", ["vectors", "key2row", "vectors.cfg"])
@pytest.mark.parametrize("kind", ["pipe", "outside"])
def test_strange_files_in_a_spacy_folder_are_refused(tmp_path: Path, name: str, kind: str) -> None:
    write_table(tmp_path / "f", ["x"], np.ones((2, 3), dtype=np.float32))
    put(tmp_path / "f" / name, kind)
    with time_limit(20), pytest.raises(InputError, match=r"a pipe|outside of the folder|no files vectors and key2row"):
        check_auxiliary(tmp_path / "f")
