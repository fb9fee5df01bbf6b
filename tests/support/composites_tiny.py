"""Tiny models of several parts: a language model with a vision tower, of the kinds that people use most."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers_tiny import SPECIALS, tiny

WIDTH = 32
TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_VISION = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_heads": 2,
    "patch_size": 14,
    "out_hidden_size": WIDTH,
}


@dataclasses.dataclass(frozen=True)
class Composite:
    """One kind of model.

    Attributes:
        model_class: name of its class.
        markers: name -> spelling of the tokens that mark images in a text.
        config: makes the config from the text part's sizes and the ids of the markers, by name.
    """

    model_class: str
    markers: Mapping[str, str]
    config: Callable[[dict[str, Any], dict[str, int]], Any]


def _gemma3(text: dict[str, Any], ids: dict[str, int]) -> Any:
    return transformers.Gemma3Config(
        text_config={**text, "head_dim": 8},
        vision_config=VISION,
        mm_tokens_per_image=4,
        image_token_index=ids["image_token"],
        boi_token_index=ids["boi_token"],
        eoi_token_index=ids["eoi_token"],
    )


def _gemma4(text: dict[str, Any], ids: dict[str, int]) -> Any:
    return transformers.Gemma4Config(
        text_config={
            **text,
            "head_dim": 8,
            "global_head_dim": 8,
            "num_global_key_value_heads": 2,
            "num_kv_shared_layers": 0,
            "vocab_size_per_layer_input": text["vocab_size"],
            "hidden_size_per_layer_input": 8,
        },
        vision_config=None,
        audio_config=None,
        image_token_id=ids["image_token"],
        boi_token_id=ids["boi_token"],
        eoi_token_id=ids["eoi_token"],
        video_token_id=None,
        audio_token_id=None,
        boa_token_id=None,
        eoa_token_index=None,
    )


def _qwen2_5_vl(text: dict[str, Any], ids: dict[str, int]) -> Any:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    return transformers.Qwen2_5_VLConfig(
        text_config={**text, "rope_parameters": rope},
        vision_config={**QWEN_VISION, "fullatt_block_indexes": [0]},
        **{f"{name}_id": index for name, index in ids.items()},
    )


def _qwen3_vl(text: dict[str, Any], ids: dict[str, int]) -> Any:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    return transformers.Qwen3VLConfig(
        text_config={**text, "head_dim": 8, "rope_parameters": rope},
        vision_config={**QWEN_VISION, "deepstack_visual_indexes": [0], "num_position_embeddings": 16},
        tie_word_embeddings=True,
        **{f"{name}_id": index for name, index in ids.items()},
    )


def _mistral3(text: dict[str, Any], ids: dict[str, int]) -> Any:
    return transformers.Mistral3Config(
        text_config={**text, "model_type": "mistral", "head_dim": 8},
        vision_config={**VISION, "model_type": "pixtral", "head_dim": 8},
        image_token_index=ids["image_token"],
    )


def _llava(text: dict[str, Any], ids: dict[str, int]) -> Any:
    return transformers.LlavaConfig(
        text_config={**text, "model_type": "llama"},
        vision_config={**VISION, "model_type": "clip_vision_model", "num_hidden_layers": 2},
        image_token_index=ids["image_token"],
    )


def _idefics(kind: str) -> Callable[[dict[str, Any], dict[str, int]], Any]:
    def config(text: dict[str, Any], ids: dict[str, int]) -> Any:
        return getattr(transformers, f"{kind}Config")(
            text_config={**text, "model_type": "llama"},
            vision_config=VISION,
            image_token_id=ids["image_token"],
            scale_factor=2,
            tie_word_embeddings=True,
            pad_token_id=text["pad_token_id"],
        )

    return config


def _llama4(text: dict[str, Any], ids: dict[str, int]) -> Any:
    return transformers.Llama4Config(
        text_config={
            **text,
            "head_dim": 8,
            "intermediate_size_mlp": 64,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "attention_chunk_size": 64,
        },
        vision_config={**VISION, "vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16},
        image_token_index=ids["image_token"],
        boi_token_index=ids["boi_token"],
        eoi_token_index=ids["eoi_token"],
    )


def _internvl(text: dict[str, Any], ids: dict[str, int]) -> Any:
    return transformers.InternVLConfig(
        text_config={**text, "model_type": "qwen2"},
        vision_config={**VISION, "image_size": [28, 28], "patch_size": [14, 14]},
        image_token_id=ids["image_token"],
    )


_IMAGE = {"image_token": "<image>"}
_BRACKETS = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
_QWEN = {
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
}
KINDS: Mapping[str, Composite] = {
    "gemma3": Composite("Gemma3ForConditionalGeneration", _BRACKETS, _gemma3),
    "qwen2_5_vl": Composite("Qwen2_5_VLForConditionalGeneration", _QWEN, _qwen2_5_vl),
    "qwen3_vl": Composite("Qwen3VLForConditionalGeneration", _QWEN, _qwen3_vl),
    "mistral3": Composite("Mistral3ForConditionalGeneration", {"image_token": "[IMG]"}, _mistral3),
    "llava": Composite("LlavaForConditionalGeneration", _IMAGE, _llava),
    "smolvlm": Composite("SmolVLMForConditionalGeneration", _IMAGE, _idefics("SmolVLM")),
    "idefics3": Composite("Idefics3ForConditionalGeneration", _IMAGE, _idefics("Idefics3")),
    "llama4": Composite(
        "Llama4ForConditionalGeneration",
        {"boi_token": "<|image_start|>", "eoi_token": "<|image_end|>", "image_token": "<|patch|>"},
        _llama4,
    ),
    "internvl": Composite("InternVLForConditionalGeneration", {"image_token": "<IMG_CONTEXT>"}, _internvl),
    "gemma4": Composite("Gemma4ForConditionalGeneration", _BRACKETS, _gemma4),
}


def tokenizer_of(kind: str, further: tuple[str, ...] = ()) -> Any:
    """The tiny byte-level tokenizer with the markers of a kind of model, and further added tokens after them."""
    from tokenizers import Tokenizer

    markers = dict(KINDS[kind].markers)
    backend = Tokenizer.from_str(tiny("byte_level_bpe").backend_tokenizer.to_str())
    backend.add_special_tokens([*markers.values(), *further])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIALS["byte_level_bpe"], **markers)


def save_composite(
    folder: Path, kind: str, *, tokenizer: Any = None, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Path:
    """A model of several parts with drawn weights, and its tokenizer."""
    composite = KINDS[kind]
    tokenizer = tokenizer_of(kind) if tokenizer is None else tokenizer
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in composite.markers.items()}
    roles = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    config = composite.config({**TEXT, "vocab_size": len(tokenizer) + 3, **roles}, ids)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, composite.model_class)(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.5)
                parameter.data = parameter.data.to(dtype)  # not model.to: Llama 4 has complex buffers
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
