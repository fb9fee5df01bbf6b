"""The recipe: what is trained and what is not, what is measured, what is written, what is refused."""

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
from saltlm.adaptation.packing import Mixture, Packer, Stream, collate
from saltlm.adaptation.phases import rate_factor
from saltlm.adaptation.run import adapt
from saltlm.adaptation.training import AdaptTrainer
from saltlm.errors import BackendError, InputError
from saltlm.evaluation.evaluate import evaluate
from saltlm.text.corpus import Corpus, is_heldout, take_bytes

SMALL = {"seq_length": 32, "batch_size": 2, "device": "cpu", "heldout": 0.2, "eval_bytes": 2000}


def config(**options) -> AdaptConfig:
    return AdaptConfig(**{**SMALL, **options})


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapt")
    adapt_tiny.transferred(folder / "model", dtype=torch.float16)
    adapt_tiny.text_file(folder / "text.txt", 80)
    adapt_tiny.text_file(folder / "english.txt", 40, seed=5)
    return folder


@pytest.fixture(scope="module")
def three_phases(place):
    seen = []
    done = adapt(
        place / "model", place / "text.txt", place / "three", replay={place / "english.txt": 0.25}, progress=seen.append,
        config=config(phases="rows:3,embeddings:2@2e-3,all:4@1e-3/2e-3", accumulate=2, weight_decay=0.1, eval_steps=3),
    )  # fmt: skip
    return done, seen


def test_the_output_is_a_model_folder_that_stock_transformers_loads(place, three_phases):
    done, _ = three_phases
    model = AutoModelForCausalLM.from_pretrained(done.out)
    assert model.dtype == torch.float16  # as the checkpoint was
    before, after = (
        AutoTokenizer.from_pretrained(place / name).backend_tokenizer.to_str() for name in ("model", "three")
    )
    assert before == after
    names = {path.name for path in done.out.iterdir()}
    assert {"config.json", "provenance.safetensors", "README.md", "saltlm.json", "metrics.jsonl", "curve.png"} <= names
    assert list(done.out.glob("tensorboard/events.*"))
    assert not names & {"checkpoints", "optimizer.pt"} and not list(place.glob(".three*"))
    assert json.loads((done.out / "config.json").read_text()) == json.loads((place / "model/config.json").read_text())
    record = json.loads((done.out / "saltlm.json").read_text())["adapted"]
    assert record["steps"] == 9 and record["config"]["weight_decay"] == 0.1
    card = (done.out / "README.md").read_text()
    assert "It has not been adapted yet" not in card and "before," in card


def test_a_line_a_step_and_a_report_a_step(three_phases):
    done, seen = three_phases
    found = lines(done.out)
    assert [line["step"] for line in found] == list(range(10)) == [report.step for report in seen]
    assert [line["phase"] for line in found[1:]] == ["rows"] * 3 + ["embeddings"] * 2 + ["all"] * 4
    assert all(math.isfinite(line["loss"]) and line["bits_per_byte"] > 0 for line in found[1:])
    assert [step for step, _ in done.heldout] == [0, 3, 5, 6, 9] == [step for step, _ in done.source]
    rates = [line["learning_rates"] for line in found[1:]]
    assert set(rates[0]) == {"vocabulary"} and set(rates[-1]) == {"vocabulary", "body", "scales"}
    assert rates[5]["vocabulary"] == pytest.approx(2 * rates[5]["body"]) and max(r["vocabulary"] for r in rates) <= 2e-3
    assert done.tokens == found[-1]["tokens"] and seen[-1].seconds_left == 0


def test_bits_per_byte_are_those_of_evaluate(place, three_phases):
    done, _ = three_phases
    heldout = [text for text in Corpus(place / "text.txt") if is_heldout(text, 0.2)]
    taken, size = [], 0
    for text in heldout:
        taken.append(text)
        size += len(text.encode())
        if size >= 2000:
            break
    before = evaluate(place / "model", documents=taken, device="cpu")
    assert done.heldout[0][1] == before.bits_per_byte
    exact = adapt(place / "model", place / "text.txt", place / "exact", config(steps=2, dtype="float32"))
    after = evaluate(exact.out, documents=taken, device="cpu")
    assert exact.heldout[-1][1] == pytest.approx(after.bits_per_byte, rel=1e-12)


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("kind", ["llama", "phi"])
def test_the_phase_rows_moves_new_rows_alone(tmp_path, place, kind):
    source = adapt_tiny.transferred(tmp_path / "model", kind, dtype=torch.bfloat16)
    rates = config(phases="rows:3@0.5", weight_decay=0.3)
    out = adapt(source, place / "text.txt", tmp_path / "out", rates).out
    before, after = weights(source), weights(out)
    assert set(before) == set(after)
    vocabulary = {
        "llama": {"model.embed_tokens.weight"},
        "phi": {"model.embed_tokens.weight", "lm_head.weight", "lm_head.bias"},
    }
    for name, old in before.items():
        new = after[name]
        assert new.dtype == old.dtype
        if name not in vocabulary[kind]:
            assert torch.equal(old.view(torch.uint8), new.view(torch.uint8)), name
            continue
        trained = torch.arange(len(old)) % 3 == 0
        assert torch.equal(old[~trained].view(torch.uint8), new[~trained].view(torch.uint8)), name
        assert (old[trained] != new[trained]).float().mean() > 0.9, name


