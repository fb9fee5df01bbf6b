"""Tasks of lm-evaluation-harness on tiny models: local files, offline, scored as by hand; whatever is missing is named."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from models_tiny import save_llama
from tokenizers_tiny import TEXT, tiny

from saltlm.errors import InputError
from saltlm.evaluation.harness.presets import FOLDERS, LANGUAGES, paper_tasks
from saltlm.evaluation.harness.squad import compute_exact, compute_f1
from saltlm.model.causal_lm import CausalLM, load_causal_lm
from saltlm_demo.dialogue_task import dialogue_items, write_task

ITEMS = [
    {"context": text[:25], "choices": [text[25:], *(other[25:] for other in TEXT if other != text)][:3], "gold": 0}
    for text in TEXT
]
LINES = [
    f"{who} was seen near the {where} yesterday. {what} and nobody knows the reason for it."
    for who, where, what in [
        ("The old miller", "river", "He was singing loudly"),
        ("A young soldier", "bridge", "She counted the arrows"),
        ("Our captain", "northern gate", "The horses were restless"),
        ("One of the elves", "well", "The water has turned black"),
        ("A merchant", "market hall", "His wagon stood empty"),
    ]
]


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    return load_causal_lm(save_llama(tmp_path_factory.mktemp("lm") / "m", tiny("byte_level_bpe")), device="cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "tasks"
    path.mkdir()
    write_task(path, "endings", ITEMS)
    return path


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the tasks of the harness, whose libraries may not use the network."""
    lm_eval = pytest.importorskip("lm_eval", reason='needs "saltlm[eval]"')
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return Path(lm_eval.__file__).parent / "tasks"


def log_likelihood(lm: CausalLM, context: str, ending: str) -> float:
    before, whole = (lm.tokenizer(text)["input_ids"] for text in (context, f"{context} {ending}"))
    with torch.no_grad():
        log_probabilities = lm.model(torch.tensor([whole])).logits[0].log_softmax(-1)
    return sum(log_probabilities[position - 1, whole[position]].item() for position in range(len(before), len(whole)))


def test_a_local_task_is_scored_as_by_hand(lm, folder, harness) -> None:
    from saltlm.evaluation.harness.tasks import load_tasks, run_tasks

    seen: list[tuple[int, int]] = []
    with load_tasks([str(folder)]) as tasks:
        assert tasks.names == ("endings",)
        result = run_tasks(lm, tasks, progress=lambda *counts: seen.append(counts))["endings"]
        first = run_tasks(lm, tasks, limit=2, batch_size=1)["endings"]
    right = []
    for item in ITEMS:
        scores = [log_likelihood(lm, item["context"], choice) for choice in item["choices"]]
        right.append(scores.index(max(scores)) == item["gold"])
    assert result.metrics["acc"]["value"] == pytest.approx(sum(right) / len(right))
    assert 0 < sum(right) < len(right), "a case in which the model is right at times"
    assert result.metrics["acc"]["stderr"] > 0 and result.metrics["acc"]["higher_is_better"]
    assert (result.items, result.shots) == (len(ITEMS), 0)
    assert first.items == 2 and first.metrics["acc"]["value"] == pytest.approx(sum(right[:2]) / 2)
    assert seen == sorted(seen) and seen[-1] == (3 * len(ITEMS), 3 * len(ITEMS))
    assert json.loads(json.dumps(result.to_json()))["metrics"].keys() == {"acc", "acc_norm"}


def test_the_model_and_the_random_state_are_left_as_they_were(folder, harness, tmp_path) -> None:
    from saltlm.evaluation.harness.tasks import load_tasks, run_tasks

    model = load_causal_lm(save_llama(tmp_path / "m", tiny("sentencepiece_bpe")), device="cpu")
    assert model.tokenizer.pad_token_id is None
    state = torch.random.get_rng_state()
    with load_tasks([str(folder)]) as tasks:
        assert run_tasks(model, tasks, limit=2)["endings"].items == 2
    assert model.tokenizer.pad_token_id is None and torch.equal(torch.random.get_rng_state(), state)


def test_a_task_of_a_folder_replaces_that_of_the_harness(lm, harness, tmp_path) -> None:
    from saltlm.evaluation.harness.tasks import load_tasks, run_tasks

    write_task(tmp_path, paper_tasks("fi")[0], ITEMS)
    with load_tasks(["paper:fi", str(tmp_path)]) as tasks:
        assert tasks.names == ("arc_challenge_mt_fi",)
        assert run_tasks(lm, tasks, limit=3)["arc_challenge_mt_fi"].items == 3


def test_questions_are_answered_and_measured_in_words(lm, harness, tmp_path) -> None:
    from saltlm.evaluation.harness.tasks import load_tasks, run_tasks

    answers = [{"context": "a", "question": "b", "answers": {"text": ["the cat sat"], "answer_start": [0]}}] * 2
    (tmp_path / "xquad.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    (tmp_path / "x.yaml").write_text(
        f"include: {harness / 'xquad' / 'xquad_de.yaml'}\ndataset_path: json\ndataset_name: null\n"
        "dataset_kwargs:\n  data_files:\n    validation: xquad.jsonl\n"
        "generation_kwargs:\n  until: ['\\n']\n  do_sample: false\n  max_gen_toks: 8\n"
    )
    with load_tasks([str(tmp_path)]) as tasks:
        (result,) = run_tasks(lm, tasks).values()
    assert result.items == 2 and 0 <= result.metrics["f1"]["value"] < 1 and result.metrics["exact_match"]["value"] == 0


