"""saltlm: give an English-centric causal LM the tokenizer of a target-language PLM, with rows built by SALT."""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adaptation.config import AdaptConfig as AdaptConfig
    from .adaptation.run import adapt as adapt
    from .alignment.align import Alignment as Alignment
    from .alignment.align import align as align
    from .comparison.config import CompareConfig as CompareConfig
    from .comparison.run import compare as compare
    from .config import TransferConfig as TransferConfig
    from .environment import status as status
    from .errors import SaltlmError as SaltlmError
    from .evaluation.evaluate import evaluate as evaluate
    from .operators.ops import salt_rows as salt_rows
    from .pipeline import Transfer as Transfer
    from .pipeline import transfer as transfer
    from .vectors.auxiliary import load_auxiliary as load_auxiliary

__version__ = "0.1.0"
# Public name -> the module it lives in, imported when the name is first used: the command line answers --help without torch.
_HOMES = {
    "AdaptConfig": "adaptation.config",
    "Alignment": "alignment.align",
    "CompareConfig": "comparison.config",
    "SaltlmError": "errors",
    "Transfer": "pipeline",
    "TransferConfig": "config",
    "adapt": "adaptation.run",
    "align": "alignment.align",
    "compare": "comparison.run",
    "evaluate": "evaluation.evaluate",
    "load_auxiliary": "vectors.auxiliary",
    "salt_rows": "operators.ops",
    "status": "environment",
    "transfer": "pipeline",
}
__all__ = [*_HOMES]


class _Package(types.ModuleType):
    """Some functions bear the name of their module: whichever is imported first, ``saltlm.align`` is the function."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, types.ModuleType)):  # else Python binds a module it has imported
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f".{_HOMES[name]}", self.__name__), name)
        super().__setattr__(name, value)
        return value

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
