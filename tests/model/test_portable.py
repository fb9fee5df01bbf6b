"""tokenizer_config.json and config.json in the form that transformers 4.57 reads, too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers
from models_tiny import save_llama, save_qwen2
from tokenizers_tiny import SPECIALS, TEXT, tiny
from transformers import AutoConfig, AutoTokenizer

from saltlm.errors import BackendError
from saltlm.model.portable import make_portable, portable_tokenizer_config, save_tokenizer, with_rope_keys

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3["original_max_position_embeddings"] = 64


def test_a_list_of_special_tokens_and_the_class_get_the_older_names() -> None:
    saved = {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<a>", "<b>"], "bos_token": "<s>"}
    written = portable_tokenizer_config(saved, tiny("byte_level_bpe"))
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast" and written["bos_token"] == "<s>"
    assert written["additional_special_tokens"] == ["<a>", "<b>"] and "extra_special_tokens" not in written
    # Defaults that differ between the versions are written out.
    assert written["clean_up_tokenization_spaces"] is False and "input_ids" in written["model_input_names"]


def test_named_special_tokens_stay() -> None:
    saved = {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": {"image_token": "<image>"}}
    assert portable_tokenizer_config(saved, tiny("wordpiece"))["extra_special_tokens"] == {"image_token": "<image>"}


@pytest.mark.parametrize("maker", [save_llama, save_qwen2])
@pytest.mark.parametrize("extra", [[], ["<|begin|>", "<|pad|>"]], ids=["roles alone", "further special tokens"])
def test_a_folder_of_transformers_5_is_rewritten_once(tmp_path: Path, monkeypatch, maker, extra: list[str]) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tiny("byte_level_bpe").backend_tokenizer,
        additional_special_tokens=extra,
        **SPECIALS["byte_level_bpe"],
    )
    folder = maker(tmp_path / "model", tokenizer)
    path = folder / "tokenizer_config.json"
    assert json.loads(path.read_text())["tokenizer_class"] == "TokenizersBackend", "what transformers 5 writes"
    before = AutoTokenizer.from_pretrained(folder)
    make_portable(folder)
    written = json.loads(path.read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not isinstance(written.get("extra_special_tokens"), list)
    after = AutoTokenizer.from_pretrained(folder)
    assert after(TEXT)["input_ids"] == before(TEXT)["input_ids"]
    assert set(after.all_special_tokens) == set(before.all_special_tokens)
    make_portable(folder)
    assert json.loads(path.read_text()) == written


def test_a_folder_that_both_versions_read_is_left_alone(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "model", tiny("byte_level_bpe"))
    path = folder / "tokenizer_config.json"
    content = json.loads(path.read_text()) | {"tokenizer_class": "GPT2Tokenizer", "extra": 1}
    path.write_text(json.dumps(content))
    make_portable(folder)
    assert json.loads(path.read_text()) == content


ROPES = {
    "a base": ({"rope_theta": 5e5, "rope_type": "default"}, {"rope_theta": 5e5}),
    "a scaling": ({"rope_theta": 5e5, **LLAMA3}, {"rope_theta": 5e5, "rope_scaling": LLAMA3}),
    "a share of the dimensions": (
        {"rope_theta": 5e5, "rope_type": "default", "partial_rotary_factor": 0.5},
        {"rope_theta": 5e5, "partial_rotary_factor": 0.5},
    ),
    "kinds of layers": (
        {
            "full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0},
            "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
        },
        {"rope_theta": 1e6, "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_local_base_freq": 1e4},
    ),
}


@pytest.mark.parametrize("kind", ROPES)
def test_rotary_settings_have_the_older_names_besides(kind: str) -> None:
    new, old = ROPES[kind]
    config = {"model_type": "any", "rope_parameters": new}
    assert with_rope_keys(config) == {**config, **old}
    assert with_rope_keys({"text_config": config, "a": 1}) == {"text_config": {**config, **old}, "a": 1}


def test_names_that_the_config_has_already_stay() -> None:
    config = {"model_type": "any", "rope_parameters": {"rope_theta": 5.0}, "rope_theta": 7.0}
    assert with_rope_keys(config) == config
    assert with_rope_keys({"rope_theta": 7.0}) == {"rope_theta": 7.0}
    assert with_rope_keys({"rope_parameters": None}) == {"rope_parameters": None}


def test_some_classes_have_names_of_their_own() -> None:
    neox = with_rope_keys(
        {"model_type": "gpt_neox", "rope_parameters": {"rope_theta": 5.0, "partial_rotary_factor": 0.5}}
    )
    assert (neox["rotary_emb_base"], neox["rotary_pct"]) == (5.0, 0.5) and "rope_theta" not in neox
    bert = {"full_attention": {"rope_theta": 5.0}, "sliding_attention": {"rope_theta": 7.0}}
    modern = with_rope_keys({"model_type": "modernbert-decoder", "rope_parameters": bert})
    assert (modern["global_rope_theta"], modern["local_rope_theta"]) == (5.0, 7.0)


@pytest.mark.parametrize(
    ("name", "rope"),
    [
        ("LlamaConfig", {"rope_theta": 5e5, **LLAMA3}),
        ("Gemma3TextConfig", ROPES["kinds of layers"][0]),
        ("PhiConfig", ROPES["a share of the dimensions"][0]),
        ("GPTNeoXConfig", ROPES["a share of the dimensions"][0]),
    ],
)
def test_transformers_5_reads_the_same_from_both_names(tmp_path: Path, name: str, rope: dict) -> None:
    config = getattr(transformers, name)(rope_parameters=rope)
    config.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    changed = with_rope_keys(content)
    assert changed != content
    (tmp_path / "config.json").write_text(json.dumps(changed))
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters == config.rope_parameters


@pytest.mark.parametrize("template", [None, "{{ messages[0].content }}", {"default": "a", "tool_use": "b"}])
def test_the_chat_template_is_given_back(tmp_path: Path, template) -> None:
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tiny("byte_level_bpe").backend_tokenizer, **SPECIALS["byte_level_bpe"]
    )
    tokenizer.chat_template = template
    folder = save_llama(tmp_path / "model", tiny("byte_level_bpe"))
    save_tokenizer(tokenizer, folder)
    assert AutoTokenizer.from_pretrained(folder).chat_template == template


def test_another_chat_template_in_the_folder_is_an_error(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "model", tiny("byte_level_bpe"))
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("another")
    with pytest.raises(BackendError, match="does not give this tokenizer back"):
        save_tokenizer(tiny("byte_level_bpe"), folder)
