"""The self-check: the tokens that it hides, covers without twins, its figures and score, and the choice of options by it."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers_tiny import KINDS, tiny

from saltlm import _rust
from saltlm.alignment.align import SPECIAL, Alignment, align
from saltlm.config import TransferConfig
from saltlm.errors import InputError
from saltlm.pipeline import transfer
from saltlm.rows.assembly import Head
from saltlm.rows.hidden import MAX_TOKENS, bands, hide, hide_in, twin_keys
from saltlm.rows.methods import METHODS, Job
from saltlm.rows.self_check import MAX_LENGTH, check, fault, predict
from saltlm.rows.self_check_figures import Spread, compared, grouped, score
from saltlm.rows.tune import GRID, free_options, tune
from saltlm.text.scripts import script_of

KEY = st.sampled_from(["talo", "kissa", "ä", "x1", "y", "strasse", "", "\udcff"])


# Which tokens are hidden.


@given(st.lists(KEY, min_size=1, max_size=60), st.floats(0, 0.5), st.integers(0, 5))
def test_groups_are_hidden_whole(keys: list[str], share: float, seed: int) -> None:
    anchors = np.arange(len(keys))
    kept, hidden = hide(keys, anchors, share, seed)
    assert sorted([*kept, *hidden]) == anchors.tolist()
    assert len(hidden) <= len(keys) * share
    assert not {keys[i] for i in kept} & {keys[i] for i in hidden} - {""}  # tokens without a key have no twins
    again = hide(keys, anchors, share, seed)
    np.testing.assert_array_equal(again[1], hidden)


@given(st.integers(0, 3))
def test_a_share_of_distinct_words_is_met_exactly(seed: int) -> None:
    keys = [f"w{i}" for i in range(400)]
    anchors = np.arange(0, 400, 2)
    assert len(hide(keys, anchors, 0.1, seed)[1]) == 20
    assert not len(hide(keys, anchors, 0.0, seed)[1])
    assert hide(keys, anchors, 0.1, seed)[1].tolist() != hide(keys, anchors, 0.1, seed + 1)[1].tolist()


def test_never_more_than_the_limit() -> None:
    keys = [f"w{i}" for i in range(3 * MAX_TOKENS)]
    assert len(hide(keys, np.arange(len(keys)), 0.5, 0)[1]) == MAX_TOKENS


def test_a_few_more_anchors_change_few_hidden_tokens() -> None:
    keys = [f"w{i}" for i in range(1000)]
    one, other = (set(hide(keys, np.arange(start, 1000), 0.1, 0)[1].tolist()) for start in (0, 10))
    assert len(one & other) >= 95


@pytest.mark.parametrize("tokenizer_kind", KINDS)
def test_twins_differ_in_case_and_spaces_alone(tokenizer_kind: str) -> None:
    vocabulary = align(tiny(tokenizer_kind), tiny(tokenizer_kind)).source
    keys, words, flags = twin_keys(vocabulary), vocabulary.words(), vocabulary.flags()
    assert len(keys) == vocabulary.size
    for key, word, flag in zip(keys, words, flags, strict=True):
        if flag & SPECIAL:
            assert key == ""
        elif word is not None:
            assert key == word.casefold()
        else:
            assert key  # blanks and bytes


# Covers without given ids.


def without(tokenizer_kind: str, forbidden: set[int]) -> _rust.Vocabulary:
    """The tokenizer without these tokens: removed, or respelled in a Unigram model, whose positions are the ids."""
    content = json.loads(tiny(tokenizer_kind).backend_tokenizer.to_str())
    model = content["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [
            [f"\ue000{i}" if i in forbidden else piece, value] for i, (piece, value) in enumerate(model["vocab"])
        ]
    else:
        gone = {piece for piece, id_ in model["vocab"].items() if id_ in forbidden}
        model["vocab"] = {piece: id_ for piece, id_ in model["vocab"].items() if piece not in gone}
        if "merges" in model:
            pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
            model["merges"] = [pair for pair in pairs if not gone & {*pair, "".join(pair)}]
    return _rust.Vocabulary.from_tokenizer_json(json.dumps(content).encode(), [])


def text_ids(alignment: Alignment) -> np.ndarray:
    return np.flatnonzero(alignment.source.flags() & SPECIAL == 0)


@given(data=st.data(), source=st.sampled_from(KINDS), target=st.sampled_from(KINDS))
def test_a_cover_without_ids_is_that_of_a_tokenizer_without_them(data, source: str, target: str) -> None:
    alignment = align(tiny(source), tiny(target))
    gone = data.draw(st.lists(st.sampled_from(text_ids(alignment).tolist()), max_size=12))
    # Tokens whose match is gone, and others whose pieces may be gone.
    touched = np.flatnonzero(np.isin(alignment.source_id, gone))
    tokens = np.union1d(touched, data.draw(st.lists(st.integers(0, alignment.target.size - 1), max_size=20))).astype(
        int
    )
    offsets, ids = alignment.covers_without(tokens, [np.array(gone, dtype=np.int64)] * len(tokens))
    none = np.zeros(len(tokens) + 1, dtype=np.int64)
    smaller = without(source, set(gone))
    expected = _rust.covers_without(smaller, alignment.target, tokens, none, none[:0])
    np.testing.assert_array_equal(offsets, expected[0])
    np.testing.assert_array_equal(ids, expected[1])
    assert not set(ids.tolist()) & set(gone)


@pytest.mark.parametrize("target", KINDS)
@pytest.mark.parametrize("source", KINDS)
def test_covers_without_forbidden_ids_are_those_of_the_alignment(source: str, target: str) -> None:
    alignment = align(tiny(source), tiny(target))
    tokens = np.flatnonzero(~alignment.shared)
    offsets, ids = alignment.covers_without(tokens, [np.zeros(0, dtype=np.int64)] * len(tokens))
    np.testing.assert_array_equal(ids, alignment.cover_ids)
    bare = dataclasses.replace(
        alignment, cover_offsets=np.zeros_like(alignment.cover_offsets), cover_ids=alignment.cover_ids[:0]
    )
    np.testing.assert_array_equal(bare.with_covers(tokens, offsets, ids).cover_offsets, alignment.cover_offsets)


@pytest.mark.parametrize(
    ("tokens", "offsets", "forbidden"),
    [([0], [0, 1], [10**6]), ([-1], [0, 0], []), ([0, 1], [0, 0], []), ([0], [0, 2], [1]), ([0, 1], [0, 1, 0], [])],
)
def test_covers_of_ids_that_do_not_fit_are_refused(tokens, offsets, forbidden) -> None:
    alignment = align(tiny("wordpiece"), tiny("wordpiece"))
    arrays = (np.array(values, dtype=np.int64) for values in (tokens, offsets, forbidden))
    with pytest.raises(ValueError, match="expected"):
        _rust.covers_without(alignment.source, alignment.target, *arrays)


# The figures and the score.


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(0, 10**6))
def test_the_score_orders_exact_equal_and_random_rows(seed: int) -> None:
    rows = draw(2000, 8, seed=seed) @ draw(8, 8, seed=seed + 1) + 3
    spread, true = Spread.of(rows, np.arange(2000)), rows[:300]
    exact = score(true, true, rows, spread)
    assert exact["score"] == pytest.approx(1.5, abs=0.2) and exact["signal"] == pytest.approx(1)
    equal = rows.mean(dim=0).expand(300, -1)
    assert score(equal, true, equal, spread)["score"] == pytest.approx(0, abs=0.01)
    other = rows[torch.randperm(2000, generator=torch.Generator().manual_seed(seed))]
    noise = score(other[:300], true, other, spread)["score"]
    assert -1.2 < noise < -0.1
    # A common error in every row, and rows that are too long: each lowers the score.
    shift = spread.root[:, 0]
    assert score(true + shift, true, rows + shift, spread)["score"] < exact["score"]
    assert score(5 * true, true, 5 * rows, spread)["score"] < noise


def test_the_score_does_not_depend_on_the_units_of_a_dimension() -> None:
    rows, noise, general = draw(5000, 6, seed=0), draw(500, 6, seed=1), draw(6, 6, seed=2)
    scores = []
    for matrix in (torch.eye(6).double(), general):
        spread = Spread.of(rows @ matrix, np.arange(5000))
        scores.append(
            score((rows[:500] + noise) @ matrix, rows[:500] @ matrix, rows[500:900] @ matrix, spread)["score"]
        )
    assert scores[0] == pytest.approx(scores[1], abs=0.02)


def test_figures_of_exact_and_of_zero_rows() -> None:
    rows = draw(50, 5, seed=0)
    ids = torch.arange(50)
    figures, by_token = compared(rows[:7], rows[:7], rows, ids)
    assert figures["rank"] == 1 and figures["top1"] == 1 and figures["relative_error"] == 0
    assert figures["tokens"] == 7 and figures["candidates"] == 50
    zero, _ = compared(torch.zeros(7, 5).double(), rows[:7], rows, ids)
    assert zero["rank"] == 50 and zero["top1"] == 0 and zero["relative_error"] == 1 and zero["cosine"] == 0
    groups = grouped(by_token, list("aabbbba"))
    assert list(groups) == ["b", "a"] and sum(group["tokens"] for group in groups.values()) == 7


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("talo", "Latin"),
        ("дом", "Cyrillic"),
        ("بيت", "Arabic"),
        ("中文", "Han"),
        ("々", "Han"),
        ("ひ", "Hiragana"),
        ("한국", "Hangul"),
        ("1984", "digits"),
        ("٣", "digits"),
        ("…", "punctuation"),
        ("€", "punctuation"),
        ("  ", "blank"),
        ("\udce4", "bytes"),
        ("aж", "Latin"),
        ("aжж", "Cyrillic"),
        ("1a", "Latin"),
        ("", "other"),
    ],
)
def test_scripts(text: str, script: str) -> None:
    assert script_of(text) == script


def test_bands_are_sorted_by_score_where_there_are_scores() -> None:
    text = np.array([1, 2, 4, 5])
    assert bands(text, None).tolist() == [0, 1, 2, 0, 3, 4]
    assert bands(text, np.array([0, -4.0, -3, 0, -2, -1])).tolist() == [0, 4, 3, 0, 2, 1]
    assert (align(tiny("wordpiece"), tiny("wordpiece")).target.scores() is None) and not len(bands(text[:0], None))
    assert len(align(*[tiny("sentencepiece_unigram")] * 2).target.scores()) == len(tiny("sentencepiece_unigram"))


def test_faults_are_named() -> None:
    usable = {"score": 0.1, "noise": 0.2}
    assert fault(usable, 1.5) is None
    assert "times the longest" in fault(usable, 2 * MAX_LENGTH)
    assert "equal" in fault({**usable, "noise": 0.0}, 1.0)
    assert "random" in fault({**usable, "score": -2.0}, 1.0)


# On whole tiny models.


def job_of(method: str, noise: float = 0.0) -> Job:
    """A planted job: source rows are a linear image of PLM rows, shared rows alone."""
    alignment = align(tiny("byte_level_bpe"), tiny("wordpiece"))
    anchors = np.flatnonzero(alignment.shared & (alignment.kind != 4))
    plm = draw(alignment.target.size, 6, seed=0).float()
    rows = draw(alignment.source.size, 4, seed=3).float()
    ids = torch.from_numpy(alignment.source_id[anchors].astype(np.int64))
    rows[ids] = plm[anchors] @ draw(6, 4, seed=1).float() + 1 + noise * rows[ids]
    return Job(
        alignment=alignment,
        source_rows=rows,
        head=Head(_Tied()),
        used=np.arange(len(rows)),
        auxiliary=None,
        plm_rows=plm,
        anchors=anchors,
        new=np.flatnonzero(~alignment.shared),
        config=TransferConfig(method=method),
        device=torch.device("cpu"),
    )


class _Tied:
    output_rows = output_bias = None


def test_the_pieces_of_a_hidden_token_contain_neither_it_nor_its_twins() -> None:
    job = job_of("subword-mean")
    hidden = hide_in(job, 0.3, 0)
    keys, source_keys = twin_keys(job.alignment.target), twin_keys(job.alignment.source)
    covered = 0
    for token in hidden.tokens:
        pieces = hidden.job.alignment.cover(token)
        covered += len(pieces) > 0
        assert keys[token] not in {source_keys[piece] for piece in pieces}
        assert job.alignment.source_id[token] in hidden.job.hidden
    assert covered > 5
    assert not set(hidden.job.anchors.tolist()) & set(hidden.tokens.tolist())
    for token in hidden.new:
        np.testing.assert_array_equal(hidden.job.alignment.cover(token), job.alignment.cover(token))
    rows, _, drawn = predict(hidden)
    pieces = hidden.job.alignment.cover(hidden.tokens[-1])
    if len(pieces):
        torch.testing.assert_close(rows[-1], job.source_rows[pieces.astype(np.int64)].double().mean(dim=0))
    assert drawn == len(hidden.tokens) - covered


@pytest.mark.parametrize("method", [name for name, entry in METHODS.items() if not entry.vectors])
def test_every_method_is_checked(method: str) -> None:
    figures = check(hide_in(job_of(method), 0.3, 0))
    assert all(math.isfinite(figures[name]) for name in ("score", "relative_error", "cosine", "rank"))
    assert sum(group["tokens"] for group in figures["scripts"].values()) == figures["tokens"]
    assert sum(group["tokens"] for group in figures["bands"].values()) == figures["tokens"]
    assert (figures["drawn"] == figures["tokens"]) == (method == "normal")
    assert (figures["broken"] == "all its rows are equal") == (method in ("mean", "zero"))


def test_the_method_that_can_fit_a_planted_map_scores_best() -> None:
    scores = {name: check(hide_in(job_of(name), 0.3, 0))["score"] for name in ("sava-affine", "mean", "normal")}
    assert scores["sava-affine"] > scores["mean"] > scores["normal"]


def test_tuning_takes_the_best_of_its_trials_and_finds_the_planted_map() -> None:
    hidden = hide_in(job_of("blend", noise=0.01), 0.3, 0)
    tuning = tune(hidden)
    assert tuning.choice["blend_weight"] == 0.25 and tuning.choice["ridge"] in (0.01, 0.1)
    assert tuning.check["score"] == max(trial["score"] for trial in tuning.trials)
    assert tuning.to_json() == tune(hidden).to_json()
    assert all(trial["options"][name] in GRID[name] for trial in tuning.trials for name in tuning.grid)


def test_options_that_the_user_has_set_are_not_tuned() -> None:
    assert set(free_options(TransferConfig(method="salt"))) == {"center", "ridge", "max_support"}
    assert set(free_options(TransferConfig(method="salt", ridge=0.5, center=True))) == {"max_support"}
    for config in (
        TransferConfig(method="mean", tune=True),
        TransferConfig(method="sava-affine", ridge=1.0, tune=True),
    ):
        with pytest.raises(InputError, match=r"^tune: found .* no option left"):
            transfer("no", "such", config=config)
    with pytest.raises(InputError, match=r"^tune: found heldout 0"):
        TransferConfig(tune=True, heldout=0.0)


def test_a_tuned_transfer_is_that_of_the_chosen_options(pair, tmp_path) -> None:
    done = transfer(
        pair.source, pair.target, out=tmp_path / "out", config=TransferConfig(method="blend", tune=True, heldout=0.2)
    )
    saved = json.loads((tmp_path / "out" / "saltlm.json").read_text(encoding="utf-8"))
    choice = saved["tuning"]["choice"]
    assert saved["tuning"]["grid"] == {name: list(GRID[name]) for name in choice}
    assert {name: saved["config"][name] for name in choice} == choice
    plain = transfer(pair.source, pair.target, config=TransferConfig(method="blend", heldout=0.2, **choice))
    assert torch.equal(plain.input_rows, done.input_rows) and plain.summary["heldout"] == saved["heldout"]
    assert plain.summary["tuning"] is None
    assert "## Self-check" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
