"""What a transferred folder says of itself: saltlm.json, provenance.safetensors and the model card (step 6)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .._rust import Vocabulary
from ..files.json_files import json_bytes
from ..model.stored_rows import lengths_of
from ..rows.assembly import COMPOSED, ORIGINS, SOLVED, STATUSES, Assembly


def support_summary(assembly: Assembly, neighbours: str) -> dict[str, int | float | str] | None:
    """Minimum, median, 95th percentile and maximum support size; ``None`` where there are no supports.

    Args:
        assembly: finished rows.
        neighbours: what the sizes count (``anchors``, ``pieces``), saved as ``of``.

    Returns:
        The figures of the solved rows, or of the composed ones where none is solved.
    """
    sizes = assembly.support_size[assembly.origin == SOLVED]
    if not len(sizes):
        sizes = assembly.support_size[(assembly.origin == COMPOSED) & (assembly.support_size > 0)]
    if not len(sizes):
        return None
    return {
        "of": neighbours,
        "min": int(sizes.min()),
        "median": float(np.median(sizes)),
        "p95": float(np.percentile(sizes, 95)),
        "max": int(sizes.max()),
    }


def counts(assembly: Assembly) -> dict[str, int]:
    """Rows by origin; those that are still to be built count for none."""
    found = np.bincount(assembly.origin[~assembly.open], minlength=len(ORIGINS))
    return {name: int(found[code]) for code, name in enumerate(ORIGINS)}


def statuses(assembly: Assembly) -> dict[str, int]:
    """Rows by outcome."""
    found = np.bincount(assembly.status, minlength=len(STATUSES))
    return {name: int(found[code]) for code, name in enumerate(STATUSES)}


def norms(assembly: Assembly) -> dict[str, dict[str, float]]:
    """Median and largest Euclidean norm of the input rows by origin: a start with norms far from the source's is a bad one."""
    import torch

    lengths = lengths_of(assembly.input_rows, torch.arange(len(assembly.input_rows)))
    result = {}
    for code, name in enumerate(ORIGINS):
        own = lengths[(assembly.origin == code) & ~assembly.open]
        if len(own):
            result[name] = {"median": float(np.median(own)), "max": float(own.max())}
    return result


def provenance_bytes(assembly: Assembly, source: Vocabulary) -> bytes:
    """Content of provenance.safetensors.

    One entry a row in ``origin``, ``source_id``, ``support_size``, ``rank``, ``residual``, ``status`` and ``rule`` (index into
    the summary's ``rules``); of the rows' recipes, in compressed rows, ``rule_offsets``, ``rule_ids`` (source ids),
    ``rule_weights`` and, one a row, ``rule_kept`` (:class:`~saltlm.rows.recipe.Recipe`); and the source tokens' canonical bytes,
    ``source_bytes`` parted by ``source_offsets``, so that ids can be read without the source.
    """
    from safetensors.numpy import save

    recipe = assembly.recipe()
    tensors = {
        "origin": assembly.origin,
        "source_id": assembly.source_id,
        "support_size": assembly.support_size,
        "rank": assembly.rank,
        "residual": assembly.residual.astype(np.float32),
        "status": assembly.status,
        "rule": assembly.rule,
        "rule_offsets": recipe.offsets.numpy(),
        "rule_ids": recipe.ids.numpy(),
        "rule_weights": recipe.weights.numpy(),
        "rule_kept": recipe.kept.numpy(),
        **dict(zip(("source_bytes", "source_offsets"), source.token_bytes(), strict=True)),
    }
    return save(tensors, metadata={"format": "np"})


def summary_bytes(summary: Mapping[str, Any]) -> bytes:
    """Content of saltlm.json."""
    return json_bytes(summary, allow_nan=False)


def licence_of(folder: Path) -> str:
    """The licence a model card names in its head, else "not stated"."""
    card = folder / "README.md"
    if card.is_file():
        text = card.read_text(encoding="utf-8", errors="replace")
        head = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
        found = re.search(r"^license:\s*[\"']?([\w.\-]+)", head[1], re.MULTILINE) if head else None
        if found:
            return found[1]
    return "not stated"


def _self_check(summary: Mapping[str, Any]) -> str:
    """The card's section on hidden shared tokens; empty where none were hidden."""
    held, tuning = summary.get("heldout"), summary.get("tuning")
    if not held:
        return ""
    chosen = ""
    if tuning and not tuning["text"]:
        chosen = f" Options chosen so: {_chosen(tuning)}."
    rows = "\n".join(
        f"| {name} | {group['tokens']} | {group['relative_error']:.2f} | {group['cosine']:.2f} | {group['rank']:,} |"
        for name, group in (("all", held), *held["scripts"].items())
    )
    return f"""
## Self-check

Shared tokens were hidden with their twins and predicted: score {held["score"]:.2f} (exact rows 1.5, one row for all 0).
Medians; the place is the true row's among {held["candidates"]:,}.{chosen}

| script | tokens | relative error | cosine | place |
| --- | --- | --- | --- | --- |
{rows}
"""


def _chosen(tuning: Mapping[str, Any]) -> str:
    """The options that were chosen, in a line."""
    return ", ".join(f"`{name}` {'default' if value is None else value}" for name, value in tuning["choice"].items())


def _made(summary: Mapping[str, Any]) -> str:
    """The card's sentences on how new rows came about: what a blend was, and what a text has chosen."""
    said, tuning = [], summary.get("tuning")
    if blend := summary.get("blend"):
        weight = f"the rule `{blend['weight']}`" if isinstance(blend["weight"], str) else f"{blend['weight']:g}"
        said.append(
            f"New rows: the mean of their source pieces, by {weight}, and a regression, by the rest, brought"
            f" {blend['length']:g} times as far from the mean shared row."
        )
    if tuning and tuning["text"]:
        size = tuning["text"]["bytes"]
        said.append(f"Options chosen by bits per byte on {size:,} bytes of text, untrained: {_chosen(tuning)}.")
    return "".join(f"\n{sentence}\n" for sentence in said)


def model_card(summary: Mapping[str, Any]) -> bytes:
    """Content of the folder's README.md: what it is, what it was made of, how to load it, what it is not."""
    inputs, total = summary["inputs"], sum(summary["counts"].values())
    rows = "\n".join(
        f"| {name} | {count:,} | {count / total:.1%} |" for name, count in summary["counts"].items() if count
    )
    parts = "\n".join(
        f"| {side} | {entry.get('path', entry.get('kind'))} | {entry.get('revision') or '-'} | {entry['licence']} |"
        for side, entry in inputs.items()
    )
    added = summary["config"].get("keep_source_vocabulary")
    tokenizer = "the target's new tokens added to its own" if added else "the target's tokenizer"
    text = f"""---
library_name: transformers
pipeline_tag: text-generation
tags:
- saltlm
- tokenizer-transfer
---

# A causal language model with another tokenizer

The source model with {tokenizer} and new embedding rows, made by saltlm {summary["saltlm_version"]} with method
`{summary["method"]}`. **It has not been adapted yet**: train it on text of the target language before use.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("this-folder")
tokenizer = AutoTokenizer.from_pretrained("this-folder")
```

## Parts

A derived model carries the licences of its parts: look at each before sharing it.

| part | from | revision | licence |
| --- | --- | --- | --- |
{parts}

## Rows

| origin | rows | share |
| --- | --- | --- |
{rows}
{_made(summary)}{_self_check(summary)}
`saltlm.json` holds every setting, hash and count; `provenance.safetensors` says for each row where it came from.
"""
    return text.encode()
