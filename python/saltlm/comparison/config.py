"""What is compared: the options of a comparison, and its cells, each a method with options of its own."""

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
PROBING = "probes"  # a heading of the command line
ORIGINAL = "original"
AUXILIARY = "auxiliary"
TEXT_AT_HAND = "the probes' text"  # what tunes ``auto`` where nothing else is said
NO_TEXT = "none"
# What a cell cannot have for itself: all cells share inputs, tokenizer and seeds, or they could not be compared.
SHARED = (
    "seed",
    "chat_template",
    "special_overrides",
    "pad_to_multiple_of",
    "keep_source_vocabulary",
    "device",
    "dtype",
    "gguf_file",
    "source_revision",
    "target_revision",
    "trust_remote_code",
    "force",
    "heldout",
    "method",
)
# Options that name files, which count by their content.
READ = ("source_auxiliary", "dictionary", "unigram_text", "tune_text")
# Options of a transfer and of an adaptation that a comparison sets itself.
OWN_TRANSFER = ("method", "seed", "heldout", "device", "trust_remote_code", "force")
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
        """The seeds of each method's probes."""
        return tuple(range(self.seed, self.seed + self.seeds))

    def adaptation(self, base: AdaptConfig, seed: int, seq_length: int) -> AdaptConfig:
        """The adaptation that a probe is.

        Args:
            base: the options that all probes share.
            seed: of this probe.
            seq_length: tokens in its blocks.
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
    """A column of the comparison.

    Attributes:
        label: as given.
        config: of its transfer, the seed apart; ``None`` for the original model with its own tokenizer.
        auxiliary: vectors of its own; ``None`` is those of the comparison.
        tunes: the probes' text chooses its options, as ``tune_text`` would.
    """

    label: str
    config: TransferConfig | None
    auxiliary: str | None = None
    tunes: bool = False

    def inputs(self, common: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        """Source, target and auxiliary vectors of its transfer; ``None`` for the vectors that its method does not read.

        Args:
            common: source, target and auxiliary vectors of the comparison.
        """
        if not self.reads_vectors:
            return (*common[:2], None)
        return common if self.auxiliary is None else (*common[:2], self.auxiliary)

    @property
    def reads_vectors(self) -> bool:
        """Whether its method reads auxiliary vectors; the original model has no method."""
        from ..rows.methods import method_of  # with torch, which the command's help does without

        return self.config is not None and method_of(self.config).vectors

    def own(self) -> dict[str, str]:
        """What it has beside its transfer's options."""
        vectors = {} if self.auxiliary is None else {AUXILIARY: self.auxiliary}
        return {**vectors, "tune_text": TEXT_AT_HAND} if self.tunes else vectors

    def to_json(self) -> dict[str, object]:
        """The options that are not at their defaults, and the method."""
        plain, default = self.config.to_json(), TransferConfig().to_json()
        changed = {name: value for name, value in plain.items() if name == "method" or value != default[name]}
        return {**changed, **self.own()}

    def reads(self) -> list[str]:
        """Names of the options that are files: what is in them tells cells apart, but not what it is for."""
        return [name for name in READ if getattr(self.config, name) is not None]

    def files(self) -> list[Path]:
        """The files that this cell alone may read."""
        from ..vectors.auxiliary import auxiliary_files  # with torch, which the command's help does without

        if self.config is None:
            return []
        names = [
            *auxiliary_files(self.auxiliary),
            *auxiliary_files(self.config.source_auxiliary),
            *(name for name in (self.config.dictionary, self.config.unigram_text, self.config.tune_text) if name),
        ]
        return [Path(name) for name in names]


