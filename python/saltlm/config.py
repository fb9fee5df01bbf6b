"""The options of a transfer, documented once and used by the Python API and the command line alike."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Literal, get_args

from .errors import input_error
from .options import check_choice, check_choices, documented, is_number, is_whole_number, option

MethodName = Literal[
    "auto",
    "salt",
    "focus",
    "clp",
    "clp-plus",
    "omp",
    "sava-affine",
    "sava-orthogonal",
    "ridge-map",
    "local-map",
    "blend",
    "wechsel",
    "ofa",
    "subword-mean",
    "subword-length",
    "subword-asymmetric",
    "multivariate",
    "mean",
    "normal",
    "zero",
]
RegressionName = Literal[
    "ridge-map", "local-map", "salt", "focus", "clp", "clp-plus", "omp", "sava-affine", "sava-orthogonal"
]
BlendRule = Literal["pieces", "support", "precision"]
SupportRule = Literal["nearest", "plm", "auxiliary"]
NormGuard = Literal["warn", "shrink"]
Overlap = Literal["exact", "word-start", "case"]
ChatTemplate = Literal["target", "source", "none"]
DTypeName = Literal["float32", "bfloat16", "float16"]
Link = Literal["copy", "hard"]
ReloadCheck = Literal["auto", "full", "truncated", "off"]

METHODS: tuple[MethodName, ...] = get_args(MethodName)
REGRESSIONS: tuple[RegressionName, ...] = get_args(RegressionName)
BLEND_RULES: tuple[BlendRule, ...] = get_args(BlendRule)
OVERLAPS: tuple[Overlap, ...] = get_args(Overlap)
DTYPES: tuple[DTypeName, ...] = get_args(DTypeName)
MOST_PADDING = 65536

# Headings of the command line, shared with the other configuration classes.
INPUTS, OUTPUT, RUN = "inputs", "output", "run"
METHOD, TUNING, TOKENS = "method", "tuning and self-check", "vocabulary and special tokens"


@documented
@dataclasses.dataclass(frozen=True, kw_only=True)
class TransferConfig:
    """How the rows of new tokens are built, and what is written.

    Raises:
        InputError: a value is out of its range or not one of the names.
    """

    method: MethodName = option(
        "auto",
        "Build the rows of new tokens by this method; 'saltlm methods' lists every method with its needs, options and source. "
        "Default: auto, which averages each token's source pieces with a ridge regression and needs no auxiliary vectors; "
        "salt is the method of the SALT paper.",
        group=METHOD,
        metavar="NAME",
    )
    ridge: float | None = option(
        None,
        "Ridge strength of the regression, as a fraction of the neighbours' mean squared norm, a number >= 0. For salt, omp, "
        "sava-affine, ridge-map, local-map, auto, and blend with one of these. Default: no ridge; 1 for ridge-map, local-map "
        "and auto.",
        group=METHOD,
    )
    center: bool = option(
        False,
        "Fit the regression with an intercept: subtract the neighbours' mean in both spaces first. For salt, omp and "
        "local-map.",
        group=METHOD,
    )
    max_support: int | None = option(
        None,
        "Use at most this many neighbours for a new token, the nearest ones, an integer >= 1. For salt, focus, clp-plus, omp "
        "and local-map. Default: no limit; 64 for omp; 256 for local-map with --support-rule nearest.",
        group=METHOD,
    )
    support_rule: SupportRule | None = option(
        None,
        "Neighbours that local-map uses: nearest (the --max-support largest cosines between PLM rows), plm (the sparsemax "
        "support of these cosines) or auxiliary (the sparsemax support of the cosines between auxiliary vectors). "
        "Default: nearest.",
        group=METHOD,
    )
    map_ridge: float | None = option(
        None,
        "Ridge strength of the global map that local-map and --clean-anchors fit, in the unit of --ridge, a number >= 0. "
        "Default: 1.",
        group=METHOD,
    )
    blend_with: RegressionName | None = option(
        None,
        "Regression that blend averages with the mean of the source pieces, one of {choices}. Default: ridge-map.",
        group=METHOD,
        metavar="NAME",
    )
    blend_weight: float | BlendRule | None = option(
        None,
        "Weight of the mean of the source pieces in auto and blend: a number in [0, 1], or a rule that sets the weight of "
        "each token: pieces (larger for tokens of fewer pieces), support (larger for tokens with fewer neighbours) or "
        "precision (the weight that predicts hidden shared tokens of as many pieces best). Default: 0.35 for auto, 0.5 for "
        "blend.",
        group=METHOD,
        metavar="NUMBER|RULE",
    )
    blend_length: float | None = option(
        None,
        "Multiply the distance between the average and the mean anchor row by this number, in (0, 4], in auto and blend. The "
        "two averaged rows are nearly orthogonal, so their average is shorter than either of them. Default: 1.4 for auto, 1 "
        "(the plain average) for blend.",
        group=METHOD,
    )
    clean_anchors: float = option(
        0.0,
        "Leave out this share of the anchors as false friends, a number in [0, 0.5]: those whose source rows a global ridge "
        "map fitted without them predicts worst. The left-out tokens still keep their copied rows.",
        group=METHOD,
    )
    unigram_shift: float | None = option(
        None,
        "Shift the new output rows towards the log-unigram probabilities of the target tokens with this strength, a number in "
        "(0, 1]. Needs an untied head or a head bias; helps only before any training. Default: no shift.",
        group=METHOD,
    )
    unigram_text: str | None = option(
        None,
        "Count the target tokens for --unigram-shift in this UTF-8 text file. Default: the scores of the target tokenizer, "
        "which must then be a Unigram tokenizer.",
        group=METHOD,
        metavar="FILE",
    )
    norm_guard: NormGuard = option(
        "warn",
        "Treatment of new rows whose norm exceeds 3 times the 99.9 % quantile of the source's row norms: warn (count and name "
        "them) or shrink (also scale them down to this bound).",
        group=METHOD,
    )
    tune: bool = option(
        False,
        "Choose --ridge, --center, --max-support and --blend-weight by the self-check on hidden shared tokens, as far as the "
        "method has them and they are left at their defaults. Takes seconds.",
        group=TUNING,
    )
    tune_text: str | None = option(
        None,
        "Choose the options that --tune chooses, and --blend-length, by a UTF-8 text file of the target language: by the bits "
        "per byte of the source model with the new rows on 4 kB sampled from the first 4 MB, without training. Loads the "
        "whole source model. Default: no text.",
        group=TUNING,
        metavar="FILE",
    )
    source_auxiliary: str | None = option(
        None,
        "Static vectors of the source language, which wechsel needs: the same forms as --auxiliary, except plm. "
        "Default: no vectors.",
        group=INPUTS,
        metavar="VECTORS",
    )
    dictionary: str | None = option(
        None,
        "Text file of word translations, which wechsel needs: on each line a source word, a tab or a blank, and its "
        "translation. Default: no dictionary.",
        group=INPUTS,
        metavar="FILE",
    )
    overlap: Overlap = option(
        "exact",
        "Loosest match that makes a target token a shared token: exact (same bytes and same word start), word-start (the word "
        "start may differ) or case (upper and lower case may differ too).",
        group=TOKENS,
    )
    special_overrides: Mapping[str, str] = option(
        {},
        "Target special tokens and the source tokens whose rows they take, both spelled as in their vocabularies. "
        "Default: special tokens are matched by their roles.",
        group=TOKENS,
        metavar="TARGET=SOURCE",
    )
    keep_source_vocabulary: bool = option(
        False,
        "Keep the source's tokenizer and all its rows, and add the target's new tokens, instead of replacing the tokenizer. "
        "The result keeps the source's chat template, special tokens and token ids.",
        group=TOKENS,
    )
    chat_template: ChatTemplate = option(
        "target",
        "Chat template of the new folder: target (the target's), source (the source's; the added tokens that it spells are "
        "added to the tokenizer) or none.",
        group=TOKENS,
    )
    pad_to_multiple_of: int | None = option(
        None,
        "Round the number of rows up to a multiple of this integer, in [1, 65536]. Default: no padding rows.",
        group=TOKENS,
    )
    rows: int | None = option(
        None,
        "Exact number of rows of the new matrices, at least the number of tokens and at most 65536 more, so that a draft model "
        "has as many rows as the model that it drafts for; the rows beyond the tokens are padding rows. Excludes "
        "--pad-to-multiple-of. Default: as many rows as tokens.",
        group=TOKENS,
    )
    seed: int = option(
        0,
        "Seed of the randomly drawn rows and of the choice of the shared tokens to hide, an integer in [0, 2**63).",
        group=RUN,
    )
    heldout: float = option(
        0.05,
        "Share of the anchors that the self-check hides and predicts, a number in [0, 0.5]; 0 skips the self-check.",
        group=TUNING,
    )
    device: str = option(
        "auto",
        "Device that runs the operators: auto, cpu or cuda[:INDEX].",
        group=RUN,
    )
    dtype: DTypeName | None = option(
        None,
        "Data type of the written embedding rows. Default: the data type of the source checkpoint.",
        group=OUTPUT,
    )
    link: Link = option(
        "copy",
        "How weight files without embedding rows get into the new folder: copy (the blocks are shared with the source's files "
        "where the file system supports it) or hard (hard links: no disk space is used, but a program that changes one of "
        "the files in place changes both folders).",
        group=OUTPUT,
    )
    reload_check: ReloadCheck = option(
        "auto",
        "How much of the written model is loaded again and compared with the source on shared tokens before the folder gets "
        "its name; a difference is an error. full loads both models whole, one after the other; truncated loads one layer, "
        "in little memory; auto is full up to 2 GiB of weights and truncated above; off compares nothing.",
        group=OUTPUT,
    )
    gguf_file: str | None = option(
        None,
        "Name of the GGUF file inside the source folder. Default: the source's safetensors files are read.",
        group=INPUTS,
        metavar="NAME",
    )
    source_revision: str | None = option(
        None,
        "Revision of the source on the hub: a branch, tag or commit. Default: the default branch.",
        group=INPUTS,
        metavar="NAME",
    )
    target_revision: str | None = option(
        None,
        "Revision of the target on the hub: a branch, tag or commit. Default: the default branch.",
        group=INPUTS,
        metavar="NAME",
    )
    trust_remote_code: bool = option(
        False,
        "Allow transformers to run Python code that comes with a checkpoint.",
        group=INPUTS,
    )
    force: bool = option(
        False,
        "Replace an existing output folder.",
        group=OUTPUT,
    )

    def __post_init__(self) -> None:
        for name in ("unigram_text", "tune_text", "source_auxiliary", "dictionary", "gguf_file"):
            # Kept as text: a Path could not be saved into saltlm.json, which is found out after all the work.
            if isinstance(value := getattr(self, name), os.PathLike):
                object.__setattr__(self, name, os.fspath(value))
        check_choices(self)
        pairs = self.special_overrides
        if not isinstance(pairs, Mapping) or not all(
            isinstance(token, str) for pair in pairs.items() for token in pair
        ):
            raise input_error("special_overrides", repr(pairs), "target token -> source token", "spell both as text")
        if self.max_support is not None and not is_whole_number(self.max_support, 1):
            raise input_error("max_support", repr(self.max_support), "a whole number >= 1", "leave it out for no limit")
        if self.pad_to_multiple_of is not None and not is_whole_number(self.pad_to_multiple_of, 1, MOST_PADDING):
            expected = f"a whole number in [1, {MOST_PADDING}]"
            raise input_error(
                "pad_to_multiple_of", repr(self.pad_to_multiple_of), expected, "leave it out for no rows more"
            )
        if self.rows is not None and not is_whole_number(self.rows, 1):
            raise input_error("rows", repr(self.rows), "a whole number >= 1", "leave it out for as many rows as tokens")
        if self.rows is not None and self.pad_to_multiple_of is not None:
            raise input_error("rows", "with pad_to_multiple_of", "one of the two", "leave --pad-to-multiple-of out")
        self._check_rules()
        if not is_whole_number(self.seed, 0, 2**63 - 1):
            raise input_error("seed", repr(self.seed), "a whole number in [0, 2**63)", "choose another seed")
        if not (is_number(self.heldout) and 0 <= self.heldout <= 0.5):
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
            if value is not None and not (is_number(value) and value >= 0):
                advice = f"give e.g. --{name.replace('_', '-')} 0.01 or leave it out"
                raise input_error(name, repr(value), "a finite number >= 0", advice)
        if isinstance(self.blend_weight, str):
            check_choice("blend_weight", self.blend_weight, ("a share in [0, 1]", *BLEND_RULES))
        elif self.blend_weight is not None and not (is_number(self.blend_weight) and 0 <= self.blend_weight <= 1):
            raise input_error("blend_weight", repr(self.blend_weight), "a share in [0, 1]", "use 0.5 for half of each")
        if self.blend_length is not None and not (is_number(self.blend_length) and 0 < self.blend_length <= 4):
            raise input_error(
                "blend_length", repr(self.blend_length), "a number in (0, 4]", "use 1 for the plain average"
            )
        if not (is_number(self.clean_anchors) and 0 <= self.clean_anchors <= 0.5):
            advice = "use e.g. 0.1, or 0 to keep all anchors"
            raise input_error("clean_anchors", repr(self.clean_anchors), "a share in [0, 0.5]", advice)
        strength = self.unigram_shift
        if strength is not None and not (is_number(strength) and 0 < strength <= 1):
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
