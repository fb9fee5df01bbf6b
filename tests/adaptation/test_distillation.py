"""Row distillation restores rows: a model with noise on its new rows learns the hidden states of the model without it."""

from __future__ import annotations

import json

import adapt_tiny
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers_tiny import KINDS, tiny

from saltlm.adaptation.config import AdaptConfig
from saltlm.adaptation.distillation import AlignedTexts, collate_aligned, state_error
from saltlm.adaptation.run import adapt
from saltlm.errors import InputError

KEY = "model.embed_tokens.weight"


def aligned_texts(student: str, teacher: str) -> AlignedTexts:
    tokenizers = (tiny(student), tiny(teacher))
    starts = [t.bos_token_id if t.bos_token_id is not None else t.cls_token_id for t in tokenizers]
    return AlignedTexts(lambda: iter(adapt_tiny.documents(9)), tokenizers, starts, length=40, count=12, seed=1)


@pytest.mark.parametrize("student", KINDS)
@pytest.mark.parametrize("teacher", ["byte_level_bpe", "sentencepiece_bpe"])
def test_aligned_tokens_end_at_the_same_character(student, teacher):
    texts = aligned_texts(student, teacher)
    count = 0
    for number in range(len(texts)):
        item, text = texts[number], texts.texts[number]
        count += len(item["positions"])
        assert len(item["positions"]) == len(item["teacher_positions"])
        assert (np.diff(item["positions"]) > 0).all() and (np.diff(item["teacher_positions"]) > 0).all()
        for position, teacher_position in zip(item["positions"], item["teacher_positions"], strict=True):
            ends = []
            for name, index in ((student, position), (teacher, teacher_position)):
                offsets = tiny(name)(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
                ends.append(offsets[index - 1][1])
            assert ends[0] == ends[1] > 0
    assert count > 60


def test_the_error_is_0_for_equal_states_and_about_2_for_unrelated_states():
    one, other = torch.randn(2, 500, 64, generator=torch.Generator().manual_seed(0))
    assert state_error(one, one) == 0 and float(state_error(one, other)) == pytest.approx(2, rel=0.05)


def test_positions_of_a_batch_are_indices_into_the_flattened_batch():
    texts = aligned_texts("wordpiece", "byte_level_bpe")
    batch = collate_aligned([texts[0], texts[1]])
    flat = batch["input_ids"].flatten()[batch["positions"]]
    assert flat.tolist() == [*texts[0]["ids"][texts[0]["positions"]], *texts[1]["ids"][texts[1]["positions"]]]


def test_distillation_moves_noisy_rows_back_and_changes_no_other_weight(tmp_path, monkeypatch):
    teacher = adapt_tiny.transferred(tmp_path / "teacher")
    student = adapt_tiny.transferred(tmp_path / "student")
    weights = load_file(student / "model.safetensors")
    new = torch.arange(len(weights[KEY])) % 3 == 0
    original = weights[KEY].clone()
    weights[KEY][new] += 0.3 * torch.randn(int(new.sum()), 32, generator=torch.Generator().manual_seed(0))
    save_file(weights, student / "model.safetensors", metadata={"format": "pt"})
    summary = json.loads((student / "saltlm.json").read_text())
    (student / "saltlm.json").write_text(json.dumps({**summary, "inputs": {"source": {"path": str(teacher)}}}))
    text = adapt_tiny.text_file(tmp_path / "text.txt", 60)
    options = AdaptConfig(
        phases="all:1@1e-9",
        distill_rows=True,
        distill_steps=30,
        embedding_learning_rate=0.05,
        seq_length=64,
        batch_size=2,
        accumulate=2,
        device="cpu",
        heldout=0.2,
        eval_bytes=500,
        dtype="float32",
        eval_steps=100,
        save_steps=100,
    )
    counts, get_item = [], AlignedTexts.__getitem__

    def count_positions(self, index):
        item = get_item(self, index)
        counts.append(len(item["positions"]))
        return item

    monkeypatch.setattr(AlignedTexts, "__getitem__", count_positions)
    out = adapt(student, text, tmp_path / "out", options).out
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in lines] == ["distill"] * 31 + ["all"]
    assert lines[1]["tokens"] == sum(counts[:4]) and lines[30]["tokens"] == sum(counts)
    assert lines[30]["loss"] < 0.6 * lines[1]["loss"]
    after = load_file(out / "model.safetensors")[KEY]
    torch.testing.assert_close(after[~new], original[~new], rtol=0, atol=1e-7)
    before = load_file(student / "model.safetensors")[KEY]
    moved = (after[new] - before[new]).abs().amax(dim=1) > 1e-6  # rows of tokens that occur in the text
    assert (
        moved.any()
        and (after[new][moved] - original[new][moved]).norm() < (before[new][moved] - original[new][moved]).norm()
    )


def test_distillation_without_a_source_model_is_refused(tmp_path):
    model = adapt_tiny.transferred(tmp_path / "model")
    text = adapt_tiny.text_file(tmp_path / "text.txt")
    with pytest.raises(InputError, match="name it by --distill-source"):
        adapt(model, text, tmp_path / "out", AdaptConfig(distill_rows=True, seq_length=32, device="cpu"))
    assert not (tmp_path / "out").exists()
