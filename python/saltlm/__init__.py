"""saltlm: give an English-centric causal LM the tokenizer of a target-language PLM, with rows built by SALT."""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._rust import __version__ as __version__
    from .adaptation.config import AdaptConfig as AdaptConfig
    from .adaptation.run import Adaptation as Adaptation
    from .adaptation.run import adapt as adapt
    from .alignment.align import Alignment as Alignment
    from .alignment.align import align as align
    from .batches.config import BatchConfig as BatchConfig
    from .batches.run import batch as batch
    from .comparison.config import CompareConfig as CompareConfig
    from .comparison.run import Comparison as Comparison
    from .comparison.run import compare as compare
    from .config import TransferConfig as TransferConfig
    from .environment import status as status
    from .errors import BackendError as BackendError
    from .errors import InputError as InputError
    from .errors import SaltlmError as SaltlmError
    from .evaluation.config import EvaluateConfig as EvaluateConfig
    from .evaluation.evaluate import Evaluation as Evaluation
    from .evaluation.evaluate import evaluate as evaluate
    from .evaluation.side_by_side import MeasureConfig as MeasureConfig
    from .evaluation.side_by_side import evaluate_models as evaluate_models
    from .inspection.rows import inspect as inspect
    from .operators.ops import salt_rows as salt_rows
    from .pipeline import Transfer as Transfer
    from .pipeline import transfer as transfer
    from .vectors.auxiliary import load_auxiliary as load_auxiliary
    from .verification.config import VerifyConfig as VerifyConfig
    from .verification.results import Verification as Verification
    from .verification.run import verify as verify

__all__ = [
    "AdaptConfig",
    "Adaptation",
    "Alignment",
    "BackendError",
    "BatchConfig",
    "CompareConfig",
    "Comparison",
    "EvaluateConfig",
    "Evaluation",
    "InputError",
    "MeasureConfig",
    "SaltlmError",
    "Transfer",
    "TransferConfig",
    "Verification",
    "VerifyConfig",
    "adapt",
    "align",
    "batch",
    "compare",
    "evaluate",
    "evaluate_models",
    "inspect",
    "load_auxiliary",
    "salt_rows",
    "status",
    "transfer",
    "verify",
]

# The program that uses the package decides where its warnings go. Without this handler Python would print them itself.
logging.getLogger("saltlm").addHandler(logging.NullHandler())

# Public name -> module that defines it. A module is imported when its name is first used (PEP 562), so that
# `import saltlm` and `saltlm COMMAND --help` do not import torch. No module or package of saltlm has a public name of this
# list: importing a submodule would bind the module in the place of the function.
_MODULE_OF = {
    "AdaptConfig": "adaptation.config",
    "Adaptation": "adaptation.run",
    "Alignment": "alignment.align",
    "BackendError": "errors",
    "BatchConfig": "batches.config",
    "CompareConfig": "comparison.config",
    "Comparison": "comparison.run",
    "Evaluation": "evaluation.evaluate",
    "EvaluateConfig": "evaluation.config",
    "InputError": "errors",
    "MeasureConfig": "evaluation.side_by_side",
    "SaltlmError": "errors",
    "Transfer": "pipeline",
    "TransferConfig": "config",
    "Verification": "verification.results",
    "VerifyConfig": "verification.config",
    "adapt": "adaptation.run",
    "align": "alignment.align",
    "batch": "batches.run",
    "compare": "comparison.run",
    "evaluate": "evaluation.evaluate",
    "inspect": "inspection.rows",
    "load_auxiliary": "vectors.auxiliary",
    "salt_rows": "operators.ops",
    "evaluate_models": "evaluation.side_by_side",
    "status": "environment",
    "transfer": "pipeline",
    "verify": "verification.run",
}


def __getattr__(name: str) -> Any:
    # Only Cargo.toml states the version. The native module has it, and takes a millisecond to import.
    module = "_rust" if name == "__version__" else _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{module}", __name__), name)
    globals()[name] = value  # later uses do not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