@pytest.mark.parametrize(
    ("gold", "answer", "f1", "exact"),
    [
        ("Helsinki", "helsinki.", 1.0, 1),
        ("in the old town", "old town hall", 2 / 3, 0),
        ("The cat", "a cat", 1.0, 1),
        ("yes yes no", "yes no no", 2 / 3, 0),
        ("", "", 1.0, 1),
        ("something", "", 0.0, 0),
        ("vuonna 1918", "ei koskaan", 0.0, 0),
    ],
)
def test_squad_measures(gold: str, answer: str, f1: float, exact: int) -> None:
    assert compute_f1(gold, answer) == pytest.approx(f1) and compute_exact(gold, answer) == exact


def test_the_papers_suite_names_tasks_that_the_harness_has(harness) -> None:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=[harness / name for name in FOLDERS], include_defaults=False)
    for name, languages in LANGUAGES.items():
        missing = [language for language in languages.split() if name.format(language) not in manager.all_subtasks]
        assert not missing, name
    german = ["arc_de", "hellaswag_de", "m_mmlu_de", "xquad_de", "mlqa_de_de", "mlqa_de_en", "mlqa_en_de", "xnli_de"]
    assert paper_tasks("de") == german
    assert len(paper_tasks("ar")) == len(paper_tasks("vi")) == len(german)


# ------------------------------------------------------------------------------------------------ items


def test_items_hold_the_true_ending_once_and_only_endings_of_other_lines() -> None:
    items = dialogue_items([*LINES, LINES[0], "too short. to cut."])
    assert len(items) == len(LINES)
    for line, item in zip(LINES, items, strict=True):
        assert f"{item['context']} {item['choices'][item['gold']]}" == line
        wrong = [choice for index, choice in enumerate(item["choices"]) if index != item["gold"]]
        assert len(set(item["choices"])) == 4 and not any(line.endswith(choice) for choice in wrong)
    assert dialogue_items(LINES[:3]) == [] and dialogue_items([]) == []
    assert dialogue_items(LINES) == dialogue_items(LINES)


# ------------------------------------------------------------------------------------------------ refusals


def refused(words: str, *names: str) -> None:
    from saltlm.evaluation.harness.tasks import load_tasks

    with pytest.raises(InputError, match=words), load_tasks(names):
        pass


def test_without_the_harness_the_extra_is_named(monkeypatch, folder) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None)
    refused(r'no lm_eval.*pip install "saltlm\[eval\]"', str(folder))


def test_names_that_are_no_task(harness, folder, tmp_path) -> None:
    refused("nowhere.*no such folder", str(tmp_path / "nowhere"))
    refused("endings.yaml.*found a file", str(folder / "endings.yaml"))
    refused(r"'xx'.*paper:LANGUAGE with one of ar, bg", "paper:xx")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused("empty.*no task", str(empty))


def test_data_that_is_not_available(harness) -> None:
    refused(r"1 of 1 that cannot be loaded: arc_challenge_mt_fi \(data .*give a folder with a task file", "paper:fi")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: path.write_text("task: [broken"), "endings.yaml"),
        (
            lambda path: path.write_text(path.read_text().replace("endings.jsonl", "other.jsonl")),
            "no file 'other.jsonl'",
        ),
        (lambda path: path.write_text(path.read_text().replace("choices", "options")), "endings"),
        (lambda path: path.write_text(path.read_text() + "process_docs: !function nothing.here\n"), "cannot be loaded"),
        (lambda path: path.with_suffix(".jsonl").write_text("{"), "endings"),
    ],
)
def test_broken_task_files(harness, folder, change, words: str) -> None:
    change(folder / "endings.yaml")
    refused(words, str(folder))


def test_items_that_do_not_fit_their_task_file(lm, harness, folder) -> None:
    from saltlm.evaluation.harness.tasks import load_tasks, run_tasks

    lines = [json.dumps({**item, "gold": 0 if index == 0 else 9}) + "\n" for index, item in enumerate(ITEMS)]
    (folder / "endings.jsonl").write_text("".join(lines))
    with load_tasks([str(folder)]) as tasks, pytest.raises(InputError, match=r"endings.*6 whose answer is none"):
        run_tasks(lm, tasks)


def test_bad_numbers_and_a_tokenizer_without_a_start(lm, harness, folder) -> None:
    import dataclasses

    from saltlm.evaluation.harness.tasks import load_tasks, run_tasks

    with load_tasks([str(folder)]) as tasks:
        for options in ({"shots": -1}, {"limit": 0}):
            with pytest.raises(InputError, match=next(iter(options))):
                run_tasks(lm, tasks, **options)
        with pytest.raises(InputError, match="no start token"):
            run_tasks(dataclasses.replace(lm, start_id=None), tasks)


def test_the_replacement_module_is_removed_after_loading(harness, folder) -> None:
    from saltlm.evaluation.harness.tasks import load_tasks

    with load_tasks([str(folder)]):
        assert "transformers.data.metrics.squad_metrics" not in sys.modules
