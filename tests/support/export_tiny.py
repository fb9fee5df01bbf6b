"""Tiny models of the architectures that saltlm writes as GGUF, and tokenizers of further kinds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from models_tiny import roles, save
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers_tiny import SPECIALS, TEXT, byte_level_bpe, sentencepiece_unigram, wordpiece
from transformers import PreTrainedTokenizerFast

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 50000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
DEFAULT = {"rope_type": "default", "rope_theta": 5000.0}
GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8}
# Name of the case -> model class, class of the configuration, its settings beside the sizes.
ARCHITECTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama, grouped, biased, wide heads": (
        "LlamaForCausalLM",
        "LlamaConfig",
        {"attention_bias": True, "mlp_bias": False, "head_dim": 32, "rope_parameters": DEFAULT},
    ),
    "llama 3's rope": ("LlamaForCausalLM", "LlamaConfig", {"tie_word_embeddings": True, "rope_parameters": LLAMA3}),
    "llama, linear rope": (
        "LlamaForCausalLM",
        "LlamaConfig",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}},
    ),
    "llama, yarn": (
        "LlamaForCausalLM",
        "LlamaConfig",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 5000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "mistral": ("MistralForCausalLM", "MistralConfig", {"sliding_window": None, "rope_parameters": DEFAULT}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {"tie_word_embeddings": True, "rope_parameters": DEFAULT}),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {"head_dim": 32, "rope_parameters": DEFAULT}),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", {"head_dim": 32, "tie_word_embeddings": True}),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {**GEMMA, "tie_word_embeddings": True}),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", {**GEMMA, "num_hidden_layers": 7, "tie_word_embeddings": True}),
}


def save_architecture(folder: Path, case: str, tokenizer: Any, dtype: torch.dtype = torch.float32) -> Path:
    """Save a tiny model of this case; ``gpt2`` is one more."""
    if case == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=len(tokenizer), n_embd=64, n_layer=2, n_head=4, n_positions=256, **roles(tokenizer)
        )
        return save(folder, "GPT2LMHeadModel", config, tokenizer, dtype=dtype)
    class_name, config_name, settings = ARCHITECTURES[case]
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        **roles(tokenizer),
    }
    return save(folder, class_name, getattr(transformers, config_name)(**{**sizes, **settings}), tokenizer, dtype=dtype)


def edited(tokenizer: PreTrainedTokenizerFast, edit: Any, **specials: str) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokenizer.json was changed by a function."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    edit(content)
    roles = {key: value for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)), **{**roles, **specials})


def byte_level_with(pre_tokenizer: Any, *, ignore_merges: bool = False, size: int = 700) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained behind this pre-tokenizer; None is GPT-2's."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre_tokenizer is None)
    tokenizer.pre_tokenizer = last if pre_tokenizer is None else pre_tokenizers.Sequence([pre_tokenizer, last])
    tokenizer.decoder = decoders.ByteLevel()
    # Numbers, words behind punctuation and runs of blanks: what the pre-tokenizers treat differently.
    text = [*TEXT, "1234 12345 2026 1984 (house) [river] 'tis \n\n  x_y = 10 ** 20; HTTPServer camelCase"] * 8
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(SPECIALS["byte_level_bpe"].values()),
    )
    tokenizer.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIALS["byte_level_bpe"])


def split(*patterns: str) -> Any:
    """A pre-tokenizer that splits by these patterns, one after the other."""
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns])


def uncased_unigram() -> PreTrainedTokenizerFast:
    """Unigram behind lowercasing and the removal of accents, as in ALBERT, without SentencePiece's table."""
    tokenizer = Tokenizer(models.Unigram())
    steps = [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    specials = list(SPECIALS["sentencepiece_unigram"].values())
    trainer = trainers.UnigramTrainer(vocab_size=240, show_progress=False, special_tokens=specials, unk_token="<unk>")
    tokenizer.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIALS["sentencepiece_unigram"])


def uncased_wordpiece() -> PreTrainedTokenizerFast:
    """WordPiece behind BERT's lowercasing."""
    tokenizer = wordpiece(text=tuple(text.lower() for text in TEXT))
    tokenizer.backend_tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    return tokenizer


def unigram_of_words() -> PreTrainedTokenizerFast:
    """Unigram behind a split at blanks, as in XLM-R: blanks in a row and line breaks leave no trace."""
    tokenizer = sentencepiece_unigram()
    steps = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    return tokenizer


def unigram_of_lines() -> PreTrainedTokenizerFast:
    """Unigram behind a pattern that makes one space of all blanks in a row, as in multilingual E5."""
    tokenizer = sentencepiece_unigram()
    steps = [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip(left=False)]
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(steps)
    return tokenizer


def end_of_word_bpe() -> PreTrainedTokenizerFast:
    """BPE with ``</w>`` at the end of words, as in CLIP and GPT-1."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder()
    trainer = trainers.BpeTrainer(
        vocab_size=300, show_progress=False, special_tokens=["<unk>", "<s>", "</s>"], end_of_word_suffix="</w>"
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


__all__ = [
    "ARCHITECTURES",
    "byte_level_bpe",
    "byte_level_with",
    "edited",
    "end_of_word_bpe",
    "save_architecture",
    "split",
    "uncased_unigram",
    "uncased_wordpiece",
    "unigram_of_lines",
    "unigram_of_words",
]
