"""adapt(): which weights are trained, the metrics, the written folder, and refused inputs."""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
import shutil

import adapt_tiny
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from saltlm.adaptation.config import AdaptConfig
from saltlm.adaptation.optimizer import rate_factor
from saltlm.adaptation.packing import Mixture, Packer, Stream, collate
from saltlm.adaptation.run import adapt
from saltlm.adaptation.text import read_text
from saltlm.adaptation.training import AdaptTrainer
from saltlm.errors import BackendError, InputError
from saltlm.evaluation.evaluate import evaluate
from saltlm.model.portable import with_rope_keys
from saltlm.text.corpus import Corpus, is_heldout, take_bytes

SMALL = {"seq_length": 32, "batch_size": 2, "device": "cpu", "heldout": 0.2, "eval_bytes": 2000}


def config(**options) -> AdaptConfig:
    return AdaptConfig(**{**SMALL, **options})


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapt")
    adapt_tiny.transferred(folder / "model", dtype=torch.float16)
    adapt_tiny.text_file(folder / "text.txt", 80)
    adapt_tiny.text_file(folder / "english.txt", 40, seed=5)
    return folder


@pytest.fixture(scope="module")
def three_phases(inputs):
    seen = []
    done = adapt(
        inputs / "model",
        inputs / "text.txt",
        inputs / "three",
        replay={inputs / "english.txt": 0.25},
        progress=seen.append,
        config=config(phases="rows:3,embeddings:2@2e-3,all:4@1e-3/2e-3", accumulate=2, weight_decay=0.1, eval_steps=3),
    )
    return done, seen


def test_the_output_is_a_model_folder_that_stock_transformers_loads(inputs, three_phases):
    done, _ = three_phases
    model = AutoModelForCausalLM.from_pretrained(done.out)
    assert model.dtype == torch.float16  # the dtype of the checkpoint
    before, after = (
        AutoTokenizer.from_pretrained(inputs / name).backend_tokenizer.to_str() for name in ("model", "three")
    )
    assert before == after
    names = {path.name for path in done.out.iterdir()}
    assert {"config.json", "provenance.safetensors", "README.md", "saltlm.json", "metrics.jsonl", "curve.png"} <= names
    assert list(done.out.glob("tensorboard/events.*"))
    assert not names & {"checkpoints", "optimizer.pt"} and not list(inputs.glob(".three*"))
    config = json.loads((inputs / "model/config.json").read_text())
    assert json.loads((done.out / "config.json").read_text()) == with_rope_keys(config)
    record = json.loads((done.out / "saltlm.json").read_text())["adapted"]
    assert record["steps"] == 9 and record["config"]["weight_decay"] == 0.1
    card = (done.out / "README.md").read_text()
    assert "It has not been adapted yet" not in card and "before," in card


def test_each_step_has_a_line_of_metrics_and_a_report(three_phases):
    done, seen = three_phases
    metrics = lines(done.out)
    assert [line["step"] for line in metrics] == list(range(10)) == [report.step for report in seen]
    assert [line["phase"] for line in metrics[1:]] == ["rows"] * 3 + ["embeddings"] * 2 + ["all"] * 4
    assert all(math.isfinite(line["loss"]) and line["bits_per_byte"] > 0 for line in metrics[1:])
    assert [step for step, _ in done.heldout] == [0, 3, 5, 6, 9] == [step for step, _ in done.source]
    rates = [line["learning_rates"] for line in metrics[1:]]
    assert set(rates[0]) == {"vocabulary"} and set(rates[-1]) == {"vocabulary", "body", "scales"}
    assert rates[5]["vocabulary"] == pytest.approx(2 * rates[5]["body"]) and max(r["vocabulary"] for r in rates) <= 2e-3
    assert done.tokens == metrics[-1]["tokens"] and seen[-1].seconds_left == 0


