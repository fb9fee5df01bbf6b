"""The model card of a transferred folder, its README.md, and the licences in the cards of its parts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..files.open_file import FileKind, read_file
from ..files.summary_file import Summary, TuningRecord

# Template of the card, filled in by huggingface_hub.
TEMPLATE = Path(__file__).with_name("card.md")


def model_card(summary: Summary, model_class: str = "AutoModelForCausalLM") -> bytes:
    """Content of README.md: what the model is, its parts and licences, how to load it, and that it needs adaptation.

    Args:
        summary: content of ``saltlm.json``.
        model_class: the class of transformers that loads the folder.
    """
    from huggingface_hub import ModelCard, ModelCardData

    tuning, self_check = summary["tuning"], summary["heldout"]
    blend: dict[str, Any] | None = None
    if "blend" in summary:
        weight = summary["blend"]["weight"]
        text = f"by the rule `{weight}`" if isinstance(weight, str) else f"{weight:g}"
        blend = {**summary["blend"], "weight": text}
    expanded = summary["config"].get("keep_source_vocabulary")
    card = ModelCard.from_template(
        ModelCardData(
            library_name="transformers", pipeline_tag="text-generation", tags=["saltlm", "tokenizer-transfer"]
        ),
        template_path=str(TEMPLATE),
        tokenizer="the new tokens of the target added to its own tokenizer"
        if expanded
        else "the tokenizer of the target",
        version=summary["saltlm_version"],
        method=summary["method"],
        model_class=model_class,
        parts=summary["inputs"],
        counts=summary["counts"],
        total=sum(summary["counts"].values()),
        blend=blend,
        tuned_bytes=tuning["text"]["bytes"] if tuning and tuning["text"] else 0,
        choice=_choice(tuning) if tuning else "",
        self_check=self_check,
        scripts={"all": self_check, **self_check["scripts"]} if self_check else {},
    )
    return (str(card).rstrip() + "\n").encode()


def _choice(tuning: TuningRecord) -> str:
    """The chosen options, separated by commas."""
    return ", ".join(f"`{name}` {'default' if value is None else value}" for name, value in tuning["choice"].items())


def licence_of(folder: Path) -> str:
    """The licence that the model card of a folder names in its metadata, else ``not stated``."""
    card = folder / "README.md"
    if card.is_file():
        text = read_file(card, FileKind.TERMS, inside=folder).decode(errors="replace")
        # Read by a pattern, because the metadata of a downloaded card need not be valid YAML.
        metadata = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
        licence = re.search(r"^license:\s*[\"']?([\w.\-]+)", metadata[1], re.MULTILINE) if metadata else None
        if licence:
            return licence[1]
    return "not stated"
