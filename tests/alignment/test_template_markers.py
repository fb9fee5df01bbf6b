"""With ``--chat-template source`` every added token that the template spells comes along, whatever its flags are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models_tiny import save_bert, save_llama
from safetensors.torch import load_file
from tokenizers import AddedToken
from tokenizers_donors import MARKER_KINDS, SUFFIX_KINDS, one_space_unigram, uncased_wordpiece
from tokenizers_tiny import KINDS, byte_level_bpe, tiny

from saltlm import TransferConfig, transfer
from saltlm.alignment.causal_tokenizer import causal_tokenizer
from saltlm.alignment.template_markers import rendered, template_markers

# The template spells the first, and puts the second together from parts.
MARKERS = ("<|turn|>", "<｜Answer｜>")  # noqa: RUF001
TARGETS = {
    **{kind: (lambda kind=kind: tiny(kind)) for kind in KINDS},
    **SUFFIX_KINDS,
    "uncased": uncased_wordpiece,
    "one space": one_space_unigram,
}


@pytest.mark.parametrize("kind", MARKER_KINDS)
def test_markers_are_those_that_the_template_spells(kind: str) -> None:
    names = [token.content for token in template_markers(MARKER_KINDS[kind]())]
    assert names == ["<|end|>", *MARKERS]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", MARKER_KINDS)
def test_each_marker_is_one_token_of_the_new_tokenizer(kind: str, target: str) -> None:
    source = MARKER_KINDS[kind]()
    tokenizer = causal_tokenizer(TARGETS[target](), source, chat_template="source")
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder().values()
    flags = {token.content: token.special for token in added if token.content in MARKERS}
    assert flags == dict.fromkeys(MARKERS, kind != "added, not special")
    assert "<|unused|>" not in tokenizer.get_vocab()
    prompt = next(iter(rendered(tokenizer)))
    ids = tokenizer(prompt)["input_ids"]
    names = tokenizer.convert_ids_to_tokens(ids)
    assert names[0] == "<|turn|>" and names[-1] == "<|end|>"
    longest = max(rendered(tokenizer), key=len)
    pieces = tokenizer.convert_ids_to_tokens(tokenizer(longest)["input_ids"])
    for marker in MARKERS:
        assert pieces.count(marker) == longest.count(marker) > 0


@pytest.mark.parametrize("target", ["wordpiece", "sentencepiece_bpe", "herbert"])
@pytest.mark.parametrize("kind", MARKER_KINDS)
def test_markers_keep_their_rows(tmp_path, kind: str, target: str) -> None:
    source = MARKER_KINDS[kind]()
    save_llama(tmp_path / "source", source, tied=False)
    save_bert(tmp_path / "target", TARGETS[target]())
    config = TransferConfig(method="subword-mean", chat_template="source")
    done = transfer(tmp_path / "source", tmp_path / "target", config=config)
    before = load_file(tmp_path / "source" / "model.safetensors")
    for marker in MARKERS:
        new, old = done.tokenizer.convert_tokens_to_ids(marker), source.convert_tokens_to_ids(marker)
        assert done.alignment.source_id[new] == old
        assert torch.equal(done.input_rows[new], before["model.embed_tokens.weight"][old])
        assert torch.equal(done.output_rows[new], before["lm_head.weight"][old])


def test_white_space_comes_along_only_where_it_would_be_lost() -> None:
    """Some sources have added tokens for runs of white space."""
    source = byte_level_bpe()
    source.backend_tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ("\n", "\t", "    ")])
    source.chat_template = "{% for m in messages %}\n    {{ '\n' }}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    lossy = causal_tokenizer(one_space_unigram(), source, chat_template="source")
    assert lossy.convert_ids_to_tokens(lossy("a\na")["input_ids"]) == ["▁a", "\n", "▁a"]
    assert "\t" not in lossy.get_vocab(), "the template writes no tab"
    exact = causal_tokenizer(tiny("sentencepiece_bpe"), source, chat_template="source")
    assert "\n" not in exact.get_vocab(), "byte fallback spells it"
    text = "a\n    a"
    assert exact(text)["input_ids"] == tiny("sentencepiece_bpe")(text, add_special_tokens=False)["input_ids"]


def test_a_piece_that_the_target_has_becomes_one_token_without_a_second_row() -> None:
    source = MARKER_KINDS["added, not special"]()
    target = tiny("sentencepiece_unigram")
    piece = next(token for token in target.get_vocab() if token.isalpha() and len(token) > 3)
    source.backend_tokenizer.add_tokens([AddedToken(piece, normalized=False)])
    source.chat_template = source.chat_template.replace("<|turn|>", f"<|turn|>{piece}")
    tokenizer = causal_tokenizer(target, source, chat_template="source")
    assert tokenizer.convert_tokens_to_ids(piece) == target.convert_tokens_to_ids(piece)
    assert tokenizer.convert_tokens_to_ids(piece) in tokenizer(f"x{piece}x")["input_ids"]


def test_several_templates_by_name() -> None:
    source = MARKER_KINDS["added, not special"]()
    source.chat_template = {
        "default": "{{ messages[0]['content'] }}",
        "tool_use": "<|turn|>{{ messages[0]['content'] }}",
    }
    assert [token.content for token in template_markers(source)] == ["<|turn|>"]
    tokenizer = causal_tokenizer(tiny("wordpiece"), source, chat_template="source")
    assert "<|turn|>" in tokenizer.get_vocab() and tokenizer.chat_template == source.chat_template


def test_the_target_keeps_the_markers_of_its_own_template() -> None:
    target = MARKER_KINDS["added, not special"]()
    tokenizer = causal_tokenizer(target, tiny("byte_level_bpe"), chat_template="target")
    assert tokenizer.get_vocab() == target.get_vocab()
    assert [token.content for token in template_markers(tokenizer)] == ["<|end|>", *MARKERS]
    assert np.all([tokenizer(text)["input_ids"] == target(text)["input_ids"] for text in rendered(target)])