def test_bits_per_byte_equal_those_of_evaluate(inputs, three_phases):
    done, _ = three_phases
    heldout = [text for text in Corpus(inputs / "text.txt") if is_heldout(text, 0.2)]
    taken, size = [], 0
    for text in heldout:
        taken.append(text)
        size += len(text.encode())
        if size >= 2000:
            break
    before = evaluate(inputs / "model", documents=taken, device="cpu")
    assert done.heldout[0][1] == before.bits_per_byte
    exact = adapt(inputs / "model", inputs / "text.txt", inputs / "exact", config(steps=2, dtype="float32"))
    after = evaluate(exact.out, documents=taken, device="cpu")
    assert exact.heldout[-1][1] == pytest.approx(after.bits_per_byte, rel=1e-12)


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("architecture", ["llama", "phi"])
def test_phase_rows_changes_the_new_rows_only(tmp_path, inputs, architecture):
    source = adapt_tiny.transferred(tmp_path / "model", architecture, dtype=torch.bfloat16)
    rates = config(phases="rows:3@0.5", weight_decay=0.3)
    out = adapt(source, inputs / "text.txt", tmp_path / "out", rates).out
    before, after = weights(source), weights(out)
    assert set(before) == set(after)
    vocabulary = {
        "llama": {"model.embed_tokens.weight"},
        "phi": {"model.embed_tokens.weight", "lm_head.weight", "lm_head.bias"},
    }
    for name, old in before.items():
        new = after[name]
        assert new.dtype == old.dtype
        if name not in vocabulary[architecture]:
            assert torch.equal(old.view(torch.uint8), new.view(torch.uint8)), name
            continue
        trained = torch.arange(len(old)) % 3 == 0
        assert torch.equal(old[~trained].view(torch.uint8), new[~trained].view(torch.uint8)), name
        assert (old[trained] != new[trained]).float().mean() > 0.9, name


