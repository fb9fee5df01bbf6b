"""Options chosen by a text: the choice is the trial of fewest bits, and a trial measures the rows that a transfer writes."""

from __future__ import annotations

import json
import math
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from models_tiny import save
from safetensors.torch import load_file, save_file
from tokenizers_tiny import tiny

from saltlm.adaptation.config import AdaptConfig
from saltlm.cli.main import main
from saltlm.comparison.config import CompareConfig, parse_cells, plain_transfer
from saltlm.comparison.run import compare
from saltlm.config import TransferConfig
from saltlm.errors import InputError
from saltlm.evaluation.evaluate import evaluate
from saltlm.pipeline import transfer
from saltlm.rows import tune_text
from saltlm.rows.tune import TEXT_GRID, effective_values, free_options, search
from saltlm.rows.tune_text import MAX_DOCUMENT, TEXT_BYTES, check_text, sample, size_of
from saltlm.text.documents import read_documents, read_text

WORDS = "kissa istuu puun alla ja katsoo koiraa joka juoksee rannalla hitaasti kotiin päin"


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(f"{number} {WORDS}" for number in range(30)) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("fixture", ["pair", "untied"])
def test_the_choice_has_the_fewest_bits_and_each_trial_measures_the_rows_of_a_transfer(
    fixture, request, text, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(tune_text, "GAIN", 0.0)
    models = request.getfixturevalue(fixture)

    def run(out=None, **options):
        return transfer(models.source, models.target, None, out, TransferConfig(heldout=0.0, **options))

    done = run(tmp_path / "out", tune_text=str(text))
    saved = json.loads((tmp_path / "out" / "saltlm.json").read_text(encoding="utf-8"))
    tuning = saved["tuning"]
    best = min(tuning["trials"], key=lambda trial: trial["bits_per_byte"])
    assert tuning["choice"] == best["options"] and tuning["text"]["bytes"] <= TEXT_BYTES + MAX_DOCUMENT
    assert len(tuning["trials"]) > 5 and set(tuning["choice"]) == {"blend_length", "blend_weight", "ridge"}
    plain = run(tmp_path / "plain", **tuning["choice"])
    assert torch.equal(plain.input_rows, done.input_rows)
    documents = sample(read_documents(text), TEXT_BYTES)
    for trial, folder in ((best, "out"), (tuning["trials"][0], "first"), (tuning["trials"][-1], "last")):
        if folder != "out":
            run(tmp_path / folder, **trial["options"])
        bits = evaluate(tmp_path / folder, documents=documents).bits_per_byte
        assert bits == pytest.approx(trial["bits_per_byte"], rel=1e-6)
    assert {name: saved["config"][name] for name in tuning["choice"]} == tuning["choice"]


def test_a_text_chooses_for_other_methods_and_with_an_old_vocabulary_kept(pair, text, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tune_text, "GAIN", 0.0)
    documents = sample(read_documents(text), TEXT_BYTES)
    for options in (
        {"method": "salt"},
        {"method": "ridge-map", "keep_source_vocabulary": True, "pad_to_multiple_of": 64},
    ):
        config = TransferConfig(heldout=0.0, tune_text=str(text), **options)
        done = transfer(pair.source, pair.target, pair.vectors, tmp_path / options["method"], config)
        tuning = done.summary["tuning"]
        best = min(tuning["trials"], key=lambda trial: trial["bits_per_byte"])
        assert tuning["choice"] == best["options"]
        bits = evaluate(done.out, documents=documents).bits_per_byte
        assert bits == pytest.approx(best["bits_per_byte"], rel=1e-6)
        assert all(math.isfinite(trial["bits_per_byte"]) for trial in tuning["trials"])


@given(
    st.lists(st.text(st.characters(codec="utf-8", categories=["L"]), min_size=1, max_size=40), min_size=1, max_size=60)
)
def test_a_sample_has_documents_in_order(documents: list[str]) -> None:
    documents = [document * 30 for document in documents]
    if size_of(documents) < 500:
        with pytest.raises(InputError, match="at least 500"):
            sample(documents, TEXT_BYTES)
        return
    chosen = sample(documents, TEXT_BYTES)
    assert chosen == sample(documents, TEXT_BYTES)
    whole = size_of([document[:MAX_DOCUMENT] for document in documents])
    if whole < TEXT_BYTES:  # the rest of a document counts as documents
        documents = [
            document[at : at + MAX_DOCUMENT] for document in documents for at in range(0, len(document), MAX_DOCUMENT)
        ]
    cut = iter(document[:MAX_DOCUMENT] for document in documents)
    assert all(any(one == other for other in cut) for one in chosen)  # a subsequence
    assert min(whole, TEXT_BYTES) <= size_of(chosen) < TEXT_BYTES + 4 * MAX_DOCUMENT


@pytest.fixture(scope="module")
def loud(untied, tmp_path_factory) -> Path:
    """A source model with head rows so long that shorter ones predict better, for any drawn rows."""
    folder = tmp_path_factory.mktemp("loud") / "source"
    shutil.copytree(untied.source, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] *= 8
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_an_option_stays_unless_another_value_gains_enough(untied, loud, text, monkeypatch) -> None:
    def tuning(gain: float):
        monkeypatch.setattr(tune_text, "GAIN", gain)
        config = TransferConfig(heldout=0.0, tune_text=str(text))
        return transfer(loud, untied.target, config=config).summary["tuning"]

    free = tuning(0.0)
    worst, least = (choose(trial["bits_per_byte"] for trial in free["trials"]) for choose in (max, min))
    first = free["trials"][0]["bits_per_byte"]
    assert least < first and set(free["choice"].values()) != {None}
    assert set(tuning(worst - least)["choice"].values()) == {None}
    gain = (first - least) / 2
    some = tuning(gain)
    bits = {tuple(trial["options"].values()): trial["bits_per_byte"] for trial in some["trials"]}
    chosen = some["choice"]
    for name, values in TEXT_GRID.items():
        for value in values if name in chosen else ():
            other = tuple({**chosen, name: value}.values())
            assert bits.get(other, math.inf) >= bits[tuple(chosen.values())] - gain


@given(st.lists(st.integers(0, 50), min_size=18, max_size=18))
def test_a_search_ends_with_the_best_of_its_trials(values: list[int]) -> None:
    grid = {"blend_length": (None, 1.2, 2.0), "blend_weight": (None, 0.2, 0.8), "ridge": (None, 0.1)}
    keys = [(a, b, c) for a in grid["blend_length"] for b in grid["blend_weight"] for c in grid["ridge"]]
    merits = dict(zip(keys, values, strict=True))
    seen: dict[tuple, int] = {}

    def merit(options) -> int:
        return seen.setdefault(tuple(options.values()), merits[tuple(options.values())])

    best = tuple(search(grid, TransferConfig(), merit).values())
    assert (None, None, None) in seen and merits[best] == max(seen.values())


def test_an_option_left_open_and_one_set_alike_are_one_trial() -> None:
    auto = TransferConfig()
    assert (
        effective_values(auto, {"blend_length": None})
        == effective_values(auto, {"blend_length": 1.4})
        != effective_values(auto, {"blend_length": 1.0})
    )
    blend = TransferConfig(method="blend")
    assert effective_values(blend, {"blend_length": None}) == effective_values(blend, {"blend_length": 1.0})
    assert set(free_options(TransferConfig(tune_text="x"))) == {"blend_length", "blend_weight", "ridge"}
    assert free_options(TransferConfig(tune_text="x", blend_length=1.0))["blend_weight"] == TEXT_GRID["blend_weight"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--tune-text no-such.txt", "no such file"),
        ("--tune-text TEXT --tune", "tune: found with tune_text"),
        ("--tune-text TEXT --method mean", "tune_text: found method 'mean' with no option left"),
        ("--tune-text SHORT", "tune_text: found 11 bytes of text; expected at least 500"),
        ("--blend-length 0", "blend_length: found 0.0; expected a number in (0, 4]"),
        ("--blend-length nan", "blend_length: found nan"),
        ("--blend-length 1.2 --method salt", "blend_length: found 1.2 for method 'salt', which has no use for it"),
    ],
)
def test_bad_input_is_one_error_and_writes_nothing(options: str, message: str, pair, text, tmp_path, capsys) -> None:
    (tmp_path / "short.txt").write_text("kissa istuu\n\n", encoding="utf-8")
    words = options.replace("TEXT", str(text)).replace("SHORT", str(tmp_path / "short.txt")).split()
    given_ = ["--source", str(pair.source), "--target", str(pair.target), "--out", str(tmp_path / "out"), *words]
    if "salt" in words:
        given_ += ["--auxiliary", str(pair.vectors)]
    assert main(["transfer", "--quiet", *given_]) == 2
    assert message in " ".join(capsys.readouterr().err.split()) and not (tmp_path / "out").exists()


