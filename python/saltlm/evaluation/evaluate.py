"""Bits per byte and tokens per byte of a text under a causal language model."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..errors import input_error
from ..files.json_files import read_json
from ..files.summary_file import SUMMARY, SelfCheck
from ..progress import Progress
from ..text.documents import read_documents
from .config import EvaluateConfig, check_windows

if TYPE_CHECKING:
    from ..model.causal_lm import CausalLM

# Documents in one call of the tokenizer: enough to keep its threads busy.
TOKENIZER_BATCH = 1000
# Default of ``batch_tokens`` on a CPU and on other devices.
CPU_BATCH_TOKENS, DEVICE_BATCH_TOKENS = 2048, 16384
# Entries that ``heldout`` of saltlm.json must have.
HELDOUT_FIGURES = ("tokens", "candidates", "relative_error", "cosine", "rank")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """The cost of a text under a model.

    The cost of a token is ``-ln p(token | the tokens before it)``; the cost of a document is the sum over its tokens.

    Attributes:
        model: name of the model as given.
        document_nats: float64 [documents], cost of each document in nats.
        document_bytes: int64 [documents], length of each document in bytes of UTF-8.
        document_tokens: int64 [documents], tokens of each document. Special tokens that a tokenizer adds around a text are
            neither scored nor counted.
        unknown_tokens: number of unknown tokens (``unk``). An unknown token hides bytes, so the bits per byte are then a
            lower bound.
        lossy_documents: number of documents that differ from their decoded tokens, because of unknown tokens, or because
            the tokenizer drops case, accents or white space. The bits per byte are then a lower bound.
        max_length: length of a window in tokens, the start token included.
        stride: tokens by which the window moves.
        device: device of the model.
        dtype: dtype of the weights.
        seconds: time for tokenization and scoring, without loading.
        heldout: ``heldout`` of the ``saltlm.json`` in the model folder: the figures of the self-check of the transfer;
            ``None`` if there are none.
    """

    model: str
    document_nats: np.ndarray
    document_bytes: np.ndarray
    document_tokens: np.ndarray
    unknown_tokens: int
    lossy_documents: int
    max_length: int
    stride: int
    device: str
    dtype: str
    seconds: float
    heldout: SelfCheck | None = None

    def __post_init__(self) -> None:
        shapes = {self.document_nats.shape, self.document_bytes.shape, self.document_tokens.shape}
        if len(shapes) != 1 or len(self.document_nats.shape) != 1 or self.bytes == 0:
            raise ValueError(
                f"an evaluation of {self.bytes} bytes cannot have document arrays of shapes {sorted(shapes)}"
            )

    @property
    def documents(self) -> int:
        """Number of documents."""
        return len(self.document_bytes)

    @property
    def bytes(self) -> int:
        """Length of all documents in bytes of UTF-8."""
        return int(self.document_bytes.sum())

    @property
    def tokens(self) -> int:
        """Number of tokens of all documents."""
        return int(self.document_tokens.sum())

    @property
    def nats(self) -> float:
        """Cost of the whole text in nats."""
        return math.fsum(self.document_nats)

    @property
    def document_bits(self) -> np.ndarray:
        """float64 [documents], cost of each document in bits."""
        return self.document_nats / math.log(2)

    @property
    def bits_per_byte(self) -> float:
        """Cost of the whole text in bits, divided by its bytes. Unlike a loss per token it compares across vocabularies."""
        return self.nats / math.log(2) / self.bytes

    @property
    def tokens_per_byte(self) -> float:
        """Number of tokens, divided by the number of bytes."""
        return self.tokens / self.bytes

    @property
    def tokens_per_second(self) -> float:
        """Tokens scored per second."""
        return self.tokens / max(self.seconds, 1e-9)

    @property
    def notes(self) -> list[str]:
        """Sentences about limits of the figures; empty if there are none."""
        reasons = []
        if self.unknown_tokens:
            reasons.append(f"{self.unknown_tokens:,} unknown tokens hide bytes")
        if self.lossy_documents:
            reasons.append(
                f"{self.lossy_documents:,} of {self.documents:,} documents do not come back from their tokens"
            )
        return [f"{self.model}: {' and '.join(reasons)}; its bits per byte are a lower bound"] if reasons else []

    def to_json(self, *, per_document: bool = False) -> dict[str, Any]:
        """Values for ``--json`` and reports.

        Args:
            per_document: add the lists ``document_bits``, ``document_bytes`` and ``document_tokens``.

        Returns:
            A dict that :mod:`json` can write.
        """
        names = (
            *("model", "bits_per_byte", "tokens_per_byte", "bytes", "tokens", "documents", "unknown_tokens"),
            *("lossy_documents", "nats", "seconds", "tokens_per_second", "max_length", "stride", "device", "dtype"),
        )
        plain: dict[str, Any] = {name: getattr(self, name) for name in names}
        plain["heldout"] = None if self.heldout is None else dict(self.heldout)
        plain["notes"] = self.notes
        if per_document:
            for name in ("document_bits", "document_bytes", "document_tokens"):
                plain[name] = getattr(self, name).tolist()
        return plain

    def _repr_html_(self) -> str:
        """The figures as a table, for notebooks."""
        from ..inspection.notebook import evaluation_html

        return evaluation_html(self.to_json())

    def __repr__(self) -> str:
        return (
            f"Evaluation(bits_per_byte={self.bits_per_byte:.4f}, tokens_per_byte={self.tokens_per_byte:.4f}, "
            f"bytes={self.bytes}, tokens={self.tokens}, documents={self.documents}, "
            f"unknown_tokens={self.unknown_tokens}, lossy_documents={self.lossy_documents}, seconds={self.seconds:.2f})"
        )


def evaluate(
    model: str | Path | tuple[Any, Any] | CausalLM,
    texts: str | Path | Iterable[str | Path] | None = None,
    config: EvaluateConfig | None = None,
    *,
    documents: Sequence[str] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Evaluation:
    """Bits per byte of a causal language model on text: ``sum over all tokens of -log2 p(token | those before) / bytes``.

    Each document is scored alone. Every token has a cost: the first token of a document is predicted from the bos token (else
    eos, else cls; without any of these it costs ``log2 V``). Special tokens are neither scored nor counted, and text that
    spells a special token is read as plain text. The bytes are those of the document in UTF-8. A document longer than the
    window is scored by sliding windows: each token once, given all tokens before it or at least ``max_length - stride``.

    Args:
        model: a folder or hub name; or a loaded model, as a pair ``(model, tokenizer)`` or a
            :class:`~saltlm.model.causal_lm.CausalLM`, whose device, dtype and mode do not change.
        texts: UTF-8 text files. Blank lines separate the documents and belong to none of them.
        config: the options; ``None`` for the defaults.
        documents: the documents as strings, instead of files.
        progress: called with (scored tokens, all tokens) after each batch.
        **options: fields of :class:`~saltlm.EvaluateConfig` by name, such as ``device="cpu"``; they replace those of
            ``config``.

    Returns:
        The cost of each document, and the totals.

    Raises:
        InputError: there is no text; a file is missing, blank or not UTF-8; the name is none of a causal language model; the
            tokenizer yields ids beyond the rows of the model; predictions are not finite; an option is out of range.

    Example:
        >>> import transformers as tf
        >>> from tokenizers import Tokenizer, decoders, models, pre_tokenizers
        >>> letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        >>> byte_level = Tokenizer(models.BPE(letters, []))
        >>> byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        >>> byte_level.decoder = decoders.ByteLevel()
        >>> tokenizer = tf.PreTrainedTokenizerFast(tokenizer_object=byte_level)
        >>> size = {"vocab_size": 256, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 1}
        >>> lm = tf.GPT2LMHeadModel(tf.GPT2Config(**size, bos_token_id=None, eos_token_id=None))
        >>> _ = lm.transformer.wte.weight.data.zero_()  # all logits are equal: 8 bits per byte
        >>> evaluation = evaluate((lm, tokenizer), documents=["Hyvää huomenta", "guten Morgen"])
        >>> evaluation.bits_per_byte, evaluation.tokens_per_byte, evaluation.bytes
        (8.0, 1.0, 28)
    """
    if (texts is None) == (documents is None):
        raise input_error("text", "both or neither", "either text files or documents", "give one of them")
    config = dataclasses.replace(config or EvaluateConfig(), **options)
    all_documents = _strings(documents) if texts is None else read_documents(texts)
    sizes = _byte_sizes(all_documents)
    from ..model.causal_lm import CausalLM, load_causal_lm, same_mode, within_positions

    heldout = read_heldout(model.name if isinstance(model, CausalLM) else model)
    from .score import score_tokens

    with same_mode(model):
        lm = load_causal_lm(
            model,
            device=config.device,
            dtype=config.dtype,
            gguf_file=config.gguf_file,
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
        )
        length = within_positions(config.max_length, lm.max_positions)
        stride = length // 2 if config.stride is None else config.stride
        check_windows(length, stride)
        started = time.perf_counter()
        tokens = tokenize(lm, all_documents)
        if not any(len(ids) for ids in tokens):
            advice = "check that its tokenizer fits the text"
            raise input_error(f"model {lm.name!r}", "no token for the whole text", "at least one", advice)
        nats = score_tokens(
            lm,
            tokens,
            max_length=length,
            stride=stride,
            batch_tokens=config.batch_tokens or (CPU_BATCH_TOKENS if lm.device.type == "cpu" else DEVICE_BATCH_TOKENS),
            progress=progress,
        )
        seconds = time.perf_counter() - started
    counts = np.array([len(ids) for ids in tokens])
    unknown = getattr(lm.tokenizer, "unk_token_id", None)
    return Evaluation(
        model=lm.name,
        document_nats=np.array([part.sum() for part in np.split(nats, np.cumsum(counts)[:-1])]),
        document_bytes=sizes,
        document_tokens=counts,
        unknown_tokens=0 if unknown is None else sum(int((ids == unknown).sum()) for ids in tokens),
        lossy_documents=_lossy(lm.tokenizer, all_documents, tokens),
        max_length=length,
        stride=stride,
        device=str(lm.device),
        dtype=str(lm.dtype).removeprefix("torch."),
        seconds=seconds,
        heldout=heldout,
    )


def read_heldout(model: str | Path | tuple[Any, Any]) -> SelfCheck | None:
    """The figures of the self-check that a transfer wrote into the folder of a model.

    Args:
        model: a folder or hub name; a loaded pair ``(model, tokenizer)`` has no figures.

    Returns:
        ``heldout`` of ``saltlm.json``; ``None`` if there is no such file or entry.

    Raises:
        InputError: the file is broken.
    """
    report = None if isinstance(model, tuple | list) else Path(model) / SUMMARY
    # Unlike pathlib, os.path takes a name that is too long or forbidden for one of no file.
    if report is None or not os.path.isfile(report):
        return None
    heldout = read_json(report).get("heldout")
    if heldout is None:
        return None
    if not isinstance(heldout, dict) or not all(_is_real(heldout.get(name)) for name in HELDOUT_FIGURES):
        expected = "null or numbers named " + ", ".join(HELDOUT_FIGURES)
        raise input_error(f"{report}, heldout", repr(heldout)[:80], expected, "transfer again, or remove the file")
    return cast(SelfCheck, heldout)


def _is_real(value: object) -> bool:
    """Whether a value of a JSON file is a number; NaN and infinity are numbers here."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def tokenize(lm: CausalLM, documents: Sequence[str]) -> list[np.ndarray]:
    """Token ids of plain text: no special token is added, and text that spells a special token stays plain text.

    Args:
        lm: a model with its tokenizer.
        documents: the texts.

    Returns:
        int64 ids, one array per document. A byte-level or SentencePiece tokenizer may have added a space in front.

    Raises:
        InputError: an id lies beyond the rows of the model.
    """
    tokens: list[np.ndarray] = []
    backend = getattr(lm.tokenizer, "backend_tokenizer", None)
    encode_special_tokens = getattr(backend, "encode_special_tokens", None)
    for start in range(0, len(documents), TOKENIZER_BATCH):
        encoded = lm.tokenizer(
            list(documents[start : start + TOKENIZER_BATCH]),
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            truncation=False,
            padding=False,
            verbose=False,  # no warning about texts longer than the model takes: sliding windows score them
        )
        tokens += [np.array(ids, dtype=np.int64) for ids in encoded["input_ids"]]
    if backend is not None and encode_special_tokens is not None:
        backend.encode_special_tokens = encode_special_tokens  # split_special_tokens has changed it
    largest = max([int(ids.max()) for ids in tokens if len(ids)] + [lm.start_id or 0])
    if largest >= lm.rows:
        raise input_error(
            f"tokenizer of model {lm.name!r}",
            f"id {largest} ({lm.tokenizer.convert_ids_to_tokens(largest)!r})",
            f"ids below the model's {lm.rows} rows",
            "use the tokenizer made for the model",
        )
    return tokens


