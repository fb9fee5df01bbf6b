"""Row distillation: train the new input rows so that hidden states match those of the source model on the same text.

The source model (teacher) reads a text in its own tokens, the transferred model (student) in the new tokens. Where a token of
each ends at the same character, both models have read the same text, and the student's last hidden state is trained towards the
teacher's. Only new rows are trained; all other weights of the student are those of the teacher (Token Distillation, arXiv
2505.20133).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from ..errors import input_error
from ..files.json_files import read_json
from ..files.summary_file import SUMMARY
from ..model.causal_lm import CausalLM, load_causal_lm
from ..protocols import Tokenizer
from .config import AdaptConfig

# Characters of a text per token of a block: few enough that a text is seldom cut at the length of a block.
CHARACTERS_PER_TOKEN = 3
# A run reads documents until it has this many texts per text that it trains on; it trains on a random sample of them.
CANDIDATES_PER_TEXT = 4


@dataclasses.dataclass(frozen=True)
class Teacher:
    """The source model, which is not trained.

    Attributes:
        lm: the model with its tokenizer, on the device of the run.
    """

    lm: CausalLM

    def states(self, ids: torch.Tensor) -> torch.Tensor:
        """Last hidden states.

        Args:
            ids: int64 [B, L]; padding on the right changes no state before it.

        Returns:
            [B, L, D], without gradients.
        """
        with torch.no_grad():
            return self.lm.model.base_model(input_ids=ids, use_cache=False).last_hidden_state


def load_teacher(folder: Path, config: AdaptConfig, student: CausalLM, device: torch.device) -> Teacher:
    """Load the source model of a transferred model.

    Args:
        folder: the transferred model's folder.
        config: ``distill_source`` names the source model; ``None`` takes the name from the folder's ``saltlm.json``.
        student: the transferred model.
        device: where the source model is put.

    Raises:
        InputError: there is no such model, or its hidden states have another width.
    """
    name, gguf_file = config.distill_source, None
    if name is None:
        try:
            summary = read_json(folder / SUMMARY)
            name, gguf_file = summary["inputs"]["source"]["path"], summary.get("config", {}).get("gguf_file")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise input_error(
                f"model {str(folder)!r}",
                "no name of its source in saltlm.json",
                "the source model for row distillation",
                "name it by --distill-source",
            ) from error
    lm = load_causal_lm(
        name, device="cpu", dtype="float32", gguf_file=gguf_file, trust_remote_code=config.trust_remote_code
    )
    widths = [model.get_input_embeddings().weight.shape[1] for model in (lm.model, student.model)]
    if widths[0] != widths[1]:
        raise input_error(
            f"source model {name!r}",
            f"width {widths[0]}",
            f"the model's own width {widths[1]}",
            "name the right source",
        )
    lm.model.to(device).requires_grad_(False)
    return Teacher(lm)


class AlignedTexts(torch.utils.data.Dataset[dict[str, np.ndarray]]):
    """Short texts in the tokens of student and teacher, with the positions where both have read the same characters."""

    def __init__(
        self,
        documents: Callable[[], Iterator[str]],
        tokenizers: Sequence[Tokenizer],
        starts: Sequence[int | None],
        *,
        length: int,
        count: int,
        seed: int,
    ) -> None:
        """Cut documents into texts and draw the texts of the run.

        Args:
            documents: starts reading the training documents.
            tokenizers: those of student and teacher.
            starts: id of the token before every text for student and teacher; ``None`` for no such token.
            length: maximum number of tokens of a text, in [1, inf); further tokens are cut off.
            count: number of texts, in [1, inf); texts repeat where the documents hold fewer.
            seed: of the order of the texts.

        Raises:
            InputError: no document has two characters or more.
        """
        self.tokenizers, self.starts, self.length, self.count = tokenizers, starts, length, count
        candidates: list[str] = []
        for document in documents():
            candidates += [part for part in _cut(document, length * CHARACTERS_PER_TOKEN) if len(part) > 1]
            if len(candidates) >= CANDIDATES_PER_TEXT * count:
                break
        if not candidates:
            raise input_error("text", "no piece to distil rows on", "documents of two characters or more", "give more")
        random = np.random.default_rng(seed)
        order = np.concatenate([random.permutation(len(candidates)) for _ in range(-(-count // len(candidates)))])
        self.texts = [candidates[i] for i in order[:count]]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """One text.

        Returns:
            ``ids`` int64 [L] and ``teacher_ids`` int64 [L'], the tokens; ``positions`` and ``teacher_positions`` int64 [M], in
            rising order: token ``positions[i]`` of the student ends at the same character as ``teacher_positions[i]`` of the
            teacher.
        """
        text = self.texts[index]
        (ids, ends), (teacher_ids, teacher_ends) = (self._encode(side, text) for side in (0, 1))
        # Several tokens end at the same character where its bytes are split: only the last of them has read it whole.
        last = {end: position for position, end in enumerate(ends) if end}
        teacher_last = {end: position for position, end in enumerate(teacher_ends) if end}
        common = sorted(last.keys() & teacher_last.keys())
        return {
            "ids": ids,
            "teacher_ids": teacher_ids,
            "positions": np.array([last[end] for end in common], dtype=np.int64),
            "teacher_positions": np.array([teacher_last[end] for end in common], dtype=np.int64),
        }

    def _encode(self, side: int, text: str) -> tuple[np.ndarray, list[int]]:
        """Token ids, and the number of characters up to the end of each token; the start token ends at 0."""
        encoded = self.tokenizers[side](
            text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
        )
        start = self.starts[side]
        ids, ends = encoded["input_ids"], [end for _, end in encoded["offset_mapping"]]
        if start is not None:
            ids, ends = [start, *ids], [0, *ends]
        return np.array(ids[: self.length], dtype=np.int64), ends[: self.length]


def _cut(document: str, size: int) -> Iterator[str]:
    """Cut a document into texts of about ``size`` characters, before a space in the second half of a text if there is one."""
    start = 0
    while start < len(document):
        end = min(start + size, len(document))
        if end < len(document):
            space = document.rfind(" ", start + size // 2, end)
            end = space if space > start else end
        yield document[start:end]
        start = end


def collate_aligned(texts: Sequence[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """Make a batch of texts from :class:`AlignedTexts`.

    Returns:
        ``input_ids`` int64 [B, L] and ``teacher_input_ids`` int64 [B, L'], padded by 0 on the right; ``positions`` and
        ``teacher_positions`` int64 [M], the aligned positions as indices into the flattened [B * L] and [B * L'].
    """
    batch: dict[str, torch.Tensor] = {}
    for side in ("", "teacher_"):
        longest = max(len(text[f"{side}ids"]) for text in texts)
        ids = np.zeros((len(texts), longest), dtype=np.int64)
        for row, text in enumerate(texts):
            ids[row, : len(text[f"{side}ids"])] = text[f"{side}ids"]
        positions = np.concatenate([row * longest + text[f"{side}positions"] for row, text in enumerate(texts)])
        batch |= {f"{side}input_ids": torch.from_numpy(ids), f"{side}positions": torch.from_numpy(positions)}
    return batch


def state_error(states: torch.Tensor, teacher_states: torch.Tensor) -> torch.Tensor:
    """Squared difference of hidden states, relative to the teacher's: ``sum (states - teacher)^2 / sum teacher^2``.

    Args:
        states: [M, D].
        teacher_states: [M, D].

    Returns:
        [], float32: 0 for equal states, about 2 for unrelated ones of the same norm.
    """
    teacher_states = teacher_states.float()
    return (states.float() - teacher_states).square().sum() / teacher_states.square().sum().clamp(min=1e-12)
