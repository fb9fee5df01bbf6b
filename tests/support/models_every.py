"""A tiny model of any class of transformers: the class's default config with small sizes, and drawn weights."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

WIDTH, INNER, LAYERS, HEADS, HEAD = 64, 128, 2, 4, 16
POSITIONS, EXPERTS, STATE = 128, 4, 8

# Whole names of config keys, as a pattern -> small value. A key whose value is None or no number stays.
SIZES: tuple[tuple[str, int], ...] = (
    (r"hidden_size|d_model|n_embd|embed_dim|embedding_size|dim_model|emb_dim|word_embed_proj_dim|lru_width", WIDTH),
    (r"(in|out)put_embedding_size|attention_hidden_size|cross_attention_hidden_size|projection_dim|hidden_dim", WIDTH),
    (r"(\w+_)?(intermediate_size(_mlp)?|ffn_dim|d_ff|ffn_hidden_size|dim_ff|feed_forward_size|mlp_dim|d_inner)", INNER),
    (r"num_(\w+_)?layers|n_layers?|(en|de)coder_layers|depth|num_hidden_layers", LAYERS),
    (r"num_attention_heads|n_heads?|num_heads|(en|de)coder_attention_heads|num_(en|de)coder_attention_heads", HEADS),
    (r"num_key_value_heads|n_head_kv|num_kv_heads|swa_num_key_value_heads|kv_heads", 2),
    (
        r"head_dim|d_kv|d_head|global_head_dim|swa_head_dim|attention_head_dim|qk_head_dim|v_head_dim|swa_v_head_dim",
        HEAD,
    ),
    (r"(qk_rope|qk_nope)_head_dim|index_rope_head_dim", 8),
    (r"(q|kv|o|qk)_lora_rank|o_groups?_rank", 16),
    (r"num_(local_|routed_)?experts|n_routed_experts|moe_num_experts|moe_num_primary_experts", EXPERTS),
    (r"num_experts_per_tok(en)?|moe_top_?k|moe_k|top_k_experts|num_selected_experts", 2),
    (r"n_group|topk_group|n_shared_experts|num_shared_experts|first_k_dense_replace|mamba_n_groups|n_groups", 1),
    (r"max_position_embeddings|n_positions|max_sequence_length|max_(source|target)_positions|max_seq_len", POSITIONS),
    (r"(mamba_d_|ssm_)?state_size|mamba_d_state|mamba_dt_rank|time_step_rank", STATE),
    (r"linear_num_key_heads", 2),
    (r"linear_num_value_heads|mamba_n_heads|mamba_num_heads|n_mamba_heads", HEADS),
    (r"linear_(key|value)_head_dim|index_head_dim", HEAD),
    (r"mamba_d_head|mamba_head_dim|mamba_headdim", 2 * WIDTH // HEADS),
    (r"index_n_heads|index_topk", 2),
    (r"hidden_size_per_layer_input|laurel_rank", 16),
    (r"num_kv_shared_layers|num_nextn_predict_layers|num_mtp_layers|mtp_num_hidden_layers", 0),
    (r"rotary_dim", 8),
    (r"image_size", 32),
    (r"patch_size", 16),
    (
        r"sliding_window|chunk_size|mamba_chunk_size|attention_chunk_size|local_attn_chunk_length|lsh_attn_chunk_length",
        16,
    ),
)
_PATTERNS = tuple((re.compile(f"(?:{pattern})"), size) for pattern, size in SIZES)
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
SECTIONS = {"rope_parameters": {**DEFAULT_ROPE, "mrope_section": [2, 3, 3]}}
# Settings of single classes that no rule of names can know: a default that is missing, or numbers that must fit each other.
SPECIAL: Mapping[str, Mapping[str, Any]] = {
    "bailing_hybrid": {"linear_head_dim": HEAD, "linear_num_heads": HEADS, "num_expert_group": 1},
    "blt": {"encoder_hash_byte_group_vocab": 500},
    "cohere_compass_text": {"rope_parameters": {"full_attention": DEFAULT_ROPE, "sliding_attention": DEFAULT_ROPE}},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dory": {
        "num_hidden_layers": 6,
        "n_input_layers": 2,
        "n_recurrent_layers": 2,
        "n_output_layers": 2,
        "layer_types": ["sliding_attention", "mlp", "full_attention", "mlp", "full_attention", "mlp"],
    },
    "dots1": {"n_routed_experts": EXPERTS, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "dots3_note_text": {"num_key_value_heads": HEADS},
    "falcon_h1": {"mamba_d_ssm": 2 * WIDTH, "mamba_d_head": 2 * WIDTH // HEADS},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "intermediate_size": [INNER] * 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0],
    },
    "glm4v_text": SECTIONS,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "hrm_text": {"num_hidden_layers": 8, "num_layers_per_stack": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": HEADS, "head_dim": 2 * WIDTH // HEADS, "n_groups": 1},
    "qwen2_5_vl_text": SECTIONS,
    "qwen2_vl_text": SECTIONS,
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": HEAD,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "num_key_value_heads": HEADS},
    "reformer": {
        "axial_pos_shape": [8, 16],
        "axial_pos_embds_dim": [32, 32],
        "attn_layers": ["local", "local"],
    },
    "roc_bert": {"pronunciation_vocab_size": 20, "shape_vocab_size": 20},
    "xlstm": {"embedding_dim": WIDTH, "num_blocks": LAYERS},
    "xmod": {"default_language": "en_XX"},
}


# Model types of several parts, of which one reads text: the class with all parts is the one that users load.
COMPOSITES = (
    "aya_vision",
    "gemma3",
    "gemma4",
    "glm4v",
    "idefics3",
    "internvl",
    "llama4",
    "llava",
    "llava_onevision",
    "mistral3",
    "paligemma",
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3_5",
    "qwen3_vl",
    "smolvlm",
)


def causal_types() -> list[str]:
    """All model types that transformers has a causal LM class for, sorted."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def small(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A config's content with small sizes, in all its parts; lists with one entry a layer keep the first and the last."""
    counts = {raw[name] for name in LAYER_COUNTS if isinstance(raw.get(name), int)}
    latent = "qk_rope_head_dim" in raw  # attention with a latent: the head's size is that of the rotated part
    result: dict[str, Any] = {}
    for key, value in raw.items():
        if key == "id2label":  # its keys are numbers
            continue
        if key == "head_dim" and (value is None or latent):
            result[key] = 8 if latent else HEAD
        elif key == "qk_head_dim" and latent:
            continue  # the sum of two other sizes
        elif isinstance(value, Mapping):
            numbered = all(name.isdigit() for name in map(str, value))  # settings of single layers
            result[key] = {} if numbered else small(value)
        elif isinstance(value, list) and len(value) in counts and len(value) > LAYERS:
            ends = {f"{key}": value[0]}, {f"{key}": value[-1]}
            result[key] = [small(end)[key] for end in ends]
        elif key == "mrope_section":
            result[key] = [2, 3, 3]
        elif isinstance(value, int) and not isinstance(value, bool):
            match = next((size for pattern, size in _PATTERNS if pattern.fullmatch(key)), None)
            result[key] = value if match is None else min(value, match)
        else:
            result[key] = value
    return result


