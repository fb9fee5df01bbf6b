"""SQuAD's measures of an answer, under the name by which lm-evaluation-harness asks transformers for them."""

from __future__ import annotations

import collections
import contextlib
import importlib.util
import re
import string
import sys
import types
from collections.abc import Iterator

NAME = "transformers.data.metrics"


def normalize_answer(text: str) -> str:
    """Lower case, without ASCII punctuation and English articles, single spaces: SQuAD's rule, for any language.

    Example:
        >>> normalize_answer("The  Eiffel-Tower!")
        'eiffeltower'
    """
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def compute_exact(gold: str, answer: str) -> int:
    """1 if both are the same after :func:`normalize_answer`, else 0."""
    return int(normalize_answer(gold) == normalize_answer(answer))


def compute_f1(gold: str, answer: str) -> float:
    """Harmonic mean of the shares of words that answer and gold have in common, in [0, 1]; 1 for two empty ones.

    Example:
        >>> compute_f1("in the old town", "old town hall")
        0.6666666666666666
    """
    wanted, found = normalize_answer(gold).split(), normalize_answer(answer).split()
    if not wanted or not found:
        return float(wanted == found)
    common = sum((collections.Counter(wanted) & collections.Counter(found)).values())
    return 2 * common / (len(wanted) + len(found))


@contextlib.contextmanager
def squad_metrics() -> Iterator[None]:
    """Give these functions out as ``transformers.data.metrics.squad_metrics`` where transformers has none any more.

    Transformers 5 dropped the module, while XQuAD in lm-eval 0.4.13 still imports it, so that its tasks would not load.
    """
    if NAME in sys.modules or importlib.util.find_spec(NAME) is not None:
        yield
        return
    package, module = types.ModuleType(NAME), types.ModuleType(f"{NAME}.squad_metrics")
    module.compute_exact, module.compute_f1, module.normalize_answer = compute_exact, compute_f1, normalize_answer
    package.squad_metrics = module
    sys.modules |= {package.__name__: package, module.__name__: module}
    try:
        yield
    finally:
        for name in (package.__name__, module.__name__):
            del sys.modules[name]
