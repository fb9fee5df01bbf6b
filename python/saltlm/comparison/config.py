"""Options of a comparison, and its cells: methods with their options."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ..adaptation.config import AdaptConfig
from ..config import METHODS, OUTPUT, TransferConfig
from ..errors import InputError, input_error
from ..evaluation.intervals import check_numbers
from ..options import check_choice, check_choices, documented, is_whole_number, option, options_of

Probe = Literal["embeddings", "all"]
# Heading of the command line.
PROBING = "probes"
# Label of the cell of the source model with its own tokenizer.
ORIGINAL = "original"
# Option of a cell that names auxiliary vectors.
AUXILIARY = "auxiliary"
# Value of ``tune_text`` in reports and in the identity of runs for a cell that the text of the probes tunes.
PROBE_TEXT = "the probes' text"
# Value of the option ``tune_text`` of a cell that no text tunes.
NO_TEXT = "none"
# Options that a cell cannot set: cells are comparable only with the same inputs, tokenizer and seeds.
SHARED = (
    "seed",
    "chat_template",
    "special_overrides",
    "pad_to_multiple_of",
    "rows",
    "keep_source_vocabulary",
    "device",
    "dtype",
    "gguf_file",
    "source_revision",
    "target_revision",
    "trust_remote_code",
    "force",
    "heldout",
    "reload_check",
    "method",
)
# Options that name files. Two runs differ if the contents of their files differ, whatever the names.
FILE_OPTIONS = ("source_auxiliary", "dictionary", "unigram_text", "tune_text")
# Options of a transfer and of an adaptation that a comparison sets itself.
OWN_TRANSFER = ("method", "seed", "heldout", "device", "reload_check", "trust_remote_code", "force")
OWN_ADAPT = (
    "steps",
    "phases",
    "eval_steps",
    "early_stop",
    "save_steps",
    "keep_checkpoints",
    "seed",
    "distill_rows",
    "distill_steps",
    "distill_source",
    "dtype",
    "compile",
    "force",
)


@documented
@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """How methods are probed (trained for a few steps each) and compared.

    Raises:
        InputError: a value is out of its range or not one of the names.
    """

    probe: Probe = option(
        "embeddings",
        "Weights that are trained after each transfer: embeddings (all embedding and head rows) or all (every weight).",
        group=PROBING,
    )
    probe_steps: int = option(50, "Number of optimizer steps of each probe, an integer >= 1.", group=PROBING)
    seeds: int = option(
        3, "Number of probes of each method, an integer >= 1; they use the seeds --seed, --seed + 1, ...", group=PROBING
    )
    seed: int = option(
        0,
        "First seed of drawn rows, data order and dropout, an integer in [0, 2**32 - --seeds].",
        group=PROBING,
    )
    eval_steps: int | None = option(
        None,
        "Number of steps between evaluations on held-out text, an integer >= 1. Default: a fifth of --probe-steps.",
        group=PROBING,
    )
    confidence: float = option(
        0.95, "Confidence level of the intervals over held-out documents, a number in (0, 1).", group=PROBING
    )
    force: bool = option(False, "Replace a different comparison in the output folder.", group=OUTPUT)

    def __post_init__(self) -> None:
        check_choices(self)
        check_numbers(self.confidence, 0)
        for name in ("probe_steps", "seeds", "eval_steps"):
            value = getattr(self, name)
            if value is not None and not is_whole_number(value, 1):
                raise input_error(name, repr(value), "a whole number >= 1", "choose another")
        if not is_whole_number(self.seed, 0, 2**32 - self.seeds):
            raise input_error("seed", repr(self.seed), f"a whole number in [0, 2**32 - {self.seeds}]", "choose another")

    @property
    def seed_list(self) -> tuple[int, ...]:
        """The seeds of the probes of each method."""
        return tuple(range(self.seed, self.seed + self.seeds))

    def adaptation(self, base: AdaptConfig, seed: int, seq_length: int) -> AdaptConfig:
        """The options of the adaptation of one probe.

        Args:
            base: the options that all probes share.
            seed: seed of the probe.
            seq_length: tokens in a block.
        """
        return dataclasses.replace(
            base,
            phases=f"{self.probe}:{self.probe_steps}",
            seed=seed,
            seq_length=seq_length,
            eval_steps=self.eval_steps or max(1, self.probe_steps // 5),
        )


@dataclasses.dataclass(frozen=True)
class Cell:
    """A method of the comparison with its options.

    Attributes:
        label: the method with its options, as the caller wrote it.
        config: options of the transfer without the seed; ``None`` for the original model with its own tokenizer.
        auxiliary: auxiliary vectors of this cell; ``None`` for those of the comparison.
        tunes: whether the text of the probes chooses options, as a ``tune_text`` would.
    """

    label: str
    config: TransferConfig | None
    auxiliary: str | None = None
    tunes: bool = False

    def inputs(self, common: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        """Source, target and auxiliary vectors of the transfer; the vectors are ``None`` for a method that reads none.

        Args:
            common: source, target and auxiliary vectors of the comparison.
        """
        if not self.reads_vectors:
            return (*common[:2], None)
        return common if self.auxiliary is None else (*common[:2], self.auxiliary)

    @property
    def transfer(self) -> TransferConfig:
        """Options of the transfer.

        Raises:
            ValueError: the cell is the original model, which is not transferred.
        """
        if self.config is None:
            raise ValueError(f"the cell {self.label!r} has no transfer")
        return self.config

    @property
    def reads_vectors(self) -> bool:
        """Whether the method reads auxiliary vectors; ``False`` for the original model."""
        from ..rows.methods import method_of  # imports torch, which is too slow for the help of the command line

        return self.config is not None and method_of(self.config).vectors

    def extra_options(self) -> dict[str, str]:
        """Options of the cell that are not fields of :class:`~saltlm.TransferConfig`, or differ from the field."""
        vectors = {} if self.auxiliary is None else {AUXILIARY: self.auxiliary}
        return {**vectors, "tune_text": PROBE_TEXT} if self.tunes else vectors

    def to_json(self) -> dict[str, object]:
        """The method, the options that differ from their defaults, and the extra options."""
        plain, default = self.transfer.to_json(), TransferConfig().to_json()
        changed = {name: value for name, value in plain.items() if name == "method" or value != default[name]}
        return {**changed, **self.extra_options()}

    def file_options(self) -> list[str]:
        """Names of the options that name files. Two cells may read the same file for different purposes."""
        return [name for name in FILE_OPTIONS if getattr(self.config, name) is not None]

    def files(self) -> list[Path]:
        """The files that the options of this cell name, without those of the whole comparison."""
        from ..vectors.auxiliary import auxiliary_files  # imports torch

        if self.config is None:
            return []
        names = [
            *auxiliary_files(self.auxiliary),
            *auxiliary_files(self.config.source_auxiliary),
            *(name for name in (self.config.dictionary, self.config.unigram_text, self.config.tune_text) if name),
        ]
        return [Path(name) for name in names]


def parse_cells(methods: Sequence[str], base: TransferConfig) -> list[Cell]:
    """Parse methods with options, each spelled ``METHOD[:option=value[:option=value]]``.

    An option of ``base`` applies to each cell whose method has the option and that does not set it. A cell whose method reads
    auxiliary vectors has the option ``auxiliary``: vectors that replace those of the comparison.

    The text of the probes tunes ``auto`` if the cell and ``base`` set none of the options that a text could choose and no
    other way to choose them. ``auto:tune-text=none`` is ``auto`` without tuning.

    Args:
        methods: at least one method; ``original`` may be among them.
        base: options that the cells share.

    Returns:
        The cell of the original model, then the cells in the order of ``methods``.

    Raises:
        InputError: a method or an option is not known (the message names the most similar one), a value is out of range, or
            two cells have the same label.

    Example:
        >>> [cell.label for cell in parse_cells(["salt:center=true:ridge=0.01", "mean"], TransferConfig())]
        ['original', 'salt:center=true:ridge=0.01', 'mean']
    """
    cells = [Cell(ORIGINAL, None)]
    for label in methods:
        if label == ORIGINAL:
            continue
        if any(cell.label == label for cell in cells):
            raise input_error("methods", f"{label!r} twice", "each once", "leave one out")
        name = label.partition(":")[0]
        check_choice("methods", name, (*METHODS, ORIGINAL))
        try:
            cells.append(_parse_cell(label, base))
        except InputError as error:
            raise InputError(f"method {label!r}: {error}") from None
    if len(cells) == 1:
        raise input_error(
            "methods", "none", "at least one beside the original model", "name some, e.g. salt,subword-mean"
        )
    return cells


def _parse_cell(label: str, base: TransferConfig) -> Cell:
    """The cell of one label whose method is known."""
    from ..rows.methods import METHODS as BUILDERS
    from ..rows.methods import method_of
    from ..rows.tune import free_options

    method, *parts = label.split(":")
    cell_options: dict[str, Any] = dict(_option(label, part) for part in parts)
    auxiliary = cell_options.pop(AUXILIARY, None)
    cell_options["method"] = method
    # All options that belong to single methods, and those that this method has. The latter may depend on the values of its
    # other options: a blend has the options of the regression that it blends with.
    method_options = {name for builder in BUILDERS for name in method_of(_config(method=builder)).options}
    alone = _config(**cell_options)
    applicable = method_of(alone).options if method in BUILDERS else method_options
    unused = {
        entry.name: entry.default
        for entry in options_of(TransferConfig)
        if entry.name in method_options and entry.name not in applicable
    }
    config = dataclasses.replace(base, **{**unused, **cell_options})
    # Tuning chooses among free options; without any it is switched off rather than refused.
    if "tune" not in cell_options and not free_options(config):
        config = dataclasses.replace(config, tune=False)
    if "tune_text" not in cell_options and not free_options(config):
        config = dataclasses.replace(config, tune_text=None)
    if auxiliary is not None and not method_of(config).vectors:
        raise input_error(AUXILIARY, repr(auxiliary), "a method that looks at vectors", "leave it out for this method")
    tunes = "tune_text" not in cell_options and _may_be_tuned(config)
    return Cell(label, config, auxiliary, tunes)


def _config(**options: Any) -> TransferConfig:
    """The default options but for those given."""
    return dataclasses.replace(TransferConfig(), **options)


def _may_be_tuned(config: TransferConfig) -> bool:
    """Whether the method is ``auto``, no tuning is configured, and all options that a text could choose are free."""
    from ..rows.methods import method_of
    from ..rows.tune import TEXT_GRID, free_options

    if config.method != "auto" or config.tune or config.tune_text is not None:
        return False
    config = dataclasses.replace(config, tune_text=PROBE_TEXT)
    return len(free_options(config)) == sum(option in method_of(config).options for option in TEXT_GRID)


def _option(label: str, part: str) -> tuple[str, Any]:
    """Name and value of ``option=value``; a boolean option without a value is true."""
    known = {entry.name: entry.types for entry in options_of(TransferConfig) if entry.name not in SHARED}
    known[AUXILIARY] = (str,)
    name, mark, text = part.partition("=")
    name = name.replace("-", "_")
    if name in SHARED:
        raise input_error(
            "option", repr(name), "one that cells may have for themselves", f"give --{name} for all of them"
        )
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "choose one of these"
        raise input_error("option", repr(part), "one of " + ", ".join(known), hint)
    accepted = known[name]
    if name == "tune_text" and text == NO_TEXT:
        return name, None
    try:
        return name, _value(accepted, text if mark else "true" if bool in accepted else "")
    except ValueError:
        numeric = int in accepted or float in accepted
        expected = "true or false" if bool in accepted else "a number" if numeric else "text"
        raise input_error(name, repr(text), expected, f"write e.g. {label.split(':')[0]}:{name}=VALUE") from None


def _value(accepted: tuple[type, ...], text: str) -> Any:
    """Read a value of one of the accepted types.

    Raises:
        ValueError: the text is a value of none of them.
    """
    if bool in accepted and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if int in accepted:
        return int(text)
    if float in accepted:
        with contextlib.suppress(ValueError):
            return float(text)
    # An option of numbers and texts takes a number or the name of a rule; the configuration checks the name.
    if str in accepted and text:
        return text
    raise ValueError(text)


def check_base(base: AdaptConfig) -> None:
    """Check that no option of an adaptation is set that a comparison sets for all probes.

    Args:
        base: options of all probes.

    Raises:
        InputError: such an option differs from its default.
    """
    default = AdaptConfig()
    for name in OWN_ADAPT:
        if getattr(base, name) != getattr(default, name):
            raise input_error(
                name,
                repr(getattr(base, name)),
                "an option that probes may have",
                "a comparison sets it itself; leave it out",
            )


def plain_transfer(config: TransferConfig, leave_out: Sequence[str] = ()) -> Mapping[str, object]:
    """The options of a transfer that can change its result, without the seed and without names of files.

    Args:
        config: the options.
        leave_out: names of further options to leave out.

    Returns:
        Name -> value, as :mod:`json` can write them.
    """
    excluded = {*leave_out, "seed", "force", *FILE_OPTIONS}
    return {name: value for name, value in config.to_json().items() if name not in excluded}
