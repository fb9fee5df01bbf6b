"""Models whose positions depend on the padding id: the transferred folder gives the source's logits at shared tokens."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from models_tiny import save_bert, save_causal, save_gpt2
from tokenizers_tiny import tiny, with_roles
from transformers import AutoModelForCausalLM, AutoTokenizer

from saltlm.alignment.align import MatchKind
from saltlm.config import TransferConfig
from saltlm.errors import InputError
from saltlm.model.causal_lm import load_causal_lm, positions_in
from saltlm.model.checkpoint import load_source
from saltlm.model.positions import keep_positions
from saltlm.pipeline import Transfer, transfer

LENGTH = 64  # tokens of the longest text of each source
CONFIG = TransferConfig(method="subword-mean", heldout=0.0)
# Config class -> padding rows before the first position of its learned table.
LEARNED = {
    "Roberta": 2,
    "XLMRoberta": 2,
    "Camembert": 2,
    "RobertaPreLayerNorm": 2,
    "Data2VecText": 2,
    "XLMRobertaXL": 2,
}
CLASSES = [*LEARNED, "XGLM", "OPT", "GPT2", "Llama", "Bart"]
DONORS = {
    "pad 0": lambda: tiny("wordpiece"),
    "pad 1": lambda: tiny("sentencepiece_unigram"),
    "pad last": lambda: with_roles(
        "sentencepiece_unigram", bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<filler>"
    ),
    "no pad, bos is eos": lambda: with_roles("byte_level_bpe", bos_token="<|end|>", eos_token="<|end|>"),
    "no bos": lambda: with_roles("sentencepiece_unigram", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"),
}


@pytest.fixture(scope="module")
def transferred(tmp_path_factory):
    """Make a source of a class and its transfer to a donor, each once."""
    root = tmp_path_factory.mktemp("positions")
    donors = {}

    @functools.cache
    def source(name: str) -> Path:
        options = {"is_encoder_decoder": False, "encoder_layers": 2, "decoder_layers": 2} if name == "Bart" else {}
        tokenizer = tiny("sentencepiece_unigram")
        return save_causal(root / name, name, tokenizer, positions=LENGTH + LEARNED.get(name, 0), **options)

    @functools.cache
    def make(name: str, donor: str) -> tuple[Path, Transfer]:
        if donor not in donors:
            tokenizer = DONORS[donor]()
            save = save_gpt2 if tokenizer.pad_token is None else save_bert
            donors[donor] = save(root / donor, tokenizer)
        return source(name), transfer(source(name), donors[donor], out=root / f"{name} {donor}", config=CONFIG)

    return make


def shared_texts(done: Transfer, rows: int, length: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts of shared text tokens in target ids and in source ids, each int64 [rows, length]."""
    text = np.flatnonzero(done.alignment.shared & (done.alignment.kind != MatchKind.ROLE))
    ids = np.random.default_rng(seed).choice(text, size=(rows, length))
    return torch.from_numpy(ids), torch.from_numpy(done.alignment.source_id[ids].astype(np.int64))


