"""``saltlm evaluate`` with all it measures: one object a model in JSON, tables for people, refusals before any model runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from models_tiny import save_llama
from tokenizers_tiny import TEXT, tiny

from saltlm.cli.main import main
from saltlm.cli.show import labels
from saltlm.errors import InputError
from saltlm.evaluation.evaluate import evaluate
from saltlm.evaluation.generate import continuations
from saltlm.evaluation.side_by_side import MeasureConfig, beginning, evaluate_models


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    save_llama(root / "one" / "model", tiny("byte_level_bpe"), seed=0)
    save_llama(root / "two" / "model", tiny("byte_level_bpe"), seed=1)
    (root / "text.txt").write_text("\n\n".join(TEXT), encoding="utf-8")
    (root / "english.txt").write_text("\n\n".join(TEXT[:2]), encoding="utf-8")
    (root / "single.txt").write_text(TEXT[0], encoding="utf-8")
    return root


def output(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[str, str]:
    assert main(["evaluate", *map(str, arguments)]) == 0
    return capsys.readouterr()


def test_json_of_one_model_is_its_evaluation_and_more(inputs, capsys) -> None:
    model, text = inputs / "one" / "model", inputs / "text.txt"
    arguments = (
        model,
        "--text",
        text,
        "--retention",
        inputs / "english.txt",
        "--samples",
        2,
        "--new-tokens",
        4,
        "--json",
    )
    out, err = output(capsys, *arguments)
    report = json.loads(out)
    assert not err
    plain = evaluate(model, text).to_json()
    for name in ("bits_per_byte", "tokens_per_byte", "bytes", "tokens", "documents", "nats", "model"):
        assert report[name] == plain[name]
    interval = report["bits_per_byte_interval"]
    assert interval["low"] < report["bits_per_byte"] < interval["high"] and interval["confidence"] == 0.95
    assert report["retention"]["bits_per_byte"] == evaluate(model, inputs / "english.txt").bits_per_byte
    assert report["retention"]["documents"] == 2 and report["retention"]["bits_per_byte_interval"]
    prompts = [beginning(text) for text in TEXT[:2]]
    greedy = continuations(model, prompts, 4)
    assert [tuple(sample.values()) for sample in report["samples"]] == list(zip(prompts, greedy, strict=True))
    assert report["comparisons"] == [] and report["tasks"] == {}
    again, _ = output(capsys, *arguments)
    assert json.loads(again)["bits_per_byte_interval"] == interval


def test_models_side_by_side_are_compared_on_the_same_documents(inputs, capsys) -> None:
    one, two = (str(inputs / name / "model") for name in ("one", "two"))
    out, _ = output(capsys, one, two, one, "--text", inputs / "text.txt", "--confidence", 0.9, "--json")
    report = json.loads(out)
    assert list(report) == [one, two]
    (pair,), (mirror,) = report[one]["comparisons"], report[two]["comparisons"]
    assert (pair["model"], mirror["model"]) == (two, one)
    assert pair["difference"] == pytest.approx(report[one]["bits_per_byte"] - report[two]["bits_per_byte"])
    assert (mirror["low"], mirror["high"]) == (-pair["high"], -pair["low"]) and pair["tie"] == mirror["tie"]
    assert pair["tie"] == (pair["low"] <= 0 <= pair["high"])
    assert report[one]["bits_per_byte_interval"]["confidence"] == 0.9 and report[one]["retention"] is None


def test_the_table_for_people(inputs, capsys) -> None:
    out, _ = output(
        capsys,
        inputs / "one" / "model",
        inputs / "two" / "model",
        "--text",
        inputs / "text.txt",
        "--retention",
        inputs / "english.txt",
        "--prompt",
        "the cat [x]",
        "--new-tokens",
        3,
        "--quiet",
    )
    assert "one/model" in out and "two/model" in out and str(inputs) not in out
    assert "interval" in out and "one/model less two/model" in out and "the cat [x]" in out
    one, two = (str(inputs / name / "model") for name in ("one", "two"))
    (pair,) = json.loads(output(capsys, one, two, "--text", inputs / "text.txt", "--json")[0])[one]["comparisons"]
    better = "a tie" if pair["tie"] else f"{'one' if pair['difference'] < 0 else 'two'}/model is better"
    sentences = re.findall(
        r"one/model less two/model: (\S+) bits per byte \(\S+ to \S+\): (a tie|\S+ is better)", " ".join(out.split())
    )
    assert sentences[0] == (f"{pair['difference']:+.3f}", better)


def test_one_document_has_no_interval(inputs, capsys) -> None:
    model = inputs / "one" / "model"
    report = json.loads(output(capsys, model, "--text", inputs / "single.txt", "--json")[0])
    assert report["bits_per_byte_interval"] is None and report["documents"] == 1
    assert "interval" not in output(capsys, model, "--text", inputs / "single.txt", "--quiet")[0]


def test_drawn_continuations_repeat_with_their_seed(inputs) -> None:
    def drawn(seed: int) -> tuple[tuple[str, str], ...]:
        config = MeasureConfig(temperature=1.0, seed=seed, new_tokens=8)
        model = inputs / "one" / "model"
        return evaluate_models([model], [inputs / "text.txt"], config, prompts=["the"]).models[str(model)].samples

    assert drawn(1) == drawn(1) != drawn(2)


def test_bad_input_is_refused_before_a_model_is_read(inputs, tmp_path, capsys) -> None:
    cases = {
        ("--retention", tmp_path / "nowhere.txt"): "no such file",
        ("--confidence", 1): "confidence",
        ("--seed", -1): "seed",
        ("--samples", -1): "samples",
        ("--new-tokens", 0): "new_tokens",
        ("--temperature", -1): "temperature",
        ("--temperature", "nan"): "temperature",
        ("--shots", -1): "shots",
        ("--limit", 0): "limit",
        ("--max-length", 1): "max_length",
        ("--tasks", tmp_path / "nowhere"): "no such folder",
    }
    for more, words in cases.items():
        if more[0] == "--tasks":
            pytest.importorskip("lm_eval")
        # The model is missing too: the fault of the options is reported first.
        code = main([str(a) for a in ("evaluate", tmp_path / "no-model", "--text", inputs / "text.txt", *more)])
        out, err = capsys.readouterr()
        assert code == 2 and not out and words in err and "no-model" not in err, more
    with pytest.raises(InputError, match="no-model"):
        evaluate_models([tmp_path / "no-model"], [inputs / "text.txt"])


def test_labels_are_the_shortest_ends_that_differ() -> None:
    assert labels(["a/b/m", "a/c/m"]) == {"a/b/m": "b/m", "a/c/m": "c/m"}
    assert labels(["/x/one"]) == {"/x/one": "/x/one"}
    assert labels(["org/one", "one"]) == {"org/one": "org/one", "one": "one"}
    assert labels([]) == {}


def test_a_prompt_is_the_beginning_of_a_document() -> None:
    for text in TEXT:
        start = beginning(text)
        assert text.startswith(start) and len(start) <= min(80, len(text) // 2) and start == start.rstrip()
        assert text[len(start)] == " " or " " not in start
    assert beginning("a") == "a" and beginning("中文字中文字", 4) == "中文字"