def test_the_first_steps_are_those_of_a_bare_loop(place):
    """Two steps of stock transformers and torch, over the same blocks, give the same losses and weights."""
    options = config(
        phases="all:2@1e-3", schedule="constant", warmup_steps=0, accumulate=2, heldout=0.0, dtype="float32"
    )
    done = adapt(place / "model", place / "text.txt", place / "bare", options)
    model = AutoModelForCausalLM.from_pretrained(place / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    stream = Stream(lambda: iter(Corpus(place / "text.txt")), Packer(tokenizer, rows=len(tokenizer), length=32), seed=0)
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
    for name, found in weights(done.out).items():
        torch.testing.assert_close(found, model.state_dict()[name], rtol=0, atol=2e-4, msg=name)


def test_precision_recomputation_and_compilation_options_train(place):
    for name, options in {
        "bf16": {"precision": "bf16"}, "ckpt": {"gradient_checkpointing": True}, "wsd": {"schedule": "wsd"},
    }.items():  # fmt: skip
        done = adapt(place / "model", place / "text.txt", place / name, config(steps=2, **options))
        assert math.isfinite(lines(done.out)[-1]["loss"])
    same = [lines(place / name)[1]["loss"] for name in ("ckpt", "wsd")]
    assert same[0] == pytest.approx(same[1], rel=1e-6)
    assert lines(place / "bf16")[1]["loss"] == pytest.approx(same[0], rel=0.02)


def test_every_phase_runs_in_the_precision_asked_for(place):
    common = {
        "precision": "bf16",
        "learning_rate": 1e-12,
        "embedding_learning_rate": 1e-12,
        "heldout": 0.0,
        "dtype": "float32",
    }
    losses = []
    for number, phases in enumerate(("all:3", "embeddings:1,all:1,embeddings:1")):
        done = adapt(place / "model", place / "text.txt", place / f"bf16-{number}", config(phases=phases, **common))
        losses.append([line["loss"] for line in lines(done.out)[1:]])
    assert losses[0] == losses[1]


@pytest.mark.real  # a minute of compilation
def test_a_compiled_body_trains_the_same(place):
    plain, compiled = (
        adapt(place / "model", place / "text.txt", place / f"compiled-{word}", config(steps=3, compile=word))
        for word in (False, True)
    )
    found, expected = (
        [line[key] for line in lines(done.out)[1:] for key in ("loss", "gradient_norm")] for done in (compiled, plain)
    )
    assert found == pytest.approx(expected, rel=1e-4)
    assert dict(compiled.heldout) == pytest.approx(dict(plain.heldout), rel=1e-4)


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_schedules(schedule):
    factor = rate_factor(AdaptConfig(schedule=schedule, warmup_steps=10, decay_share=0.25), 100)
    values = [factor(step) for step in range(101)]
    assert values[:10] == pytest.approx([(i + 1) / 11 for i in range(10)]) and values[10] == 1
    flat = {"cosine": 11, "wsd": 76, "constant": 101}[schedule]
    assert values[10:flat] == [1.0] * (flat - 10) and sorted(values[10:], reverse=True) == values[10:]
    assert values[99] > 0 and values[100] == (1 if schedule == "constant" else 0)


def test_early_stop_keeps_the_best(place):
    options = config(
        phases="all:12@1.0", schedule="constant", eval_steps=1, early_stop=2, dtype="float32", max_grad_norm=None
    )
    done = adapt(place / "model", place / "text.txt", place / "early", options)
    best = min(value for step, value in done.heldout if step)
    assert done.steps < 12 and done.steps - done.kept_step == 2 and dict(done.heldout)[done.kept_step] == best
    card = (done.out / "README.md").read_text()
    assert f"{best:.3f} after" in card and f"the weights are those of step {done.kept_step}" in card
    heldout = [text for text in Corpus(place / "text.txt") if is_heldout(text, 0.2)]
    assert evaluate(done.out, documents=heldout[:3], device="cpu").bits_per_byte < 1.5 * best


def test_the_best_is_kept_though_no_early_stop_comes(place):
    options = config(
        phases="all:3@1.0", schedule="constant", eval_steps=1, early_stop=9, dtype="float32", max_grad_norm=None
    )
    done = adapt(place / "model", place / "text.txt", place / "late", options)
    assert done.steps == 3 and done.kept_step == min(done.heldout[1:], key=lambda pair: pair[1])[0] < 3
    heldout = take_bytes([text for text in Corpus(place / "text.txt") if is_heldout(text, 0.2)], 2000)
    found = evaluate(done.out, documents=heldout, device="cpu").bits_per_byte
    assert found == pytest.approx(dict(done.heldout)[done.kept_step], rel=1e-9)


@pytest.mark.parametrize(("rate", "every"), [("1e5", 60), ("1e30", 1)])
def test_divergence_stops_and_names_the_last_checkpoint(place, rate, every):
    options = config(phases=f"all:60@{rate}", schedule="constant", warmup_steps=0, save_steps=2, eval_steps=every)
    out = place / f"diverged-{every}"
    with pytest.raises(BackendError, match=r"step \d+: .*checkpoint.*start over with lower learning rates"):
        adapt(place / "model", place / "text.txt", out, options)
    assert not (out / "config.json").exists()


def test_a_spoilt_gradient_gets_into_no_checkpoint(place, monkeypatch):
    stock = AdaptTrainer._finish_step

    def spoil(trainer):
        stock(trainer)
        if trainer.step_done == 2:
            next(trainer.model.parameters()).grad[0, 0] = math.nan

    monkeypatch.setattr(AdaptTrainer, "_finish_step", spoil)
    options = config(steps=5, save_steps=1, heldout=0.0)
    with pytest.raises(
        BackendError, match=r"step 3: the gradient's norm is nan; the last good checkpoint is \S+step-2;"
    ):
        adapt(place / "model", place / "text.txt", place / "spoilt", options)
    assert sorted(path.name for path in (place / "spoilt" / "checkpoints").iterdir()) == ["step-1", "step-2"]


def test_other_kinds_of_text_give_the_same_blocks(tmp_path, place):
    datasets = pytest.importorskip("datasets")
    texts = list(Corpus(place / "text.txt"))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"content": t}) + "\n" for t in texts))
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write((tmp_path / "a.jsonl").read_text())
    table = datasets.Dataset.from_dict({"content": texts, "id": list(range(len(texts)))})
    table.to_parquet(tmp_path / "a.parquet")
    table.save_to_disk(tmp_path / "folder")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress((place / "text.txt").read_bytes()))
    (tmp_path / "hub").mkdir()
    shutil.copy(tmp_path / "a.jsonl", tmp_path / "hub" / "train.jsonl")
    for name in ("a.jsonl", "a.jsonl.gz", "a.parquet", "folder", f"dataset:{tmp_path / 'hub'},train"):
        found = Corpus(name if name.startswith("dataset:") else tmp_path / name, column="content")
        assert list(found) == texts and found.local == (not name.startswith("dataset:")), name
    assert list(Corpus([tmp_path / "a.txt.gz", place / "text.txt"])) == texts * 2
    assert list(Corpus(place / "text.txt", split_at="line")) == [line for t in texts for line in t.splitlines()]
    with pytest.raises(InputError, match=r"columns content.*--text-column"):
        list(Corpus(tmp_path / "a.jsonl"))
    for name in ("a.parquet", "folder"):
        with pytest.raises(InputError, match=r"columns content, id.*--text-column"):
            list(Corpus(tmp_path / name))


