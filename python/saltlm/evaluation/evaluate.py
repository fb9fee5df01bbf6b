"""Bits per byte, tokens per byte and, for a transfer, its held-out check (step 8)."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import input_error
from ..text.documents import read_documents
from .config import EvaluateConfig, check_windows
from .self_check_record import read_heldout

if TYPE_CHECKING:
    from ..model.causal_lm import CausalLM

# Documents given to the tokenizer at once: enough to keep its threads busy.
TOKENIZER_BATCH = 1000


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """What a text costs under a model.

    Attributes:
        model: name of the model as given.
        document_nats: float64 [documents], cost of each document in nats.
        document_bytes: int64 [documents], its bytes in UTF-8.
        document_tokens: int64 [documents], its tokens; special tokens put around a text are neither scored nor counted.
        unknown_tokens: tokens that are the tokenizer's ``unk``: they hide bytes, so the bits per byte are a lower bound.
        lossy_documents: documents that their tokens do not give back byte for byte (unknown tokens, but also case, accents
            or white space that the tokenizer drops): here too the bits per byte are a lower bound.
        max_length: tokens in a window, the start token included.
        stride: tokens by which the window moves.
        device: where the model ran.
        dtype: in which dtype.
        seconds: time for tokenization and scoring, loading left out.
        heldout: the self-check of the transfer that made the model, from its ``saltlm.json``; ``None`` if there is none.
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
    heldout: Mapping[str, Any] | None = None

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
        """Bytes of all documents in UTF-8."""
        return int(self.document_bytes.sum())

    @property
    def tokens(self) -> int:
        """Tokens of all documents."""
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
        """Cost of the whole text in bits by its bytes: comparable between vocabularies, unlike a loss per token."""
        return self.nats / math.log(2) / self.bytes

    @property
    def tokens_per_byte(self) -> float:
        """Tokens by bytes: how long the tokenizer makes the text."""
        return self.tokens / self.bytes

    @property
    def tokens_per_second(self) -> float:
        """Tokens scored in a second."""
        return self.tokens / max(self.seconds, 1e-9)

    @property
    def notes(self) -> list[str]:
        """What a reader of the numbers has to know, a sentence each; empty when there is nothing."""
        hidden = []
        if self.unknown_tokens:
            hidden.append(f"{self.unknown_tokens:,} unknown tokens hide bytes")
        if self.lossy_documents:
            hidden.append(
                f"{self.lossy_documents:,} of {self.documents:,} documents do not come back from their tokens"
            )
        return [f"{self.model}: {' and '.join(hidden)}; its bits per byte are a lower bound"] if hidden else []

    def to_json(self, *, per_document: bool = False) -> dict[str, Any]:
        """Plain values for ``--json`` and reports.

        Args:
            per_document: add the lists ``document_bits``, ``document_bytes`` and ``document_tokens``.

        Returns:
            A dict that :mod:`json` can write.
        """
        names = ("model", "bits_per_byte", "tokens_per_byte", "bytes", "tokens", "documents", "unknown_tokens")
        names += ("lossy_documents", "nats", "seconds", "tokens_per_second", "max_length", "stride", "device", "dtype")
        plain = {name: getattr(self, name) for name in names}
        plain["heldout"] = None if self.heldout is None else dict(self.heldout)
        plain["notes"] = self.notes
        if per_document:
            for name in ("document_bits", "document_bytes", "document_tokens"):
                plain[name] = getattr(self, name).tolist()
        return plain

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
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Evaluation:
    """Bits per byte of a causal language model on text: ``sum over all tokens of -log2 p(token | those before) / bytes``.

    Each document is scored on its own. Every token of it costs: the first one is predicted from the bos token (else eos, else
    cls; without any it costs ``log2 V``), special tokens are neither scored nor counted, and text that spells one is read as
    plain text. The bytes are those of the document in UTF-8. A document longer than the window is scored by sliding windows:
    each token once, with everything before it or at least ``max_length - stride`` tokens of context.

    Args:
        model: a folder or hub name; or a pair ``(model, tokenizer)`` or a :class:`~saltlm.model.causal_lm.CausalLM` that is
            loaded, which stays where and as it is.
        texts: UTF-8 text files; the blocks between blank lines are the documents, the blank lines themselves do not count.
        documents: the documents as strings, in place of files; taken as they are.
        config: the options; ``None`` is all defaults.
        progress: called with (scored tokens, all tokens) after each batch.
        **options: fields of :class:`~saltlm.EvaluateConfig` by name, such as ``device="cpu"``, in place of those of
            ``config``.

    Returns:
        The totals, and the costs of each document.

    Raises:
        InputError: no text, or a file that is missing, blank or not UTF-8; no causal language model of that name; a tokenizer
            that gives ids beyond the model's rows; predictions that are not finite; an option out of range.

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
        >>> _ = lm.transformer.wte.weight.data.zero_()  # all logits alike: 8 bits a byte
        >>> found = evaluate((lm, tokenizer), documents=["Hyvää huomenta", "guten Morgen"])
        >>> found.bits_per_byte, found.tokens_per_byte, found.bytes
        (8.0, 1.0, 28)
    """
    if (texts is None) == (documents is None):
        raise input_error("text", "both or neither", "either text files or documents", "give one of them")
    config = dataclasses.replace(config or EvaluateConfig(), **options)
    given = read_documents(texts) if documents is None else _strings(documents)
    sizes = _byte_sizes(given)
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
        tokens = tokenize(lm, given)
        if not any(len(ids) for ids in tokens):
            advice = "check that its tokenizer fits the text"
            raise input_error(f"model {lm.name!r}", "no token for the whole text", "at least one", advice)
        nats = score_tokens(
            lm,
            tokens,
            max_length=length,
            stride=stride,
            batch_tokens=config.batch_tokens or (2048 if lm.device.type == "cpu" else 16384),
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
        lossy_documents=_lossy(lm.tokenizer, given, tokens),
        max_length=length,
        stride=stride,
        device=str(lm.device),
        dtype=str(lm.dtype).removeprefix("torch."),
        seconds=seconds,
        heldout=heldout,
    )


