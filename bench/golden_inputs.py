"""The inputs of golden.py: tiny tokenizers, causal LMs, PLMs, vectors and texts, the same in every run.

Vocabularies are counted here where a trainer of the library would order equally frequent pieces by a hash table. The name of a
file seeds what is drawn for it.
"""

import collections
import gzip
import json
import os
import re
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

ENGLISH = """the cat sat on the mat while the other cats were sleeping in the house near the river
a house, a river, a mountain and a road; the number is 1984, the other one is 2026.
The quick brown fox jumps over the lazy dog, and the dog sleeps on the road to Helsinki.
She sells sea shells on the shore; he reads the paper in the station of Berlin every morning."""
OTHERS = """kissa istui matolla kun muut kissat nukkuivat talossa lähellä jokea ja tietä Helsinki
Talo, joki, vuori ja tie; luku on 1984, toinen on 2026. Hyvää huomenta, sanoi mylläri.
aamulla hän lukee lehteä asemalla, ja koira nukkuu tien vieressä Berlin the house on the road
Über den Bergen, weit zu wandern, sagen die Leute, wohnt das Glück und der Müller.
القط جلس على السجادة بينما كانت القطط الأخرى نائمة في البيت قرب النهر
emoji 🙂🙃 and 中文字 too; naïve café, façade the cat sat in the river near the mountain"""
CHAT_TEMPLATE = "{% for message in messages %}<|begin|>{{ message['content'] }}<|end|>{% endfor %}"
BYTE_PIECES = [f"<0x{byte:02X}>" for byte in range(256)]

# Folder, class, tokenizer, dtype, largest shard, options of the configuration: causal LMs, then PLMs.
MODELS = """tied LlamaForCausalLM bytes float32 1GB tie_word_embeddings=true
untied LlamaForCausalLM fallback bfloat16 24KB tie_word_embeddings=false
padded LlamaForCausalLM english-unigram float32 40KB vocab_size=704 tie_word_embeddings=false
biased PhiForCausalLM bytes float16 1GB
gpt2 GPT2LMHeadModel bytes float16 1GB
qwen2 Qwen2ForCausalLM bytes bfloat16 1GB tie_word_embeddings=true
bert BertModel wordpiece float32 1GB hidden_size=16
other GPT2LMHeadModel other-bytes float32 1GB hidden_size=24
t5 T5ForConditionalGeneration unigram bfloat16 1GB hidden_size=20 d_kv=5 d_ff=40"""


def options_in(text: str) -> dict[str, object]:
    """``name=value`` pairs separated by blanks; JSON numbers, booleans and objects are read as such."""
    pairs = (part.split("=", 1) for part in text.split())
    is_json = re.compile(r"[\d.]+(e-?\d+)?|true|false|\{.*\}").fullmatch
    return {name: json.loads(value) if is_json(value) else value for name, value in pairs}


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text)


def frequent(pieces: Iterable[str], count: int) -> list[str]:
    """The pieces that cover the most characters."""
    counts = collections.Counter(pieces)
    return sorted(counts, key=lambda piece: (-counts[piece] * len(piece), piece))[:count]


def with_roles(tokenizer: Tokenizer, roles: Mapping[str, str], chat: str | None = None):
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=chat, **roles)


def trained_bpe(text: str, size: int, split: object, special: list[str], letters: list[str]) -> Tokenizer:
    """Byte-pair encoding; its trainer orders equally frequent pairs by their ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = split
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator(text.splitlines(), trainer)
    return tokenizer


def byte_level(text: str, size: int, chat: str | None = None):
    """Byte-level BPE, as in GPT-2."""
    roles = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "pad_token": "<|pad|>"}
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = trained_bpe(text, size, split, list(roles.values()), split.alphabet())
    tokenizer.decoder = decoders.ByteLevel()
    return with_roles(tokenizer, roles, chat)


def byte_fallback_bpe(text: str, size: int):
    """BPE over U+2581 with byte fallback, as in Llama 2."""
    roles = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    scratch = trained_bpe(text, size, pre_tokenizers.Metaspace(), [*roles.values(), *BYTE_PIECES], [])
    trained = json.loads(scratch.to_str())["model"]
    merges = [tuple(merge) for merge in trained["merges"]]
    tokenizer = Tokenizer(models.BPE(trained["vocab"], merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    return with_roles(tokenizer, roles)


def unigram(text: str, size: int):
    """Unigram with byte fallback, as in T5 and Gemma."""
    roles = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    words = [f"▁{word}" for word in words_of(text)]
    parts = (word[i:j] for word in words for i in range(len(word)) for j in range(i + 2, min(len(word), i + 9) + 1))
    pieces = [*frequent(parts, size), *sorted({*"".join(words)})]
    scores = [(piece, 0.0) for piece in roles.values()] + [(piece, -20.0) for piece in BYTE_PIECES]
    scores += [(piece, -2.0 - rank / 50) for rank, piece in enumerate(pieces)]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=2, byte_fallback=True))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return with_roles(tokenizer, roles)


def wordpiece(text: str, size: int):
    """WordPiece with ``##`` continuations, as in BERT."""
    roles = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    words = words_of(text)
    letters = sorted({*"".join(words)})
    starts = frequent((word[:i] for word in words for i in range(2, len(word) + 1)), size)
    ends = frequent((f"##{word[i:]}" for word in words for i in range(1, len(word) - 1)), size // 2)
    pieces = [*roles.values(), *letters, *(f"##{letter}" for letter in letters), *starts, *ends]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    return with_roles(tokenizer, roles)


def save_model(tokenizers: Mapping, line: str) -> None:
    """Write the model of a line of :data:`MODELS` with drawn weights, and its tokenizer."""
    folder, name, tokenizer_name, dtype, shard, options = f"{line} ".split(" ", 5)
    tokenizer, model_class = tokenizers[tokenizer_name], getattr(transformers, name)
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 64, "num_key_value_heads": 4, "max_position_embeddings": 256}
    sizes |= {role: getattr(tokenizer, role) for role in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(zlib.crc32(folder.encode()))
    model = model_class(model_class.config_class(**(sizes | options_in(options))))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard)
    tokenizer.save_pretrained(folder)


