"""Whether the rules that a configuration names fit together; found before anything large is loaded."""

from __future__ import annotations

from collections.abc import Iterator

from .config import TransferConfig
from .errors import InputError, input_error
from .methods import METHODS, method_of
from .texts import read_documents
from .tune import free_options

OF_METHODS = (
    "ridge", "center", "max_support", "support_rule", "map_ridge", "blend_with", "blend_weight", "clean_anchors",
    "source_auxiliary", "dictionary",
)  # fmt: skip


def rule_faults(config: TransferConfig) -> Iterator[tuple[str, InputError]]:
    """Options that the method, as configured, has no use for, and rules that contradict each other.

    Yields:
        The name of the option and what is wrong with it; also that the text to count tokens in is missing or holds none.
    """
    default, options = TransferConfig(), method_of(config).options
    named = f"method {config.method!r}" + (f" with {config.blend_with!r}" if config.blend_with else "")
    for name in OF_METHODS:
        if getattr(config, name) != getattr(default, name) and name not in options:
            taken = [method for method in METHODS if name in method_of(TransferConfig(method=method)).options]
            yield name, input_error(
                name, f"{getattr(config, name)!r} for {named}, which has no use for it",
                "one of " + ", ".join(taken), f"leave --{name.replace('_', '-')} out or choose another --method",
            )  # fmt: skip
    if config.tune and not free_options(config):
        able = [method for method in METHODS if free_options(TransferConfig(method=method))]
        yield "tune", input_error(
            "tune", f"method {config.method!r} with no option left to choose", "one of " + ", ".join(able),
            "leave --tune out, or leave its options to it",
        )  # fmt: skip
    if config.blend_weight == "support" and method_of(config).every:
        yield "blend_weight", input_error(
            "blend_weight", f"'support' for {named}, where every anchor is a neighbour of every token",
            "a number, or another rule", "use --blend-weight pieces, or --blend-with local-map",
        )  # fmt: skip
    if config.unigram_shift is not None and config.keep_source_vocabulary:
        yield "unigram_shift", input_error(
            "unigram_shift", "with keep_source_vocabulary, whose old tokens stay as likely as they were",
            "one of the two", "leave --unigram-shift out",
        )  # fmt: skip
    if config.unigram_text is not None:
        try:
            read_documents(config.unigram_text)
        except InputError as error:
            yield "unigram_text", error