def test_a_streamed_dataset_that_breaks_off_is_one_error(tmp_path, place):
    pytest.importorskip("datasets")
    texts = list(Corpus(place / "text.txt"))
    for name, more in (("a", ""), ("b", '{"content": "cut o')):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"content": t}) + "\n" for t in texts) + more)
    with pytest.raises(InputError, match=r"^text 'dataset:.*; try again, or download it first"):
        list(Corpus(f"dataset:{tmp_path},train", column="content"))


def test_nothing_that_is_held_out_is_trained_on(place):
    from saltlm.adaptation.run import _read_text

    text = _read_text(place / "text.txt", None, None, {place / "english.txt": 0.5}, config())
    for corpus, keep, heldout in zip(text.corpora, text.keep, (text.heldout, text.source), strict=True):
        trained = {document for document in corpus if keep(document)}
        assert heldout and trained and not trained & set(heldout)
        assert len(trained) + sum(is_heldout(document, 0.2) for document in corpus) == len(list(corpus))


def test_each_held_out_text_is_kept_from_both_kinds(place, tmp_path):
    from saltlm.adaptation.run import _read_text

    texts, english = list(Corpus(place / "text.txt")), list(Corpus(place / "english.txt"))
    for name, documents in {"eval": english[:3], "source": texts[:3]}.items():
        (tmp_path / name).write_text("\n\n".join(documents))
    replay = {place / "english.txt": 0.5}
    text = _read_text(place / "text.txt", tmp_path / "eval", tmp_path / "source", replay, config(eval_bytes=10**6))
    kept = [
        [document for document in corpus if keep(document)]
        for corpus, keep in zip(text.corpora, text.keep, strict=True)
    ]
    assert kept == [texts[3:], english[3:]]


