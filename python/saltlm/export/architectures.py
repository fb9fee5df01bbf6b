"""Architectures whose folders saltlm writes as GGUF itself: settings and tensors in llama.cpp's form.

A GGUF file names settings and tensors by llama.cpp's own terms, and some tensors are stored differently: rows of query and
key matrices in the order of llama.cpp's rotary embedding (Llama), norm weights with the 1 that the class adds (Gemma),
transposed matrices (GPT-2). Names come from gguf-py's table. Whatever differs from the settings that llama.cpp assumes is
refused, because a wrong setting gives another model without a word.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..errors import InputError, input_error

ADVICE = "convert the source model with llama.cpp's convert_hf_to_gguf.py and name the result with --body"
Settings = dict[str, int | float | str | bool]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """How one model class is written.

    Attributes:
        name: llama.cpp's name of the architecture.
        settings: config -> settings without the architecture's prefix; refuses what llama.cpp does not compute.
        change: (config, key, tensor) -> the tensor as llama.cpp stores it.
        head: whether llama.cpp reads an untied head for this architecture.
    """

    name: str
    settings: Callable[[Any], Settings]
    change: Callable[[Any, str, torch.Tensor], torch.Tensor]
    head: bool = True


def architecture_of(config: Any, class_name: str) -> Architecture:
    """The architecture of a model class.

    Args:
        config: the model's configuration object.
        class_name: name of the class in config.json.

    Raises:
        InputError: saltlm does not write this class, or the checkpoint is quantized.
    """
    if getattr(config, "quantization_config", None):
        raise input_error(class_name, "quantized weights", "float32, float16 or bfloat16 weights", ADVICE)
    if class_name not in ARCHITECTURES:
        raise input_error("architecture", class_name, "one of " + ", ".join(sorted(ARCHITECTURES)), ADVICE)
    return ARCHITECTURES[class_name]


def _refuse(name: str, found: object, expected: str) -> InputError:
    return input_error(f"config.json, {name}", repr(found), f"{expected}, as llama.cpp computes it", ADVICE)


def _check(config: Any, name: str, *expected: object) -> None:
    """Refuse a setting of config.json that llama.cpp does not compute."""
    value = getattr(config, name, expected[0])
    if value not in expected:
        raise _refuse(name, value, " or ".join(map(repr, expected)))


def _head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _decoder(config: Any) -> Settings:
    """Settings of all classes with rotary positions and RMS norms."""
    head_dim = _head_dim(config)
    return {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.dimension_count": head_dim,
        "vocab_size": config.vocab_size,
    }


def _rope(parameters: Mapping[str, Any]) -> Settings:
    """Settings of a rotary embedding; the factors of Llama 3's scaling are a tensor (:func:`rope_factors`)."""
    settings: Settings = {"rope.freq_base": float(parameters["rope_theta"])}
    kind = parameters.get("rope_type", "default")
    if float(parameters.get("partial_rotary_factor", 1.0)) != 1.0:
        raise _refuse("partial_rotary_factor", parameters["partial_rotary_factor"], "1.0")
    if kind == "linear":
        settings |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(parameters["factor"])}
    elif kind == "yarn":
        plain = {"rope_type", "rope_theta", "factor", "original_max_position_embeddings", "partial_rotary_factor"}
        if others := sorted(key for key, value in parameters.items() if key not in plain and value is not None):
            raise _refuse("rope_parameters", others, "YaRN with its default settings")
        settings |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": float(parameters["factor"]),
            "rope.scaling.original_context_length": int(parameters["original_max_position_embeddings"]),
        }
    elif kind not in ("default", "llama3"):
        raise _refuse("rope_type", kind, "default, linear, yarn or llama3")
    return settings