def test_a_job_is_not_skipped_once_its_text_has_changed(pair, text, tmp_path, capsys) -> None:
    copy, jobs = tmp_path / "copy.txt", tmp_path / "jobs.toml"
    copy.write_bytes(text.read_bytes())
    jobs.write_text(
        f'[[job]]\nsource = "{pair.source}"\ntarget = "{pair.target}"\nout = "{tmp_path / "out"}"\ntune_text = "{copy}"\n',
        encoding="utf-8",
    )
    assert main(["batch", str(jobs), "--quiet"]) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert main(["batch", str(jobs), "--dry-run", "--json"]) == 0
    assert [job["status"] for job in json.loads(capsys.readouterr().out)["jobs"]] == ["skipped"]
    copy.write_text(copy.read_text(encoding="utf-8") + "\nlisää\n", encoding="utf-8")
    assert main(["batch", str(jobs), "--dry-run"]) == 2
    assert "copy.txt has changed" in " ".join(capsys.readouterr().err.split())


def test_a_comparison_tunes_once_and_never_on_its_evaluation_text(pair, text, tmp_path) -> None:
    heldout, training = tmp_path / "heldout.txt", tmp_path / "training.txt"
    documents = [f"{number} {WORDS} {number}" for number in range(400)]
    heldout.write_text("\n\n".join(documents[:40]), encoding="utf-8")
    training.write_text("\n\n".join(documents[40:]), encoding="utf-8")
    seen = []

    def run(tuning_text: Path):
        seen.append(tuning_text)
        return compare(
            pair.source,
            pair.target,
            None,
            ["auto", "auto:tune-text=none", f"auto:tune-text={tuning_text}"],
            training,
            tmp_path / str(len(seen)),
            CompareConfig(probe_steps=2, seeds=2),
            eval_texts=heldout,
            adapt_config=AdaptConfig(seq_length=16, drop_overlap=True),
        ).content["results"]

    results = run(training)
    tuned = [result for result in results if "txt" in result["method"]]
    assert len(tuned) == 2 and tuned[0]["tuning"] == tuned[1]["tuning"]
    assert set(tuned[0]["tuning"]) == {"blend_length", "blend_weight", "ridge"}
    assert all(
        result["tuning"] is None for result in results if result["method"] in ("original", "auto:tune-text=none")
    )
    by_text = [result for result in results if result["method"] == "auto"]  # tuned by the training text
    assert [result["tuning"] for result in by_text] == [result["tuning"] for result in tuned]
    assert [result["bits_per_byte"] for result in by_text] == [result["bits_per_byte"] for result in tuned]
    assert [result["same_as"] for result in tuned] == ["auto", "auto"]
    both = tmp_path / "both.txt"
    both.write_bytes(heldout.read_bytes() + b"\n\n" + training.read_bytes())
    again = [result for result in run(both) if "txt" in result["method"]]
    assert again[0]["tuning"] == tuned[0]["tuning"]
    with pytest.raises(
        InputError, match=r"^method 'auto:tune-text=.*heldout.txt': tune_text: found nothing in .*heldout"
    ):
        run(heldout)


