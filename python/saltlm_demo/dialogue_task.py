"""A small real task of the harness's form, made from the dialogue that the real inputs bring: which ending is the true one?"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from saltlm.errors import input_error
from saltlm.files.cache import cache_folder, cached_folder

from .input_text import dialogue_lines

# A change here changes the items: count it up.
RULE = 1
CHOICES = 4
SHORTEST_PART, LONGEST_CONTEXT = 25, 400
# After the end of a sentence, closing quotes included; "..." ends none that the next word does not start anew.
SENTENCE_END = re.compile(r"(?<=[.!?][\"”'\u2019])\s+|(?<=[^.][.!?])\s+(?=[^\W\d_a-zäöå])")


def dialogue_items(lines: Sequence[str], choices: int = CHOICES) -> list[dict[str, object]]:
    """Items of a multiple-choice task: the beginning of a line of dialogue, and its ending among those of other lines.

    A line of several sentences is cut at the sentence end nearest its middle. The wrong endings are those of the lines whose
    true ending is nearest in length, so that length tells nothing. The place of the right one comes from a hash of the line.

    Args:
        lines: the lines.
        choices: endings to choose from, in [2, inf).

    Returns:
        Dicts with ``context``, ``choices`` and ``gold`` (index of the true ending), in the order of the lines; none if fewer
        than ``choices`` lines can be cut.

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
    """A folder with the task ``dialogue_LANGUAGE`` for ``saltlm evaluate --tasks``, made once and kept in the cache.

    Args:
        language: of the catalogue, or ``en`` for the English side of the Finnish one.

    Returns:
        The folder: a task file and its data, one item a line.

    Raises:
        InputError: the text cannot be fetched, or holds too few lines of several sentences.
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
    """Write a task of the harness: ``NAME.yaml`` and ``NAME.jsonl``.

    Args:
        folder: an existing folder.
        name: what ``--tasks`` and the results call it.
        items: as :func:`dialogue_items` makes them.
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
    """The line in two at the sentence end nearest its middle, if both parts are long enough."""
    cuts = [
        found
        for found in SENTENCE_END.finditer(line)
        if SHORTEST_PART <= found.start() <= LONGEST_CONTEXT and len(line) - found.end() >= SHORTEST_PART
    ]
    if not cuts:
        return None
    nearest = min(cuts, key=lambda found: abs(found.start() - len(line) / 2))
    return line[: nearest.start()], line[nearest.end() :]
