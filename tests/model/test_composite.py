"""Models of several parts: their text part, entries of config.json, and the tokens that their processor spells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers
from composites_tiny import KINDS, save_composite, tokenizer_of

from saltlm.model.checkpoint import load_source
from saltlm.model.composite import entry_paths, text_path, with_entry, writer_class
from saltlm.model.processor import with_defaults


def test_the_text_part_is_found_at_any_depth() -> None:
    assert text_path(transformers.LlamaConfig()) == ()
    assert text_path(transformers.Gemma3Config()) == ("text_config",)
    assert text_path(transformers.Qwen2_5OmniConfig()) == ("thinker_config", "text_config")


def test_entries_are_where_the_file_has_them() -> None:
    path = ("text_config",)
    assert entry_paths({"text_config": {}}, path, "vocab_size") == (("text_config", "vocab_size"),)
    assert entry_paths({"vision_config": {}}, path, "vocab_size") == (("vocab_size",),)
    both = entry_paths({"text_config": {"vocab_size": 8}, "vocab_size": 8}, path, "vocab_size")
    assert both == (("text_config", "vocab_size"), ("vocab_size",))
    deep = entry_paths({"thinker_config": {"text_config": {}}}, ("thinker_config", "text_config"), "vocab_size")
    assert deep == (("thinker_config", "text_config", "vocab_size"),)


def test_an_entry_is_set_in_a_copy() -> None:
    raw = {"text_config": {"vocab_size": 8, "hidden_size": 4}}
    assert with_entry(raw, ("text_config", "vocab_size"), 9) == {"text_config": {"vocab_size": 9, "hidden_size": 4}}
    assert raw["text_config"]["vocab_size"] == 8


@pytest.mark.parametrize("architectures", [["LlavaForConditionalGeneration"], ["LlamaForCausalLM"], None])
def test_the_class_that_writes_text(architectures: list[str] | None) -> None:
    config = transformers.LlavaConfig(architectures=architectures)
    assert writer_class(config) is transformers.LlavaForConditionalGeneration


def test_what_a_file_leaves_to_its_class_is_written_out() -> None:
    """The published files of Gemma 3 lack the vocabulary size and ids of the text part."""
    raw = {"model_type": "gemma3", "text_config": {"hidden_size": 32}, "image_token_id": 7}
    config = transformers.Gemma3Config.from_dict(raw)
    completed = with_defaults(raw, config, [("text_config", "vocab_size")])
    default = transformers.Gemma3TextConfig()
    assert completed["text_config"] == {
        "hidden_size": 32,
        "vocab_size": default.vocab_size,
        **{key: getattr(default, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
    }
    # The class reads image_token_index also under the name that this file has.
    assert completed["image_token_id"] == 7 and "image_token_index" not in completed
    assert completed["boi_token_index"] == transformers.Gemma3Config().boi_token_index
    assert transformers.Gemma3Config.from_dict(completed).to_dict() == config.to_dict()


# Added tokens that only the code of the processor class spells, and tokens that it does not spell.
SPELLED = {
    "idefics3": ("<fake_token_around_image>", "<end_of_utterance>", "<global-img>", "<row_1_col_2>"),
    "smolvlm": ("<fake_token_around_image>", "<global-img>", "<row_3_col_4>"),
    "mistral3": ("[IMG_BREAK]", "[IMG_END]"),
    "llama4": ("<|tile_x_separator|>", "<|tile_y_separator|>"),
}


@pytest.mark.parametrize("kind", SPELLED)
def test_tokens_that_the_processor_spells_are_markers(kind: str, tmp_path: Path) -> None:
    others = ("<|reserved_special_token_0|>", "<row>", "[TOOL]")
    source = load_source(save_composite(tmp_path, kind, tokenizer=tokenizer_of(kind, (*SPELLED[kind], *others))))
    assert set(source.markers) == {*KINDS[kind].markers.values(), *SPELLED[kind]}


def test_tokens_in_the_processors_files_are_markers(tmp_path: Path) -> None:
    save_composite(tmp_path, "llava", tokenizer=tokenizer_of("llava", ("<picture>", "<other>")))
    content = {"processor_class": "LlavaProcessor", "picture_token": "<picture>"}
    (tmp_path / "processor_config.json").write_text(json.dumps(content))
    assert load_source(tmp_path).markers == ("<image>", "<picture>")


@pytest.mark.parametrize("file", ["chat_template.json", "processor_config.json"])
def test_the_chat_template_of_an_older_processor_is_read(file: str, tmp_path: Path) -> None:
    save_composite(tmp_path, "llava")
    (tmp_path / file).write_text(json.dumps({"chat_template": "<image>{{ messages }}"}))
    assert load_source(tmp_path).tokenizer.chat_template == "<image>{{ messages }}"
