"""The methods that also read vectors of the source's words: wechsel and ofa."""

from __future__ import annotations

import dataclasses
import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planted import draw, orthogonal, planted

from saltlm.batches.finished import _vectors
from saltlm.config import TransferConfig
from saltlm.errors import InputError
from saltlm.operators.linear import procrustes
from saltlm.pipeline import transfer
from saltlm.rows.assembly import COMPOSED
from saltlm.rows.methods import METHODS
from saltlm.vectors.auxiliary import Auxiliary, load_auxiliary
from saltlm.vectors.bilingual import read_dictionary


def test_wechsel_follows_the_formula(untied, untied_parts, bilingual) -> None:
    source, _, alignment, vectors = untied_parts
    config = TransferConfig(method="wechsel", **bilingual)
    done = transfer(untied.source, untied.target, untied.vectors, config=config)
    path = bilingual["source_auxiliary"]
    source_vectors = load_auxiliary(path, alignment.source.words())
    pairs = read_dictionary(bilingual["dictionary"])
    left, right = (load_auxiliary(f, [p[i] for p in pairs]) for i, f in enumerate((path, untied.vectors)))
    both = left.known & right.known
    assert int(both.sum()) > 40  # lower-case words count more than once
    u, _, v = np.linalg.svd(left.vectors[both].double().numpy().T @ right.vectors[both].double().numpy())
    rotated = torch.nn.functional.normalize(source_vectors.vectors.double() @ torch.from_numpy(u @ v), dim=1)
    composed = np.flatnonzero(done.origin == COMPOSED)
    assert len(composed) > 30
    # Equal vectors have one cosine, but two rows of a matrix product may differ in the last bit.
    _, first, group = np.unique(source_vectors.vectors.numpy(), axis=0, return_index=True, return_inverse=True)
    for token in composed:
        z = rotated @ torch.nn.functional.normalize(vectors.vectors[token].double(), dim=0)
        z = z[torch.from_numpy(first[group.ravel()])]
        z[~source_vectors.known] = -2
        near = z.sort(descending=True, stable=True)  # equal vectors: the smaller id comes first
        weight = (near.values[:10] / 0.1).softmax(dim=0)
        for rows, result in ((source.input_rows, done.input_rows), (source.output_rows, done.output_rows)):
            expected = weight @ rows[near.indices[:10]].double()
            torch.testing.assert_close(result[token].double(), expected, atol=1e-4, rtol=1e-3)
    assert done.summary["inputs"]["source_auxiliary"]["pairs"] == int(both.sum())


