"""The summary of a transfer, as ``saltlm.json`` holds it, with its warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..alignment.expand import Expansion
from ..alignment.lost_text import lost_text
from ..alignment.roles import real_roles, roles_of
from ..config import TransferConfig
from ..environment import versions
from ..files.summary_file import (
    FORMAT,
    SCHEMA_VERSION,
    BlendReport,
    Inputs,
    ModelInput,
    NormFigures,
    RoleReport,
    Summary,
)
from ..model.checkpoint import Donor, Source
from ..rows.assembly import ORIGINS, Assembly
from ..rows.build import Built
from ..rows.hidden import MIN_TOKENS
from ..rows.methods import method_of
from ..rows.methods.blend import BLEND_DEFAULTS, BLENDED_RULES, mix_of
from ..rows.norm_guard import norm_warnings, support_warnings
from ..rows.recipe import RULES
from ..rows.rules import plm_notes, unread_auxiliary
from .card import licence_of
from .provenance import counts, norms, statuses, support_summary

NO_END = (
    "the new tokenizer has no token that ends a text (neither eos nor sep): generation goes on to its length, and documents"
    " packed by adapt have no end"
)
PAD_IS_END = (
    "the padding token of the new tokenizer is the token that ends a text, as source and target both have it: training code"
    " that leaves padding out of the loss never teaches the model to stop. Give the tokenizer another pad_token, or mask"
    " padding by the attention mask"
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
    *,
    warnings: Sequence[str] = (),
) -> Summary:
    """Summarize what was read, what was built, and what a user should know before using the model.

    Args:
        built: what was done to fill the rows.
        model: the source.
        donor: the target PLM.
        assembly: the rows.
        tokenizer: as written.
        expansion: of the source's tokenizer, where that was kept.
        auxiliary: the vectors asked for.
        seconds: by stage.
        warnings: of earlier steps.

    Returns:
        The content of ``saltlm.json``.
    """
    from .. import __version__

    job, tuning = built.job, built.tuning
    config, alignment, vectors = job.config, job.alignment, job.auxiliary
    # A GGUF file's card lies beside it, not in the folder of the cache that it was converted into.
    inputs: Inputs = {"source": _model_input(model, model.given_folder), "target": _model_input(donor, donor.folder)}
    if vectors is not None:
        inputs["auxiliary"] = {**vectors.description, "licence": "not stated"}
    if job.source_auxiliary is not None:
        inputs["source_auxiliary"] = {**job.source_auxiliary.description, "licence": "not stated"}
    blended: BlendReport = {}
    mixed = [RULES.index(rule) for rule in BLENDED_RULES.values() if rule != "none"]
    # With few anchors auto is no blend, which shows once rows are built.
    reads_rows = donor.alone is None or config.method == "blend"
    if config.method in BLEND_DEFAULTS and reads_rows and (assembly.open.any() or np.isin(assembly.rule, mixed).any()):
        mix = mix_of(config)
        blended = {"blend": {"weight": mix.weight, "length": mix.length}}
    summary: Summary = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "saltlm_version": __version__,
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
        **blended,
        "expansion": None if expansion is None else expansion.counts,
        **built.reports,
        "roles": [] if expansion is not None else special_rows(tokenizer, donor, model, assembly),
        "reload_check": None,  # set once the folder is written
        "warnings": [],
    }
    summary["warnings"] = [
        *model.notes,
        *donor.notes,
        *warnings,
        *(plm_notes(config) if donor.alone is not None else []),
        *([] if expansion is not None else lost_text(model.tokenizer, tokenizer)),
        *_warnings(summary, model, config),
        *([_no_self_check(summary, config)] if built.too_few_hidden else []),
        *_template_warnings(config, model.tokenizer, tokenizer),
        *_rule_warnings(summary, config, assembly, donor),
        *_without_effect(config, auxiliary, model, donor),
        *_role_warnings(tokenizer, summary["roles"], assembly),
    ]
    return summary


def _model_input(loaded: Source | Donor, card_folder: Path) -> ModelInput:
    return {
        "path": str(loaded.name),
        "revision": loaded.revision,
        "architecture": loaded.architecture,
        "licence": licence_of(card_folder),
        "sha256": dict(loaded.files),
    }


def special_rows(tokenizer: Any, donor: Donor, model: Source, assembly: Assembly) -> list[RoleReport]:
    """The tokens of the new tokenizer that have a role, by id, and the source tokens whose rows they have.

    Args:
        tokenizer: as written.
        donor: the target PLM.
        model: the source.
        assembly: the rows.

    Returns:
        For each token ``id``, ``token``, ``roles``, ``stands_in_for`` (roles that the target lacks, which the token has
        without an effect on its rows), and ``input`` and ``output``: the source tokens of its rows, ``None`` for a row that is
        not a copy.
    """
    real = real_roles(tokenizer, donor.tokenizer, model.tokenizer)
    named = roles_of(tokenizer)

    def spelled(source: int) -> str | None:
        return None if source < 0 else str(model.tokenizer.convert_ids_to_tokens(source))

    return [
        {
            "id": token,
            "token": str(tokenizer.convert_ids_to_tokens(token)),
            "roles": [role for role, index in real.items() if index == token],
            "stands_in_for": [role for role, index in named.items() if index == token and role not in real],
            "input": spelled(int(assembly.source_id[token])),
            "output": spelled(int(assembly.output_id[token])),
        }
        for token in sorted(set(named.values()))
    ]


def _role_warnings(tokenizer: Any, roles: Sequence[RoleReport], assembly: Assembly) -> list[str]:
    """What the special tokens of the new tokenizer cannot do, or do only in part."""
    messages = []
    if tokenizer.eos_token_id is None:
        messages.append(NO_END)
    elif tokenizer.pad_token_id == tokenizer.eos_token_id:
        messages.append(PAD_IS_END)
    if assembly.output_rows is None:
        messages += [
            f"{entry['token']} begins and ends a text, and the head is tied: its one row is that of the source's"
            f" {entry['input']}, and not of {entry['output']}"
            for entry in roles
            if entry["input"] != entry["output"]
        ]
    return messages


def _operators(device: torch.device) -> str:
    from ..operators.ops import backend

    return backend(device.type).name


def _rule_warnings(summary: Summary, config: TransferConfig, assembly: Assembly, donor: Donor) -> list[str]:
    """Warnings of the guards of norms and supports, and of a shift before training."""
    method, warnings = method_of(config), []
    if "norm_guard" in summary:
        warnings += norm_warnings(summary["norm_guard"], config.norm_guard, f"or try {_advice(method.options)}")
        warnings += support_warnings(assembly, method, donor.input_rows.shape[1], config.ridge)
    if config.unigram_shift is not None:
        warnings.append("unigram_shift helps before any training alone: leave it out of a start that will be adapted")
    return warnings


def _without_effect(config: TransferConfig, auxiliary: str | Path | None, model: Source, donor: Donor) -> list[str]:
    """A warning for each input or option that was given and has no effect."""
    warnings = unread_auxiliary(config, auxiliary)
    if config.keep_source_vocabulary:
        default = TransferConfig()
        warnings += [
            f"{name} has no effect with keep_source_vocabulary"
            for name in ("chat_template", "special_overrides")
            if getattr(config, name) != getattr(default, name)
        ]
    for side, loaded, revision in (
        ("source", model, config.source_revision),
        ("target", donor, config.target_revision),
    ):
        if revision is not None and loaded.revision is None:
            warnings.append(f"{side}_revision has no effect on a local folder")
    return warnings


def _warnings(summary: Summary, model: Source, config: TransferConfig) -> list[str]:
    """Warnings of the figures of the rows: supports, self-check, norms, random rows."""
    warnings = []
    method = method_of(config)
    support = summary["support"]
    if support and method.sparse and support["median"] > summary["anchors"] / 4:
        warnings.append(
            f"the median token has {support['median']:.0f} of {summary['anchors']} anchors as neighbours: the vectors hardly"
            " tell words apart; better vectors or --max-support would help"
        )
    check = summary["heldout"]
    if check and check["broken"]:
        warnings.append(
            f"method {summary['method']} makes a broken start here: {check['broken']}; try {_advice(method.options)}"
        )
    else:
        for origin in ("solved", "composed"):
            warnings += _norm_warnings(summary["norms"], origin, method.options)
    if summary["method"] == "subword-asymmetric" and model.output_rows is None:
        warnings.append(
            "the head is tied: its rows are the input rows, so only the input's rule of subword-asymmetric applies"
        )
    drawn = summary["counts"]["drawn"] / max(1, summary["new_tokens"])
    if summary["method"] not in ("normal", "multivariate") and drawn > 0.05:
        warnings.append(f"{drawn:.0%} of the new tokens got a random row (see statuses)")
    return warnings


def _no_self_check(summary: Summary, config: TransferConfig) -> str:
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


def _norm_warnings(norms: Mapping[str, NormFigures], origin: str, options: Sequence[str]) -> list[str]:
    """A warning if the median row of this origin is far shorter than the median copied row; the guard reports long rows."""
    if origin not in norms or "copied" not in norms:
        return []
    built, copied = norms[origin]["median"], norms["copied"]["median"]
    if built >= copied / 4:
        return []
    return [f"the median {origin} row has norm {built:.2g}, the median copied one {copied:.2g}: try {_advice(options)}"]


def _advice(options: Sequence[str]) -> str:
    helpful = [text for name, text in (("center", "--center"), ("ridge", "--ridge 0.01")) if name in options]
    return " or ".join([*helpful, "another --method such as blend"])