def test_only_the_beginning_of_a_large_text_is_read(text, tmp_path, monkeypatch) -> None:
    """The sample and the digest do not depend on the rest of the file."""
    size = len(text.read_bytes())
    monkeypatch.setattr(tune_text, "READ_BYTES", size)
    longer = tmp_path / "longer.txt"
    longer.write_bytes(text.read_bytes() + b"\n\n" + b"something else\n\n" * 9)
    assert tune_text.digest_of(longer) == tune_text.digest_of(text) == sha256(text.read_bytes()).hexdigest()
    assert check_text(str(longer)) == check_text(str(text))


@given(st.text(max_size=40), st.integers(0, 60))
def test_a_limit_cuts_at_a_line_or_a_character(tmp_path_factory, whole, limit) -> None:
    whole = whole.replace("\0", "").removeprefix("\ufeff")
    path = tmp_path_factory.mktemp("limit") / "text.txt"
    data = whole.encode(errors="ignore")
    path.write_bytes(data)
    whole, beginning = data.decode(), read_text(path, limit)
    assert whole.startswith(beginning) and len(beginning.encode()) <= limit
    if len(data) <= limit:
        assert beginning == whole
    elif b"\n" in data[:limit]:
        assert beginning.encode() == data[: data[:limit].rfind(b"\n") + 1]
    else:
        assert len(beginning.encode()) > limit - 8