def shared_logits(source: Path, done: Transfer, new_ids, old_ids, **inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of shared text tokens from the new folder and from the source, both loaded by stock transformers."""
    text = np.flatnonzero(done.alignment.shared & (done.alignment.kind != MatchKind.ROLE))
    matched = done.alignment.source_id[text].astype(np.int64)
    with torch.no_grad():
        new = AutoModelForCausalLM.from_pretrained(done.out)(input_ids=new_ids, **inputs).logits
        old = AutoModelForCausalLM.from_pretrained(source)(input_ids=old_ids, **inputs).logits
    return new[..., torch.from_numpy(text)], old[..., torch.from_numpy(matched)]


@pytest.mark.parametrize("donor", DONORS)
@pytest.mark.parametrize("name", CLASSES)
def test_every_position_keeps_the_logits_of_shared_tokens(transferred, name: str, donor: str) -> None:
    source, done = transferred(name, donor)
    new_ids, old_ids = shared_texts(done, 2, LENGTH)
    new, old = shared_logits(source, done, new_ids, old_ids)
    assert len(new[0, 0]) > 20 and old.std() > 0.1
    torch.testing.assert_close(new, old, rtol=1e-5, atol=1e-5 * float(old.abs().max()))


@pytest.mark.parametrize("donor", DONORS)
@pytest.mark.parametrize("name", ["Roberta", "XLMRobertaXL", "XGLM"])
def test_padding_of_the_new_tokenizer_is_padding_for_the_model(transferred, name: str, donor: str) -> None:
    source, done = transferred(name, donor)
    tokenizer = AutoTokenizer.from_pretrained(done.out)
    config = json.loads((done.out / "config.json").read_text())
    if tokenizer.pad_token_id is None:
        assert name == "XGLM" and donor == "no pad, bos is eos" and config["pad_token_id"] is None
        return
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    expected = tokenizer.pad_token_id if name in LEARNED or tokenizer.pad_token_id < 2 else None
    assert config["pad_token_id"] == expected
    assert json.loads((done.out / "generation_config.json").read_text())["pad_token_id"] == tokenizer.pad_token_id
    lengths = (10, 17)
    new_ids, old_ids = shared_texts(done, 2, max(lengths))
    mask = torch.tensor([[int(i < n) for i in range(max(lengths))] for n in lengths])
    old_pad = AutoTokenizer.from_pretrained(source).pad_token_id
    new_ids[mask == 0], old_ids[mask == 0] = tokenizer.pad_token_id, old_pad
    new, old = shared_logits(source, done, new_ids, old_ids, attention_mask=mask)
    torch.testing.assert_close(new[mask == 1], old[mask == 1], rtol=1e-5, atol=1e-5 * float(old.abs().max()))


@pytest.mark.parametrize("donor", DONORS)
@pytest.mark.parametrize("name", ["Roberta", "XGLM", "OPT"])
def test_the_longest_text_of_the_model_is_known(transferred, name: str, donor: str) -> None:
    source, done = transferred(name, donor)
    for folder in (source, done.out):
        assert load_causal_lm(folder, device="cpu").max_positions == positions_in(folder, "model") == LENGTH


def test_only_the_position_rows_move(transferred) -> None:
    from safetensors.torch import load_file

    source, done = transferred("Roberta", "pad last")
    old, new = (load_file(folder / "model.safetensors") for folder in (source, done.out))
    shift = AutoTokenizer.from_pretrained(done.out).pad_token_id - 1
    vocabulary = {"roberta.embeddings.word_embeddings.weight", "lm_head.bias"}
    table = "roberta.embeddings.position_embeddings.weight"
    assert old.keys() == new.keys()
    assert torch.equal(new[table][shift:], old[table]) and not new[table][:shift].any()
    for key in old.keys() - vocabulary - {table}:
        assert torch.equal(old[key], new[key]), key
    assert any(f"position rows are moved by {shift}" in warning for warning in done.summary["warnings"])


@pytest.mark.parametrize("name", ["Llama", "GPT2", "OPT", "Bart"])
def test_a_class_without_such_positions_needs_nothing(transferred, name: str) -> None:
    source, done = transferred(name, "pad last")
    loaded = load_source(source)
    assert not loaded.needs_pad
    change = keep_positions(loaded, 100)
    assert not change.config and not change.tensors and not change.warnings
    assert json.loads((done.out / "config.json").read_text())["pad_token_id"] == done.tokenizer.pad_token_id


def test_computed_positions_that_begin_after_the_padding_id_are_refused(tmp_path: Path) -> None:
    options = {"use_learned_position_embeddings": False, "decoder_ffn_dim": 64, "is_encoder_decoder": False}
    options |= {"cross_attention_hidden_size": 32}
    source = save_causal(tmp_path / "source", "TrOCR", tiny("sentencepiece_unigram"), **options)
    loaded = load_source(source)
    assert loaded.needs_pad and not keep_positions(loaded, 1).config
    target = save_bert(tmp_path / "target", tiny("wordpiece"))
    with pytest.raises(InputError, match=r"padding token \(1\), and a target that pads with id 0; expected .*; choose"):
        transfer(source, target, out=tmp_path / "out", config=CONFIG)
    assert not (tmp_path / "out").exists()
