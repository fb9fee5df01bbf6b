"""Protocols of the tokenizers and models that saltlm uses, for the type checker.

transformers' own classes, and classes in a checkpoint's code, match a protocol if they have its members; no class inherits
from a protocol.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


class BackendTokenizer(Protocol):
    """``tokenizers.Tokenizer``: the fast tokenizer under transformers' class."""

    normalizer: Any
    pre_tokenizer: Any
    decoder: Any

    def to_str(self) -> str:
        """Content of tokenizer.json."""
        ...

    def get_added_tokens_decoder(self) -> dict[int, Any]:
        """Id -> ``tokenizers.AddedToken`` of the added tokens."""
        ...

    def encode_batch(self, input: Sequence[Any], *, add_special_tokens: bool = True) -> list[Any]:
        """Encodings of several texts."""
        ...


class Tokenizer(Protocol):
    """A fast tokenizer: ``transformers.PreTrainedTokenizerFast``."""

    is_fast: bool
    backend_tokenizer: BackendTokenizer
    chat_template: Any
    model_max_length: int
    padding_side: str
    all_special_tokens: list[str]
    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None
    unk_token_id: int | None

    def __call__(self, text: Any, **options: Any) -> Any:
        """Encode text."""
        ...

    def __len__(self) -> int:
        """Number of tokens, including added tokens."""
        ...

    def get_vocab(self) -> dict[str, int]:
        """Token -> id, including added tokens."""
        ...

    def get_added_vocab(self) -> dict[str, int]:
        """Token -> id of the added tokens."""
        ...

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        """Token of one id, or tokens of several ids."""
        ...

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Id of one token, or ids of several tokens."""
        ...

    def decode(self, token_ids: Any, **options: Any) -> str:
        """Text of token ids."""
        ...

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        """Text or token ids that the chat template makes of messages."""
        ...

    def save_pretrained(self, save_directory: str | os.PathLike[str], **options: Any) -> Any:
        """Write the tokenizer's files."""
        ...


class LanguageModel(Protocol):
    """A causal LM: ``transformers.PreTrainedModel`` with an output layer (head)."""

    base_model: Any
    config: Any
    generation_config: Any
    training: bool
    forward: Any

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Forward pass."""
        ...

    def get_input_embeddings(self) -> Any:
        """Module that holds the input matrix."""
        ...

    def get_output_embeddings(self) -> Any:
        """Module of the output layer (head), or ``None``."""
        ...

    def get_decoder(self) -> Any:
        """Module that reads text."""
        ...

    def named_parameters(self, prefix: str = "", recurse: bool = True) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Name and value of each parameter."""
        ...

    def parameters(self, recurse: bool = True) -> Iterator[torch.nn.Parameter]:
        """Each parameter."""
        ...

    def modules(self) -> Iterator[torch.nn.Module]:
        """Each module."""
        ...

    def get_submodule(self, target: str) -> torch.nn.Module:
        """Module of this name."""
        ...

    def state_dict(self, *inputs: Any, **options: Any) -> dict[str, Any]:
        """Name -> tensor of all parameters and persistent buffers."""
        ...

    def eval(self) -> Any:
        """Switch to evaluation mode."""
        ...

    def train(self, mode: bool = True) -> Any:
        """Switch to training mode."""
        ...

    def to(self, *inputs: Any, **options: Any) -> Any:
        """Move to a device or dtype."""
        ...

    def generate(self, *inputs: Any, **options: Any) -> Any:
        """Generate tokens."""
        ...

    def save_pretrained(self, save_directory: str | os.PathLike[str], **options: Any) -> Any:
        """Write config and weights."""
        ...
