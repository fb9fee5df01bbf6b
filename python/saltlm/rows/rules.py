"""Faults of a method's configuration, found before anything large is loaded."""

from __future__ import annotations

import dataclasses
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

# Names of the options that some methods have and others have not, in the order of the fields of TransferConfig. map_ridge is an
# option of each method whose anchors are cleaned.
_OPTIONS = {"map_ridge"}.union(*(method_of(TransferConfig(method=method)).options for method in METHODS))
METHOD_OPTIONS = tuple(field.name for field in dataclasses.fields(TransferConfig) if field.name in _OPTIONS)


def check_method(config: TransferConfig, auxiliary: str | Path | None) -> None:
    """Raise the first fault of :func:`method_faults`.

    Raises:
        InputError: that fault.
    """
    for _, fault in method_faults(config, auxiliary):
        raise fault


def method_faults(config: TransferConfig, auxiliary: str | Path | None) -> Iterator[tuple[str, InputError]]:
    """Options that the method does not have, options that contradict each other, and inputs that are missing or unreadable.

    Yields:
        The name of the option, and the error.
    """
    yield from _unused(config)
    yield from _contradictions(config)
    yield from _inputs(config, auxiliary)


def check_plm_rows(config: TransferConfig, auxiliary: str | Path | None, target: str) -> None:
    """Check that the method works with a target that is a tokenizer alone.

    ``auto`` does: it then builds each row as ``subword-mean`` does (:func:`plm_notes`).

    Args:
        config: the options.
        auxiliary: vectors as given.
        target: name of the target in messages.

    Raises:
        InputError: the method, its anchors' cleaning or its vectors need the rows of a PLM.
    """
    method = method_of(config)
    reader = None
    if method.plm and not method.alone:
        reader = _described(config)
    elif config.clean_anchors and method.anchors:
        reader = "clean_anchors"
    elif method.vectors and auxiliary is not None and str(auxiliary) == "plm":
        reader = "--auxiliary plm"
    if reader is not None:
        names = [name for name, entry in METHODS.items() if name != "blend" and (entry.alone or not entry.plm)]
        raise input_error(
            target,
            "a tokenizer without weights",
            f"a PLM with its rows, which {reader} reads",
            f"give the folder of the whole PLM, or a --method that reads none: {', '.join(names)}",
        )


def plm_notes(config: TransferConfig) -> list[str]:
    """What ``auto`` does with a target that is a tokenizer alone; nothing for other methods."""
    if config.method != "auto":
        return []
    return [
        "auto builds each new row as the mean of its source pieces (subword-mean), because the regression that it blends with"
        " them reads the rows of a PLM: give the whole PLM for the blend"
    ]


def unread_auxiliary(config: TransferConfig, auxiliary: str | Path | None) -> list[str]:
    """A warning if auxiliary vectors are given to a method that does not read them; else an empty list.

    An option of another method is an error, these vectors are not: a comparison and a batch give one file to many methods.
    """
    if auxiliary is None or method_of(config).vectors:
        return []
    return [f"{_described(config)} does not read auxiliary vectors: {auxiliary} is not opened and changes nothing"]


def _unused(config: TransferConfig) -> Iterator[tuple[str, InputError]]:
    default, options = TransferConfig(), method_of(config).options
    for name in METHOD_OPTIONS:
        if getattr(config, name) != getattr(default, name) and name not in options:
            methods = [method for method in METHODS if name in method_of(TransferConfig(method=method)).options]
            yield (
                name,
                input_error(
                    name,
                    f"{getattr(config, name)!r} for {_described(config)}, which has no use for it",
                    "one of " + ", ".join(methods),
                    f"leave {_flag(name)} out or choose another --method",
                ),
            )


def _contradictions(config: TransferConfig) -> Iterator[tuple[str, InputError]]:
    name = "tune" if config.tune_text is None else "tune_text"
    if (config.tune or config.tune_text is not None) and not free_options(config):
        methods = [method for method in METHODS if free_options(TransferConfig(method=method))]
        yield (
            name,
            input_error(
                name,
                f"method {config.method!r} with no option left to choose",
                "one of " + ", ".join(methods),
                f"leave {_flag(name)} out, or leave its options to it",
            ),
        )
    if config.blend_weight == "support" and method_of(config).every:
        yield (
            "blend_weight",
            input_error(
                "blend_weight",
                f"'support' for {_described(config)}, where every anchor is a neighbour of every token",
                "a number, or another rule",
                "use --blend-weight pieces, or --blend-with local-map",
            ),
        )
    if config.unigram_shift is not None and config.keep_source_vocabulary:
        yield (
            "unigram_shift",
            input_error(
                "unigram_shift",
                "with keep_source_vocabulary, whose old tokens stay as likely as they were",
                "one of the two",
                "leave --unigram-shift out",
            ),
        )
    if config.unigram_text is not None:
        yield from _fault_of("unigram_text", read_documents, config.unigram_text)
    if config.tune_text is not None:
        yield from _fault_of("tune_text", check_text, config.tune_text)


def _inputs(config: TransferConfig, auxiliary: str | Path | None) -> Iterator[tuple[str, InputError]]:
    method = method_of(config)
    if method.vectors and auxiliary is not None:  # a method without vectors does not read the file: unread_auxiliary
        check = check_words if method.source_vectors == "segmented" else check_auxiliary
        yield from _fault_of("auxiliary", check, auxiliary)
    elif method.vectors:
        yield (
            "auxiliary",
            input_error(
                "auxiliary",
                f"none for method {config.method!r}",
                "static vectors of the target language",
                "give --auxiliary, or a method that needs none such as subword-mean",
            ),
        )
    if method.source_vectors != "dictionary":
        return
    inputs: tuple[tuple[str, str, Callable[[str], object]], ...] = (
        ("source_auxiliary", "static vectors of the source's language", check_source_vectors),
        ("dictionary", "a text file of word pairs, source and target", check_dictionary),
    )
    for name, expected, check_input in inputs:
        if getattr(config, name) is not None:
            yield from _fault_of(name, check_input, getattr(config, name))
        else:
            found, advice = f"none for method {config.method!r}", f"give {_flag(name)}, or a method without it"
            yield name, input_error(name.replace("_", "-"), found, expected, advice)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _described(config: TransferConfig) -> str:
    return f"method {config.method!r}" + (f" with {config.blend_with!r}" if config.blend_with else "")


def _fault_of(name: str, check: Callable[[Any], object], value: str | Path) -> Iterator[tuple[str, InputError]]:
    """The error that a check of an input raises, under the name of its option."""
    try:
        check(value)
    except InputError as error:
        yield name, error
