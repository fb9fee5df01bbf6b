"""The native fastText reader against a writer and a reference implementation of these tests."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saltlm import _rust

WORDS = ["</s>", "talo", "käärme", "слово", "a", "zum"]


def write(
    path, *, words=WORDS, dimension=3, buckets=50, grams=(3, 5), model=1, version=12, magic=793712314, quantised=0
):
    """A small model file; returns its input matrix [words + buckets, dimension]."""
    matrix = np.random.default_rng(0).normal(size=(len(words) + buckets, dimension)).astype("<f4")
    out = struct.pack("<2i", magic, version)
    out += struct.pack("<12id", dimension, 5, 1, 1, 5, 1, 1, model, buckets, *grams, 100, 1e-4)
    out += struct.pack("<3i2q", len(words), len(words), 0, 100, -1)
    for word in words:
        out += (word if isinstance(word, bytes) else word.encode()) + b"\0" + struct.pack("<qb", 5, 0)
    out += struct.pack("<B2q", quantised, *matrix.shape) + matrix.tobytes()
    out += struct.pack("<B2q", 0, len(words), dimension) + bytes(4 * len(words) * dimension)
    path.write_bytes(out)
    return matrix


def bucket_of(gram: str, buckets: int) -> int:
    value = 2166136261
    for byte in gram.encode():
        value = ((value ^ (byte if byte < 128 else byte | 0xFFFFFF00)) * 16777619) & 0xFFFFFFFF
    return value % buckets


def grams_of(word: str, shortest: int, longest: int) -> list[str]:
    marked = f"<{word}>"
    grams = []
    for first in range(len(marked)):
        for size in range(shortest, longest + 1):
            last = first + size
            if last <= len(marked) and not (size == 1 and (first == 0 or last == len(marked))):
                grams.append(marked[first:last])
    return grams


def expected(word: str, matrix, words, buckets: int, grams) -> np.ndarray | None:
    rows = [words.index(word)] if word in words else []
    if word != "</s>":
        rows += [len(words) + bucket_of(gram, buckets) for gram in grams_of(word, *grams)]
    return matrix[rows].astype(np.float64).mean(axis=0) if rows else None


TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=12)


@given(
    words=st.lists(TEXT, max_size=20),
    grams=st.sampled_from([(3, 6), (1, 2), (2, 2), (5, 5)]),
    buckets=st.integers(1, 60),
)
def test_vectors_are_means_of_the_words_row_and_its_ngrams(tmp_path_factory, words, grams, buckets) -> None:
    path = tmp_path_factory.mktemp("fasttext") / "m.bin"
    matrix = write(path, buckets=buckets, grams=grams)
    model = _rust.FastText.open(path)
    asked = [*words, *WORDS]
    values, known = model.vectors(asked)
    for word, value, has in zip(asked, values, known, strict=True):
        mean = expected(word, matrix, WORDS, buckets, grams)
        assert has == (mean is not None)
        np.testing.assert_allclose(value, 0 if mean is None else mean, atol=1e-5)


def test_without_ngrams_only_listed_words_have_vectors(tmp_path) -> None:
    matrix = write(tmp_path / "m.bin", buckets=0, grams=(0, 0))
    values, known = _rust.FastText.open(tmp_path / "m.bin").vectors(["talo", "taloa", None])
    assert known.tolist() == [True, False, False]
    np.testing.assert_array_equal(values[0], matrix[1])
    assert not values[1:].any()


def test_words_need_not_be_utf8(tmp_path) -> None:
    write(tmp_path / "m.bin", words=["</s>", b"\x8c\xff\xfe", "talo"])
    model = _rust.FastText.open(tmp_path / "m.bin")
    assert (model.word_count, model.dimension) == (3, 3)
    assert model.vectors(["talo"])[1].all()


def test_every_truncation_is_an_error(tmp_path) -> None:
    write(tmp_path / "m.bin", dimension=2, buckets=2)
    whole = (tmp_path / "m.bin").read_bytes()
    for size in range(len(whole)):
        (tmp_path / "t.bin").write_bytes(whole[:size])
        with pytest.raises(ValueError, match="truncated"):
            _rust.FastText.open(tmp_path / "t.bin")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": 3}, "supervised"),
        ({"quantised": 1}, "quantised"),
        ({"magic": 7}, "magic number 7"),
        ({"version": 9}, "version 9"),
        ({"dimension": 0}, "impossible settings"),
    ],
)
def test_other_files_are_refused_and_named(tmp_path, change, words) -> None:
    write(tmp_path / "m.bin", **change)
    with pytest.raises(ValueError, match=words) as caught:
        _rust.FastText.open(tmp_path / "m.bin")
    assert "m.bin" in str(caught.value)


def test_a_missing_file_is_an_os_error(tmp_path) -> None:
    with pytest.raises(OSError, match="cannot be read"):
        _rust.FastText.open(tmp_path / "none.bin")


@given(position=st.integers(0, 400), value=st.integers(0, 255))
def test_damage_is_an_error_or_a_model_never_a_panic(tmp_path_factory, position: int, value: int) -> None:
    path = tmp_path_factory.mktemp("damage") / "m.bin"
    write(path)
    data = bytearray(path.read_bytes())
    data[position % len(data)] = value
    path.write_bytes(data)
    try:
        _rust.FastText.open(path).vectors(["talo", "käärme", "x"])
    except ValueError as error:
        assert "expected" in str(error)


@pytest.mark.real
def test_equal_to_gensim_on_its_own_files() -> None:
    from pathlib import Path

    gensim = pytest.importorskip("gensim")
    from gensim.models.fasttext import load_facebook_vectors

    folder = Path(gensim.__file__).parent / "test" / "test_data"
    compared = 0
    for name in ("crime-and-punishment.bin", "lee_fasttext_new.bin", "toy-model.bin"):
        gensim_vectors = load_facebook_vectors(str(folder / name))
        # Unlike fastText, gensim gives the end-of-sentence token n-grams.
        words = [*[w for w in gensim_vectors.key_to_index if w != "</s>"], "landlord", "zzzqqq", "käärme"]
        values, known = _rust.FastText.open(folder / name).vectors(words)
        assert known.all()
        np.testing.assert_allclose(values, np.stack([gensim_vectors.get_vector(w) for w in words]), atol=2e-6)
        compared += len(words)
    assert compared > 1000
    with pytest.raises(ValueError, match="magic number"):  # of a version of the format without a magic number
        _rust.FastText.open(folder / "cp852_fasttext.bin")
    with pytest.raises(ValueError, match="supervised"):
        _rust.FastText.open(folder / "pang_lee_polarity_fasttext.bin")
