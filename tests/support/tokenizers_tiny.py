"""Tiny tokenizers of the four kinds, trained in memory in milliseconds."""

from __future__ import annotations

import functools

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXT = [
    "the cat sat on the mat while the other cats were sleeping in the house near the river",
    "a house, a river, a mountain and a road; the number is 1984, the other one is 2026.",
    "Die Katze saß auf der Matte, während die anderen Katzen im Haus am Fluß schliefen.",
    "Über den Bergen, weit zu wandern, sagen die Leute, wohnt das Glück und der Müller.",
    "القط جلس على السجادة بينما كانت القطط الأخرى نائمة في البيت قرب النهر",
    "kissa istui matolla kun muut kissat nukkuivat talossa lähellä jokea ja tietä",
    "emoji 🙂🙃 and 中文字 too; naïve café, coöperate, façade",
]
SPECIALS = {
    "byte_level_bpe": {"bos_token": "<|begin|>", "eos_token": "<|end|>", "pad_token": "<|pad|>"},
    "sentencepiece_unigram": {
        "bos_token": "<s>",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    },
    "sentencepiece_bpe": {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
    "wordpiece": {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    },
}
KINDS = tuple(SPECIALS)


def _finish(tokenizer: Tokenizer, tokenizer_kind: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIALS[tokenizer_kind])


def byte_level_bpe(size: int = 420, text: tuple[str, ...] = tuple(TEXT)) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as in GPT-2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(SPECIALS["byte_level_bpe"].values()),
    )
    tokenizer.train_from_iterator(text, trainer)
    return _finish(tokenizer, "byte_level_bpe")


def sentencepiece_unigram(size: int = 260, text: tuple[str, ...] = tuple(TEXT)) -> PreTrainedTokenizerFast:
    """Unigram over Metaspace, as in XLM-R and T5."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    specials = list(SPECIALS["sentencepiece_unigram"].values())
    trainer = trainers.UnigramTrainer(
        vocab_size=size, show_progress=False, special_tokens=specials, unk_token="<unk>", n_sub_iterations=1
    )
    tokenizer.train_from_iterator(text, trainer)
    return _finish(tokenizer, "sentencepiece_unigram")


def sentencepiece_bpe(size: int = 520, text: tuple[str, ...] = tuple(TEXT)) -> PreTrainedTokenizerFast:
    """BPE over U+2581 with byte fallback, as in Llama 2."""
    scratch = Tokenizer(models.BPE(unk_token="<unk>"))
    scratch.pre_tokenizer = pre_tokenizers.Metaspace()
    specials = list(SPECIALS["sentencepiece_bpe"].values())
    byte_pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, special_tokens=[*specials, *byte_pieces])
    scratch.train_from_iterator(text, trainer)
    merges = [tuple(merge) for merge in _merges(scratch)]
    model = models.BPE(scratch.get_vocab(), merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in specials])
    return _finish(tokenizer, "sentencepiece_bpe")


def wordpiece(size: int = 300, text: tuple[str, ...] = tuple(TEXT)) -> PreTrainedTokenizerFast:
    """WordPiece with ``##`` continuations, as in BERT."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, show_progress=False, special_tokens=list(SPECIALS["wordpiece"].values())
    )
    tokenizer.train_from_iterator(text, trainer)
    return _finish(tokenizer, "wordpiece")


@functools.cache
def tiny(tokenizer_kind: str) -> PreTrainedTokenizerFast:
    """The tokenizer of this kind, built once; do not change it."""
    return {
        "byte_level_bpe": byte_level_bpe,
        "sentencepiece_unigram": sentencepiece_unigram,
        "sentencepiece_bpe": sentencepiece_bpe,
        "wordpiece": wordpiece,
    }[tokenizer_kind]()


def with_roles(kind: str, **roles: str) -> PreTrainedTokenizerFast:
    """A tokenizer of this kind that names these roles only; tokens that it lacks are added at the end."""
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tiny(kind).backend_tokenizer.to_str()), **roles)


def _merges(tokenizer: Tokenizer) -> list[list[str]]:
    import json

    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