def test_the_first_steps_equal_those_of_a_plain_training_loop(inputs):
    """Two steps of a loop in plain transformers and torch, over the same blocks, give the same losses and weights."""
    options = config(
        phases="all:2@1e-3", schedule="constant", warmup_steps=0, accumulate=2, heldout=0.0, dtype="float32"
    )
    done = adapt(inputs / "model", inputs / "text.txt", inputs / "bare", options)
    model = AutoModelForCausalLM.from_pretrained(inputs / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(inputs / "model")
    stream = Stream(
        lambda: iter(Corpus(inputs / "text.txt")), Packer(tokenizer, rows=len(tokenizer), length=32), seed=0
    )
    blocks = Mixture([stream], [1.0], offset=0, length=8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(2):
        batch = collate([blocks[i] for i in range(4 * step, 4 * step + 4)])
        del batch["bytes"]
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        line = lines(done.out)[step + 1]
        assert line["loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert line["gradient_norm"] == pytest.approx(norm.item(), rel=1e-4)
    stream.close()
    for name, tensor in weights(done.out).items():
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=0, atol=2e-4, msg=name)


def test_precision_recomputation_and_compilation_options_train(inputs):
    for name, options in {
        "bf16": {"precision": "bf16"},
        "ckpt": {"gradient_checkpointing": True},
        "wsd": {"schedule": "wsd"},
    }.items():
        done = adapt(inputs / "model", inputs / "text.txt", inputs / name, config(steps=2, **options))
        assert math.isfinite(lines(done.out)[-1]["loss"])
    same = [lines(inputs / name)[1]["loss"] for name in ("ckpt", "wsd")]
    assert same[0] == pytest.approx(same[1], rel=1e-6)
    assert lines(inputs / "bf16")[1]["loss"] == pytest.approx(same[0], rel=0.02)


def test_every_phase_trains_in_the_requested_precision(inputs):
    common = {
        "precision": "bf16",
        "learning_rate": 1e-12,
        "embedding_learning_rate": 1e-12,
        "heldout": 0.0,
        "dtype": "float32",
    }
    losses = []
    for number, phases in enumerate(("all:3", "embeddings:1,all:1,embeddings:1")):
        done = adapt(inputs / "model", inputs / "text.txt", inputs / f"bf16-{number}", config(phases=phases, **common))
        losses.append([line["loss"] for line in lines(done.out)[1:]])
    assert losses[0] == losses[1]


@pytest.mark.real  # a minute of compilation
def test_compilation_changes_no_figure(inputs):
    plain, compiled = (
        adapt(inputs / "model", inputs / "text.txt", inputs / f"compiled-{flag}", config(steps=3, compile=flag))
        for flag in (False, True)
    )
    figures, expected = (
        [line[key] for line in lines(done.out)[1:] for key in ("loss", "gradient_norm")] for done in (compiled, plain)
    )
    assert figures == pytest.approx(expected, rel=1e-4)
    assert dict(compiled.heldout) == pytest.approx(dict(plain.heldout), rel=1e-4)


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_schedules(schedule):
    factor = rate_factor(AdaptConfig(schedule=schedule, warmup_steps=10, decay_share=0.25), 100)
    values = [factor(step) for step in range(101)]
    assert values[:10] == pytest.approx([(i + 1) / 11 for i in range(10)]) and values[10] == 1
    flat = {"cosine": 11, "wsd": 76, "constant": 101}[schedule]
    assert values[10:flat] == [1.0] * (flat - 10) and sorted(values[10:], reverse=True) == values[10:]
    assert values[99] > 0 and values[100] == (1 if schedule == "constant" else 0)


def test_early_stop_writes_the_best_weights(inputs):
    options = config(
        phases="all:12@1.0", schedule="constant", eval_steps=1, early_stop=2, dtype="float32", max_grad_norm=None
    )
    done = adapt(inputs / "model", inputs / "text.txt", inputs / "early", options)
    best = min(value for step, value in done.heldout if step)
    assert done.steps < 12 and done.steps - done.kept_step == 2 and dict(done.heldout)[done.kept_step] == best
    card = (done.out / "README.md").read_text()
    assert f"{best:.3f} after" in card and f"the weights are those of step {done.kept_step}" in card
    heldout = [text for text in Corpus(inputs / "text.txt") if is_heldout(text, 0.2)]
    assert evaluate(done.out, documents=heldout[:3], device="cpu").bits_per_byte < 1.5 * best


def test_early_stop_writes_the_best_weights_of_a_run_that_ends_by_itself(inputs):
    options = config(
        phases="all:3@1.0", schedule="constant", eval_steps=1, early_stop=9, dtype="float32", max_grad_norm=None
    )
    done = adapt(inputs / "model", inputs / "text.txt", inputs / "late", options)
    assert done.steps == 3 and done.kept_step == min(done.heldout[1:], key=lambda pair: pair[1])[0] < 3
    heldout = take_bytes([text for text in Corpus(inputs / "text.txt") if is_heldout(text, 0.2)], 2000)
    bits_per_byte = evaluate(done.out, documents=heldout, device="cpu").bits_per_byte
    assert bits_per_byte == pytest.approx(dict(done.heldout)[done.kept_step], rel=1e-9)


@pytest.mark.parametrize(("rate", "every"), [("1e5", 60), ("1e30", 1)])
def test_divergence_stops_and_names_the_last_checkpoint(inputs, rate, every):
    options = config(phases=f"all:60@{rate}", schedule="constant", warmup_steps=0, save_steps=2, eval_steps=every)
    out = inputs / f"diverged-{every}"
    with pytest.raises(BackendError, match=r"step \d+: .*checkpoint.*start over with lower learning rates"):
        adapt(inputs / "model", inputs / "text.txt", out, options)
    assert not (out / "config.json").exists()


def test_no_checkpoint_holds_weights_after_a_gradient_that_is_not_finite(inputs, monkeypatch):
    finish_step = AdaptTrainer._finish_step

    def finish_with_nan(trainer):
        finish_step(trainer)
        if trainer.step_done == 2:
            next(trainer.model.parameters()).grad[0, 0] = math.nan

    monkeypatch.setattr(AdaptTrainer, "_finish_step", finish_with_nan)
    options = config(steps=5, save_steps=1, heldout=0.0)
    with pytest.raises(
        BackendError, match=r"step 3: the gradient's norm is nan; the last good checkpoint is \S+step-2;"
    ):
        adapt(inputs / "model", inputs / "text.txt", inputs / "not-finite", options)
    assert sorted(path.name for path in (inputs / "not-finite" / "checkpoints").iterdir()) == ["step-1", "step-2"]


def test_every_text_format_gives_the_same_documents(tmp_path, inputs):
    datasets = pytest.importorskip("datasets")
    texts = list(Corpus(inputs / "text.txt"))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"content": t}) + "\n" for t in texts))
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write((tmp_path / "a.jsonl").read_text())
    table = datasets.Dataset.from_dict({"content": texts, "id": list(range(len(texts)))})
    table.to_parquet(tmp_path / "a.parquet")
    table.save_to_disk(tmp_path / "folder")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress((inputs / "text.txt").read_bytes()))
    (tmp_path / "hub").mkdir()
    shutil.copy(tmp_path / "a.jsonl", tmp_path / "hub" / "train.jsonl")
    for name in ("a.jsonl", "a.jsonl.gz", "a.parquet", "folder", f"dataset:{tmp_path / 'hub'},train"):
        corpus = Corpus(name if name.startswith("dataset:") else tmp_path / name, column="content")
        assert list(corpus) == texts and corpus.local == (not name.startswith("dataset:")), name
    assert list(Corpus([tmp_path / "a.txt.gz", inputs / "text.txt"])) == texts * 2
    assert list(Corpus(inputs / "text.txt", split_at="line")) == [line for t in texts for line in t.splitlines()]
    with pytest.raises(InputError, match=r"columns content.*--text-column"):
        list(Corpus(tmp_path / "a.jsonl"))
    for name in ("a.parquet", "folder"):
        with pytest.raises(InputError, match=r"columns content, id.*--text-column"):
            list(Corpus(tmp_path / name))