def tokenize(lm: CausalLM, documents: Sequence[str]) -> list[np.ndarray]:
    """Token ids of plain text, with no special token put in and none read from the text.

    Args:
        lm: a model with its tokenizer.
        documents: the texts.

    Returns:
        int64 ids, an array for each document; a byte-level or SentencePiece tokenizer may have put a space before it.

    Raises:
        InputError: an id lies beyond the model's rows.
    """
    tokens: list[np.ndarray] = []
    backend = getattr(lm.tokenizer, "backend_tokenizer", None)
    before = getattr(backend, "encode_special_tokens", None)
    for at in range(0, len(documents), TOKENIZER_BATCH):
        encoded = lm.tokenizer(
            list(documents[at : at + TOKENIZER_BATCH]),
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            truncation=False,
            padding=False,
            verbose=False,  # says nothing of texts longer than the model: windows take care of them
        )
        tokens += [np.array(ids, dtype=np.int64) for ids in encoded["input_ids"]]
    if before is not None:
        backend.encode_special_tokens = before  # the call above leaves it changed
    largest = max([int(ids.max()) for ids in tokens if len(ids)] + [lm.start_id or 0])
    if largest >= lm.rows:
        found = f"id {largest} ({lm.tokenizer.convert_ids_to_tokens(largest)!r})"
        expected = f"ids below the model's {lm.rows} rows"
        advice = "use the tokenizer made for the model"
        raise input_error(f"tokenizer of model {lm.name!r}", found, expected, advice)
    return tokens


def _strings(documents: Sequence[str]) -> list[str]:
    """The documents; a single string would otherwise be taken for one document a letter."""
    other = next((item for item in documents if not isinstance(item, str)), None)
    if isinstance(documents, str) or other is not None:
        found = "one string" if isinstance(documents, str) else f"a {type(other).__name__} among them"
        raise input_error("documents", found, "a list of strings", "put a single document into a list")
    return list(documents)


def _byte_sizes(documents: Sequence[str]) -> np.ndarray:
    try:
        sizes = np.array([len(text.encode("utf-8")) for text in documents], dtype=np.int64)
    except UnicodeEncodeError as error:
        found = f"a lone surrogate U+{ord(error.object[error.start]):04X} at character {error.start}"
        raise input_error("document", found, "text that UTF-8 can hold", "decode the text properly") from error
    if not sizes.sum():
        raise input_error("text", "no text", "at least one document that is not empty", "give some text")
    return sizes


def _lossy(tokenizer: Any, documents: Sequence[str], tokens: Sequence[np.ndarray]) -> int:
    """Documents that differ from their decoded tokens by more than the space that tokenizers put before a text."""
    back = tokenizer.batch_decode([ids.tolist() for ids in tokens], clean_up_tokenization_spaces=False)
    return sum(text not in (own, own.removeprefix(" ")) for text, own in zip(documents, back, strict=True))
