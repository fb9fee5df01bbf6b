"""Rows of special tokens: stand-ins change nothing, and a token that begins and ends a text takes the row that it serves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from models_tiny import save_bert, save_gpt2, save_llama, save_phi, save_qwen2, save_t5
from tokenizers import processors
from tokenizers_tiny import tiny, with_roles
from transformers import AutoModelForCausalLM, AutoTokenizer

from saltlm.config import TransferConfig
from saltlm.model.checkpoint import load_source
from saltlm.pipeline import transfer

CONFIG = TransferConfig(method="subword-mean", heldout=0.0)
# Donors whose tokenizer has an eos and no bos.
NO_BOS = {
    "t5": lambda folder: save_t5(
        folder, with_roles("sentencepiece_unigram", eos_token="</s>", pad_token="<pad>", unk_token="<unk>")
    ),
    "qwen": lambda folder: save_qwen2(
        folder, with_roles("byte_level_bpe", eos_token="<|end|>", pad_token="<|pad|>"), seed=1
    ),
}
SOURCES = {
    "tied": lambda folder, tokenizer: save_llama(folder, tokenizer),
    "untied": lambda folder, tokenizer: save_llama(folder, tokenizer, tied=False),
    "untied with a bias": save_phi,
}


def source_tokenizer(kind: str = "sentencepiece_bpe", *, begins: bool = False):
    """A source's tokenizer with bos and eos; ``begins``: it adds bos before each text."""
    specials = {"sentencepiece_bpe": ("<s>", "</s>"), "byte_level_bpe": ("<|begin|>", "<|end|>")}[kind]
    tokenizer = with_roles(kind, bos_token=specials[0], eos_token=specials[1])
    if begins:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{specials[0]} $A", special_tokens=[(specials[0], tokenizer.bos_token_id)]
        )
    return tokenizer


def rows_of(folder: Path, token: int) -> tuple[torch.Tensor, ...]:
    """Input row, output row and bias of a token, as stock transformers loads them."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    head = model.get_output_embeddings()
    bias = torch.zeros(1) if head.bias is None else head.bias[token : token + 1]
    return tuple(part.detach() for part in (model.get_input_embeddings().weight[token], head.weight[token], bias))


def assert_rows(out: Path, token: int, source: Path, begin: int, end: int) -> None:
    """The token's input row is that of one source token, output row and bias are those of another."""
    new, first, last = rows_of(out, token), rows_of(source, begin), rows_of(source, end)
    assert torch.equal(new[0], first[0])
    assert torch.equal(new[1], last[1]) and torch.equal(new[2], last[2])


@pytest.mark.parametrize("begins", [True, False])
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("donor", NO_BOS)
def test_an_eos_that_stands_in_for_bos_keeps_the_rows_of_eos(tmp_path: Path, donor: str, source: str, begins) -> None:
    theirs = source_tokenizer(begins=begins)
    SOURCES[source](tmp_path / "source", theirs)
    NO_BOS[donor](tmp_path / "donor")
    done = transfer(tmp_path / "source", tmp_path / "donor", out=tmp_path / "out", config=CONFIG)
    read = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert read.bos_token_id == read.eos_token_id, "the stand-in names a token that begins a text"
    assert_rows(tmp_path / "out", read.eos_token_id, tmp_path / "source", theirs.eos_token_id, theirs.eos_token_id)
    entry = next(entry for entry in done.summary["roles"] if entry["id"] == read.eos_token_id)
    assert entry["roles"] == ["eos"] and entry["stands_in_for"] == ["bos"]
    assert entry["input"] == entry["output"] == "</s>"


@pytest.mark.parametrize("begins", [True, False])
@pytest.mark.parametrize("source", SOURCES)
def test_one_token_that_begins_and_ends_a_text(tmp_path: Path, source: str, begins: bool) -> None:
    """GPT-2's only special token, as a target token."""
    theirs = source_tokenizer(begins=begins)
    SOURCES[source](tmp_path / "source", theirs)
    save_gpt2(tmp_path / "donor", with_roles("byte_level_bpe", bos_token="<|end|>", eos_token="<|end|>"))
    done = transfer(tmp_path / "source", tmp_path / "donor", out=tmp_path / "out", config=CONFIG)
    token = AutoTokenizer.from_pretrained(tmp_path / "out").eos_token_id
    bos, eos = theirs.bos_token_id, theirs.eos_token_id
    # A tied head has one row: that of bos only if the source reads each text through it.
    first = bos if source != "tied" or begins else eos
    last = eos if source != "tied" or not begins else bos
    assert_rows(tmp_path / "out", token, tmp_path / "source", first, last)
    written = json.loads((tmp_path / "out" / "saltlm.json").read_text())
    entry = next(entry for entry in written["roles"] if entry["id"] == token)
    assert entry["roles"] == ["bos", "eos"] and entry["stands_in_for"] == []
    assert entry["input"] == theirs.convert_ids_to_tokens(first) and done.summary["roles"] == written["roles"]
    told = [warning for warning in written["warnings"] if "begins and ends a text" in warning]
    assert len(told) == (source == "tied" and begins)


