"""Tiny tokenizers of the kinds of donors that need care, trained in memory: marks of word ends, lost text, template markers.

``DONOR_KINDS`` names every kind with the function that makes an example.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers_tiny import KINDS, TEXT, byte_level_bpe, sentencepiece_bpe, sentencepiece_unigram, tiny, wordpiece
from transformers import PreTrainedTokenizerFast

WORD_END = "</w>"
MARKER = "<｜Answer｜>"  # noqa: RUF001
ROLES = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


def _suffix_bpe(tokenizer: Tokenizer, alphabet: list[str], size: int) -> PreTrainedTokenizerFast:
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        show_progress=False,
        special_tokens=list(ROLES.values()),
        end_of_word_suffix=WORD_END,
        initial_alphabet=alphabet,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **ROLES)


def herbert(size: int = 420) -> PreTrainedTokenizerFast:
    """Cased BPE over characters with ``</w>``, as in HerBERT."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix=WORD_END))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder(suffix=WORD_END)
    return _suffix_bpe(tokenizer, [], size)


def gpt1(size: int = 420) -> PreTrainedTokenizerFast:
    """BPE over characters with ``</w>`` that lower-cases and strips accents, as in GPT-1."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix=WORD_END))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder(suffix=WORD_END)
    return _suffix_bpe(tokenizer, [], size)


def clip(size: int = 700) -> PreTrainedTokenizerFast:
    """Lower-casing BPE over bytes with ``</w>``, whose decoder leaves the marks in the text, as in CLIP."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix=WORD_END))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _suffix_bpe(tokenizer, [*alphabet, *(letter + WORD_END for letter in alphabet)], size)


SUFFIX_KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {"herbert": herbert, "gpt1": gpt1, "clip": clip}


def with_normalizer(tokenizer: PreTrainedTokenizerFast, *parts: Any) -> PreTrainedTokenizerFast:
    """The tokenizer with other normalizers before its own."""
    backend = tokenizer.backend_tokenizer
    own = [backend.normalizer] if backend.normalizer is not None else []
    backend.normalizer = normalizers.Sequence([*parts, *own])
    return tokenizer


def uncased_wordpiece() -> PreTrainedTokenizerFast:
    """WordPiece that lower-cases and strips accents, as in uncased BERT."""
    return with_normalizer(wordpiece(), normalizers.BertNormalizer(lowercase=True))


def uncased_unigram() -> PreTrainedTokenizerFast:
    """Unigram that lower-cases and keeps accents, as in ALBERT's kind."""
    return with_normalizer(sentencepiece_unigram(), normalizers.Lowercase())


def unaccented_unigram() -> PreTrainedTokenizerFast:
    """Unigram that keeps case and strips accents."""
    return with_normalizer(sentencepiece_unigram(), normalizers.NFD(), normalizers.StripAccents())


def one_space_unigram() -> PreTrainedTokenizerFast:
    """Unigram that turns every white space into one blank, as in T5 and XLM-R."""
    return with_normalizer(sentencepiece_unigram(), normalizers.Replace(Regex(r"\s+"), " "))


def markers(*, special: bool, listed: bool) -> PreTrainedTokenizerFast:
    """A byte-level source with the markers ``<|turn|>`` and :data:`MARKER`.

    Args:
        special: whether tokenizer.json calls them special; DeepSeek's are not.
        listed: whether the configuration lists them, too.
    """
    source = byte_level_bpe()
    tokens = [AddedToken(text, special=special, normalized=False) for text in ("<|turn|>", MARKER, "<|unused|>")]
    if listed:
        source.add_special_tokens({"additional_special_tokens": tokens})
    elif special:
        source.backend_tokenizer.add_special_tokens(tokens)
    else:
        source.backend_tokenizer.add_tokens(tokens)
    answer = f"{{{{ '{MARKER[:2]}' + '{MARKER[2:]}' }}}}"
    source.chat_template = (
        f"{{% for m in messages %}}{{% if m['role'] == 'user' %}}<|turn|>{{% else %}}{answer}{{% endif %}}\n"
        f"{{{{ m['content'] }}}}{{{{ eos_token }}}}{{% endfor %}}{{% if add_generation_prompt %}}{answer}{{% endif %}}"
    )
    return source


MARKER_KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "listed special": lambda: markers(special=True, listed=True),
    "special in tokenizer.json alone": lambda: markers(special=True, listed=False),
    "added, not special": lambda: markers(special=False, listed=False),
}


def save_phobert(folder: Path, *, marks: str = "@@", missing: int = 3) -> Path:
    """Files of a slow BPE tokenizer of the PhoBERT kind: ``vocab.txt`` and ``bpe.codes``.

    Args:
        folder: gets the files.
        marks: ``@@`` as PhoBERT marks pieces that do not end a word.
        missing: number of symbols of the merges that the vocabulary lacks, as real ones do.
    """
    content = json.loads(herbert(360).backend_tokenizer.to_str())["model"]
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in content["merges"]]
    used = {symbol for merge in merges for symbol in merge}
    lacking = [left + right for left, right in merges if left + right in used][:missing]
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        f"{token.removesuffix(WORD_END) if token.endswith(WORD_END) else token + marks} 1"
        for token in content["vocab"]
        if token not in ROLES.values() and token not in lacking and token != WORD_END
    ]
    (folder / "vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "bpe.codes").write_text("".join(f"{a} {b} 1\n" for a, b in merges), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PhobertTokenizer"}))
    return folder


DONOR_KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    **{kind: (lambda kind=kind: tiny(kind)) for kind in KINDS},
    **{f"word ends, {kind}": make for kind, make in SUFFIX_KINDS.items()},
    "uncased wordpiece": uncased_wordpiece,
    "uncased unigram": uncased_unigram,
    "unaccented unigram": unaccented_unigram,
    "one-space unigram": one_space_unigram,
    "byte fallback": sentencepiece_bpe,
}
