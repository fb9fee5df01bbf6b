"""A small multiple-choice task in the harness's format, from the dialogue of the real inputs: choose the true ending."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from saltlm.errors import input_error
from saltlm.files.cache import cache_folder, cached_folder

from .input_text import dialogue_lines

# Version of the rule that makes the items; increase it when this file changes the items.
RULE = 1
CHOICES = 4
MIN_PART, MAX_CONTEXT = 25, 400  # characters
# White space after a sentence's last character, including closing quotes; after "..." only if the next word is capitalised.
SENTENCE_END = re.compile(r"(?<=[.!?][\"”'\u2019])\s+|(?<=[^.][.!?])\s+(?=[^\W\d_a-zäöå])")


def dialogue_items(lines: Sequence[str], choices: int = CHOICES) -> list[dict[str, object]]:
    """Build the items of a multiple-choice task: the first part of a line of dialogue, its ending, and endings of other lines.

    A line of several sentences is cut at the sentence end nearest its middle. The wrong endings are the endings of other lines
    that are nearest in length, so that length does not give the answer away. A hash of the line decides the position of the
    true ending.

    Args:
        lines: lines of dialogue.
        choices: number of endings per item, in [2, inf).

    Returns:
        Dicts with ``context``, ``choices`` and ``gold`` (index of the true ending), in the order of the lines; an empty
        list if fewer than ``choices`` lines can be cut.

    Example:
        >>> bridge = "The bridge over the river is down. We shall have to swim across."
        >>> guard = "Who goes there in this darkness? Answer me at once, or you die!"
        >>> dialogue_items([bridge, guard], choices=2)[0]["choices"]
        ['Answer me at once, or you die!', 'We shall have to swim across.']
    """
    parts = [part for line in dict.fromkeys(lines) if (part := _cut(line))]
    endings = [ending for _, ending in parts]
    if len(parts) < choices:
        return []
    items = []
    for index, (context, ending) in enumerate(parts):
        others = sorted(
            (other for other in range(len(parts)) if endings[other] != ending and parts[other][0] != context),
            key=lambda other: (abs(len(endings[other]) - len(ending)), other),
        )
        wrong = list(dict.fromkeys(endings[other] for other in others))[: choices - 1]
        if len(wrong) < choices - 1:
            continue
        gold = hashlib.sha256(f"{index} {context}".encode()).digest()[0] % choices
        items.append({"context": context, "choices": [*wrong[:gold], ending, *wrong[gold:]], "gold": gold})
    return items


def dialogue_task(language: str = "fi") -> Path:
    """Folder of the cache with the task ``dialogue_LANGUAGE`` for ``saltlm evaluate --tasks``; written if it does not exist.

    Args:
        language: language of a catalogue, or ``en`` for the English side of the Finnish one.

    Returns:
        The folder: a task file and its data, one item a line.

    Raises:
        InputError: the text cannot be fetched, or has too few lines of several sentences.
    """
    name = f"dialogue_{language}"
    folder = cache_folder() / "inputs" / f"{name}-{RULE}"
    if folder.is_dir():
        return folder
    items = dialogue_items(dialogue_lines(language))
    if not items:
        raise input_error(
            f"dialogue in {language!r}", "too few lines of several sentences", "four or more", "use another"
        )
    with cached_folder(folder) as part:
        write_task(part, name, items)
    return folder


def write_task(folder: Path, name: str, items: Sequence[dict[str, object]]) -> None:
    """Write a task in the harness's format: ``NAME.yaml`` and ``NAME.jsonl``.

    Args:
        folder: an existing folder.
        name: name of the task in ``--tasks`` and in the results.
        items: items as :func:`dialogue_items` returns them.
    """
    lines = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
    (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    (folder / f"{name}.yaml").write_text(
        f"""task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {name}.jsonl
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
metadata:
  version: {RULE}
""",
        encoding="utf-8",
    )


def _cut(line: str) -> tuple[str, str] | None:
    """Cut the line in two at the sentence end nearest its middle; ``None`` if a part would be too short or too long."""
    cuts = [
        match
        for match in SENTENCE_END.finditer(line)
        if MIN_PART <= match.start() <= MAX_CONTEXT and len(line) - match.end() >= MIN_PART
    ]
    if not cuts:
        return None
    nearest = min(cuts, key=lambda match: abs(match.start() - len(line) / 2))
    return line[: nearest.start()], line[nearest.end() :]
