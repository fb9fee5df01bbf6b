"""Row distillation finds rows back: a model whose new rows were spoilt learns the states of the one they came from."""

from __future__ import annotations

import json

import adapt_tiny
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers_tiny import KINDS, tiny

from saltlm.adaptation.config import AdaptConfig
from saltlm.adaptation.distillation import Pieces, collate_pieces, state_error
from saltlm.adaptation.run import adapt
from saltlm.errors import InputError

KEY = "model.embed_tokens.weight"


def pieces(student: str, teacher: str) -> Pieces:
    tokenizers = (tiny(student), tiny(teacher))
    starts = [t.bos_token_id if t.bos_token_id is not None else t.cls_token_id for t in tokenizers]
    return Pieces(lambda: iter(adapt_tiny.documents(9)), tokenizers, starts, length=40, count=12, seed=1)


@pytest.mark.parametrize("student", KINDS)
@pytest.mark.parametrize("teacher", ["byte_level_bpe", "sentencepiece_bpe"])
def test_places_have_read_the_same_text(student, teacher):
    found = pieces(student, teacher)
    count = 0
    for number in range(len(found)):
        item, text = found[number], found.pieces[number]
        count += len(item["places"])
        assert len(item["places"]) == len(item["teacher_places"])
        assert (np.diff(item["places"]) > 0).all() and (np.diff(item["teacher_places"]) > 0).all()
        for place, teacher_place in zip(item["places"], item["teacher_places"], strict=True):
            ends = []
            for name, at in ((student, place), (teacher, teacher_place)):
                offsets = tiny(name)(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
                ends.append(offsets[at - 1][1])
            assert ends[0] == ends[1] > 0
    assert count > 60


def test_the_error_is_nothing_for_the_same_and_about_two_for_unrelated_states():
    one, other = torch.randn(2, 500, 64, generator=torch.Generator().manual_seed(0))
    assert state_error(one, one) == 0 and float(state_error(one, other)) == pytest.approx(2, rel=0.05)


def test_batches_flatten_their_places():
    found = pieces("wordpiece", "byte_level_bpe")
    batch = collate_pieces([found[0], found[1]])
    flat = batch["input_ids"].flatten()[batch["places"]]
    assert flat.tolist() == [*found[0]["ids"][found[0]["places"]], *found[1]["ids"][found[1]["places"]]]


def test_spoilt_rows_come_back_and_nothing_else_moves(tmp_path, monkeypatch):
    teacher = adapt_tiny.transferred(tmp_path / "teacher")
    student = adapt_tiny.transferred(tmp_path / "student")
    weights = load_file(student / "model.safetensors")
    new = torch.arange(len(weights[KEY])) % 3 == 0
    true = weights[KEY].clone()
    weights[KEY][new] += 0.3 * torch.randn(int(new.sum()), 32, generator=torch.Generator().manual_seed(0))
    save_file(weights, student / "model.safetensors", metadata={"format": "pt"})
    summary = json.loads((student / "saltlm.json").read_text())
    (student / "saltlm.json").write_text(json.dumps({**summary, "inputs": {"source": {"path": str(teacher)}}}))
    text = adapt_tiny.text_file(tmp_path / "text.txt", 60)
    options = AdaptConfig(
        phases="all:1@1e-9", distill_rows=True, distill_steps=30, embedding_learning_rate=0.05, seq_length=64, batch_size=2,
        accumulate=2, device="cpu", heldout=0.2, eval_bytes=500, dtype="float32", eval_steps=100, save_steps=100,
    )  # fmt: skip
    places, stock = [], Pieces.__getitem__

    def counted(self, index):
        places.append(len(stock(self, index)["places"]))
        return stock(self, index)

    monkeypatch.setattr(Pieces, "__getitem__", counted)
    out = adapt(student, text, tmp_path / "out", options).out
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in lines] == ["distill"] * 31 + ["all"]
    assert lines[1]["tokens"] == sum(places[:4]) and lines[30]["tokens"] == sum(places)
    assert lines[30]["loss"] < 0.6 * lines[1]["loss"]
    after = load_file(out / "model.safetensors")[KEY]
    torch.testing.assert_close(after[~new], true[~new], rtol=0, atol=1e-7)
    before = load_file(student / "model.safetensors")[KEY]
    moved = (after[new] - before[new]).abs().amax(dim=1) > 1e-6  # rows of tokens that the text has
    assert (
        moved.any() and (after[new][moved] - true[new][moved]).norm() < (before[new][moved] - true[new][moved]).norm()
    )


def test_without_a_source_it_is_refused(tmp_path):
    model = adapt_tiny.transferred(tmp_path / "model")
    text = adapt_tiny.text_file(tmp_path / "text.txt")
    with pytest.raises(InputError, match="name it by --distill-source"):
        adapt(model, text, tmp_path / "out", AdaptConfig(distill_rows=True, seq_length=32, device="cpu"))
    assert not (tmp_path / "out").exists()
