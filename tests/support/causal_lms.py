"""Small causal models with random weights of several architectures, and tokenizers for them."""

from __future__ import annotations

import functools

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers_tiny import tiny
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
)

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 128}


def config_of(model_type: str, size: int) -> AutoConfig:
    ids = {"vocab_size": size, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    if model_type == "gpt2":
        return GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=128, **ids)
    if model_type == "opt":  # its head hangs on an inner decoder and projects
        return OPTConfig(**SMALL, ffn_dim=48, word_embed_proj_dim=16, max_position_embeddings=128, **ids)
    if model_type == "gemma2":  # caps its logits after the head
        return Gemma2Config(**LLAMA, head_dim=8, final_logit_softcapping=0.5, **ids)
    return LlamaConfig(**LLAMA, tie_word_embeddings=False, **ids)


@functools.cache
def lm_of(model_type: str = "llama", tokenizer: str = "byte_level_bpe") -> tuple:
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config_of(model_type, len(tiny(tokenizer)))).eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data.mul_(5)  # far from uniform, so that a wrong token or position shows
    return model, tiny(tokenizer)


def uniform(size: int) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=size, n_embd=8, n_layer=1, n_head=1, n_positions=32, bos_token_id=None, eos_token_id=None
    )
    model = GPT2LMHeadModel(config).eval()
    model.transformer.wte.weight.data.zero_()
    return model


def bytes_only(**special: str) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
