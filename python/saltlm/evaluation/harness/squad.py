"""The metrics of SQuAD, provided under the module name from which lm-evaluation-harness imports them."""

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
    """Lower-case a text, remove ASCII punctuation and English articles, and collapse white space, as SQuAD does.

    Example:
        >>> normalize_answer("The  Eiffel-Tower!")
        'eiffeltower'
    """
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def compute_exact(gold: str, answer: str) -> int:
    """1 if both texts are equal after :func:`normalize_answer`, else 0."""
    return int(normalize_answer(gold) == normalize_answer(answer))


def compute_f1(gold: str, answer: str) -> float:
    """Harmonic mean of precision and recall of the words of an answer, in [0, 1]; 1 if both texts are empty.

    Example:
        >>> compute_f1("in the old town", "old town hall")
        0.6666666666666666
    """
    gold_words, answer_words = normalize_answer(gold).split(), normalize_answer(answer).split()
    if not gold_words or not answer_words:
        return float(gold_words == answer_words)
    common = sum((collections.Counter(gold_words) & collections.Counter(answer_words)).values())
    return 2 * common / (len(gold_words) + len(answer_words))


@contextlib.contextmanager
def squad_metrics() -> Iterator[None]:
    """Provide the module ``transformers.data.metrics.squad_metrics`` if transformers lacks it.

    Transformers 5 removed the module, but the task XQuAD of lm-eval 0.4.13 imports it.
    """
    if NAME in sys.modules or importlib.util.find_spec(NAME) is not None:
        yield
        return
    package, module = types.ModuleType(NAME), types.ModuleType(f"{NAME}.squad_metrics")
    vars(module).update(compute_exact=compute_exact, compute_f1=compute_f1, normalize_answer=normalize_answer)
    vars(package).update(squad_metrics=module)
    sys.modules |= {package.__name__: package, module.__name__: module}
    try:
        yield
    finally:
        for name in (package.__name__, module.__name__):
            del sys.modules[name]