def test_an_error_in_the_middle_of_a_streamed_dataset_is_an_input_error(tmp_path, inputs):
    pytest.importorskip("datasets")
    texts = list(Corpus(inputs / "text.txt"))
    for name, more in (("a", ""), ("b", '{"content": "cut o')):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"content": t}) + "\n" for t in texts) + more)
    with pytest.raises(InputError, match=r"^text 'dataset:.*; try again, or download it first"):
        list(Corpus(f"dataset:{tmp_path},train", column="content"))


def test_held_out_documents_are_not_trained_on(inputs):
    text = read_text(inputs / "text.txt", None, None, {inputs / "english.txt": 0.5}, config())
    for corpus, keep, heldout in zip(text.corpora, text.keep, (text.heldout, text.source), strict=True):
        trained = {document for document in corpus if keep(document)}
        assert heldout and trained and not trained & set(heldout)
        assert len(trained) + sum(is_heldout(document, 0.2) for document in corpus) == len(list(corpus))


def test_held_out_text_is_kept_out_of_the_training_text_and_of_the_replayed_text(inputs, tmp_path):
    texts, english = list(Corpus(inputs / "text.txt")), list(Corpus(inputs / "english.txt"))
    for name, documents in {"eval": english[:3], "source": texts[:3]}.items():
        (tmp_path / name).write_text("\n\n".join(documents))
    replay = {inputs / "english.txt": 0.5}
    text = read_text(inputs / "text.txt", tmp_path / "eval", tmp_path / "source", replay, config(eval_bytes=10**6))
    kept = [
        [document for document in corpus if keep(document)]
        for corpus, keep in zip(text.corpora, text.keep, strict=True)
    ]
    assert kept == [texts[3:], english[3:]]


def assert_refused(inputs, tmp_path, match: str, **changed) -> None:
    given = {
        "model": inputs / "model",
        "texts": inputs / "text.txt",
        "out": tmp_path / "out",
        "config": config(steps=2),
        **changed,
    }
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=match):
        adapt(**given)
    assert sorted(tmp_path.rglob("*")) == before