def refused(place, tmp_path, match: str, **changed) -> None:
    given = {
        "model": place / "model",
        "texts": place / "text.txt",
        "out": tmp_path / "out",
        "config": config(steps=2),
        **changed,
    }
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=match):
        adapt(**given)
    assert sorted(tmp_path.rglob("*")) == before


def test_bad_input_is_refused_and_nothing_is_written(place, tmp_path):
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
        "share text with it": {"eval_texts": place / "text.txt"},
        "no such folder": {"model": tmp_path / "none"},
        "together below 1": {"replay": {place / "english.txt": 1.0}},
        "config.json": {"model": place},
        "at most the 256 positions": {"config": config(steps=2, seq_length=512)},
    }
    for match, changed in cases.items():
        refused(place, tmp_path, match, **changed)
    (tmp_path / "there").mkdir()
    (tmp_path / "there/file").touch()
    refused(place, tmp_path, "an existing folder", out=tmp_path / "there")
    refused(place, tmp_path, "an existing folder", out=tmp_path / "there", resume=True)
    refused(place, tmp_path, "input folder", out=place / "model" / "sub")


def test_a_tokenizer_that_disagrees_is_refused(place, tmp_path):
    model = adapt_tiny.transferred(tmp_path / "model", rows=100)
    refused(place, tmp_path, "ids below the model's 100 rows", model=model)


def test_rows_need_a_folder_that_knows_them(place, tmp_path):
    model = adapt_tiny.transferred(tmp_path / "model")
    (model / "provenance.safetensors").unlink()
    refused(place, tmp_path, "no record of where its rows came from", model=model, config=config(phases="rows:2"))


def test_overlap_can_be_dropped(place, tmp_path):
    texts = list(Corpus(place / "text.txt"))
    (tmp_path / "eval.txt").write_text("\n\n".join(texts[:9]))
    from saltlm.adaptation.run import _read_text

    options = config(steps=2, drop_overlap=True)
    text = _read_text(
        place / "text.txt", tmp_path / "eval.txt", None, {}, dataclasses.replace(options, eval_bytes=10**6)
    )
    assert [document for document in text.corpora[0] if text.keep[0](document)] == texts[9:]
    done = adapt(place / "model", place / "text.txt", tmp_path / "out", options, eval_texts=tmp_path / "eval.txt")
    assert len(done.heldout) == 3


@pytest.mark.parametrize(
    "options",
    [
        {"phases": "rows"}, {"phases": "rows:0"}, {"phases": "row:3"}, {"phases": "all:3@-1"}, {"phases": "all:3@x"},
        {"phases": ""}, {"steps": 0}, {"seq_length": 4}, {"schedule": "cosin"}, {"precision": "fp8"}, {"heldout": 0.7},
        {"learning_rate": float("nan")}, {"weight_decay": -1.0}, {"seed": -1}, {"decay_share": 0.0}, {"device": "tpu"},
        {"steps": 2.5}, {"batch_size": "2"}, {"learning_rate": "1e-4"}, {"heldout": None}, {"seed": 0.5},
    ],
)  # fmt: skip
def test_options_out_of_range(options):
    with pytest.raises(InputError):
        AdaptConfig(**options)


def test_phases_count_their_steps():
    phases = AdaptConfig(phases="rows:3@1e-2, embeddings:5,all:7@1e-4/5e-4").schedule_of_phases
    assert [(p.name, p.start, p.steps, p.learning_rate, p.embedding_learning_rate) for p in phases] == [
        ("rows", 0, 3, 1e-2, 1e-2), ("embeddings", 3, 5, 1e-4, 1e-3), ("all", 8, 7, 1e-4, 5e-4),
    ]  # fmt: skip
    assert np.isclose(AdaptConfig().schedule_of_phases[0].steps, 1000)
