"""The options of a transfer, documented once and used by the Python API and the command line alike."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping

from .errors import input_error

METHODS = (
    "auto", "salt", "focus", "clp", "clp-plus", "omp", "sava-affine", "sava-orthogonal", "ridge-map", "local-map", "blend",
    "wechsel", "ofa",
    "subword-mean", "subword-length", "subword-asymmetric", "multivariate", "mean", "normal", "zero",
)  # fmt: skip
REGRESSIONS = ("ridge-map", "local-map", "salt", "focus", "clp", "clp-plus", "omp", "sava-affine", "sava-orthogonal")
BLEND_RULES = ("pieces", "support", "precision")
SUPPORT_RULES = ("nearest", "plm", "auxiliary")
NORM_GUARDS = ("warn", "shrink")
OVERLAPS = ("exact", "word-start", "case")
CHAT_TEMPLATES = ("target", "source", "none")
DTYPES = ("float32", "bfloat16", "float16")
LINKS = ("copy", "hard")
MOST_PADDING = 65536


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransferConfig:
    """How new rows are built and what is written.

    Attributes:
        method: one of :data:`METHODS`. ``auto`` is what did best on real pairs, a ``blend`` that needs no auxiliary vectors;
            ``salt`` is the paper's: local least squares on the sparsemax support.
        ridge: ridge strength as a fraction of the neighbours' mean squared norm, in [0, inf), for ``salt``, ``omp``,
            ``sava-affine``, ``ridge-map``, ``local-map``, ``auto`` and a ``blend`` with one of these; ``None`` is none, or 1
            for ``ridge-map``, ``local-map`` and ``auto``.
        center: fit with an intercept: both spaces are centred on the support's mean first; for ``salt``, ``omp`` and
            ``local-map``.
        max_support: keep at most this many anchors, nearest first, in [1, inf), for ``salt``, ``focus``, ``clp-plus``,
            ``omp`` and ``local-map``; ``None`` keeps all, or 64 for ``omp`` and 256 for ``local-map`` with ``nearest``.
        support_rule: the neighbours of ``local-map``: ``nearest`` (the ``max_support`` largest cosines of PLM rows; the
            default), ``plm`` (sparsemax of those cosines) or ``auxiliary`` (sparsemax of the auxiliary vectors' cosines).
        map_ridge: ridge strength of the global map under ``local-map``, in [0, inf); ``None`` is 1.
        blend_with: the regression in ``blend``, one of :data:`REGRESSIONS`; ``None`` is ``ridge-map``.
        blend_weight: share of the subword mean in ``auto`` and ``blend``: a number in [0, 1], or a rule by token: ``pieces``
            (fewer pieces, more of their mean), ``support`` (fewer neighbours, more of the mean) or ``precision`` (the share
            that fits hidden shared tokens of as many pieces best). ``None`` is 0.35 for ``auto`` and a half for ``blend``.
        blend_length: what the average's distance from the mean anchor row is multiplied by in ``auto`` and ``blend``, in
            (0, 4]; the two sides are nearly at right angles, so that an average is shorter than either. ``None`` is 1.4 for
            ``auto`` and 1, the plain average, for ``blend``.
        clean_anchors: share of the anchors to leave out, in [0, 0.5]: those whose source row the global ridge map, fitted
            without them, misses by most (false friends); they stay copied.
        unigram_shift: strength in (0, 1] of a shift of built output rows towards the target tokens' log-unigram, for an
            untied head or a head bias; it helps before any training alone. ``None`` shifts nothing.
        unigram_text: UTF-8 file to count the target tokens in for ``unigram_shift``; ``None`` takes the scores of the target
            tokenizer, which must be of the Unigram kind.
        norm_guard: what to do with built rows whose norm is beyond 3 times the 99.9 % quantile of the source's: ``warn``
            (count and name them) or ``shrink`` (scale them to that bound as well).
        tune: choose ridge, centring, support cap and blend weight by the self-check, those that the method has and that are
            left at their defaults; takes seconds.
        tune_text: UTF-8 file with text of the target language: choose them, and the blend length, by the bits per byte that
            the source model with the new rows needs for 4 kB of it (taken from all over its first 4 MB), without any training;
            loads the whole model. ``None`` leaves the choice to ``tune``.
        source_auxiliary: vectors of the source's language, for ``wechsel``: the kinds that ``--auxiliary`` takes but ``plm``.
        dictionary: text file with a source word and its translation a line, for ``wechsel``.
        overlap: loosest match that makes a token shared: ``exact`` (same bytes, same word start), ``word-start``
            (the word-start flag may differ), ``case`` (case may differ too).
        special_overrides: target special token -> source token whose row it takes, both by spelling.
        keep_source_vocabulary: keep the source's tokenizer and all of its rows, and add the target's new tokens to it, instead
            of replacing it; the result keeps the source's chat template, special tokens and token ids.
        chat_template: whose template the result carries: ``target``'s, the ``source``'s (its special tokens are
            added to the tokenizer) or ``none``.
        pad_to_multiple_of: round the number of rows up to a multiple of this, in [1, 65536]; ``None`` adds no rows.
        seed: seed of the drawn rows, in [0, 2**63).
        heldout: share of the anchors that the self-check hides, in [0, 0.5]; 0 skips the check.
        device: where the operators run: ``auto``, ``cpu`` or ``cuda[:index]``.
        dtype: dtype of the written embedding rows, one of :data:`DTYPES`; ``None`` keeps the checkpoint's own.
        link: how weight files without embedding rows come into the new folder: ``copy`` (sharing their blocks with the
            source's where the file system can) or ``hard`` (the source's own files under a second name: no room taken, but
            whoever changes one in place, as saving a model into either folder may, changes both).
        gguf_file: name of the GGUF file inside the source folder, for a source that is one.
        source_revision: revision of the source on the hub; ``None`` is the default branch.
        target_revision: revision of the target on the hub; ``None`` is the default branch.
        trust_remote_code: let transformers run code that a checkpoint brings along.
        force: replace an existing output folder.

    Raises:
        InputError: a value is out of its range or not one of the names.
    """

    method: str = "auto"
    ridge: float | None = None
    center: bool = False
    max_support: int | None = None
    support_rule: str | None = None
    map_ridge: float | None = None
    blend_with: str | None = None
    blend_weight: float | str | None = None
    blend_length: float | None = None
    clean_anchors: float = 0.0
    unigram_shift: float | None = None
    unigram_text: str | None = None
    norm_guard: str = "warn"
    tune: bool = False
    tune_text: str | None = None
    source_auxiliary: str | None = None
    dictionary: str | None = None
    overlap: str = "exact"
    special_overrides: Mapping[str, str] = dataclasses.field(default_factory=dict)
    keep_source_vocabulary: bool = False
    chat_template: str = "target"
    pad_to_multiple_of: int | None = None
    seed: int = 0
    heldout: float = 0.05
    device: str = "auto"
    dtype: str | None = None
    link: str = "copy"
    gguf_file: str | None = None
    source_revision: str | None = None
    target_revision: str | None = None
    trust_remote_code: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        for name in ("unigram_text", "tune_text", "source_auxiliary", "dictionary", "gguf_file"):
            # Kept as text: a Path could not be saved into saltlm.json, which is found out after all the work.
            if isinstance(value := getattr(self, name), os.PathLike):
                object.__setattr__(self, name, os.fspath(value))
        _one_of("method", self.method, METHODS)
        _one_of("overlap", self.overlap, OVERLAPS)
        _one_of("chat_template", self.chat_template, CHAT_TEMPLATES)
        _one_of("link", self.link, LINKS)
        if self.dtype is not None:
            _one_of("dtype", self.dtype, DTYPES)
        pairs = self.special_overrides
        if not isinstance(pairs, Mapping) or not all(
            isinstance(token, str) for pair in pairs.items() for token in pair
        ):
            raise input_error("special_overrides", repr(pairs), "target token -> source token", "spell both as text")
        if self.max_support is not None and not _whole(self.max_support, 1, math.inf):
            raise input_error("max_support", repr(self.max_support), "a whole number >= 1", "leave it out for no limit")
        if self.pad_to_multiple_of is not None and not _whole(self.pad_to_multiple_of, 1, MOST_PADDING):
            expected = f"a whole number in [1, {MOST_PADDING}]"
            raise input_error(
                "pad_to_multiple_of", repr(self.pad_to_multiple_of), expected, "leave it out for no rows more"
            )
        self._check_rules()
        if not _whole(self.seed, 0, 2**63 - 1):
            raise input_error("seed", repr(self.seed), "a whole number in [0, 2**63)", "choose another seed")
        if not (_number(self.heldout) and 0 <= self.heldout <= 0.5):
            raise input_error("heldout", repr(self.heldout), "a share in [0, 0.5]", "use 0 to skip the self-check")
        if self.tune and not self.heldout:
            raise input_error("tune", "heldout 0", "tokens to tune on", "leave --heldout out, or --tune")
        if self.tune and self.tune_text is not None:
            advice = "leave out --tune to choose by the text, or --tune-text to choose by the self-check"
            raise input_error("tune", "with tune_text", "one of the two", advice)

    def _check_rules(self) -> None:
        """The options that are rules or strengths of rules."""
        for name in ("ridge", "map_ridge"):
            value = getattr(self, name)
            if value is not None and not (_number(value) and value >= 0):
                advice = f"give e.g. --{name.replace('_', '-')} 0.01 or leave it out"
                raise input_error(name, repr(value), "a finite number >= 0", advice)
        _one_of("norm_guard", self.norm_guard, NORM_GUARDS)
        for name, known in (("blend_with", REGRESSIONS), ("support_rule", SUPPORT_RULES)):
            if getattr(self, name) is not None:
                _one_of(name, getattr(self, name), known)
        if isinstance(self.blend_weight, str):
            _one_of("blend_weight", self.blend_weight, ("a share in [0, 1]", *BLEND_RULES))
        elif self.blend_weight is not None and not (_number(self.blend_weight) and 0 <= self.blend_weight <= 1):
            raise input_error("blend_weight", repr(self.blend_weight), "a share in [0, 1]", "use 0.5 for half of each")
        if self.blend_length is not None and not (_number(self.blend_length) and 0 < self.blend_length <= 4):
            raise input_error(
                "blend_length", repr(self.blend_length), "a number in (0, 4]", "use 1 for the plain average"
            )
        if not (_number(self.clean_anchors) and 0 <= self.clean_anchors <= 0.5):
            advice = "use e.g. 0.1, or 0 to keep all anchors"
            raise input_error("clean_anchors", repr(self.clean_anchors), "a share in [0, 0.5]", advice)
        strength = self.unigram_shift
        if strength is not None and not (_number(strength) and 0 < strength <= 1):
            raise input_error("unigram_shift", repr(strength), "a strength in (0, 1]", "leave it out for no shift")
        if self.unigram_text is not None and strength is None:
            raise input_error(
                "unigram_text",
                "a file but no unigram_shift",
                "both or neither",
                "add --unigram-shift 1, or leave it out",
            )

    def to_json(self) -> dict[str, object]:
        """Plain values of all options, as saved in ``saltlm.json``."""
        return {**dataclasses.asdict(self), "special_overrides": dict(self.special_overrides)}


def _whole(value: object, least: int, most: float) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        import difflib

        near = difflib.get_close_matches(str(value), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "choose one of these"
        raise input_error(name, repr(value), "one of " + ", ".join(known), hint)