def _strings(documents: Any) -> list[str]:
    """The documents of a caller as a list of strings. A single string is refused: each of its letters would be a document."""
    other = next((item for item in documents if not isinstance(item, str)), None)
    if isinstance(documents, str) or other is not None:
        problem = "one string" if isinstance(documents, str) else f"a {type(other).__name__} among them"
        raise input_error("documents", problem, "a list of strings", "put a single document into a list")
    return list(documents)


def _byte_sizes(documents: Sequence[str]) -> np.ndarray:
    """int64 [documents], length of each document in bytes of UTF-8."""
    try:
        sizes = np.array([len(text.encode("utf-8")) for text in documents], dtype=np.int64)
    except UnicodeEncodeError as error:
        problem = f"a lone surrogate U+{ord(error.object[error.start]):04X} at character {error.start}"
        raise input_error("document", problem, "text that UTF-8 can hold", "decode the text properly") from error
    if not sizes.sum():
        raise input_error("text", "no text", "at least one document that is not empty", "give some text")
    return sizes


def _lossy(tokenizer: Any, documents: Sequence[str], tokens: Sequence[np.ndarray]) -> int:
    """Number of documents that differ from their decoded tokens by more than a space that the tokenizer added in front."""
    decoded = tokenizer.batch_decode([ids.tolist() for ids in tokens], clean_up_tokenization_spaces=False)
    return sum(text not in (back, back.removeprefix(" ")) for text, back in zip(documents, decoded, strict=True))
