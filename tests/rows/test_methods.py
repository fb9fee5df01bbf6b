"""Every method on whole tiny models against its formula in float64, and properties that all methods share."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from planted import Side, anchors_by_definition, built, cosines, draw, planted, sparsemax
from safetensors.torch import load_file, save_file

from saltlm.alignment.align import WORD_START
from saltlm.config import METHODS as NAMES
from saltlm.config import TransferConfig
from saltlm.errors import InputError
from saltlm.model.checkpoint import load_source
from saltlm.pipeline import transfer
from saltlm.rows.assembly import COMPOSED, DRAWN, SOLVED, Head
from saltlm.rows.hidden import hide_in
from saltlm.rows.methods import METHODS, NEEDS_VECTORS, Job, Method
from saltlm.rows.methods.pieces import characters
from saltlm.rows.methods.pursuit import pursue
from saltlm.rows.self_check import check

ANCHORED = [name for name, method in METHODS.items() if method.anchors]


@pytest.mark.parametrize("method", ["focus", "clp", "clp-plus", "sava-affine", "omp"])
def test_whole_transfers_follow_the_formula(method: str, untied, untied_parts) -> None:
    source, donor, alignment, vectors = untied_parts
    # Few picks: when the residual of a row is nearly zero, float32 and float64 may pick different anchors.
    config = TransferConfig(method=method, max_support=8 if method == "omp" else None)
    done = transfer(untied.source, untied.target, untied.vectors, config=config)
    anchors = anchors_by_definition(alignment, vectors.known if method == "focus" else None)
    tokens = np.flatnonzero(np.isin(done.origin, (COMPOSED, SOLVED)))
    open_tokens = int((~alignment.shared).sum())
    drawn = int((done.origin == DRAWN).sum())
    assert len(tokens) + drawn == open_tokens and len(tokens) > 30
    assert (drawn > 0) == (method == "focus")  # some words have no vector, every token has a PLM row
    space = (vectors.vectors if method == "focus" else donor.input_rows).double()
    ids = torch.from_numpy(alignment.source_id[anchors].astype(np.int64))
    unit = torch.nn.functional.normalize(space, dim=1)
    for token in tokens[::5]:
        z = unit[anchors] @ unit[token]
        if method in ("focus", "clp-plus"):
            weights = [sparsemax(z)]
        elif method == "clp":
            weights = [z / z.sum()]
        elif method == "omp":
            # Of two products that are equal in float32 it may pick the other one.
            weights = []
            for rows_of_plm in (space, space.float()):
                support = pursue(rows_of_plm[token][None], rows_of_plm[anchors], 8).ids.long()
                weights.append(torch.zeros(len(anchors)).double())
                weights[-1][support] = space[token] @ torch.linalg.pinv(space[anchors][support])
        else:
            x = space[anchors]
            weight = (space[token] - x.mean(0)) @ torch.linalg.pinv(x - x.mean(0))
            weights = [weight + (1 - weight.sum()) / len(anchors)]
        for rows, result in ((source.input_rows, done.input_rows), (source.output_rows, done.output_rows)):
            expected = [weight @ rows[ids].double() for weight in weights]
            error = min(((result[token].double() - row).norm() / row.norm()).item() for row in expected)
            assert error <= 1e-3, (token, method)


def test_length_weighted_means(untied, untied_parts) -> None:
    source, _, alignment, _ = untied_parts
    done = transfer(untied.source, untied.target, config=TransferConfig(method="subword-length"))
    data, offsets = alignment.source.token_bytes()

    def length(piece: int) -> int:
        spelled = bytes(data[offsets[piece] : offsets[piece + 1]])
        try:
            return max(1, len(spelled.decode()))
        except UnicodeDecodeError:
            return 1  # byte pieces

    composed = np.flatnonzero(done.origin == COMPOSED)
    weighted = 0
    for token in composed:
        pieces = alignment.cover(token)
        weight = torch.tensor([length(piece) for piece in pieces]).double()
        weighted += len(set(weight.tolist())) > 1
        for rows, result in ((source.input_rows, done.input_rows), (source.output_rows, done.output_rows)):
            expected = (weight / weight.sum()) @ rows[torch.from_numpy(pieces.astype(np.int64))].double()
            torch.testing.assert_close(result[token].double(), expected, atol=1e-5, rtol=1e-4)
    assert weighted > 10


def test_asymmetric_composition(untied, pair) -> None:
    def run(method: str, case=untied):
        return transfer(case.source, case.target, config=TransferConfig(method=method))

    plain, weighted, done = run("subword-mean"), run("subword-length"), run("subword-asymmetric")
    composed = torch.from_numpy(done.origin == COMPOSED)
    typical = load_source(untied.source).input_rows.double().norm(dim=1).median()
    torch.testing.assert_close(done.input_rows[composed].double().norm(dim=1), typical.expand(int(composed.sum())))
    cosine = torch.nn.functional.cosine_similarity(done.input_rows[composed], plain.input_rows[composed])
    assert (cosine > 1 - 1e-5).all()
    assert torch.equal(done.output_rows, weighted.output_rows)
    assert not any("tied" in warning for warning in done.summary["warnings"])
    assert any("the head is tied" in warning for warning in run("subword-asymmetric", pair).summary["warnings"])


def test_multivariate_draws_have_the_mean_and_covariance_of_the_source(untied) -> None:
    lm = draw(400, 6, seed=0) @ draw(6, 6, seed=1) + torch.arange(6)
    case = planted(torch.zeros(20_000, 2), lm, 10, method="multivariate", head=2 * lm, seed=3)
    for part, scale in (("rows", 1), ("head", 2)):
        rows = built(case, part)
        spread = (scale * lm.double()).T.cov()
        assert (rows.mean(dim=0) - scale * lm.double().mean(dim=0)).norm() < 0.05 * spread.trace().sqrt()
        assert (rows.T.cov() - spread).norm() < 0.05 * spread.norm()
    assert torch.equal(built(case), built(case))
    assert abs(np.corrcoef(built(case)[:, 0], built(case, "head")[:, 0])[0, 1]) < 0.05
    done = transfer(untied.source, untied.target, config=TransferConfig(method="multivariate"))
    assert done.summary["counts"]["composed"] == 0 < done.summary["counts"]["drawn"]
    assert not any("random row" in warning for warning in done.summary["warnings"])


def test_characters_of_pieces(untied_parts) -> None:
    alignment = untied_parts[2]
    lengths = characters(alignment)
    assert len(lengths) == alignment.source.size and lengths.min() == 1
    words = alignment.source.words()
    # The characters of a word, not its bytes ("ß" and "Ü" have two bytes each); the space of a word start counts.
    start = alignment.source.flags() & WORD_START > 0
    plain = [i for i, word in enumerate(words) if word and word.isalpha() and len(word) > 1]
    assert len(plain) > 50 and any(not words[i].isascii() for i in plain)
    assert start[plain].any() and all(lengths[i] == len(words[i]) + start[i] for i in plain)


# Properties of every method.


def test_the_names_are_those_of_the_options() -> None:
    assert tuple(METHODS) == NAMES and NAMES[0] == TransferConfig().method == "auto"
    assert set(NEEDS_VECTORS) < set(NAMES)


@pytest.mark.parametrize("method", NAMES)
def test_the_head_and_the_summary_are_whole(method: str, untied, bilingual) -> None:
    options = bilingual if METHODS[method].source_vectors == "dictionary" else {}
    done = transfer(untied.source, untied.target, untied.vectors, config=TransferConfig(method=method, **options))
    assert done.input_rows.isfinite().all() and done.output_rows.isfinite().all()
    summary = done.summary
    assert sum(summary["counts"].values()) == len(done.origin)
    support = summary["support"]
    assert (support is not None) == bool(METHODS[method].neighbours)
    if support:
        assert support["of"] == METHODS[method].neighbours and 1 <= support["min"] <= support["max"]
        assert support["of"] != "anchors" or support["max"] <= summary["anchors"]
    assert summary["heldout"]["tokens"] > 0


@pytest.mark.parametrize("method", ANCHORED)
def test_the_self_check_never_reads_hidden_rows(method: str) -> None:
    """The rows of hidden anchors are changed: the prediction must stay the same."""
    plm, lm = draw(80, 6, seed=0), draw(60, 5, seed=1)
    case = planted(plm, lm, 60, method=method)
    kept, hidden = case.anchors[:50], case.anchors[50:]
    job = dataclasses.replace(case.job, anchors=kept, new=hidden)
    before = torch.cat([block.rows for block in METHODS[method].build(job)])
    changed = lm.clone()
    changed[50:] = 1e6
    job = dataclasses.replace(job, source_rows=changed)
    assert torch.equal(torch.cat([block.rows for block in METHODS[method].build(job)]), before)


def test_the_self_check_finds_a_planted_map(untied_parts) -> None:
    alignment = untied_parts[2]
    anchors = anchors_by_definition(alignment, None)
    plm = draw(alignment.target.size, 6, seed=0)
    rows = torch.zeros(alignment.source.size, 4)
    rows[torch.from_numpy(alignment.source_id[anchors].astype(np.int64))] = plm[anchors] @ draw(6, 4, seed=1) + 1
    job = Job(
        alignment=alignment,
        source_rows=rows,
        head=Head(Side()),
        used=np.arange(len(rows)),
        auxiliary=None,
        plm_rows=plm,
        anchors=anchors,
        new=np.zeros(0, dtype=np.int64),
        config=TransferConfig(method="sava-affine"),
        device=torch.device("cpu"),
    )
    figures = check(hide_in(job, 0.2, 0))
    assert figures["relative_error"] < 1e-4 and figures["rank"] == 1 and figures["top1"] == 1


@pytest.mark.parametrize(
    ("method", "option"),
    [
        ("focus", {"ridge": 0.1}),
        ("subword-mean", {"max_support": 3}),
        ("clp", {"center": True}),
        ("sava-orthogonal", {"ridge": 1.0}),
        ("salt", {"blend_weight": 0.2}),
        ("zero", {"ridge": 0.0}),
    ],
)
def test_an_option_of_another_method_is_refused_before_loading(method: str, option: dict, tmp_path) -> None:
    name = next(iter(option))
    with pytest.raises(InputError, match=f"^{name}: found .* for method '{method}'.*--{name.replace('_', '-')}"):
        transfer(tmp_path / "no", tmp_path / "such", "plm", config=TransferConfig(method=method, **option))


@pytest.mark.parametrize("method", NEEDS_VECTORS)
def test_missing_vectors_are_refused_before_loading(method: str, tmp_path) -> None:
    with pytest.raises(InputError, match=f"auxiliary: found none for method '{method}'"):
        transfer(tmp_path / "no", tmp_path / "such", config=TransferConfig(method=method))


@pytest.mark.parametrize(
    ("typed", "nearest"), [("fokus", "focus"), ("clp+", "clp"), ("sava-afine", "sava-affine"), ("blnd", "blend")]
)
def test_a_misspelt_method_names_the_nearest(typed: str, nearest: str) -> None:
    with pytest.raises(InputError, match=f"did you mean '{nearest}'"):
        TransferConfig(method=typed)


def test_far_rows_are_in_the_warnings(pair) -> None:
    """CLP divides by the sum of cosines, which may be near zero: the summary must warn of the long rows."""
    done = transfer(pair.source, pair.target, config=TransferConfig(method="zero"))
    assert any("method zero makes a broken start" in warning for warning in done.summary["warnings"])
    unchecked = transfer(pair.source, pair.target, config=TransferConfig(method="zero", heldout=0.0))
    assert any("median composed row has norm 0" in warning for warning in unchecked.summary["warnings"])
    plain = transfer(pair.source, pair.target, config=TransferConfig(method="clp"))
    guard = plain.summary["norm_guard"]["input"]
    assert any("built input rows are far longer" in warning for warning in plain.summary["warnings"])
    broken = plain.summary["heldout"]["broken"]
    assert any("method clp makes a broken start" in warning for warning in plain.summary["warnings"]) == bool(broken)
    assert guard["rows"] > 0 and guard["largest"] == plain.summary["norms"]["composed"]["max"] > guard["bound"]


@pytest.mark.parametrize("clean_anchors", [0.0, 0.1])
def test_supports_near_the_plms_width_warn_unless_there_is_a_ridge(pair, clean_anchors: float) -> None:
    def ridge_warnings(**options) -> list[str]:
        config = TransferConfig(max_support=32, clean_anchors=clean_anchors, heldout=0.0, **options)
        warnings = transfer(pair.source, pair.target, config=config).summary["warnings"]
        return [warning for warning in warnings if "about as many neighbours as the PLM has dimensions (32)" in warning]

    assert len(ridge_warnings(method="omp")) == len(ridge_warnings(method="local-map", ridge=0.0)) == 1
    assert ridge_warnings(method="omp", ridge=0.1) == ridge_warnings(method="local-map") == []


def test_a_plm_row_of_zeros_builds_nothing(pair, tmp_path) -> None:
    """Least squares would give a row of zeros, which under a tied head is at least as likely as the average token."""
    done = transfer(pair.source, pair.target, pair.vectors, config=TransferConfig(method="salt"))
    token = int(np.flatnonzero(done.origin == SOLVED)[0])
    shutil.copytree(pair.target, tmp_path / "target")
    rows = load_file(tmp_path / "target" / "model.safetensors")
    rows["embeddings.word_embeddings.weight"][token] = 0
    save_file(rows, tmp_path / "target" / "model.safetensors", metadata={"format": "pt"})
    for config in (TransferConfig(method="salt"), TransferConfig(method="salt", center=True)):
        again = transfer(pair.source, tmp_path / "target", pair.vectors, config=config)
        assert again.origin[token] == DRAWN and again.input_rows[token].any()
        assert {entry["name"]: entry["count"] for entry in again.summary["statuses"]}["no_plm_row"] == 1


def test_the_example_of_a_new_method_works(untied, untied_parts) -> None:
    """The example of CONTRIBUTING.md: one function in one file of methods/, and one entry in METHODS."""
    from saltlm.rows.methods import local

    text = (Path(__file__).resolve().parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(from[^`]*?def nearest.*?)^```", text, re.MULTILINE | re.DOTALL)
    names = dict(vars(local))
    exec(code, names)
    entry = re.search(r"`(Method\(build=local\.nearest.*?\))`", text)[1]
    method = eval(entry, {"Method": Method, "local": SimpleNamespace(nearest=names["nearest"])})
    assert method.vectors and method.anchors and not method.plm
    case = planted(draw(50, 7, seed=0), draw(40, 5, seed=1), 40, method="focus", head=draw(40, 3, seed=2))
    (block,) = method.build(case.job)
    near = cosines(case).argmax(dim=1)
    torch.testing.assert_close(block.rows, case.job.source_rows[near])
    torch.testing.assert_close(block.head, case.job.head.rows[near])
    assert block.ids.tolist() == case.new.tolist() and set(block.support_size.tolist()) == {1}