def write_vectors(path: str, words: list[str], width: int) -> None:
    values = np.random.default_rng(zlib.crc32(path.encode())).normal(size=(len(words), width))
    lines = [f"{word} {' '.join(f'{x:.5f}' for x in row)}\n" for word, row in zip(words, values, strict=True)]
    Path(path).write_text(f"{len(lines)} {width}\n" + "".join(lines), encoding="utf-8")


def write_text(path: str, text: str, documents: int) -> None:
    random = np.random.default_rng(zlib.crc32(path.encode()))
    texts = [f"{i}: {' '.join(random.choice(text.split(), size=random.integers(8, 60)))}" for i in range(documents)]
    Path(path).write_text("\n\n".join(texts) + "\n", encoding="utf-8")


def make_inputs() -> dict:
    """Write everything that the cases read into the current folder.

    These are the folders of :data:`MODELS`, vectors in which some words are missing (``english.vec``, ``others.vec``,
    ``others.vec.gz``), vectors of tagged words (``multilingual.vec``), a dictionary (``pairs.txt``) and texts (``english.txt``,
    ``others.txt``, ``held-out.txt``).

    Returns:
        The tokenizers by name.
    """
    tokenizers = {
        "bytes": byte_level(f"{ENGLISH}\n{OTHERS}", 440, CHAT_TEMPLATE),
        "fallback": byte_fallback_bpe(f"{ENGLISH}\n{OTHERS[:330]}", 600),
        "english-unigram": unigram(f"{ENGLISH}\n{OTHERS[:170]}", 300),
        "other-bytes": byte_level(OTHERS, 500),
        "unigram": unigram(f"{OTHERS}\n{ENGLISH[:170]}", 300),
        "wordpiece": wordpiece(f"{OTHERS}\n{ENGLISH[:170]}", 240),
    }
    for line in MODELS.splitlines():
        save_model(tokenizers, line)
    Path("tied/README.md").write_text("---\nlicense: apache-2.0\n---\n# Tied\n", encoding="utf-8")
    Path("tied/LICENSE").write_text("The licence of the tied model.\n", encoding="utf-8")
    long_words = []
    for path, names in (("english.vec", "bytes fallback"), ("others.vec", "other-bytes unigram wordpiece")):
        texts = [tokenizers[name].decode([index]) for name in names.split() for index in range(len(tokenizers[name]))]
        spelled = sorted({text.removeprefix("##").strip() for text in texts} - {""})
        words = [word for word in spelled if not re.search(r"[\s\ufffd]", word)]
        write_vectors(path, [word for index, word in enumerate(words) if index % 7], 12)
        long_words.append([word for word in words if len(word) > 3])
    pairs = [f"{source}\t{target}\n" for source, target in zip(*long_words, strict=False)]
    Path("pairs.txt").write_text("".join(pairs), encoding="utf-8")
    Path("others.vec.gz").write_bytes(gzip.compress(Path("others.vec").read_bytes(), mtime=0))
    tagged = [{f"{tag}:{word}" for word in words_of(text)} for tag, text in (("eng", ENGLISH), ("fin", OTHERS))]
    write_vectors("multilingual.vec", sorted(set.union(*tagged)), 10)
    for path, text, count in (("english.txt", ENGLISH, 60), ("others.txt", OTHERS, 90), ("held-out.txt", OTHERS, 12)):
        write_text(path, text, count)
    for path in Path().rglob("*"):
        os.utime(
            path, (1_700_000_000, 1_700_000_000)
        )  # saltlm.json records when the weights of its inputs were changed
    return tokenizers
