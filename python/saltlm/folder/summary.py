"""The summary of a transfer, as ``saltlm.json`` holds it, with its warnings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..alignment.expand import Expansion
from ..config import TransferConfig
from ..environment import versions
from ..files.summary_file import FORMAT, SCHEMA_VERSION
from ..model.checkpoint import Donor, Source
from ..rows.assembly import ORIGINS, Assembly
from ..rows.build import Built
from ..rows.hidden import MIN_TOKENS
from ..rows.methods import method_of
from ..rows.methods.blend import BLEND_DEFAULTS, BLENDED_RULES, as_blend
from ..rows.norm_guard import norm_warnings, support_warnings
from ..rows.recipe import RULES
from ..rows.rules import unread_auxiliary
from .card import licence_of
from .provenance import counts, norms, statuses, support_summary

NO_END = (
    "the new tokenizer has no token that ends a text (neither eos nor sep): generation goes on to its length, and documents"
    " packed by adapt have no end"
)


def summary_of(
    built: Built,
    model: Source,
    donor: Donor,
    assembly: Assembly,
    tokenizer: Any,
    expansion: Expansion | None,
    auxiliary: str | Path | None,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """What was read, what came of it, and what a user should know before trusting it.

    Args:
        built: what was done to fill the rows.
        model: the source.
        donor: the target PLM.
        assembly: the rows.
        tokenizer: as written.
        expansion: of the source's tokenizer, where that was kept.
        auxiliary: the vectors asked for.
        seconds: by stage.
    """
    job, tuning = built.job, built.tuning
    config, alignment, vectors = job.config, job.alignment, job.auxiliary
    # A GGUF file's card lies beside it, not in the folder of the cache that it was converted into.
    sides = {"source": (model, model.given_folder), "target": (donor, donor.folder)}
    inputs: dict[str, Any] = {
        side: {
            "path": str(loaded.name),
            "revision": loaded.revision,
            "architecture": loaded.architecture,
            "licence": licence_of(folder),
            "sha256": dict(loaded.files),
        }
        for side, (loaded, folder) in sides.items()
    }
    if vectors is not None:
        inputs["auxiliary"] = {**vectors.description, "licence": "not stated"}
    if job.source_auxiliary is not None:
        inputs["source_auxiliary"] = {**job.source_auxiliary.description, "licence": "not stated"}
    summary = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "saltlm_version": versions()["saltlm"],
        "method": config.method,
        "config": config.to_json(),
        "inputs": inputs,
        "origins": list(ORIGINS),
        "rules": list(RULES),
        "counts": counts(assembly),
        "overlap": alignment.counts(),
        "anchors": len(job.anchors),
        "new_tokens": len(job.new),
        "support": support_summary(assembly, method_of(config).neighbours),
        "statuses": [{"name": name, "count": count} for name, count in statuses(assembly).items()],
        "norms": norms(assembly),
        "heldout": built.heldout,
        "tuning": None if tuning is None else tuning.to_json(),
        "seconds": dict(seconds),
        "environment": {**versions(), "device": str(job.device), "operators": _operators(job.device)},
    }
    mixed = [RULES.index(rule) for rule in BLENDED_RULES.values() if rule != "none"]
    # With few anchors auto is no blend, which shows once rows are built.
    if config.method in BLEND_DEFAULTS and (assembly.open.any() or np.isin(assembly.rule, mixed).any()):
        blended = as_blend(config)
        summary["blend"] = {"weight": blended.blend_weight, "length": blended.blend_length}
    summary["expansion"] = None if expansion is None else expansion.counts
    summary |= built.posts
    summary["reload_check"] = None  # set once the folder is written
    summary["warnings"] = [
        *_warnings(summary, model, config),
        *([_no_self_check(summary, config)] if built.too_few_hidden else []),
        *_template_warnings(config, model.tokenizer, tokenizer),
        *_rule_warnings(summary, config, assembly, donor),
        *_without_effect(config, auxiliary, model, donor),
        *([NO_END] if tokenizer.eos_token_id is None else []),
    ]
    return summary


def _operators(device: torch.device) -> str:
    from ..operators.ops import backend

    return backend(device.type).name


def _rule_warnings(summary: dict[str, Any], config: TransferConfig, assembly: Assembly, donor: Donor) -> list[str]:
    """What the guards found, and what a shift is good for."""
    method, found = method_of(config), []
    if "norm_guard" in summary:
        found += norm_warnings(summary["norm_guard"], config.norm_guard, f"or try {_advice(method.options)}")
        found += support_warnings(assembly, method, donor.input_rows.shape[1], config.ridge)
    if config.unigram_shift is not None:
        found.append("unigram_shift helps before any training alone: leave it out of a start that will be adapted")
    return found


def _without_effect(config: TransferConfig, auxiliary: str | Path | None, model: Source, donor: Donor) -> list[str]:
    """What was given and has no effect: the user may believe that it has."""
    found = unread_auxiliary(config, auxiliary)
    if config.keep_source_vocabulary:
        default = TransferConfig()
        found += [
            f"{name} has no effect with keep_source_vocabulary"
            for name in ("chat_template", "special_overrides")
            if getattr(config, name) != getattr(default, name)
        ]
    for side, loaded, revision in (
        ("source", model, config.source_revision),
        ("target", donor, config.target_revision),
    ):
        if revision is not None and loaded.revision is None:
            found.append(f"{side}_revision has no effect on a local folder")
    return found


def _warnings(summary: dict[str, Any], model: Source, config: TransferConfig) -> list[str]:
    """What a user should know before trusting this start."""
    found = []
    method = method_of(config)
    support, length = summary["support"], summary["norms"]
    if support and method.sparse and support["median"] > summary["anchors"] / 4:
        found.append(
            f"the median token has {support['median']:.0f} of {summary['anchors']} anchors as neighbours: the vectors hardly"
            " tell words apart; better vectors or --max-support would help"
        )
    held = summary["heldout"]
    if held and held["broken"]:
        found.append(
            f"method {summary['method']} makes a broken start here: {held['broken']}; try {_advice(method.options)}"
        )
    else:
        for origin in ("solved", "composed"):
            found += _norm_warnings(length, origin, method.options)
    if summary["method"] == "subword-asymmetric" and model.output_rows is None:
        found.append(
            "the head is tied: its rows are the input rows, so only the input's rule of subword-asymmetric applies"
        )
    drawn = summary["counts"]["drawn"] / max(1, summary["new_tokens"])
    if summary["method"] not in ("normal", "multivariate") and drawn > 0.05:
        found.append(f"{drawn:.0%} of the new tokens got a random row (see statuses)")
    return found


def _no_self_check(summary: Mapping[str, Any], config: TransferConfig) -> str:
    """Why there are no figures of the self-check, and how many shared tokens it needs."""
    what = "nothing was tuned" if config.tune else "there is no self-check"
    return (
        f"{what}: it hides --heldout {config.heldout:g} of the {summary['anchors']} shared tokens, and needs at least"
        f" {MIN_TOKENS} hidden ones whose rows differ"
    )


def _template_warnings(config: TransferConfig, source: Any, result: Any) -> list[str]:
    """Whether the result lacks the source's chat template although the user did not choose that.

    Args:
        config: the options; ``chat_template`` other than the default is the user's choice.
        source: tokenizer of the source model.
        result: the tokenizer as written. It may carry the same template, when the target was made from the source's family.
    """
    lost = source.chat_template and result.chat_template != source.chat_template
    if not lost or config.chat_template != "target":
        return []
    return ["the source's chat template is left out; --chat-template source keeps it"]


def _norm_warnings(length: dict[str, dict[str, float]], origin: str, options: tuple[str, ...]) -> list[str]:
    """Rows of this origin that are nearly all far shorter than most of the copied ones; longer ones the guard names."""
    if origin not in length or "copied" not in length:
        return []
    own, copied = length[origin]["median"], length["copied"]["median"]
    if own >= copied / 4:
        return []
    return [f"the median {origin} row has norm {own:.2g}, the median copied one {copied:.2g}: try {_advice(options)}"]


def _advice(options: tuple[str, ...]) -> str:
    helpful = [text for name, text in (("center", "--center"), ("ridge", "--ridge 0.01")) if name in options]
    return " or ".join([*helpful, "another --method such as blend"])
