"""saltlm: give an English-centric causal LM the tokenizer of a target-language PLM, with rows built by SALT."""

from __future__ import annotations

import torch as torch

from .adapt import adapt as adapt
from .adapt_config import AdaptConfig as AdaptConfig
from .align import Alignment as Alignment
from .align import align as align
from .auxiliary import load_auxiliary as load_auxiliary
from .compare import compare as compare
from .compare_config import CompareConfig as CompareConfig
from .config import TransferConfig as TransferConfig
from .errors import SaltlmError as SaltlmError
from .evaluate import evaluate as evaluate
from .ops import salt_rows as salt_rows
from .status import status as status
from .transfer import Transfer as Transfer
from .transfer import transfer as transfer

__version__ = "0.1.0"
__all__ = [
    "AdaptConfig",
    "Alignment",
    "CompareConfig",
    "SaltlmError",
    "Transfer",
    "TransferConfig",
    "adapt",
    "align",
    "compare",
    "evaluate",
    "load_auxiliary",
    "salt_rows",
    "status",
    "transfer",
]