def test_bad_input_is_refused_and_nothing_is_written(inputs, tmp_path):
    def file(name: str, content: bytes):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    cases = {
        "no text": {"texts": file("empty.txt", b"\n \n")},
        "a zero byte at offset 3": {"texts": file("binary.txt", b"abc\0def")},
        "byte 0xff at offset 4": {"texts": file("latin.txt", b"abc\n\xff")},
        "fewer tokens than one block": {"texts": file("short.txt", b"abc"), "config": config(steps=2, heldout=0.0)},
        "no such file": {"texts": tmp_path / "none.txt"},
        r"lone surrogate U\+D83D": {"texts": file("half.jsonl", b'{"text": "half \\ud83d"}')},
        "invalid block type": {"texts": file("broken.txt.gz", gzip.compress(b"abc")[:10] + b"\xff" * 30)},
        "line 1, which is no JSON": {"texts": file("bad.jsonl", b"{")},
        "share text with it": {"eval_texts": inputs / "text.txt"},
        "no such folder": {"model": tmp_path / "none"},
        "together below 1": {"replay": {inputs / "english.txt": 1.0}},
        "config.json": {"model": inputs},
        "at most the 256 positions": {"config": config(steps=2, seq_length=512)},
    }
    for match, changed in cases.items():
        assert_refused(inputs, tmp_path, match, **changed)
    (tmp_path / "existing").mkdir()
    (tmp_path / "existing/file").touch()
    assert_refused(inputs, tmp_path, "an existing folder", out=tmp_path / "existing")
    assert_refused(inputs, tmp_path, "an existing folder", out=tmp_path / "existing", resume=True)
    assert_refused(inputs, tmp_path, "input folder", out=inputs / "model" / "sub")


def test_a_tokenizer_with_ids_beyond_the_rows_is_refused(inputs, tmp_path):
    model = adapt_tiny.transferred(tmp_path / "model", rows=100)
    assert_refused(inputs, tmp_path, "ids below the model's 100 rows", model=model)


def test_phase_rows_needs_a_record_of_the_new_rows(inputs, tmp_path):
    model = adapt_tiny.transferred(tmp_path / "model")
    (model / "provenance.safetensors").unlink()
    assert_refused(
        inputs, tmp_path, "no record of where its rows came from", model=model, config=config(phases="rows:2")
    )


def test_overlapping_documents_can_be_left_out(inputs, tmp_path):
    texts = list(Corpus(inputs / "text.txt"))
    (tmp_path / "eval.txt").write_text("\n\n".join(texts[:9]))
    options = config(steps=2, drop_overlap=True)
    text = read_text(
        inputs / "text.txt", tmp_path / "eval.txt", None, {}, dataclasses.replace(options, eval_bytes=10**6)
    )
    assert [document for document in text.corpora[0] if text.keep[0](document)] == texts[9:]
    done = adapt(inputs / "model", inputs / "text.txt", tmp_path / "out", options, eval_texts=tmp_path / "eval.txt")
    assert len(done.heldout) == 3


@pytest.mark.parametrize(
    "options",
    [
        {"phases": "rows"},
        {"phases": "rows:0"},
        {"phases": "row:3"},
        {"phases": "all:3@-1"},
        {"phases": "all:3@x"},
        {"phases": ""},
        {"steps": 0},
        {"seq_length": 4},
        {"schedule": "cosin"},
        {"precision": "fp8"},
        {"heldout": 0.7},
        {"learning_rate": float("nan")},
        {"weight_decay": -1.0},
        {"seed": -1},
        {"decay_share": 0.0},
        {"device": "tpu"},
        {"steps": 2.5},
        {"batch_size": "2"},
        {"learning_rate": "1e-4"},
        {"heldout": None},
        {"seed": 0.5},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(InputError):
        AdaptConfig(**options)


def test_phases_count_their_steps():
    phases = AdaptConfig(phases="rows:3@1e-2, embeddings:5,all:7@1e-4/5e-4").schedule_of_phases
    assert [(p.name, p.start, p.steps, p.learning_rate, p.embedding_learning_rate) for p in phases] == [
        ("rows", 0, 3, 1e-2, 1e-2),
        ("embeddings", 3, 5, 1e-4, 1e-3),
        ("all", 8, 7, 1e-4, 5e-4),
    ]
    assert np.isclose(AdaptConfig().schedule_of_phases[0].steps, 1000)