def test_a_sample_of_one_long_document_has_parts_of_all_of_it() -> None:
    document = "".join(f"{number:05}" for number in range(4 * MAX_DOCUMENT))
    chosen = sample([document], TEXT_BYTES)
    assert size_of(chosen) == TEXT_BYTES and len(set(chosen)) == TEXT_BYTES // MAX_DOCUMENT
    assert all(part in document for part in chosen) and chosen == sorted(chosen)
    assert sample(["", document[:600], ""], TEXT_BYTES) == [document[:600]]


def test_an_error_of_every_trial_is_reported(pair, text, monkeypatch) -> None:

    def broken(*_, **__):
        raise InputError("model 'x': found no token for the whole text")

    monkeypatch.setattr(tune_text, "evaluate", broken)
    with pytest.raises(InputError, match=r"^tune_text: no choice can score it: model 'x': found no token"):
        transfer(pair.source, pair.target, config=TransferConfig(heldout=0.0, tune_text=str(text)))


def test_a_short_text_is_refused_before_loading(pair, tmp_path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("kissa istuu\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"^tune_text: found 11 bytes"):
        transfer(tmp_path / "no-source", pair.target, config=TransferConfig(tune_text=str(short)))


def test_no_job_of_a_batch_replaces_the_tuning_text_of_another(pair, text, tmp_path, capsys) -> None:
    folder, jobs = tmp_path / "model", tmp_path / "jobs.toml"
    folder.mkdir()
    (folder / "saltlm.json").write_text("{}", encoding="utf-8")
    (folder / "text.txt").write_bytes(text.read_bytes())
    common = f'source = "{pair.source}"\ntarget = "{pair.target}"\n'
    jobs.write_text(
        f'[[job]]\n{common}out = "{tmp_path / "new"}"\ntune_text = "{folder / "text.txt"}"\n'
        f'[[job]]\n{common}out = "{folder}"\nforce = true\n',
        encoding="utf-8",
    )
    assert main(["batch", str(jobs), "--dry-run"]) == 2
    assert "that it holds the input file" in " ".join(capsys.readouterr().err.split())


def test_the_card_describes_the_choice_and_the_blend(pair, text, tmp_path) -> None:
    config = TransferConfig(method="blend", heldout=0.2, tune_text=str(text), blend_weight=0.2)
    done = transfer(pair.source, pair.target, None, tmp_path / "out", config)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    length = done.summary["blend"]["length"]
    assert f"(weight 0.2) and a regression (the rest), {length:g} times" in card
    size = done.summary["tuning"]["text"]["bytes"]
    assert f"Options chosen by bits per byte on {size:,} bytes" in card
    assert "chosen by this score" not in card and "None" not in card.partition("## Rows")[2]


def test_with_few_anchors_the_summary_has_no_blend(pair, text, tmp_path, monkeypatch) -> None:
    donor = tiny("sentencepiece_unigram")
    sizes = {"hidden_size": 1024, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = transformers.BertConfig(vocab_size=len(donor), pad_token_id=None, **sizes)
    wide = save(tmp_path / "wide", "BertModel", config, donor, dtype=torch.float32)
    done = transfer(pair.source, wide, config=TransferConfig(heldout=0.0))
    assert done.summary["anchors"] < 1024 and done.summary["counts"]["solved"] == 0
    assert "blend" not in done.summary
    measured = []

    def counted(model, documents):
        measured.append(len(documents))
        return evaluate(model, documents=documents)

    monkeypatch.setattr(tune_text, "evaluate", counted)  # all choices make the same rows, which are measured once
    tuned = transfer(pair.source, wide, config=TransferConfig(heldout=0.0, tune_text=str(text)))
    assert len(measured) == 1 < len(tuned.summary["tuning"]["trials"]) and torch.equal(
        tuned.input_rows, done.input_rows
    )
    assert transfer(pair.source, pair.target, config=TransferConfig(method="blend")).summary["blend"]["length"] == 1


def test_cells_without_free_options_are_not_tuned() -> None:
    cells = parse_cells(["auto", "mean", "mean:tune-text=b"], TransferConfig(tune_text="a"))
    assert [cell.config.tune_text for cell in cells[1:]] == ["a", None, "b"]
    assert [cell.config.tune for cell in parse_cells(["auto", "mean"], TransferConfig(tune=True))[1:]] == [True, False]


def test_auto_with_default_options_is_tuned_by_the_training_text() -> None:

    def tunes(*labels: str, **base: object) -> list[bool]:
        return [cell.tunes for cell in parse_cells(labels, TransferConfig(**base))[1:]]

    assert tunes("auto", "auto:unigram-shift=1", "auto:tune-text=none", "auto:tune-text=a", "auto:tune", "blend") == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]
    assert tunes("auto:blend-length=1.2", "auto:ridge=1", "auto:blend-weight=0.5") == [False] * 3
    for base in ({"tune": True}, {"tune_text": "a"}, {"ridge": 0.1}):
        assert tunes("auto", **base) == [False]
    (cell,) = parse_cells(["auto"], TransferConfig())[1:]
    assert cell.to_json() == {"method": "auto", "tune_text": "the probes' text"}


def test_auto_is_not_tuned_by_a_text_that_is_too_short(pair, tmp_path) -> None:
    short, heldout = tmp_path / "short.txt", tmp_path / "heldout.txt"
    short.write_text(WORDS[:300], encoding="utf-8")
    heldout.write_text(f"0 {WORDS}", encoding="utf-8")
    comparison = compare(
        pair.source,
        pair.target,
        None,
        ["auto"],
        short,
        tmp_path / "out",
        CompareConfig(probe_steps=1, seeds=1),
        eval_texts=heldout,
        adapt_config=AdaptConfig(seq_length=8),
    )
    assert comparison.content["results"][1]["tuning"] is None and comparison.content["cells"]["auto"] == {
        "method": "auto"
    }


def test_cells_that_use_one_file_differently_are_separate_runs() -> None:
    counted, tuned = parse_cells(
        ["auto:unigram-shift=1:unigram-text=a", "auto:unigram-shift=1:tune-text=a"], TransferConfig()
    )[1:]
    assert plain_transfer(counted.config) == plain_transfer(tuned.config) and counted.files() == tuned.files()
    assert counted.file_options() != tuned.file_options()


def test_the_output_of_the_default_names_the_tuning_text_option(pair, text, tmp_path, capsys) -> None:
    seen = {}
    for name, more in {"alone": [], "chosen": ["--blend-length", "1.2"], "text": ["--tune-text", str(text)]}.items():
        arguments = [
            "transfer",
            "--source",
            str(pair.source),
            "--target",
            str(pair.target),
            "--out",
            str(tmp_path / name),
        ]
        assert main([*arguments, *more]) == 0
        seen[name] = " ".join(capsys.readouterr().out.split())
    assert "blend: weight 0.35, length 1.4, the best on average; --tune-text FILE chooses" in seen["alone"]
    assert "the best on average" not in seen["chosen"] + seen["text"] and "tuned by bits per byte" in seen["text"]