def parse_cells(methods: Sequence[str], base: TransferConfig) -> list[Cell]:
    """Cells from ``METHOD[:option=value[:option=value]]``; the original model is always the first.

    Options of methods that ``base`` sets hold for the cells whose method takes them and that do not set them themselves.
    ``auxiliary`` is an option too, of cells whose method looks at vectors: those that it names stand for the comparison's.

    A comparison has a text at hand, and ``auto`` uses it: left to itself, without any of the options that a text chooses, it
    has them chosen by what the probes train on. ``auto:tune-text=none`` is ``auto`` without a text.

    Args:
        methods: at least one; ``original`` may be among them.
        base: options that the cells share.

    Returns:
        The original, then the cells in the order given.

    Raises:
        InputError: a method or an option is not known (the nearest one is named), a value is out of range, or two cells
            have one label.

    Example:
        >>> [cell.label for cell in parse_cells(["salt:center=true:ridge=0.01", "mean"], TransferConfig())]
        ['original', 'salt:center=true:ridge=0.01', 'mean']
    """
    from ..rows.methods import METHODS as BUILDERS
    from ..rows.methods import method_of
    from ..rows.tune import free_options

    optional = {name for method in BUILDERS for name in method_of(TransferConfig(method=method)).options}
    cells = [Cell(ORIGINAL, None)]
    for label in methods:
        if label == ORIGINAL:
            continue
        if any(cell.label == label for cell in cells):
            raise input_error("methods", f"{label!r} twice", "each once", "leave one out")
        name, *parts = label.split(":")
        check_choice("methods", name, (*METHODS, ORIGINAL))
        defaults = {entry.name: entry.default for entry in options_of(TransferConfig) if entry.name in optional}
        try:
            own: dict[str, Any] = dict(_option(label, part) for part in parts)
            auxiliary = own.pop(AUXILIARY, None)
            own["method"] = name
            # What a method takes may hang on its own options, as a blend's do on what it blends with.
            alone = dataclasses.replace(TransferConfig(), **own)
            taken = method_of(alone).options if name in BUILDERS else optional
            unused = {option: value for option, value in defaults.items() if option not in taken}
            config = dataclasses.replace(base, **{**unused, **own})
            # A method without options left to choose is not tuned.
            if "tune" not in own and not free_options(config):
                config = dataclasses.replace(config, tune=False)
            if "tune_text" not in own and not free_options(config):
                config = dataclasses.replace(config, tune_text=None)
            if auxiliary is not None and not method_of(config).vectors:
                raise input_error(
                    AUXILIARY, repr(auxiliary), "a method that looks at vectors", "leave it out for this method"
                )
            cells.append(Cell(label, config, auxiliary, "tune_text" not in own and _left_to_itself(config)))
        except InputError as error:
            raise InputError(f"method {label!r}: {error}") from None
    if len(cells) == 1:
        raise input_error(
            "methods", "none", "at least one beside the original model", "name some, e.g. salt,subword-mean"
        )
    return cells


def _left_to_itself(config: TransferConfig) -> bool:
    """Whether it is ``auto`` with neither a way to choose its options nor one of those that a text could choose."""
    from ..rows.methods import method_of
    from ..rows.tune import TEXT_GRID, free_options

    if config.method != "auto" or config.tune or config.tune_text is not None:
        return False
    config = dataclasses.replace(config, tune_text=TEXT_AT_HAND)
    return len(free_options(config)) == sum(option in method_of(config).options for option in TEXT_GRID)


def _option(label: str, part: str) -> tuple[str, Any]:
    """Name and value of ``option=value``; an option that is on or off may stand alone."""
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
    """Read a value of one of the accepted types; raises ValueError where there is none."""
    if bool in accepted and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if int in accepted:
        return int(text)
    if float in accepted:
        with contextlib.suppress(ValueError):
            return float(text)
    if (
        str in accepted and text
    ):  # of an option that also takes numbers, the name of a rule, which the configuration checks
        return text
    raise ValueError(text)


def check_base(base: AdaptConfig) -> None:
    """Refuse options of an adaptation that a probe cannot have.

    Raises:
        InputError: one of them is set.
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
    """Plain values of a transfer's options, those that change no result left out."""
    names = {*leave_out, "seed", "force", *READ}
    return {name: value for name, value in config.to_json().items() if name not in names}