def with_tokens(
    raw: dict[str, Any], roles: Mapping[str, int | None], rows: int, other: Iterator[int]
) -> dict[str, Any]:
    """The content with this number of rows and these roles; every other entry that names a token gets an id of ``other``."""
    result = copy.deepcopy(raw)
    for key, value in result.items():
        if isinstance(value, dict):
            result[key] = with_tokens(value, roles, rows, other)
        elif key.endswith("vocab_size") or key == "vocab_size_per_layer_input":
            result[key] = rows if isinstance(value, int) else value
        elif key in roles:
            result[key] = roles[key]
        elif key.endswith(("token_id", "token_index")) and isinstance(value, int):
            result[key] = next(other)
    return result


def configs(model_type: str, roles: Mapping[str, int | None], rows: int) -> Iterator[Any]:
    """Tiny configs of a type, the likeliest first; not each of them can be built."""
    cls = transformers.CONFIG_MAPPING[model_type]
    raw = small(cls(**DEFAULTS.get(model_type, {})).to_dict())
    raw = with_tokens(raw, roles, rows, itertools.cycle(range(rows - len(MARKERS), rows)))
    raw |= SPECIAL.get(model_type, {})
    if "is_decoder" in raw:
        raw["is_decoder"] = True
    for part in raw.values():
        if isinstance(part, dict):
            part |= SPECIAL.get(str(part.get("model_type")), {})
    for changes in ({}, {"num_key_value_heads": HEADS}, {"head_dim": None}):
        kept = {key: value for key, value in changes.items() if key in raw}
        if not changes or kept:
            yield cls(**{key: value for key, value in {**raw, **kept}.items() if key not in DERIVED})


# Arguments without which a class refuses its own defaults.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {"gemma4_assistant": {"hidden_size_per_layer_input": 0}}
# Special tokens at the end of the vocabulary, for what configs name besides the usual roles, such as images.
MARKERS = tuple(f"<|marker {number}|>" for number in range(12))
# Keys of to_dict() that a config's constructor does not take.
DERIVED = ("model_type", "transformers_version", "architectures", "dtype", "_name_or_path")


def build(
    model_type: str, roles: Mapping[str, int | None], rows: int, *, auto: str = "AutoModelForCausalLM", seed: int = 0
) -> Any:
    """A model of a type with drawn weights, in evaluation mode, that has computed finite logits once.

    Args:
        model_type: as in config.json.
        roles: ``bos_token_id``, ``eos_token_id`` and ``pad_token_id``.
        rows: of the vocabulary.
        auto: the automatic class that chooses the model class.
        seed: of the weights.

    Raises:
        RuntimeError: no tiny config of the type can be built and run; the message has the first error.
    """
    errors = []
    try:
        candidates = configs(model_type, roles, rows)
        for config in candidates:
            try:
                return _drawn(config, getattr(transformers, auto), seed)
            except Exception as error:
                errors.append(error)
    except Exception as error:
        errors.append(error)
    raise RuntimeError(f"{type(errors[0]).__name__}: {errors[0]}") from errors[0]


def _drawn(config: Any, auto: Any, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = auto.from_config(config).eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:  # vectors are scales and shifts, which stay as the class sets them
                parameter.normal_(0, 0.2)
        ids = torch.arange(20, 32).reshape(2, 6)
        logits = model(input_ids=ids, use_cache=False).logits
    if not logits.isfinite().all():
        raise ValueError("logits are not finite")
    return model


def save(folder: Path, model_type: str, tokenizer: Any, *, auto: str = "AutoModelForCausalLM", seed: int = 0) -> Path:
    """Save a tiny model of a type, with a tokenizer and :data:`MARKERS`; raises what :func:`build` raises."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.add_special_tokens(list(MARKERS))
    named = {f"{role}_token": getattr(tokenizer, f"{role}_token") for role in ("bos", "eos", "pad")}
    marked = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, extra_special_tokens=list(MARKERS), **named)
    roles = {f"{role}_id": getattr(marked, f"{role}_id") for role in named}
    model = build(model_type, roles, len(marked), auto=auto, seed=seed)
    model.save_pretrained(folder)
    marked.save_pretrained(folder)
    return folder
