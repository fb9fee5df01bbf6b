"""Training of special tokens: each input row has a gradient, the end of a text is learned, positions are right."""

from __future__ import annotations

from pathlib import Path

import adapt_tiny
import pytest
import torch
from models_tiny import save_causal, save_gpt2, save_llama
from tokenizers_tiny import tiny, with_roles
from transformers import AutoModelForCausalLM, AutoTokenizer

from saltlm.adaptation.config import AdaptConfig
from saltlm.adaptation.optimizer import train_all_input_rows
from saltlm.adaptation.run import adapt
from saltlm.adaptation.session import first_position
from saltlm.model.causal_lm import load_causal_lm

PAD_IS_END = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "pad_token": "<|end|>"}


@pytest.mark.parametrize("save", [save_llama, save_gpt2, lambda folder, t: save_causal(folder, "OPT", t)])
def test_the_row_of_a_padding_token_that_ends_a_text_is_trained(tmp_path: Path, save) -> None:
    tokenizer = with_roles("byte_level_bpe", **PAD_IS_END)
    save(tmp_path / "model", tokenizer)
    lm = load_causal_lm(tmp_path / "model", device="cpu")
    lm.model.config.tie_word_embeddings = False
    ids = torch.tensor([[5, tokenizer.eos_token_id, 7, 8]])
    train_all_input_rows(lm.model)
    rows = lm.model.get_input_embeddings()
    assert rows.padding_idx is None
    rows(ids).sum().backward()
    assert rows.weight.grad[tokenizer.eos_token_id].abs().min() > 0


def test_a_model_that_pads_with_eos_learns_to_end_a_text(tmp_path: Path) -> None:
    tokenizer = with_roles("byte_level_bpe", **PAD_IS_END)
    save_llama(tmp_path / "model", tokenizer, tied=False)
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(["the cat sat on the mat"] * 200) + "\n", encoding="utf-8")
    config = AdaptConfig(
        phases="all:80@1e-2",
        seq_length=32,
        batch_size=4,
        device="cpu",
        heldout=0,
        cross_documents=True,
        save_steps=1000,
    )
    adapt(tmp_path / "model", text, tmp_path / "out", config=config)
    before, after = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("model", "out"))
    read = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = [read.bos_token_id, *read("the cat sat on the mat", add_special_tokens=False)["input_ids"]]
    with torch.no_grad():
        chance = [model(torch.tensor([ids])).logits[0, -1].softmax(0)[read.eos_token_id] for model in (before, after)]
    assert chance[0] < 0.2 and chance[1] > 0.8
    end = read.eos_token_id
    rows = [model.get_input_embeddings().weight[end].detach() for model in (before, after)]
    assert not torch.equal(*rows), "eos is read in front of the next text, so its input row is trained"


@pytest.mark.parametrize(("name", "first"), [("Roberta", 2), ("XGLM", 0), ("OPT", 0), ("Llama", 0), ("GPT2", 0)])
def test_the_first_position_of_a_class(tmp_path: Path, name: str, first: int) -> None:
    positions = 66 if name == "Roberta" else 64
    save_causal(tmp_path / "model", name, tiny("sentencepiece_unigram"), positions=positions)
    assert first_position(load_causal_lm(tmp_path / "model", device="cpu")) == first


def test_positions_that_begin_after_the_padding_id_are_trained_where_they_are_read(tmp_path: Path) -> None:
    tokenizer = tiny("sentencepiece_unigram")
    save_causal(tmp_path / "model", "Roberta", tokenizer, positions=66)
    text = adapt_tiny.text_file(tmp_path / "text.txt", 60)
    config = AdaptConfig(
        phases="all:2@1e-3",
        seq_length=64,
        batch_size=1,
        device="cpu",
        heldout=0.2,
        cross_documents=True,
        weight_decay=0.0,
    )
    adapt(tmp_path / "model", text, tmp_path / "out", config=config)
    before, after = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name).roberta.embeddings.position_embeddings.weight.detach()
        for name in ("model", "out")
    )
    changed = (before != after).any(dim=1)
    # The last token of a block predicts nothing.
    assert not changed[:2].any() and changed[2:-1].all()
