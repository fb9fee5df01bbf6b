"""A real task from the real inputs: which ending belongs to a line of dialogue, in English and in Finnish."""

import json

import pytest
import torch

from saltlm_demo import finnish
from saltlm_demo.dialogue_task import dialogue_task

pytestmark = pytest.mark.real
ITEMS = 8


def test_the_source_model_on_real_dialogue(capsys):
    pytest.importorskip("lm_eval", reason='needs "saltlm[eval]"')
    from saltlm.evaluation.harness.tasks import load_tasks, run_tasks
    from saltlm.model.causal_lm import load_causal_lm
    from saltlm.model.checkpoint import load_source

    pair = finnish.finnish_pair()
    lm = load_causal_lm(load_source(pair.source, gguf_file=pair.gguf_file).folder, device="cpu")
    folders = {language: dialogue_task(language) for language in ("en", "fi")}
    with load_tasks([str(folder) for folder in folders.values()]) as tasks:
        results = run_tasks(lm, tasks, limit=ITEMS)
    for language, folder in folders.items():
        score = results[f"dialogue_{language}"]
        with capsys.disabled():
            print(
                f"\nSmolLM2-135M, {score.items} items of dialogue_{language}: {score.metrics['acc']['value']:.2f} right"
            )
        lines = (folder / f"dialogue_{language}.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(lines) > 250 and score.items == ITEMS
    items = [
        json.loads(line) for line in (folders["fi"] / "dialogue_fi.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    right = [best_ending(lm, item) == item["gold"] for item in items[:ITEMS]]
    assert results["dialogue_fi"].metrics["acc"]["value"] == pytest.approx(sum(right) / ITEMS)
    # Chance is 1/4; the numbers are exact for these weights and items, so this asks little of an English model.
    assert results["dialogue_en"].metrics["acc"]["value"] > 0.25


def best_ending(lm, item) -> int:
    """The likeliest ending, computed with stock transformers."""
    costs = []
    before = lm.tokenizer(item["context"])["input_ids"]
    for ending in item["choices"]:
        ids = torch.tensor([lm.tokenizer(f"{item['context']} {ending}")["input_ids"]])
        labels = ids.clone()
        labels[0, : len(before)] = -100
        with torch.no_grad():
            costs.append(lm.model(ids, labels=labels).loss.item() * (ids.shape[1] - len(before)))
    return costs.index(min(costs))
