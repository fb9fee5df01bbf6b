"""The rules that methods combine, each against its closed form in float64 on planted problems and whole tiny models."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import built, draw, planted

from saltlm.cli.main import main
from saltlm.config import TransferConfig
from saltlm.errors import InputError
from saltlm.model.checkpoint import load_donor, load_source
from saltlm.operators import reference
from saltlm.operators.nearest import EqualRows
from saltlm.pipeline import transfer
from saltlm.rows.assembly import COMPOSED, SOLVED
from saltlm.rows.hidden import hide_in
from saltlm.rows.methods import METHODS, build, method_of
from saltlm.rows.methods.blend import HIDDEN_SHARE, fitted_shares
from saltlm.rows.methods.local_map import nearest
from saltlm.rows.methods.whole import cleaned_anchors, leave_one_out, ridge_map
from saltlm.vectors.auxiliary import Auxiliary, load_auxiliary

# local-map


def ridge_fit(x: torch.Tensor, y: torch.Tensor, ridge: float):
    """The ridge map with intercept, by its rows of data rather than its normal equations."""
    cx, cy = x - x.mean(0), y - y.mean(0)
    width = x.shape[1]
    strength = (ridge * cx.square().sum() / len(x)).sqrt()
    stacked = torch.cat([cx, strength * torch.eye(width).double()])
    slope = torch.linalg.lstsq(stacked, torch.cat([cy, torch.zeros(width, y.shape[1]).double()])).solution
    return lambda rows: (rows - x.mean(0)) @ slope + y.mean(0)


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.floats(0.01, 10), st.floats(0.01, 10), st.integers(1, 30))
@pytest.mark.parametrize("center", [False, True])
def test_a_local_map_corrects_the_global_one(
    center: bool, seed: int, ridge: float, map_ridge: float, count: int
) -> None:
    case = planted(
        draw(48, 7, seed=seed) + 1,
        draw(40, 5, seed=seed + 1),
        40,
        method="local-map",
        head=draw(40, 3, seed=seed + 2),
        ridge=ridge,
        map_ridge=map_ridge,
        max_support=count,
        center=center,
    )
    x = case.plm[:40].double()
    unit = torch.nn.functional.normalize(case.plm.double(), dim=1)
    for part, y in (("rows", case.job.source_rows.double()), ("head", case.job.head.rows.double())):
        g = ridge_fit(x, y, map_ridge)
        expected = []
        for new in range(40, 48):
            near = (unit[:40] @ unit[new]).topk(count).indices
            offsets, ids = torch.tensor([0, count]), torch.arange(count, dtype=torch.int32)
            target = (case.plm[new].double() - x.mean(0))[None]
            c = reference.support_lstsq(target, x[near] - x.mean(0), offsets, ids, ridge, center)[0]
            expected.append(g(case.plm[new].double()) + c @ (y[near] - g(x[near])))
        torch.testing.assert_close(built(case, part), torch.stack(expected), atol=1e-4, rtol=1e-3)


def test_a_strong_ridge_gives_the_global_map_and_a_weak_one_the_local_maps() -> None:
    """Two clusters with a map each: no global map fits both; the local one does if its ridge is weak."""
    plm = draw(120, 4, seed=0).double()
    far = torch.arange(120) % 2 == 1
    plm[far, 0] += 50
    plm[~far, 1] += 50
    maps = draw(2, 4, 6, seed=1).double()
    lm = torch.stack([plm[i] @ maps[i % 2] for i in range(120)])
    options = {"method": "local-map", "max_support": 40, "center": True}
    near = built(planted(plm, lm[:100], 100, ridge=0.0, **options))
    torch.testing.assert_close(near, lm[100:], atol=1e-2, rtol=1e-3)
    strong = built(planted(plm, lm[:100], 100, ridge=1e9, **options | {"center": False}))
    alone = built(planted(plm, lm[:100], 100, method="ridge-map", ridge=1.0))
    torch.testing.assert_close(strong, alone, atol=1e-4, rtol=1e-4)
    assert (alone - lm[100:]).norm() > 10 * (near - lm[100:]).norm()


@pytest.mark.parametrize("rule", ["plm", "auxiliary"])
def test_local_maps_take_sparsemax_supports_too(rule: str) -> None:
    case = planted(draw(48, 7, seed=0), draw(40, 5, seed=1), 40, method="local-map", support_rule=rule, max_support=9)
    vectors = Auxiliary(draw(48, 6, seed=3), torch.arange(48) != 45, {})
    job = dataclasses.replace(case.job, auxiliary=vectors)
    (block,) = METHODS["local-map"].build(job)
    space = (vectors.vectors if rule == "auxiliary" else case.plm).double()
    support = reference.sparsemax_support(space[40:], space[:40], 9)
    expected = support[0].diff()
    if rule == "auxiliary":  # a token without a vector takes the global map alone
        expected[5] = 0
        alone = built(planted(case.plm, case.job.source_rows, 40, method="ridge-map"))
        torch.testing.assert_close(block.rows[5].double(), alone[5], atol=1e-5, rtol=1e-5)
    assert block.support_size.tolist() == expected.tolist()


def test_of_equal_neighbours_the_first_come_first() -> None:
    anchors = torch.eye(3)[[0, 1, 0, 1, 2]]
    support = nearest(torch.tensor([[1.0, 0.5, 0.0]]), anchors, 5, EqualRows.of(anchors))
    assert support.ids.tolist() == [0, 2, 1, 3, 4]


# blend


@pytest.fixture(scope="module")
def parts(untied):
    def run(**options):
        return transfer(untied.source, untied.target, untied.vectors, config=TransferConfig(heldout=0.0, **options))

    return run


@pytest.mark.parametrize("other", ["salt", "local-map", "focus", "sava-orthogonal"])
@pytest.mark.parametrize("weight", [0.25, "pieces"])
def test_a_blend_mixes_any_regression(other: str, weight, parts) -> None:
    options = {"ridge": 0.5} if other in ("salt", "local-map") else {}
    pieces, alone = parts(method="subword-mean"), parts(method=other, **options)
    done = parts(method="blend", blend_with=other, blend_weight=weight, **options)
    both = torch.from_numpy((pieces.origin == COMPOSED) & np.isin(alone.origin, (SOLVED, COMPOSED)))
    assert both.sum() > 30
    counts = np.diff(done.alignment.cover_offsets)
    share = 2 / (2 + torch.from_numpy(counts[both.numpy()]).double()) if weight == "pieces" else torch.tensor(weight)
    share = share.reshape(-1, 1)
    for side in ("input_rows", "output_rows"):
        blended, one, rest = (getattr(result, side)[both].double() for result in (done, pieces, alone))
        torch.testing.assert_close(blended, share * one + (1 - share) * rest, atol=1e-5, rtol=1e-4)


def test_the_weight_by_support_falls_with_its_size(parts, untied) -> None:
    pieces, alone, done = (
        parts(**o)
        for o in (
            {"method": "subword-mean"},
            {"method": "salt", "ridge": 1.0},
            {"method": "blend", "blend_with": "salt", "ridge": 1.0, "blend_weight": "support"},
        )
    )
    donor = load_donor(untied.target)
    vectors = load_auxiliary(untied.vectors, done.alignment.target.words())
    anchors = np.flatnonzero(done.alignment.shared & (done.alignment.kind != 4) & vectors.known.numpy())
    both = np.flatnonzero((pieces.origin == COMPOSED) & (alone.origin == SOLVED))
    offsets, *_ = reference.sparsemax_support(vectors.vectors[both], vectors.vectors[anchors])
    assert len(donor.input_rows) >= len(both) > 30
    share = (32 / (32 + offsets.diff().double()))[:, None]
    expected = share * pieces.input_rows[both].double() + (1 - share) * alone.input_rows[both].double()
    torch.testing.assert_close(done.input_rows[both].double(), expected, atol=1e-5, rtol=1e-4)


def job_of(pair, monkeypatch, **options):
    """The job that a transfer would run."""
    seen = []
    monkeypatch.setattr("saltlm.rows.build.build", lambda job: seen.append(job) or build(job))
    transfer(pair.source, pair.target, pair.vectors, config=TransferConfig(heldout=0.0, **options))
    return seen[0]


def test_precision_prefers_the_side_that_is_right(untied, monkeypatch) -> None:
    """Where a map explains all rows, the weight of the pieces is 0; where rows are means of pieces, it is nearly 1."""
    job = job_of(untied, monkeypatch, method="blend", blend_weight="precision")
    alignment = job.alignment
    anchors = torch.from_numpy(alignment.source_id[job.anchors].astype(np.int64))
    mapped = draw(*job.source_rows.shape, seed=0)
    mapped[anchors] = job.plm_rows[job.anchors].float() @ draw(job.plm_rows.shape[1], mapped.shape[1], seed=1)
    exact = dataclasses.replace(job.config, ridge=1e-9)
    shares = fitted_shares(dataclasses.replace(job, source_rows=mapped, config=exact), ridge_map)
    assert shares.max() < 0.01
    composed = draw(*job.source_rows.shape, seed=2)
    hidden = hide_in(job, HIDDEN_SHARE, job.config.seed)
    for token in hidden.tokens:
        pieces = hidden.job.alignment.cover(token)
        if len(pieces):
            composed[int(alignment.source_id[token])] = composed[pieces.astype(np.int64)].mean(dim=0)
    # Some pieces are hidden tokens, whose rows were changed later; most are not.
    assert fitted_shares(dataclasses.replace(job, source_rows=composed), ridge_map).min() > 0.8


def test_the_precision_rule_is_the_least_squares_share(untied, monkeypatch) -> None:
    job = job_of(untied, monkeypatch, method="blend", blend_weight="precision")
    alignment, check = job.alignment, hide_in(job, HIDDEN_SHARE, job.config.seed)
    kept, hidden = check.job.anchors, check.tokens
    x = job.plm_rows[kept].double()
    y = job.source_rows[alignment.source_id[kept].astype(np.int64)].double()
    g = ridge_fit(x, y, 1.0)
    sums = np.zeros((4, 3))
    for token in hidden:
        pieces = check.job.alignment.cover(token).astype(np.int64)
        if len(pieces):
            predicted = g(job.plm_rows[token].double())
            true = job.source_rows[int(alignment.source_id[token])].double() - predicted
            difference = job.source_rows[pieces].double().mean(dim=0) - predicted
            sums[min(len(pieces), 4) - 1] += float(difference @ true), float(difference @ difference), 1
    sums[sums[:, 2] < 10] = sums.sum(axis=0)
    expected = np.clip(sums[:, 0] / sums[:, 1], 0, 1)
    assert np.allclose(fitted_shares(job, ridge_map).numpy(), expected, atol=1e-4) and (expected > 0).any()


# Anchors cleaned of false friends


@given(st.integers(0, 10**6), st.floats(0.001, 10))
def test_the_error_without_a_token_is_that_of_a_fit_without_it(seed: int, ridge: float) -> None:
    plm, lm = draw(20, 5, seed=seed), draw(20, 3, seed=seed + 1)
    errors = leave_one_out(plm, lm, ridge)
    x, y = plm.double(), lm.double()
    penalty = ridge * (x - x.mean(0)).square().sum() / 20
    for one in range(0, 20, 5):
        rest = torch.arange(20) != one
        cx, cy = x[rest] - x[rest].mean(0), y[rest] - y[rest].mean(0)
        slope = torch.linalg.solve(cx.T @ cx + penalty * torch.eye(5).double(), cx.T @ cy)
        missed = y[one] - y[rest].mean(0) - (x[one] - x[rest].mean(0)) @ slope
        torch.testing.assert_close(errors[one], missed.norm() / y[one].norm(), atol=1e-7, rtol=1e-6)


def test_planted_false_friends_are_left_out_and_stay_copied(parts) -> None:
    plm = draw(100, 5, seed=0)
    lm = plm[:80] @ draw(5, 6, seed=1)
    false = [3, 17, 44, 61]
    lm[false] = draw(4, 6, seed=2) * 3
    case = planted(plm, lm, 80, method="sava-affine", clean_anchors=0.05)
    kept = cleaned_anchors(case.job)
    assert sorted(set(range(80)) - set(kept.tolist())) == false
    rows = torch.cat([block.rows for block in build(case.job)]).double()
    exact = plm[80:].double() @ draw(5, 6, seed=1).double()
    torch.testing.assert_close(rows, exact, atol=1e-4, rtol=1e-3)
    plain, clean = parts(method="focus"), parts(method="focus", clean_anchors=0.3)
    shared = torch.from_numpy(plain.alignment.shared)
    assert torch.equal(plain.input_rows[: len(shared)][shared], clean.input_rows[: len(shared)][shared])
    assert not torch.equal(plain.input_rows, clean.input_rows)


# The log-unigram shift


def test_the_shift_adds_the_part_that_the_row_lacks(untied, tmp_path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("water and house and wind\n\nthe water of the house\n" * 20, encoding="utf-8")

    def run(**options):
        config = TransferConfig(method="subword-mean", **options)
        return transfer(untied.source, untied.target, config=config)

    plain, done = run(), run(unigram_shift=0.5, unigram_text=str(text))
    assert torch.equal(plain.input_rows, done.input_rows)
    size, alignment = done.alignment.target.size, done.alignment
    ids = [
        i
        for line in text.read_text().split("\n\n")
        for i in done.tokenizer(line, add_special_tokens=False)["input_ids"]
    ]
    flags = alignment.target.flags()
    from saltlm.alignment.align import HOLE, SPECIAL

    ordinary = flags & (HOLE | SPECIAL) == 0
    counts = np.bincount(ids, minlength=size)
    z = torch.from_numpy(np.log((counts + 1) / (counts[ordinary].sum() + ordinary.sum())))
    shared = torch.from_numpy(np.flatnonzero(ordinary & alignment.shared & (done.origin[:size] == 0)))
    new = torch.from_numpy(np.flatnonzero(ordinary & (plain.origin[:size] == COMPOSED)))
    rows = plain.output_rows.double()
    prediction = ridge_fit(rows[shared], z[shared][:, None], 1.0)
    centred, spread = rows[shared] - rows[shared].mean(0), z[shared] - z[shared].mean()
    slope = centred.T @ spread / spread.square().sum()
    expected = rows[new] + 0.5 * (z[new][:, None] - prediction(rows[new])) * slope
    torch.testing.assert_close(done.output_rows[new].double(), expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(done.output_rows[shared], plain.output_rows[shared])
    assert done.summary["unigram_shift"]["from"] == str(text)
    assert any("before any training" in warning for warning in done.summary["warnings"])


def test_a_shift_without_a_bias_or_scores_is_refused(pair, untied, tmp_path) -> None:
    with pytest.raises(InputError, match="head is tied and has no bias"):
        transfer(pair.source, pair.target, config=TransferConfig(method="subword-mean", unigram_shift=1.0))
    with pytest.raises(InputError, match="kind WordPiece, which has no scores"):
        transfer(untied.source, untied.target, config=TransferConfig(method="subword-mean", unigram_shift=1.0))
    config = TransferConfig(method="subword-mean", unigram_shift=1.0, unigram_text=str(tmp_path / "none.txt"))
    with pytest.raises(InputError, match="no such file"):
        transfer(tmp_path / "no", tmp_path / "such", config=config)


# The guards


def test_the_norm_guard_counts_names_and_shrinks(pair) -> None:
    def run(guard: str):
        config = TransferConfig(method="clp", norm_guard=guard, heldout=0.0)
        return transfer(pair.source, pair.target, config=config)

    plain, shrunk = run("warn"), run("shrink")
    source = load_source(pair.source)
    bound = 3 * np.quantile(source.input_rows.double().norm(dim=1).numpy(), 0.999)
    lengths = plain.input_rows.double().norm(dim=1).numpy()
    far = np.flatnonzero((lengths > bound) & (plain.origin == COMPOSED))
    entry = plain.summary["norm_guard"]["input"]
    assert entry["rows"] == len(far) > 0 and entry["bound"] == pytest.approx(bound)
    farthest = far[np.argsort(-lengths[far], kind="stable")][:10]
    words = plain.alignment.target.words()
    assert entry["tokens"] == [[token, words[token]] for token in farthest.tolist()]
    assert (shrunk.input_rows[far].double().norm(dim=1) <= bound * (1 + 1e-6)).all()
    cosine = torch.nn.functional.cosine_similarity(shrunk.input_rows[far], plain.input_rows[far])
    assert (cosine > 1 - 1e-5).all()
    near = np.setdiff1d(np.arange(len(lengths)), far)
    assert torch.equal(shrunk.input_rows[near], plain.input_rows[near])
    assert any("scaled to it" in warning for warning in shrunk.summary["warnings"])


def test_supports_as_large_as_the_plm_is_wide_warn(untied) -> None:
    """Rows explode there without a ridge; there is no warning with a much smaller cap or with a ridge."""
    width = load_donor(untied.target).input_rows.shape[1]

    def warned(**options) -> bool:
        config = TransferConfig(method="omp", heldout=0.0, **options)
        done = transfer(untied.source, untied.target, untied.vectors, config=config)
        return any("as many neighbours as the PLM has dimensions" in warning for warning in done.summary["warnings"])

    assert warned(max_support=width) and not warned(max_support=width // 2)
    assert not warned(max_support=width, ridge=0.1)


# Options that contradict each other


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--method blend --blend-weight support",
            "blend_weight: found 'support' for method 'blend', where every anchor",
        ),
        ("--method blend --center", "center: found True for method 'blend', which has no use for it"),
        ("--method blend --blend-with focus --ridge 1", "ridge: found 1.0 for method 'blend' with 'focus'"),
        ("--method salt --blend-with salt", "blend_with: found 'salt' for method 'salt'"),
        ("--method salt --map-ridge 2", "map_ridge: found 2.0 for method 'salt'"),
        ("--method mean --clean-anchors 0.1", "clean_anchors: found 0.1 for method 'mean'"),
        ("--method clp --support-rule plm", "support_rule: found 'plm' for method 'clp'"),
        ("--method local-map --support-rule auxiliary", "auxiliary: found none for method 'local-map'"),
        ("--method blend --blend-with salt", "auxiliary: found none for method 'blend'"),
        ("--method blend --blend-weight piece", "did you mean 'pieces'"),
        ("--method blend --blend-weight 1.5", "blend_weight: found 1.5"),
        ("--method blend --blend-with slat", "did you mean 'salt'"),
        ("--method salt --clean-anchors 0.6", "clean_anchors: found 0.6"),
        ("--method mean --unigram-text x", "unigram_text: found a file but no unigram_shift"),
        ("--method mean --unigram-shift 0", "unigram_shift: found 0.0"),
        ("--method salt --norm-guard stop", "norm_guard: found 'stop'"),
    ],
)
def test_contradicting_options_are_refused_before_loading(options: str, message: str, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    fixed = ["transfer", "--source", str(tmp_path / "a"), "--target", str(tmp_path / "b"), "--out", str(out)]
    assert main([*fixed, *options.split()]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("saltlm:") == 1 and not captured.out and not out.exists()


def test_a_blend_asks_for_what_its_regression_needs() -> None:
    assert method_of(TransferConfig(method="blend", blend_with="salt")).vectors
    assert not method_of(TransferConfig(method="blend")).vectors
    assert method_of(TransferConfig(method="local-map", support_rule="auxiliary")).vectors
