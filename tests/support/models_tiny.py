"""Tiny models with random weights, saved with their tokenizers to a folder in milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

WIDTH, LAYERS, HEADS = 32, 2, 4


def save(
    folder: Path,
    model_class: str,
    config: Any,
    tokenizer: Any,
    *,
    dtype: torch.dtype,
    max_shard_size: str | int = "1GB",
    seed: int = 0,
) -> Path:
    """Save a model of this class with drawn weights, and the tokenizer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, model_class)(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.5)
    model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)
    return folder


def roles(tokenizer: Any) -> dict[str, Any]:
    """Token ids for a config: those the tokenizer has, ``None`` for the others."""
    return {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def save_llama(
    folder: Path,
    tokenizer: Any,
    *,
    tied: bool = True,
    dtype: torch.dtype = torch.float32,
    rows: int | None = None,
    max_shard_size: str | int = "1GB",
    seed: int = 0,
    width: int = WIDTH,
    positions: int = 256,
) -> Path:
    """A Llama causal LM; ``rows`` other than the tokenizer's length makes matrix and tokenizer differ."""
    config = transformers.LlamaConfig(
        vocab_size=rows or len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        tie_word_embeddings=tied,
        max_position_embeddings=positions,
        **roles(tokenizer),
    )
    return save(folder, "LlamaForCausalLM", config, tokenizer, dtype=dtype, max_shard_size=max_shard_size, seed=seed)


def save_qwen2(folder: Path, tokenizer: Any, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """A Qwen2 causal LM, whose type makes AutoTokenizer overrule the tokenizer's own file."""
    config = transformers.Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        tie_word_embeddings=True,
        **roles(tokenizer),
    )
    return save(folder, "Qwen2ForCausalLM", config, tokenizer, dtype=dtype, seed=seed)


def save_causal(folder: Path, name: str, tokenizer: Any, *, positions: int = 64, seed: int = 0, **options: Any) -> Path:
    """A causal LM of a config class, such as ``XGLM`` or ``Roberta``, that takes texts of ``positions`` tokens."""
    config = getattr(transformers, f"{name}Config")()
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "ffn_dim": 2 * WIDTH,
        "word_embed_proj_dim": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "max_position_embeddings": positions,
        "is_decoder": True,
    }
    known = {key: value for key, value in sizes.items() if hasattr(config, key)}
    config = type(config)(**{**known, **roles(tokenizer), **options})
    model_class = type(transformers.AutoModelForCausalLM.from_config(config)).__name__
    return save(folder, model_class, config, tokenizer, dtype=torch.float32, seed=seed)


def gpt2_config(tokenizer: Any, positions: int = 256) -> Any:
    return transformers.GPT2Config(
        vocab_size=len(tokenizer), n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_positions=positions, **roles(tokenizer)
    )


def save_gpt2(
    folder: Path,
    tokenizer: Any,
    *,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str | int = "1GB",
    seed: int = 0,
    positions: int = 256,
) -> Path:
    """A GPT-2 causal LM, tied, its input matrix named ``transformer.wte.weight``; serves as a donor too."""
    return save(
        folder,
        "GPT2LMHeadModel",
        gpt2_config(tokenizer, positions),
        tokenizer,
        dtype=dtype,
        max_shard_size=max_shard_size,
        seed=seed,
    )


def save_phi(
    folder: Path,
    tokenizer: Any,
    *,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str | int = "1GB",
    seed: int = 0,
) -> Path:
    """A Phi causal LM: untied, with a head bias."""
    config = transformers.PhiConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=256,
        **roles(tokenizer),
    )
    return save(folder, "PhiForCausalLM", config, tokenizer, dtype=dtype, max_shard_size=max_shard_size, seed=seed)


def _bert_sizes(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "pad_token_id": tokenizer.pad_token_id,
    }


def save_bert(
    folder: Path, tokenizer: Any, *, masked_lm: bool = False, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Path:
    """A BERT encoder; as a masked LM its keys begin with ``bert.``."""
    name = "BertForMaskedLM" if masked_lm else "BertModel"
    return save(folder, name, transformers.BertConfig(**_bert_sizes(tokenizer)), tokenizer, dtype=dtype, seed=seed)


def save_xlm_roberta(folder: Path, tokenizer: Any, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """An XLM-R encoder."""
    config = transformers.XLMRobertaConfig(**_bert_sizes(tokenizer))
    return save(folder, "XLMRobertaModel", config, tokenizer, dtype=dtype, seed=seed)


def save_t5(
    folder: Path, tokenizer: Any, *, multilingual: bool = False, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Path:
    """A T5 or mT5 encoder-decoder with its LM head."""
    family = "MT5" if multilingual else "T5"
    config = getattr(transformers, f"{family}Config")(
        vocab_size=len(tokenizer),
        d_model=WIDTH,
        d_kv=8,
        d_ff=2 * WIDTH,
        num_layers=LAYERS,
        num_heads=HEADS,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=not multilingual,
    )
    return save(folder, f"{family}ForConditionalGeneration", config, tokenizer, dtype=dtype, seed=seed)
