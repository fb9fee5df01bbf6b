"""Configs that do not let a token id be null, as ModernBERT-decoder's: another token stands in, and the folder is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from models_tiny import WIDTH, save, save_bert, save_t5
from tokenizers_tiny import tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

from saltlm import TransferConfig, evaluate, transfer

BPE = tiny("byte_level_bpe")
DONORS = {
    "wordpiece, no bos and no eos": lambda folder: save_bert(folder, tiny("wordpiece")),
    "unigram, no cls and no sep": lambda folder: save_t5(folder, tiny("sentencepiece_unigram")),
    "bpe, no pad": lambda folder: save_bert(folder, tiny("sentencepiece_bpe")),
}
METHOD = TransferConfig(method="subword-mean")


def save_modernbert(folder: Path) -> Path:
    ids = {"pad_token_id": BPE.pad_token_id, "bos_token_id": BPE.bos_token_id, "eos_token_id": BPE.eos_token_id}
    ids |= {"cls_token_id": BPE.bos_token_id + 40, "sep_token_id": BPE.eos_token_id + 41}
    config = transformers.ModernBertDecoderConfig(
        vocab_size=len(BPE),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        **ids,
    )
    return save(folder, "ModernBertDecoderForCausalLM", config, BPE, dtype=torch.float32)


@pytest.mark.parametrize("kind", DONORS)
def test_a_modernbert_decoder_takes_any_donor(tmp_path: Path, kind: str) -> None:
    source, target = save_modernbert(tmp_path / "source"), DONORS[kind](tmp_path / "target")
    result = transfer(source, target, None, tmp_path / "out", METHOD)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    refused = refused_nulls("modernbert-decoder")  # none in the first releases of transformers 5
    for key in ("pad_token_id", "bos_token_id", "cls_token_id", "sep_token_id"):
        allowed = [*range(len(result.input_rows)), *([] if key in refused else [None])]
        assert config[key] in allowed, key
    model, tokenizer = (load.from_pretrained(tmp_path / "out") for load in (AutoModelForCausalLM, AutoTokenizer))
    assert torch.equal(model.get_input_embeddings().weight, result.input_rows)
    assert tokenizer.get_vocab() == result.tokenizer.get_vocab()
    assert evaluate(tmp_path / "out", documents=["kissa istui"]).bits_per_byte > 0


def refused_nulls(model_type: str) -> set[str]:
    """Token ids that a config class does not let be null, by trial."""
    config = transformers.CONFIG_MAPPING[model_type]
    refused = set()
    for key in ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "mask_token_id"):
        try:
            config.from_dict({"model_type": model_type, key: None})
        except Exception:
            refused.add(key)
    return refused
