"""Row distillation: train only new input rows, so that the model's states under the new segmentation match the old ones.

The source model reads a piece of text in its own tokens, the new model in the new ones. Wherever a token of both ends at
the same character, both have read the same text, and the new model's last hidden state should be the source's. Only new
rows move; everything else of the two models is the same (Token Distillation, arXiv 2505.20133).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import input_error
from ..model.causal_lm import CausalLM, load_causal_lm
from .config import AdaptConfig

# Characters of a piece by tokens of a block: pieces then seldom lose their end when they are cut to the block's length.
CHARACTERS = 3


@dataclasses.dataclass
class Teacher:
    """The source model, which is only read."""

    lm: CausalLM

    def states(self, ids: torch.Tensor) -> torch.Tensor:
        """Last hidden states [B, L, D] of ids [B, L]; padding on the right does not reach what stands before it."""
        with torch.no_grad():
            return self.lm.model.base_model(input_ids=ids, use_cache=False).last_hidden_state


def load_teacher(folder: Path, config: AdaptConfig, student: CausalLM, device: torch.device) -> Teacher:
    """The model that a transferred folder was made from.

    Raises:
        InputError: it is not there, or its states are of another width.
    """
    name, gguf_file = config.distill_source, None
    if name is None:
        try:
            summary = json.loads((folder / "saltlm.json").read_bytes())
            name, gguf_file = summary["inputs"]["source"]["path"], summary.get("config", {}).get("gguf_file")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise input_error(
                f"model {str(folder)!r}", "no name of its source in saltlm.json", "the source model for row distillation",
                "name it by --distill-source",
            ) from error  # fmt: skip
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


class Pieces(torch.utils.data.Dataset):
    """Pieces of text in the tokens of both models, with the places where both have read the same."""

    def __init__(
        self, documents: Callable[[], Iterator[str]], tokenizers: Sequence[Any], starts: Sequence[int | None], *, length: int,
        count: int, seed: int,
    ) -> None:  # fmt: skip
        """Args: training text, tokenizers of student and teacher, their start tokens, tokens at most, pieces, seed."""
        self.tokenizers, self.starts, self.length, self.count = tokenizers, starts, length, count
        wanted = length * CHARACTERS
        pieces: list[str] = []
        for document in documents():
            pieces += [part for part in _cut(document, wanted) if len(part) > 1]
            if len(pieces) >= 4 * count:
                break
        if not pieces:
            raise input_error("text", "no piece to distil rows on", "documents of two characters or more", "give more")
        random = np.random.default_rng(seed)
        order = np.concatenate([random.permutation(len(pieces)) for _ in range(-(-count // len(pieces)))])
        self.pieces = [pieces[i] for i in order[:count]]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Ids of both models, and places [M] in each that end at the same character."""
        text = self.pieces[index]
        (ids, ends), (teacher_ids, teacher_ends) = (self._encode(side, text) for side in (0, 1))
        # Several tokens end at one character where its bytes are split: only the last has read it whole.
        last = {end: place for place, end in enumerate(ends) if end}
        teacher_last = {end: place for place, end in enumerate(teacher_ends) if end}
        both = sorted(last.keys() & teacher_last.keys())
        return {
            "ids": ids, "teacher_ids": teacher_ids, "places": np.array([last[e] for e in both], dtype=np.int64),
            "teacher_places": np.array([teacher_last[e] for e in both], dtype=np.int64),
        }  # fmt: skip

    def _encode(self, side: int, text: str) -> tuple[np.ndarray, list[int]]:
        encoded = self.tokenizers[side](
            text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
        )
        start = self.starts[side]
        ids, ends = encoded["input_ids"], [end for _, end in encoded["offset_mapping"]]
        if start is not None:
            ids, ends = [start, *ids], [0, *ends]
        return np.array(ids[: self.length], dtype=np.int64), ends[: self.length]


def _cut(document: str, size: int) -> Iterator[str]:
    """Parts of about ``size`` characters, cut before white space."""
    at = 0
    while at < len(document):
        end = min(at + size, len(document))
        if end < len(document):
            space = document.rfind(" ", at + size // 2, end)
            end = space if space > at else end
        yield document[at:end]
        at = end


def collate_pieces(pieces: Sequence[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """Pieces as a batch: ids [B, L] and [B, L'] padded by 0 on the right, places [M] into the flattened batch."""
    batch: dict[str, torch.Tensor] = {}
    for side in ("", "teacher_"):
        longest = max(len(piece[f"{side}ids"]) for piece in pieces)
        ids = np.zeros((len(pieces), longest), dtype=np.int64)
        for row, piece in enumerate(pieces):
            ids[row, : len(piece[f"{side}ids"])] = piece[f"{side}ids"]
        places = np.concatenate([row * longest + piece[f"{side}places"] for row, piece in enumerate(pieces)])
        batch |= {f"{side}input_ids": torch.from_numpy(ids), f"{side}places": torch.from_numpy(places)}
    return batch


def state_error(states: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """``sum (states - wanted)^2 / sum wanted^2`` []: 0 for the same states, about 2 for unrelated ones."""
    wanted = wanted.float()
    return (states.float() - wanted).square().sum() / wanted.square().sum().clamp(min=1e-12)
