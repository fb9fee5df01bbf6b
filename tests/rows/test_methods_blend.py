"""The blend of pieces and a regression, and the default method, which is such a blend."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from planted import draw, planted

from saltlm.alignment.align import MatchKind
from saltlm.config import TransferConfig
from saltlm.errors import InputError
from saltlm.model.checkpoint import load_donor, load_source
from saltlm.pipeline import transfer
from saltlm.rows.assembly import COMPOSED, SOLVED
from saltlm.rows.methods import METHODS, anchors_of
from saltlm.vectors.auxiliary import load_auxiliary


def test_the_default_is_a_longer_blend_and_pieces_alone_where_anchors_are_few(untied, monkeypatch) -> None:
    def run(**options):
        return transfer(untied.source, untied.target, config=TransferConfig(heldout=0.0, **options))

    default = run()
    same = run(method="blend", blend_with="ridge-map", blend_weight=0.35, blend_length=1.4, ridge=1.0)
    assert torch.equal(default.input_rows, same.input_rows) and torch.equal(default.output_rows, same.output_rows)
    assert default.summary["blend"] == {"weight": 0.35, "length": 1.4}
    set_by_user = run(blend_weight=0.5, blend_length=1.0, ridge=1.0)
    assert torch.equal(set_by_user.input_rows, run(method="blend").input_rows)
    width = load_donor(untied.target).input_rows.shape[1]
    assert default.summary["anchors"] >= width and default.summary["counts"]["solved"] > 0
    for count in (width - 1, 0):
        with monkeypatch.context() as patched:
            patched.setattr("saltlm.pipeline.anchors_of", lambda *inputs, count=count: anchors_of(*inputs)[:count])
            alone = run()
            if not count:
                with pytest.raises(InputError, match="at least one shared token"):
                    run(method="blend")
        assert torch.equal(alone.input_rows, run(method="subword-mean").input_rows)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_a_blend_is_the_weighted_mean_of_its_parts(untied, weight: float) -> None:
    def run(**options):
        return transfer(untied.source, untied.target, config=TransferConfig(heldout=0.0, **options))

    pieces, mapped = run(method="subword-mean"), run(method="sava-affine", ridge=0.5)
    done = run(method="blend", ridge=0.5, blend_weight=weight)
    both = torch.from_numpy(pieces.origin == COMPOSED)
    alone = torch.from_numpy((mapped.origin == SOLVED) & (pieces.origin != COMPOSED))
    assert both.any() and (done.origin[both.numpy()] == SOLVED).all()
    for side in ("input_rows", "output_rows"):
        blended, one, other = (getattr(result, side) for result in (done, pieces, mapped))
        torch.testing.assert_close(blended[both], weight * one[both] + (1 - weight) * other[both], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(blended[alone], other[alone])


@pytest.mark.parametrize("other", ["ridge-map", "salt"])
def test_the_length_of_a_blend_counts_from_the_mean_anchor_row(other: str, untied) -> None:
    def run(method="blend", **options):
        vectors = untied.vectors if other == "salt" else None
        return transfer(
            untied.source, untied.target, vectors, config=TransferConfig(method=method, heldout=0.0, **options)
        )

    plain, longer, shorter = (run(blend_with=other, blend_length=length) for length in (None, 1.75, 0.25))
    both = (run("subword-mean").origin == COMPOSED) & np.isin(run(other).origin, (SOLVED, COMPOSED))
    assert both.sum() > 30
    source, tokens = load_source(untied.source), plain.alignment
    anchors = tokens.shared & (tokens.kind != MatchKind.ROLE)
    anchors[len(load_donor(untied.target).input_rows) :] = False
    if other == "salt":
        anchors &= load_auxiliary(untied.vectors, tokens.target.words()).known.numpy()
    assert anchors.sum() == plain.summary["anchors"]
    ids = torch.from_numpy(tokens.source_id[anchors].astype(np.int64))
    for side in ("input_rows", "output_rows"):
        middle = getattr(source, side)[ids].double().mean(dim=0)
        one, far, near = (getattr(done, side).double() - middle for done in (plain, longer, shorter))
        torch.testing.assert_close(far[both], 1.75 * one[both], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(near[both], 0.25 * one[both], atol=1e-5, rtol=1e-4)
        assert torch.equal(far[~both], one[~both])


@pytest.mark.parametrize("head", [False, True])
def test_a_token_whose_regression_overflows_takes_its_pieces(head: bool) -> None:
    plm = draw(30, 4, seed=0)
    plm[25] = 3e38
    other = draw(25, 6, seed=2) if head else None
    case = planted(plm, draw(25, 6, seed=1), 20, method="blend", blend_with="sava-affine", ridge=0.0, head=other)
    ids = case.job.alignment
    ids.cover_offsets = np.arange(31, dtype=np.int64) * 2
    ids.cover_ids = np.tile([21, 24], 30).astype(np.int32)
    (mapped,) = [block for block in METHODS["sava-affine"].build(case.job) if 25 in block.ids]
    assert not mapped.rows[mapped.ids.tolist().index(25)].isfinite().all()
    built = {
        int(token): (block, at) for block in METHODS["blend"].build(case.job) for at, token in enumerate(block.ids)
    }
    block, at = built[25]
    torch.testing.assert_close(block.rows[at], case.job.source_rows[[21, 24]].mean(dim=0))
    assert block.origin == COMPOSED and built[24][0].origin == SOLVED
    if head:
        torch.testing.assert_close(block.head[at], other[[21, 24]].mean(dim=0))


def test_a_token_with_one_row_alone_takes_that_row() -> None:
    """A token beyond the PLM's rows takes the pieces, one without pieces takes the map, one without both is drawn."""
    case = planted(draw(30, 4, seed=0), draw(25, 6, seed=1), 20, method="blend", ridge=0.0)
    ids = case.job.alignment
    ids.source_id = np.concatenate([ids.source_id, [-1, -1]]).astype(np.int32)
    ids.cover_offsets = np.concatenate([np.zeros(31, dtype=np.int64), [2, 2]])
    ids.cover_ids = np.array([21, 24], dtype=np.int32)
    job = dataclasses.replace(case.job, new=np.arange(20, 32))
    blocks = list(METHODS["blend"].build(job))
    by_id = {int(token): block for block in blocks for token in block.ids}
    rows = by_id[30].rows[by_id[30].ids.tolist().index(30)]
    torch.testing.assert_close(rows, case.job.source_rows[[21, 24]].mean(dim=0))
    assert by_id[30].origin == COMPOSED and by_id[31].rows is None and by_id[20].origin == SOLVED
