"""What is wrong with a method as configured: found before anything large is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..config import TransferConfig
from ..errors import InputError, input_error
from ..text.documents import read_documents
from ..vectors.auxiliary import check_auxiliary
from ..vectors.bilingual import check_dictionary, check_source_vectors
from ..vectors.segmented import check_words
from .methods import METHODS, method_of
from .tune import free_options
from .tune_text import check_text

OF_METHODS = (
    "ridge", "center", "max_support", "support_rule", "map_ridge", "blend_with", "blend_weight", "blend_length",
    "clean_anchors", "source_auxiliary", "dictionary",
)  # fmt: skip


def check_method(config: TransferConfig, auxiliary: str | Path | None) -> None:
    """Refuse the first fault of :func:`method_faults`.

    Raises:
        InputError: that fault.
    """
    for _, fault in method_faults(config, auxiliary):
        raise fault


def method_faults(config: TransferConfig, auxiliary: str | Path | None) -> Iterator[tuple[str, InputError]]:
    """Options that the method has no use for, rules that contradict each other, and inputs that it lacks or cannot read.

    Yields:
        The name of the option, and what is wrong with it.
    """
    yield from _unused(config)
    yield from _contradictions(config)
    yield from _inputs(config, auxiliary)


def unread_auxiliary(config: TransferConfig, auxiliary: str | Path | None) -> list[str]:
    """The warning that auxiliary vectors are given to a method that does not read them; empty where there is none to give.

    It is no fault, unlike an option of :data:`OF_METHODS`: a comparison and a batch name one file for many methods.
    """
    if auxiliary is None or method_of(config).vectors:
        return []
    return [f"{_named(config)} does not read auxiliary vectors: {auxiliary} is not opened and changes nothing"]


def _unused(config: TransferConfig) -> Iterator[tuple[str, InputError]]:
    default, options = TransferConfig(), method_of(config).options
    for name in OF_METHODS:
        if getattr(config, name) != getattr(default, name) and name not in options:
            taken = [method for method in METHODS if name in method_of(TransferConfig(method=method)).options]
            yield name, input_error(
                name, f"{getattr(config, name)!r} for {_named(config)}, which has no use for it",
                "one of " + ", ".join(taken), f"leave --{name.replace('_', '-')} out or choose another --method",
            )  # fmt: skip


def _contradictions(config: TransferConfig) -> Iterator[tuple[str, InputError]]:
    name = "tune" if config.tune_text is None else "tune_text"
    if (config.tune or config.tune_text is not None) and not free_options(config):
        able = [method for method in METHODS if free_options(TransferConfig(method=method))]
        yield name, input_error(
            name, f"method {config.method!r} with no option left to choose", "one of " + ", ".join(able),
            f"leave --{name.replace('_', '-')} out, or leave its options to it",
        )  # fmt: skip
    if config.blend_weight == "support" and method_of(config).every:
        yield "blend_weight", input_error(
            "blend_weight", f"'support' for {_named(config)}, where every anchor is a neighbour of every token",
            "a number, or another rule", "use --blend-weight pieces, or --blend-with local-map",
        )  # fmt: skip
    if config.unigram_shift is not None and config.keep_source_vocabulary:
        yield "unigram_shift", input_error(
            "unigram_shift", "with keep_source_vocabulary, whose old tokens stay as likely as they were",
            "one of the two", "leave --unigram-shift out",
        )  # fmt: skip
    for name, check in (("unigram_text", read_documents), ("tune_text", check_text)):
        if getattr(config, name) is not None:
            yield from _raised(name, check, getattr(config, name))


def _inputs(config: TransferConfig, auxiliary: str | Path | None) -> Iterator[tuple[str, InputError]]:
    method = method_of(config)
    if method.vectors and auxiliary is not None:  # else the file is not read: see unread_auxiliary
        check = check_words if method.source_vectors == "segmented" else check_auxiliary
        yield from _raised("auxiliary", check, auxiliary)
    elif method.vectors:
        yield "auxiliary", input_error(
            "auxiliary", f"none for method {config.method!r}", "static vectors of the target language",
            "give --auxiliary, or a method that needs none such as subword-mean",
        )  # fmt: skip
    if method.source_vectors != "dictionary":
        return
    for name, what, check in (
        ("source_auxiliary", "static vectors of the source's language", check_source_vectors),
        ("dictionary", "a text file of word pairs, source and target", check_dictionary),
    ):
        if getattr(config, name) is not None:
            yield from _raised(name, check, getattr(config, name))
            continue
        flag = name.replace("_", "-")
        fault = input_error(flag, f"none for method {config.method!r}", what, f"give --{flag}, or a method without it")
        yield name, fault


def _named(config: TransferConfig) -> str:
    return f"method {config.method!r}" + (f" with {config.blend_with!r}" if config.blend_with else "")


def _raised(name: str, check: Callable[[Any], object], value: object) -> Iterator[tuple[str, InputError]]:
    try:
        check(value)
    except InputError as error:
        yield name, error
