"""The comparison: a probe is an adaptation, the control sees as much text, no run is done twice, bad input is refused."""

from __future__ import annotations

import gc
import json
import os
import re
import signal

import adapt_tiny
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from saltlm import AdaptConfig, CompareConfig, TransferConfig, adapt, compare, transfer
from saltlm.adaptation.packing import Packer
from saltlm.adaptation.text import open_streams, read_text
from saltlm.cli.main import main
from saltlm.cli.show_compare import comparison
from saltlm.comparison import probe
from saltlm.comparison.blocks import measure_blocks
from saltlm.comparison.config import parse_cells
from saltlm.errors import InputError
from saltlm.text.corpus import Corpus

STEPS, METHODS = 4, ["salt:center=true", "normal"]
SMALL = {"seq_length": 32, "batch_size": 2, "device": "cpu", "eval_bytes": 600}


@pytest.fixture(scope="module", autouse=True)
def _quick_collection():
    """Freeze the objects of the imports, so that the full garbage collection after each training is faster."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    for name, count, seed in (("text", 60, 0), ("eval", 12, 7), ("english", 4, 9)):
        adapt_tiny.text_file(folder / f"{name}.txt", count, seed)
    return folder


def call(pair, inputs, out, methods=METHODS, *, options=None, small=None, **more):
    return compare(
        pair.source,
        pair.target,
        pair.vectors,
        methods,
        inputs / "text.txt",
        out,
        CompareConfig(**{"probe_steps": STEPS, "seeds": 2, "eval_steps": 2, **(options or {})}),
        eval_texts=inputs / "eval.txt",
        adapt_config=AdaptConfig(**{**SMALL, **(small or {})}),
        **{"source_eval_texts": inputs / "english.txt", "transfer_config": TransferConfig(device="cpu"), **more},
    )


@pytest.fixture(scope="module")
def measured():
    """The number of documents in each evaluation of the first comparison."""
    return []


@pytest.fixture(scope="module")
def done(pair, inputs, measured):
    evaluate = probe.evaluate

    def counted(model, documents):
        measured.append(len(documents))
        return evaluate(model, documents=documents)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "evaluate", counted)
        return call(pair, inputs, inputs / "done")


@pytest.fixture(scope="module")
def diverged(pair, inputs):
    small = {"schedule": "constant", "warmup_steps": 0, "embedding_learning_rate": 1e5}
    return call(pair, inputs, inputs / "diverged", ["mean"], options={"probe_steps": 12, "seeds": 1}, small=small)


def figures(content) -> list:
    """The results of a comparison without the times."""
    kept = ("method", "seed", "bits_per_byte", "source_bits_per_byte", "document_nats", "training_bytes", "self_check")
    return [{name: run[name] for name in kept} for run in content["results"]]


def test_a_result_for_each_method_and_seed_and_nothing_else_is_left(done):
    content = json.loads((done.out / "compare.json").read_text())
    assert content == json.loads(json.dumps(done.content))
    assert [(run["method"], run["seed"]) for run in content["results"]] == [
        (method, seed) for method in ("original", *METHODS) for seed in (0, 1)
    ]
    for run in content["results"]:
        assert [step for step, _ in run["bits_per_byte"]] == [0, 2, STEPS] and run["seconds"] > 0
        assert [step for step, _ in run["source_bits_per_byte"]] == [0, STEPS]
        sizes = sum(run["document_bytes"])
        assert sum(run["document_nats"]) / np.log(2) / sizes == pytest.approx(run["bits_per_byte"][-1][1], rel=1e-12)
    assert {path.name for path in done.out.iterdir()} == {"compare.json", "compare.png", "comparison.json", "runs"}
    assert not list(done.out.rglob("*.safetensors")) and (done.out / "compare.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("method", ["normal", "original"])
def test_a_probe_is_a_transfer_and_an_adaptation(done, pair, inputs, tmp_path, method):
    model, length = pair.source, done.content["seq_lengths"]["original"]
    if method != "original":
        model, length = tmp_path / "model", SMALL["seq_length"]
        transfer(pair.source, pair.target, None, model, TransferConfig(method=method, seed=1, device="cpu"))
    options = {**SMALL, "seq_length": length, "phases": f"embeddings:{STEPS}", "seed": 1, "eval_steps": 2}
    expected = adapt(
        model,
        inputs / "text.txt",
        tmp_path / "out",
        AdaptConfig(**options),
        eval_texts=inputs / "eval.txt",
        source_eval_texts=inputs / "english.txt",
    )
    (run,) = [entry for entry in done.content["results"] if (entry["method"], entry["seed"]) == (method, 1)]
    assert [tuple(point) for point in run["bits_per_byte"]] == list(expected.heldout)
    assert [tuple(p) for p in run["source_bits_per_byte"]] == [expected.source[0], expected.source[-1]]
    assert (run["training_bytes"], run["training_tokens"]) == (expected.bytes, expected.tokens)


def test_every_weight_can_be_probed(pair, inputs, tmp_path, done):
    trained = call(pair, inputs, tmp_path / "all", ["normal"], options={"probe": "all", "seeds": 1})
    ends = [runs.content["results"][number]["bits_per_byte"] for runs, number in ((trained, 1), (done, 4))]
    assert ends[0][0] == ends[1][0] and ends[0][-1] != ends[1][-1]


def test_methods_see_the_same_bytes_and_the_control_as_many(done):
    runs = {(run["method"], run["seed"]): run["training_bytes"] for run in done.content["results"]}
    for seed in (0, 1):
        sizes = [runs[method, seed] for method in METHODS]
        assert len(set(sizes)) == 1 and runs["original", seed] == pytest.approx(sizes[0], rel=0.1)
    lengths, ratios = done.content["seq_lengths"], done.content["training_tokens_per_byte"]
    assert lengths["new"] != lengths["original"]
    assert lengths["original"] == round(lengths["new"] * ratios["original"] / ratios["new"])


@pytest.fixture(scope="module")
def tokenizers(pair):
    return [AutoTokenizer.from_pretrained(folder) for folder in (pair.target, pair.source)]


@given(steps=st.integers(1, 60), length=st.integers(8, 80), window=st.sampled_from([7, 30, 1000]))
def test_text_is_refused_exactly_when_a_pass_is_too_short(tokenizers, inputs, steps, length, window):
    config = AdaptConfig(**{**SMALL, "seq_length": length, "shuffle_documents": window, "heldout": 0.0})
    text = read_text(inputs / "text.txt", inputs / "eval.txt", None, None, config)

    def last_pass(tokenizer, block_length) -> int:
        (stream,) = open_streams(text, Packer(tokenizer, rows=10**6, length=block_length), config)
        stream.block(steps * config.batch_size - 1)
        stream.close()
        return stream.passes

    try:
        blocks = measure_blocks(text, tokenizers, config, steps)
    except InputError as error:
        if "of the source's own" in str(error):
            assert last_pass(tokenizers[1], int(re.search(r"blocks of (\d+) tokens", str(error))[1])) > 0
        else:
            assert last_pass(tokenizers[0], length) > 0
    else:
        assert last_pass(tokenizers[0], blocks.length) == last_pass(tokenizers[1], blocks.original) == 0


def test_finished_runs_are_not_run_again_and_methods_can_be_added(done, pair, inputs, monkeypatch):
    ran = []

    def counted(cell, seed, **options):
        ran.append((cell.label, seed))
        return run_cell(cell, seed, **options)

    run_cell = probe.run_cell
    monkeypatch.setattr(probe, "run_cell", counted)
    before = figures(done.content)
    assert figures(call(pair, inputs, done.out).content) == before and not ran
    more = call(pair, inputs, done.out, [*METHODS, "zero"], options={"seeds": 1})
    assert ran == [("zero", 0)] and more.content["seeds"] == [0]
    assert figures(call(pair, inputs, done.out).content) == before and len(ran) == 1


def test_an_interrupted_comparison_goes_on_to_the_same_figures(done, pair, inputs, tmp_path):
    out, seen = tmp_path / "out", []

    def interrupt(stage: str, step: int, total: int) -> None:
        seen.append(stage)
        if "normal, seed 0, probe" in stage and step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=r"finished runs are kept in .*; the same command goes on"):
        call(pair, inputs, out, ["normal"], progress=interrupt)
    assert {path.name for path in out.iterdir()} == {"comparison.json", "runs"} and len(list(out.glob("runs/*"))) == 2
    first = lambda stage, *_: os.kill(os.getpid(), signal.SIGINT) if "1 of 4" in stage and "probe" in stage else None  # noqa: E731
    with pytest.raises(KeyboardInterrupt, match="no run was finished"):
        call(pair, inputs, tmp_path / "none", ["normal"], progress=first)
    assert not (tmp_path / "none").exists()
    (out / ".scratch").mkdir()  # as a killed run leaves it
    (out / ".scratch" / "weights").touch()
    seen.clear()
    resumed = call(pair, inputs, out, ["normal"], progress=lambda stage, *_: seen.append(stage))
    assert figures(resumed.content) == [run for run in figures(done.content) if run["method"] in ("original", "normal")]
    assert sum("kept from before" in stage for stage in seen) == 2 and not (out / ".scratch").exists()


def test_step_0_of_equal_rows_is_evaluated_once(done, measured):
    results = done.content["results"]
    assert not results[0]["counts"] and all(run["counts"]["drawn"] for run in results[2:])
    # Held-out text three times and the source language's twice; the original's second seed knows its start already.
    assert len(measured) == 5 + 3 + 4 * 5
    assert results[0]["bits_per_byte"][0] == results[1]["bits_per_byte"][0]
    assert results[0]["bits_per_byte"][-1] != results[1]["bits_per_byte"][-1]


def test_a_probe_that_diverges_is_reported_and_the_others_go_on(diverged, capsys):
    assert [entry["diverged"] for entry in diverged.content["methods"]] == [[0], [0]] and diverged.best is None
    assert diverged.content["results"][1]["diverged"].startswith("step ")
    comparison(diverged)
    assert "diverged with seed 0" in capsys.readouterr().out


def test_the_table_and_json(done, pair, inputs, capsys):
    arguments = [
        "compare",
        "--source",
        pair.source,
        "--target",
        pair.target,
        "--auxiliary",
        pair.vectors,
        "--methods",
        ",".join(METHODS),
        "--text",
        inputs / "text.txt",
        "--eval-text",
        inputs / "eval.txt",
        "--source-eval-text",
        inputs / "english.txt",
        "--out",
        done.out,
        "--probe-steps",
        STEPS,
        "--seeds",
        2,
        "--eval-steps",
        2,
        "--seq-length",
        32,
        "--batch-size",
        2,
        "--device",
        "cpu",
        "--eval-bytes",
        600,
        "--quiet",
    ]
    assert main([*map(str, arguments)]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("to level: steps until", "normal", "original", f"best: {done.best}"))
    assert main([*map(str, arguments), "--json"]) == 0
    assert figures(json.loads(capsys.readouterr().out)) == figures(done.content)


def refused(pair, inputs, capsys, *more, code=2) -> str:
    before = sorted(inputs.rglob("*"))
    usual = [
        "compare",
        "--source",
        pair.source,
        "--target",
        pair.target,
        "--auxiliary",
        pair.vectors,
        "--methods",
        "salt",
        "--text",
        inputs / "text.txt",
        "--eval-text",
        inputs / "eval.txt",
        "--out",
        inputs / "new",
        "--probe-steps",
        2,
        "--seq-length",
        32,
        "--quiet",
    ]
    assert main([*map(str, usual), *map(str, more)]) == code
    out, err = capsys.readouterr()
    assert not out and sorted(inputs.rglob("*")) == before and err.count("saltlm:") == 1
    return err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--methods", "slat"], "did you mean 'salt'?"),
        (["--methods", "salt:rigde=1"], "did you mean 'ridge'?"),
        (["--methods", "salt:ridge=much"], "expected a number"),
        (["--methods", "salt:ridge=-1"], "method 'salt:ridge=-1': ridge: found -1.0"),
        (["--methods", "salt:center=perhaps"], "true or false"),
        (["--methods", "salt:seed=3"], "give --seed for all"),
        (["--methods", "mean:center=true"], "which has no use for it"),
        (["--methods", "mean:auxiliary=plm"], "auxiliary: found 'plm'; expected a method that looks at vectors"),
        (["--methods", "focus:auxiliary=no/where"], "method 'focus:auxiliary=no/where': auxiliary vectors: found"),
        (["--methods", "salt", "salt"], "each once"),
        (["--methods", "original"], "at least one beside the original"),
        (["--methods", "salt,wechsel"], "method 'wechsel': source-auxiliary: found none"),
        (["--probe-steps", "5000"], "the 5,000 blocks that 5,000 steps take, none of them twice"),
        (["--seq-length", "500"], "at most the 256 positions"),
        (["--probe", "rows"], "one of embeddings, all"),
        (["--seeds", "0"], "a whole number >= 1"),
        (["--source", "nowhere/at/all"], "no such folder"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(pair, inputs, capsys, more, words):
    assert words in refused(pair, inputs, capsys, *more)


def test_heldout_text_inside_the_training_text_is_refused_or_dropped(pair, inputs, tmp_path, capsys):
    documents = list(Corpus(inputs / "text.txt"))
    (tmp_path / "both.txt").write_text("\n\n".join(documents[:9]))
    assert "--drop-overlap" in refused(pair, inputs, capsys, "--eval-text", tmp_path / "both.txt")
    assert "5,000 blocks" in refused(
        pair, inputs, capsys, "--eval-text", tmp_path / "both.txt", "--drop-overlap", "--probe-steps", 5000
    )


def test_a_folder_with_something_else_is_refused(done, pair, inputs, capsys):
    assert "a comparison that differs in" in refused(pair, inputs, capsys, "--out", done.out)
    (inputs / "other").mkdir()
    (inputs / "other" / "file").touch()
    for force in ([], ["--force"]):
        assert "holds no comparison" in refused(pair, inputs, capsys, "--out", inputs / "other", *force)
    assert "input" in refused(pair, inputs, capsys, "--out", pair.source / "inside")


def test_force_starts_over(diverged, pair, inputs):
    old = {path.name for path in (diverged.out / "runs").iterdir()}
    result = call(pair, inputs, diverged.out, ["mean"], options={"seeds": 1, "probe_steps": 1, "force": True})
    new = {path.name for path in (diverged.out / "runs").iterdir()}
    assert len(old) == len(new) == 2 and not old & new and result.content["probe_steps"] == 1 and result.best == "mean"


def test_cells_take_the_common_options_that_apply_to_them():
    base = TransferConfig(ridge=0.5, overlap="case")
    cells = parse_cells(["salt", "salt:ridge=0.1:max-support=8:center", "focus", "blend:blend_weight=0.3"], base)
    assert [cell.label for cell in cells][:2] == ["original", "salt"] and cells[0].config is None
    assert [cell.config.ridge for cell in cells[1:]] == [0.5, 0.1, None, 0.5]
    assert (cells[2].config.max_support, cells[2].config.center) == (8, True) and cells[4].config.blend_weight == 0.3
    assert {cell.config.overlap for cell in cells[1:]} == {"case"}
    # An option that is a number or a rule's name.
    assert parse_cells(["blend:blend-weight=pieces"], base)[1].config.blend_weight == "pieces"
    with pytest.raises(InputError, match="'heavy'"):
        parse_cells(["blend:blend-weight=heavy"], base)


def test_a_cell_may_replace_the_auxiliary_vectors(pair, inputs):
    options = {"seeds": 1, "probe_steps": 1}
    cell = f"focus:auxiliary={pair.vectors}"
    result = call(pair, inputs, inputs / "auxiliary", ["focus", cell, "focus:auxiliary=plm"], options=options)
    rows = {run["method"]: run["rows"] for run in result.content["results"]}
    assert rows["focus"] == rows[cell] != rows["focus:auxiliary=plm"]
    assert result.content["cells"][cell]["auxiliary"] == str(pair.vectors)
    again = call(pair, inputs, inputs / "auxiliary", ["focus:auxiliary=plm", cell], options=options)
    assert {run["method"]: run["rows"] for run in again.content["results"]} == {
        label: row for label, row in rows.items() if label != "focus"
    }


@pytest.mark.parametrize("methods", [["mean"], ["mean", "salt"], ["mean", "focus:auxiliary=plm"]])
def test_vectors_that_no_method_reads_are_reported_once(pair, inputs, tmp_path, capsys, methods):
    """A file of vectors that no method reads is not opened, so it may be missing."""
    read = "salt" in methods
    vectors = pair.vectors if read else tmp_path / "missing.vec"
    words = [
        "compare",
        "--source",
        pair.source,
        "--target",
        pair.target,
        "--auxiliary",
        vectors,
        "--methods",
        *methods,
        "--text",
        inputs / "text.txt",
        "--eval-text",
        inputs / "eval.txt",
        "--out",
        tmp_path / "out",
        "--probe-steps",
        1,
        "--seeds",
        1,
        "--seq-length",
        32,
        "--device",
        "cpu",
        "--eval-bytes",
        600,
        "--quiet",
    ]
    assert main([*map(str, words)]) == 0
    content = json.loads((tmp_path / "out" / "compare.json").read_text())
    err = capsys.readouterr().err
    assert len(content["warnings"]) == err.count("note: ") == (not read)
    assert (str(vectors) in err) == (not read)
    assert not any("does not read" in warning for run in content["results"] for warning in run["warnings"])
