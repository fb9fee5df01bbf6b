"""Token ids in config.json and generation_config.json: roles, lists, spelled words, and ids inside the parts of a model."""

from __future__ import annotations

import json

import numpy as np
import pytest
import transformers
from tokenizers_tiny import tiny

from saltlm.alignment.causal_tokenizer import causal_tokenizer
from saltlm.alignment.config_ids import fill_refused_nulls, id_changes, refuses_null
from saltlm.files.json_files import merged


def test_a_second_eos_id_never_becomes_bos_or_pad() -> None:
    tokenizer = causal_tokenizer(tiny("wordpiece"), tiny("byte_level_bpe"), chat_template="none")
    source_id = np.full(len(tokenizer), -1, dtype=np.int32)
    # The source has one token for bos, eos and pad, the first of its eos ids.
    source_id[[tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id]] = 1
    source_id[200] = 60
    changes = id_changes({"eos_token_id": [1, 60], "decoder_start_token_id": 1}, None, tokenizer, source_id)
    assert changes.config["eos_token_id"] == [tokenizer.sep_token_id, 200]
    assert changes.config["decoder_start_token_id"] == tokenizer.sep_token_id


def test_words_spelled_in_ids_are_mapped_completely_or_removed() -> None:
    tokenizer = causal_tokenizer(tiny("wordpiece"), tiny("byte_level_bpe"), chat_template="none")
    source_id = np.full(len(tokenizer), -1, dtype=np.int32)
    source_id[[7, 9]] = [50, 51]
    generation = {
        "bad_words_ids": [[50], [51, 50], [51, 52]],
        "forced_decoder_ids": [[1, 50]],
        "sequence_bias": [[[50], 1.0]],
    }
    changed = id_changes({}, generation, tokenizer, source_id).generation
    assert changed["bad_words_ids"] == [[7], [9, 7]]
    assert changed["forced_decoder_ids"] is None and changed["sequence_bias"] is None


def test_ids_in_configs_follow_roles_and_the_alignment() -> None:
    tokenizer = causal_tokenizer(tiny("wordpiece"), tiny("byte_level_bpe"), chat_template="none")
    source_id = np.full(len(tokenizer), -1, dtype=np.int32)
    source_id[[7, 9, 11]] = [50, 51, 50]
    config = {"vocab_size": 9, "bos_token_id": 0, "eos_token_id": [1, 51, 77], "image_token_id": 50, "foo_token_id": 8}
    generation = {"suppress_tokens": [51, 8], "begin_suppress_tokens": [8], "forced_bos_token_id": None, "top_k": 3}
    changes = id_changes(config, generation, tokenizer, source_id)
    assert changes.config == {
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": [tokenizer.sep_token_id, 9],
        "pad_token_id": tokenizer.pad_token_id,
        "image_token_id": 7,
        "foo_token_id": None,
    }
    assert changes.generation == {
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "suppress_tokens": [9],
        "begin_suppress_tokens": None,
    }
    assert id_changes(config, None, tokenizer, source_id).generation is None


def parts_of_a_model() -> dict:
    """Content of a config.json with ids at several depths, in two vocabularies."""
    return {
        "vocab_size": 90,
        "image_token_index": 50,
        "text_config": {"vocab_size": 90, "eos_token_id": [1, 51, 77], "pad_token_id": None, "hidden_size": 8},
        "vision_config": {
            "image_token_id": 51,
            "video_token_ids": [50, 8],
            "bos_token_id": 50,
            "patch": {"x_token_id": 8},
        },
        "audio_config": {"vocab_size": 1024, "bos_token_id": 50, "eos_token_id": 51},
        "rope_scaling": {"type": "linear", "factor": 2.0},
    }


def test_ids_inside_the_parts_of_a_model() -> None:
    tokenizer = causal_tokenizer(tiny("wordpiece"), tiny("byte_level_bpe"), chat_template="none")
    source_id = np.full(len(tokenizer), -1, dtype=np.int32)
    source_id[[7, 9]] = [50, 51]
    config = parts_of_a_model()
    changes = id_changes(config, None, tokenizer, source_id, rows=90)
    assert {key: value for key, value in changes.config.items() if key.endswith("config")} == {
        "text_config": {"eos_token_id": [tokenizer.sep_token_id, 9], "pad_token_id": tokenizer.pad_token_id},
        "vision_config": {
            "image_token_id": 9,
            "video_token_ids": [7],
            "bos_token_id": 7,
            "patch": {"x_token_id": None},
        },
    }
    assert changes.config["image_token_index"] == 7
    written = merged(config, changes.config)
    assert written["audio_config"] == config["audio_config"], "ids of another vocabulary stay"
    assert written["text_config"]["hidden_size"] == 8 and written["rope_scaling"] == config["rope_scaling"]
    assert config == parts_of_a_model(), "the argument is not changed"


def test_ids_inside_a_generation_config() -> None:
    tokenizer = causal_tokenizer(tiny("wordpiece"), tiny("byte_level_bpe"), chat_template="none")
    source_id = np.full(len(tokenizer), -1, dtype=np.int32)
    source_id[7] = 50
    generation = {"assistant": {"suppress_tokens": [50, 8], "stop_token_id": 8}, "lists_token_ids": [[50, 8], [8]]}
    changed = id_changes({}, generation, tokenizer, source_id).generation
    assert changed["assistant"] == {"suppress_tokens": [7], "stop_token_id": None}
    assert changed["lists_token_ids"] == [[7]]


def test_a_class_of_integer_ids_gets_no_null() -> None:
    """ModernBERT's decoder declares its ids as integers: null under one of them makes its config.json unreadable."""
    config = json.loads(transformers.ModernBertDecoderConfig(vocab_size=60_000).to_json_string(use_diff=False))
    if not refuses_null(config, "cls_token_id"):
        pytest.skip("this version of transformers takes null there")
    tokenizer = causal_tokenizer(tiny("sentencepiece_unigram"), tiny("byte_level_bpe"), chat_template="none")
    changes = id_changes(config, None, tokenizer, np.full(len(tokenizer), -1, dtype=np.int32)).config
    assert changes["cls_token_id"] is None
    filled = fill_refused_nulls(config, changes, tokenizer, 300)
    transformers.ModernBertDecoderConfig.from_dict(merged(config, filled))
    assert (filled["cls_token_id"], filled["sep_token_id"]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert refuses_null(config, "pad_token_id") and not refuses_null(config, "local_attention")


def test_a_class_that_takes_null_gets_it() -> None:
    config = json.loads(transformers.LlamaConfig(image_token_id=5).to_json_string(use_diff=False))
    tokenizer = causal_tokenizer(tiny("wordpiece"), tiny("byte_level_bpe"), chat_template="none")
    changes = id_changes(config, None, tokenizer, np.full(len(tokenizer), -1, dtype=np.int32)).config
    assert changes["image_token_id"] is None
    assert fill_refused_nulls(config, changes, tokenizer, 300) == changes
    assert not refuses_null(config, "pad_token_id")