def rope_factors(config: Any) -> torch.Tensor | None:
    """Divisors of the rotary frequencies, float32 [head_dim / 2]; ``None`` where the scaling is none of Llama 3's.

    Args:
        config: the model's configuration object.
    """
    parameters = getattr(config, "rope_parameters", None) or {}
    if parameters.get("rope_type") != "llama3":
        return None
    head_dim = _head_dim(config)
    wavelengths = (
        2 * math.pi * parameters["rope_theta"] ** (torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    )
    length = parameters["original_max_position_embeddings"]
    factor, low, high = (float(parameters[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    # From 1 at high frequencies (short waves) to `factor` at low ones; the frequency itself is interpolated in between.
    share = ((length / wavelengths - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - share) / factor + share)).float()


def _llama(config: Any) -> Settings:
    _check(config, "hidden_act", "silu")
    return _decoder(config) | _rope(config.rope_parameters)


def _qwen2(config: Any) -> Settings:
    _check(config, "hidden_act", "silu")
    _check(config, "use_sliding_window", False)
    if _head_dim(config) * config.num_attention_heads != config.hidden_size:
        raise _refuse("head_dim", config.head_dim, "hidden_size / num_attention_heads")
    return _decoder(config) | _rope(config.rope_parameters)


def _qwen3(config: Any) -> Settings:
    _check(config, "hidden_act", "silu")
    _check(config, "use_sliding_window", False)
    return _decoder(config) | _rope(config.rope_parameters)


def _gemma(config: Any) -> Settings:
    _gelu(config)
    return _decoder(config) | _rope(config.rope_parameters)


def _gelu(config: Any) -> None:
    # The first Gemma checkpoints name the exact function under hidden_act; the class uses hidden_activation.
    value = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    if value not in (None, "gelu_pytorch_tanh", "gelu_new"):
        raise _refuse("hidden_activation", value, "'gelu_pytorch_tanh'")


def _windowed(config: Any, period: int, largest: int) -> Settings:
    """Settings of Gemma 2 and 3: windows in all but each ``period``-th layer, and the scale of the logits of attention.

    Args:
        config: the configuration.
        period: distance of layers without a window.
        largest: number of layers of the 27B model, whose scale differs.
    """
    _gelu(config)
    expected = ["sliding_attention" if (i + 1) % period else "full_attention" for i in range(config.num_hidden_layers)]
    if list(config.layer_types) != expected:
        raise _refuse("layer_types", config.layer_types, f"full attention in each layer {period}")
    scale = config.hidden_size // config.num_attention_heads
    if config.num_hidden_layers != largest:
        scale = _head_dim(config)
    if config.query_pre_attn_scalar != scale:
        raise _refuse("query_pre_attn_scalar", config.query_pre_attn_scalar, str(scale))
    return _decoder(config) | {"attention.sliding_window": config.sliding_window}


def _gemma2(config: Any) -> Settings:
    settings = _windowed(config, 2, 46) | _rope(config.rope_parameters)
    for key, name in (("attn", "attn_logit_softcapping"), ("final", "final_logit_softcapping")):
        if not getattr(config, name):
            raise _refuse(name, getattr(config, name), "a number")
        settings[f"{key}_logit_softcapping"] = float(getattr(config, name))
    return settings


def _gemma3(config: Any) -> Settings:
    _check(config, "attn_logit_softcapping", None)
    _check(config, "use_bidirectional_attention", None, False)
    settings = _windowed(config, 6, 62) | _rope(config.rope_parameters["full_attention"])
    local = config.rope_parameters["sliding_attention"]
    if local.get("rope_type", "default") != "default":
        raise _refuse("rope_parameters", local, "no scaling in layers with a window")
    settings["rope.freq_base_swa"] = float(local["rope_theta"])
    if config.final_logit_softcapping:
        settings["final_logit_softcapping"] = float(config.final_logit_softcapping)
    return settings


def _gpt2(config: Any) -> Settings:
    _check(config, "activation_function", "gelu_new", "gelu_pytorch_tanh")
    _check(config, "scale_attn_weights", True)
    _check(config, "scale_attn_by_inverse_layer_idx", False)
    return {
        "block_count": config.n_layer,
        "context_length": config.n_positions,
        "embedding_length": config.n_embd,
        "feed_forward_length": config.n_inner or 4 * config.n_embd,
        "attention.head_count": config.n_head,
        "attention.layer_norm_epsilon": float(config.layer_norm_epsilon),
        "vocab_size": config.vocab_size,
    }


def _as_stored(config: Any, key: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _rotary_order(config: Any, key: str, tensor: torch.Tensor) -> torch.Tensor:
    """Query and key rows with the two halves of each head interleaved, as llama.cpp's rotary embedding pairs them."""
    heads = {
        "q_proj": config.num_attention_heads,
        "k_proj": getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
    }
    name = key.rsplit(".", 2)[-2]
    if name not in heads:
        return tensor
    halves = tensor.reshape(heads[name], 2, -1, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def _norm_plus_one(config: Any, key: str, tensor: torch.Tensor) -> torch.Tensor:
    """Norm weights as the factor itself; the class stores the factor minus 1."""
    return tensor.float() + 1 if key.endswith("norm.weight") else tensor


def _transposed(config: Any, key: str, tensor: torch.Tensor) -> torch.Tensor:
    """GPT-2's Conv1D matrices as [out, in]."""
    turned = key.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))
    return tensor.t().contiguous() if turned else tensor


# Name of the class -> how it is written.
ARCHITECTURES = {
    "LlamaForCausalLM": Architecture("llama", _llama, _rotary_order),
    "MistralForCausalLM": Architecture("llama", _llama, _rotary_order),
    "Qwen2ForCausalLM": Architecture("qwen2", _qwen2, _as_stored),
    "Qwen3ForCausalLM": Architecture("qwen3", _qwen3, _as_stored),
    "GemmaForCausalLM": Architecture("gemma", _gemma, _norm_plus_one, head=False),
    "Gemma2ForCausalLM": Architecture("gemma2", _gemma2, _norm_plus_one, head=False),
    "Gemma3ForCausalLM": Architecture("gemma3", _gemma3, _norm_plus_one),
    "GPT2LMHeadModel": Architecture("gpt2", _gpt2, _transposed),
}