def test_source_vectors_trained_on_text_have_the_targets_width(untied, bilingual, tmp_path, monkeypatch) -> None:
    pytest.importorskip("gensim")
    from saltlm.vectors import train as train_vectors

    monkeypatch.setenv("SALTLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(train_vectors, "SETTINGS", {**train_vectors.SETTINGS, "bucket": 100, "vector_size": 7})
    (tmp_path / "text.txt").write_text("the queen of the city found a house in the city\n" * 30, encoding="utf-8")
    known = [line.split()[0] for line in Path(untied.vectors).read_text(encoding="utf-8").splitlines()[1:5]]
    (tmp_path / "pairs.txt").write_text("\n".join(f"city\t{word}" for word in known), encoding="utf-8")
    config = TransferConfig(
        method="wechsel", source_auxiliary=f"train:{tmp_path / 'text.txt'}", dictionary=str(tmp_path / "pairs.txt")
    )
    done = transfer(untied.source, untied.target, untied.vectors, config=config)
    width = done.summary["inputs"]["auxiliary"]["dimension"]
    assert done.summary["inputs"]["source_auxiliary"]["dimension"] == width != 7
    assert done.summary["inputs"]["source_auxiliary"]["pairs"] >= len(known)
    assert train_vectors.trained_file([tmp_path / "text.txt"], width).is_file()
    # A batch recognises these vectors and takes the job for finished.
    assert _vectors(done.summary["inputs"]["source_auxiliary"], config.source_auxiliary) is None


def test_without_source_vectors_all_tokens_are_drawn() -> None:
    case = planted(draw(30, 4, seed=0), draw(25, 6, seed=1), 20, method="wechsel")
    empty = Auxiliary(torch.zeros(25, 4), torch.zeros(25, dtype=torch.bool), {})
    (block,) = METHODS["wechsel"].build(dataclasses.replace(case.job, source_auxiliary=empty))
    assert block.rows is None and len(block.ids) == 10


@given(st.integers(0, 10**6))
def test_procrustes_recovers_a_rotation(seed: int) -> None:
    rotation, words = orthogonal(5, seed), draw(20, 5, seed=seed + 1).double()
    torch.testing.assert_close(procrustes(words.T @ (words @ rotation)), rotation)


def test_the_self_check_hides_twins_among_the_source_tokens(untied, bilingual, monkeypatch) -> None:
    seen = []
    build = METHODS["wechsel"].build

    def spy(job):
        seen.append(job)
        return build(job)

    monkeypatch.setitem(METHODS, "wechsel", dataclasses.replace(METHODS["wechsel"], build=spy))
    transfer(
        untied.source, untied.target, untied.vectors, config=TransferConfig(method="wechsel", heldout=0.3, **bilingual)
    )
    whole, check = seen
    hidden_tokens = check.new[check.alignment.shared[check.new]]
    assert not len(whole.hidden) and len(check.hidden) >= len(hidden_tokens) > 0
    words, others = check.alignment.target.words(), check.alignment.source.words()
    hidden = {words[token].casefold() for token in hidden_tokens if words[token]}
    assert all(i in check.hidden for i, word in enumerate(others) if word and word.casefold() in hidden)


@pytest.mark.parametrize("missing", ["source_auxiliary", "dictionary"])
def test_a_missing_input_of_wechsel_is_refused_before_loading(missing: str, bilingual, untied, tmp_path) -> None:
    config = TransferConfig(method="wechsel", **{k: v for k, v in bilingual.items() if k != missing})
    flag = missing.replace("_", "-")
    with pytest.raises(InputError, match=f"{flag}: found none for method 'wechsel'.*--{flag}"):
        transfer(tmp_path / "no", tmp_path / "such", untied.vectors, config=config)
    for bad in ({missing: str(tmp_path / "absent")}, {"source_auxiliary": "plm"}):
        with pytest.raises(InputError, match=r"nothing at|no file at|'plm'"):
            config = TransferConfig(method="wechsel", **{**bilingual, **bad})
            transfer(tmp_path / "no", tmp_path / "such", untied.vectors, config=config)


@pytest.mark.parametrize(
    ("content", "words"),
    [("a\tb\tc d e\n", "line 1"), ("a b\n\nonly\n", "line 3"), ("qqq\tzzz\n", "none with a vector")],
)
def test_a_bad_dictionary_is_named(content: str, words: str, untied, bilingual, tmp_path) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text(content)
    config = TransferConfig(method="wechsel", source_auxiliary=bilingual["source_auxiliary"], dictionary=str(path))
    with pytest.raises(InputError, match=words):
        transfer(untied.source, untied.target, untied.vectors, config=config)


def test_ofa_follows_the_formula(untied, untied_parts, tmp_path) -> None:
    source, _, alignment, _ = untied_parts
    lines = {
        word: np.random.default_rng(i).normal(size=6)
        for i, word in enumerate(
            ["the", "fin:$kissa", "fin:talossa", "deu:$katze", "eng:$house", "river", "Glück", "eng:a$road", "tietä"]
        )
    }
    path = tmp_path / "many.vec"
    written = [f"{word} {' '.join(map(repr, map(float, row)))}" for word, row in lines.items()]
    path.write_text(f"{len(lines)} 6\n" + "\n".join(written) + "\n", encoding="utf-8")
    done = transfer(untied.source, untied.target, path, config=TransferConfig(method="ofa"))

    def space(tokenizer, size: int) -> torch.Tensor:
        members: list[list[np.ndarray]] = [[] for _ in range(size)]
        for word, row in lines.items():
            text = word.split(":")[-1].replace("$", " ")
            other = text[1].upper() + text[2:] if text[0] == " " else " " + text[0].upper() + text[1:]
            for way in (text, " " + text, other):
                for token in set(tokenizer.encode(way, add_special_tokens=False)):
                    members[token].append(row)
        return torch.tensor(np.stack([np.mean(rows, axis=0) if rows else np.zeros(6) for rows in members]))

    target_space, source_space = (
        space(done.tokenizer, alignment.target.size),
        space(source.tokenizer, alignment.source.size),
    )
    unit = torch.nn.functional.normalize(source_space, dim=1)
    composed, checked = np.flatnonzero(done.origin == COMPOSED), 0
    assert len(composed) >= 5
    assert set(composed) == set(np.flatnonzero(~alignment.shared & (target_space != 0).any(dim=1).numpy()))
    for token in composed:
        z = unit @ torch.nn.functional.normalize(target_space[token], dim=0)
        z[(source_space == 0).all(dim=1)] = -2
        near = z.sort(descending=True)
        if near.values[9] - near.values[10] < 1e-6:
            continue  # tokens of the same words have equal vectors: either may be the tenth
        checked += 1
        weight = (near.values[:10] / 0.1).softmax(dim=0)
        expected = weight @ source.output_rows[near.indices[:10]].double()
        torch.testing.assert_close(done.output_rows[token].double(), expected, atol=1e-4, rtol=1e-3)
    assert checked >= 3
    with pytest.raises(InputError, match=r"of kind plm.*'ofa'"):
        transfer(untied.source, untied.target, "plm", config=TransferConfig(method="ofa"))


def test_ofa_reads_gzip_by_its_content_and_names_a_damaged_file(untied, tmp_path) -> None:
    plain = untied.vectors.read_bytes()
    packed = gzip.compress(plain)
    config = TransferConfig(method="ofa", heldout=0.0)
    expected = transfer(untied.source, untied.target, untied.vectors, config=config)
    for name, content in (("a.vec.gz", packed), ("packed.vec", packed), ("plain.gz", plain)):
        (tmp_path / name).write_bytes(content)
        done = transfer(untied.source, untied.target, tmp_path / name, config=config)
        assert torch.equal(done.input_rows, expected.input_rows), name
    for name, content in (("cut.gz", packed[:-200]), ("bad.gz", packed[:300] + b"\0" * 8 + packed[308:])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name}: found .*the file is truncated or damaged"):
            transfer(untied.source, untied.target, tmp_path / name, config=config)