def test_an_override_decides_both_rows(tmp_path: Path) -> None:
    theirs = source_tokenizer()
    save_llama(tmp_path / "source", theirs, tied=False)
    save_gpt2(tmp_path / "donor", with_roles("byte_level_bpe", bos_token="<|end|>", eos_token="<|end|>"))
    config = TransferConfig(method="subword-mean", heldout=0.0, special_overrides={"<|end|>": "<unk>"})
    transfer(tmp_path / "source", tmp_path / "donor", out=tmp_path / "out", config=config)
    token = AutoTokenizer.from_pretrained(tmp_path / "out").eos_token_id
    unknown = theirs.convert_tokens_to_ids("<unk>")
    assert_rows(tmp_path / "out", token, tmp_path / "source", unknown, unknown)


@pytest.mark.parametrize("pads", ["source", "target", "both", "neither"])
def test_padding_with_eos_is_told_and_never_chosen(tmp_path: Path, pads: str) -> None:
    ours = {"pad_token": "<|end|>"} if pads in ("target", "both") else {}
    theirs = {"pad_token": "</s>"} if pads in ("source", "both") else {}
    source = with_roles("sentencepiece_bpe", bos_token="<s>", eos_token="</s>", **theirs)
    save_llama(tmp_path / "source", source)
    save_gpt2(tmp_path / "donor", with_roles("byte_level_bpe", bos_token="<|begin|>", eos_token="<|end|>", **ours))
    done = transfer(tmp_path / "source", tmp_path / "donor", out=tmp_path / "out", config=CONFIG)
    pad = done.tokenizer.eos_token_id if pads == "both" else None
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "out" / name).read_text())["pad_token_id"] == pad
    assert AutoTokenizer.from_pretrained(tmp_path / "out").pad_token_id == pad
    told = [warning for warning in done.summary["warnings"] if "never teaches the model to stop" in warning]
    assert len(told) == (pads == "both")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.get_input_embeddings().padding_idx == pad


def test_ids_in_the_parts_of_a_config_are_written(tmp_path: Path) -> None:
    save_llama(tmp_path / "source", tiny("byte_level_bpe"))
    path = tmp_path / "source" / "config.json"
    the = tiny("byte_level_bpe").convert_tokens_to_ids("the")
    config = json.loads(path.read_text())
    path.write_text(
        json.dumps({**config, "extras": {"the_token_id": the, "end_token_id": 1, "gone_token_id": 400, "a": 1}})
    )
    save_bert(tmp_path / "donor", tiny("sentencepiece_unigram"))
    done = transfer(tmp_path / "source", tmp_path / "donor", out=tmp_path / "out", config=CONFIG)
    written = json.loads((tmp_path / "out" / "config.json").read_text())["extras"]
    ids = {int(source): token for token, source in reversed(list(enumerate(done.alignment.source_id.tolist())))}
    assert written["end_token_id"] == done.tokenizer.eos_token_id and written["a"] == 1
    assert written["the_token_id"] == ids.get(the) and written["gone_token_id"] == ids.get(400)
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("target", ["sentencepiece_unigram", "byte_level_bpe"])
def test_a_class_whose_ids_are_integers(tmp_path: Path, target: str) -> None:
    """A ModernBERT decoder cannot be without a padding id: a target without padding token gets one."""
    from models_tiny import save_causal

    theirs = with_roles("byte_level_bpe", bos_token="<|begin|>", eos_token="<|end|>", pad_token="<|pad|>")
    options = {"cls_token_id": 0, "sep_token_id": 1, "layer_types": ["full_attention", "sliding_attention"]}
    source = save_causal(tmp_path / "source", "ModernBertDecoder", theirs, **options)
    assert load_source(source).needs_pad
    if target == "byte_level_bpe":
        save_gpt2(
            tmp_path / "donor", with_roles(target, bos_token="<|begin|>", eos_token="<|end|>", unk_token="<|pad|>")
        )
    else:
        save_gpt2(tmp_path / "donor", with_roles(target, bos_token="<s>", eos_token="</s>"))
    done = transfer(source, tmp_path / "donor", out=tmp_path / "out", config=CONFIG)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert (
        model.config.pad_token_id
        == done.tokenizer.pad_token_id
        == AutoTokenizer.from_pretrained(tmp_path / "out").pad_token_id
    )
    assert done.tokenizer.pad_token == "<|pad|>" != done.tokenizer.eos_token
    assert model(torch.tensor([[5, 6, 7]])).logits.isfinite().all()
