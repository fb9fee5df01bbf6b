"""Defaults fit themselves to small models, of 64 and 128 positions and of 20 tokens; only what a user gives is refused."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import shutil
from pathlib import Path

import adapt_tiny
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models_tiny import save_bert, save_gpt2, save_llama
from pairs import write_vectors
from tokenizers_tiny import sentencepiece_unigram, tiny
from transformers import BloomConfig

from saltlm import AdaptConfig, CompareConfig, TransferConfig, adapt, compare, evaluate, transfer
from saltlm.adaptation.config import SEQ_LENGTH
from saltlm.adaptation.packing import Packer
from saltlm.adaptation.text import read_text
from saltlm.cli.main import main
from saltlm.comparison.blocks import TooLittleText, fitted_blocks, measure_blocks
from saltlm.errors import InputError
from saltlm.evaluation.generate import continuations, room_after, shortened_prompt
from saltlm.evaluation.side_by_side import MeasureConfig, beginning, evaluate_models
from saltlm.model.causal_lm import CausalLM, load_causal_lm, positions_in, resolve_length, within_positions
from saltlm.rows.methods import METHODS
from saltlm.text.corpus import training_documents

SIZES = (64, 128)
SAVE = {"llama": save_llama, "gpt2": save_gpt2}  # rotary positions, and learned ones, of which none may be overrun


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models by family and positions, two targets and text; the Unigram tokenizer makes more tokens than the byte-level one."""
    root = tmp_path_factory.mktemp("small")
    for family, save in SAVE.items():
        for size in SIZES:
            save(root / f"{family}{size}", tiny("byte_level_bpe"), positions=size)
    save_gpt2(root / "wide", tiny("byte_level_bpe"), positions=1024)
    for size in SIZES:
        save_llama(root / f"unigram{size}", tiny("sentencepiece_unigram"), positions=size)
    save_bert(root / "to unigram", tiny("sentencepiece_unigram"))
    save_bert(root / "to bytes", tiny("byte_level_bpe"))
    adapt_tiny.text_file(root / "text.txt", 60)
    adapt_tiny.text_file(root / "eval.txt", 12, seed=7)
    return root


# ------------------------------------------------------------------------------------------------ the one rule


@given(st.none() | st.integers(1, 2000), st.integers(1, 2000), st.none() | st.integers(1, 2000))
def test_a_default_fits_and_a_given_length_is_kept_or_refused(given_length, default, positions) -> None:
    resolve = functools.partial(resolve_length, "seq_length", given_length, default, positions, "the model")
    if given_length is not None and positions is not None and given_length > positions:
        with pytest.raises(
            InputError, match=f"seq_length: found {given_length}; expected at most the {positions} positions"
        ):
            resolve()
        return
    length = resolve()
    assert length == (given_length or within_positions(default, positions))
    assert positions is None or 1 <= length <= positions
    assert positions is None or positions >= default or given_length or length == positions


@pytest.mark.parametrize("name", ["llama64", "llama128", "gpt264", "gpt2128", "wide"])
def test_positions_are_those_of_the_loaded_model(inputs, name: str) -> None:
    assert positions_in(inputs / name, "the model") == load_causal_lm(inputs / name, device="cpu").max_positions


def test_a_configuration_that_names_no_limit(tmp_path) -> None:
    BloomConfig(vocab_size=50, hidden_size=32, n_layer=1, n_head=2).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert positions_in(tmp_path, "the model") is None
    assert resolve_length("seq_length", None, SEQ_LENGTH, None, "the model") == SEQ_LENGTH
    assert resolve_length("seq_length", 9999, SEQ_LENGTH, None, "the model") == 9999


@pytest.mark.parametrize("content", ["{", '{"model_type": "no such"}'])
def test_a_configuration_that_cannot_be_read(tmp_path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InputError, match="the model: found"):
        positions_in(tmp_path, "the model")


# ------------------------------------------------------------------------------------------------ compare


@pytest.mark.parametrize(
    ("source", "target", "positions"),
    [
        ("llama64", "to unigram", 64),
        ("gpt2128", "to unigram", 128),
        ("unigram64", "to bytes", 64),
        ("unigram128", "to bytes", 128),
    ],
)
def test_a_comparison_with_defaults(inputs, tmp_path, source: str, target: str, positions: int) -> None:
    """The longer of the two lengths is the model's positions, or as near to it as a whole number of the other allows."""
    done = compare(
        inputs / source,
        inputs / target,
        None,
        ["subword-mean"],
        inputs / "text.txt",
        tmp_path / "out",
        CompareConfig(probe_steps=1, seeds=1),
        eval_texts=inputs / "eval.txt",
        transfer_config=TransferConfig(heldout=0.0, device="cpu"),
        adapt_config=AdaptConfig(device="cpu"),
    )
    lengths = done.content["seq_lengths"]
    ratio = lengths["original"] / lengths["new"]
    assert positions - max(1, ratio) <= max(lengths.values()) <= positions
    assert (ratio > 1) == (target == "to bytes"), "the case is one in which this side is the longer"
    assert {run["method"]: run["seq_length"] for run in done.content["results"]} == {
        "original": lengths["original"],
        "subword-mean": lengths["new"],
    }
    assert done.content["options"]["seq_length"] == lengths["new"]


def test_a_comparison_refuses_a_length_that_was_given(inputs, tmp_path, capsys) -> None:
    words = ["compare", "--source", inputs / "unigram128", "--target", inputs / "to bytes", "--methods", "subword-mean"]
    words += ["--text", inputs / "text.txt", "--eval-text", inputs / "eval.txt", "--out", tmp_path / "out", "--quiet"]
    words += ["--probe-steps", 1, "--device", "cpu", "--seq-length"]
    for length in (129, 128):  # the second one is too long in the source's own tokens
        assert main([*map(str, words), str(length)]) == 2
        err = capsys.readouterr().err
        assert re.search(rf"seq_length: found {length}[;,].*at most the 128 positions of the source model", err)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def probe_text(inputs):
    """The text of a probe, the new tokenizer, and the tokenizer of the source, which splits the text into more tokens."""
    config = AdaptConfig(heldout=0.0)
    text = read_text(inputs / "text.txt", inputs / "eval.txt", None, None, config)
    return text, (tiny("byte_level_bpe"), tiny("sentencepiece_unigram")), config


@settings(max_examples=10)
@given(steps=st.integers(1, 40), positions=st.integers(16, 200))
def test_blocks_of_both_tokenizers_fit(probe_text, steps: int, positions: int) -> None:
    text, tokenizers, config = probe_text
    try:
        blocks = fitted_blocks(text, tokenizers, config, steps, positions)
    except TooLittleText as error:
        length = int(re.search(r"blocks of (\d+) tokens", str(error))[1])
        assert length <= positions
        return
    ratio = blocks.original / blocks.length
    assert max(blocks.length, blocks.original) <= positions
    assert blocks.original + 2 * ratio >= positions, "not much shorter than it must be"
    assert blocks == measure_blocks(text, tokenizers, dataclasses.replace(config, seq_length=blocks.length), steps)


def test_a_text_too_short_for_the_first_length_may_do_for_the_final_one(probe_text) -> None:
    """Blocks of 64 new tokens hold more than 64 of the source's: shorter ones are needed, and the text fills those."""
    text, tokenizers, config = probe_text
    documents = list(training_documents(text.corpora[0], text.keep[0])())
    tokens = sum(map(len, Packer(tokenizers[0], rows=10**6, length=8).encode(documents)))
    steps = tokens // 64 + 1
    with pytest.raises(TooLittleText):
        measure_blocks(text, tokenizers, dataclasses.replace(config, seq_length=64), steps)
    assert fitted_blocks(text, tokenizers, config, steps, 64).original <= 64
    with pytest.raises(TooLittleText):  # a model that need not be shortened
        fitted_blocks(text, tokenizers, dataclasses.replace(config, seq_length=32), 100 * steps, 64)


# ------------------------------------------------------------------------------------------------ adapt


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", SAVE)
def test_an_adaptation_with_defaults(inputs, tmp_path, family: str, size: int) -> None:
    model = inputs / f"{family}{size}"
    options = {"steps": 1, "heldout": 0.2, "eval_bytes": 500, "device": "cpu"}
    done = adapt(model, inputs / "text.txt", tmp_path / "out", AdaptConfig(**options))
    record = json.loads((done.out / "saltlm.json").read_text())["adapted"]
    assert record["config"]["seq_length"] == size
    # The length is part of what the run is: given, it is the same run.
    again = adapt(model, inputs / "text.txt", done.out, AdaptConfig(**options, seq_length=size), resume=True)
    assert again == done
    with pytest.raises(InputError, match=f"seq_length: found {size + 1}; expected at most the {size} positions"):
        adapt(model, inputs / "text.txt", tmp_path / "new", AdaptConfig(**options, seq_length=size + 1))
    assert not (tmp_path / "new").exists()


def test_a_large_model_keeps_the_default(inputs, tmp_path) -> None:
    options = {"steps": 1, "heldout": 0.2, "eval_bytes": 500, "device": "cpu"}
    done = adapt(inputs / "wide", inputs / "text.txt", tmp_path / "out", AdaptConfig(**options))
    record = json.loads((done.out / "saltlm.json").read_text())["adapted"]
    assert record["config"]["seq_length"] == SEQ_LENGTH == 512


@pytest.mark.parametrize("positions", SIZES)
def test_distilled_pieces_fit_the_source_model_too(inputs, tmp_path, positions: int) -> None:
    """Learned positions: one token too many and the source model fails."""
    model = adapt_tiny.transferred(tmp_path / "model", "gpt2", positions=256)
    options = {
        "phases": "all:1",
        "distill_rows": True,
        "distill_steps": 1,
        "batch_size": 2,
        "heldout": 0.0,
        "device": "cpu",
    }
    config = AdaptConfig(**options, distill_source=str(inputs / f"gpt2{positions}"))
    assert adapt(model, inputs / "text.txt", tmp_path / "out", config).steps >= 1


# ------------------------------------------------------------------------------------------------ evaluate


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", SAVE)
def test_an_evaluation_with_defaults(inputs, family: str, size: int) -> None:
    result = evaluate(inputs / f"{family}{size}", inputs / "eval.txt")
    assert (result.max_length, result.stride) == (size, size // 2)


@pytest.mark.parametrize("names", [["gpt264"], ["gpt2128", "gpt264", "wide"]])
def test_continuations_with_defaults(inputs, tmp_path, names: list[str]) -> None:
    """Beginnings of 80 characters that are nearly as many tokens, and 40 tokens more."""
    text = tmp_path / "long.txt"
    text.write_text("\n\n".join("äöüßçñ" * 30 + str(i) for i in range(3)), encoding="utf-8")
    prompts = [beginning(document) for document in text.read_text(encoding="utf-8").split("\n\n")]
    assert len(tiny("byte_level_bpe")(prompts[0])["input_ids"]) > 64
    result = evaluate_models([inputs / name for name in names], [text], MeasureConfig(samples=3), device="cpu")
    for name in names:
        samples = result.models[str(inputs / name)].samples
        assert [prompt for prompt, _ in samples] == prompts
        assert all(text for _, text in samples)


def test_a_given_prompt_that_is_too_long_is_refused(inputs) -> None:
    long, model = "äöüßçñ" * 30, inputs / "gpt264"
    with pytest.raises(
        InputError, match=r"prompt 'äöü.*expected at most the 64 positions of model .*gpt264.*a shorter prompt"
    ):
        continuations(model, ["ok", long], device="cpu")
    assert continuations(model, [long], device="cpu", shorten=True)[0]
    with pytest.raises(InputError, match="64 positions"):
        evaluate_models([model], [inputs / "eval.txt"], MeasureConfig(), prompts=[long], device="cpu")


def test_a_continuation_ends_where_the_positions_do(inputs) -> None:
    model, tokenizer = inputs / "gpt264", tiny("byte_level_bpe")
    lm = load_causal_lm(model, device="cpu")
    lm.model.generation_config.eos_token_id = None
    lm.tokenizer.eos_token = None  # it never ends by itself
    prompt = "the cat sat on the mat"
    room = 64 - len(tokenizer(prompt)["input_ids"]) - 1 + 1
    longest = continuations(lm, [prompt], 500)[0]
    assert longest == continuations(lm, [prompt], room)[0] and longest.startswith(
        continuations(lm, [prompt], room - 1)[0]
    )


@given(st.none() | st.integers(2, 300), st.integers(1, 400), st.integers(1, 400), st.booleans())
def test_shortened_prompts_leave_room(positions, length, max_tokens, begins) -> None:
    lm = CausalLM(name="m", model=None, tokenizer=None, start_id=7 if begins else None, rows=9, max_positions=positions)
    start = [7] * begins + list(range(100, 100 + length))
    kept = shortened_prompt(lm, start, max_tokens)
    assert kept and kept[:begins] == [7] * begins and start[len(start) - len(kept) + begins :] == kept[begins:]
    room = room_after(lm, "prompt", kept, max_tokens)
    assert 1 <= room <= max_tokens and (positions is None or len(kept) + room - 1 <= positions)
    assert room >= min(max_tokens, max_tokens if positions is None else positions // 2)
    if positions is None or len(start) + max_tokens - 1 <= positions:
        assert kept == start and room == max_tokens


def test_a_task_that_names_no_length_of_answers(inputs, tmp_path, monkeypatch) -> None:
    """The harness asks for 256 tokens then, which a model of 128 positions cannot give."""
    pytest.importorskip("lm_eval", reason='needs "saltlm[eval]"')
    import datasets

    from saltlm.evaluation.harness.tasks import load_tasks, run_tasks

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    (tmp_path / "q.jsonl").write_text('{"question": "the cat sat on", "answer": "the mat"}\n' * 2)
    task = (
        "task: q\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: q.jsonl\ntest_split: test\n"
        "output_type: generate_until\ndoc_to_text: '{{question}}'\ndoc_to_target: '{{answer}}'\n"
        "metric_list:\n  - metric: exact_match\n"
    )
    for name, more, words in (
        ("no settings", "", None),
        ("other settings", "generation_kwargs:\n  do_sample: false\n", None),
        ("a length", "generation_kwargs:\n  max_gen_toks: 200\n", "requested max tokens to generate .200."),
    ):
        (tmp_path / name).mkdir()
        shutil.copy(tmp_path / "q.jsonl", tmp_path / name)
        (tmp_path / name / "q.yaml").write_text(task + more)
        for model in ("gpt264", "gpt2128"):
            lm = load_causal_lm(inputs / model, device="cpu")
            with load_tasks([str(tmp_path / name)]) as tasks:
                if words is None:
                    assert run_tasks(lm, tasks)["q"].items == 2
                else:
                    with pytest.raises(InputError, match=words):
                        run_tasks(lm, tasks)


# ------------------------------------------------------------------------------------------------ few tokens


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source of 17 tokens, a target of 20, and what the methods ask for."""
    root = tmp_path_factory.mktemp("few")
    words = ("ab ba aab bba ab abab bab ca ac", "cab bac abc") * 3
    target = sentencepiece_unigram(24, words + ("da ad dab bad dada",) * 4)
    save_llama(root / "source", sentencepiece_unigram(20, words), positions=64)
    save_bert(root / "target", target)
    write_vectors(root / "v.vec", target)
    (root / "pairs.txt").write_text("ab ba\nba ab\na a\nb b\n")
    (root / "text.txt").write_text("\n\n".join(f"ab ba cab bac dab {'ab ' * (i % 20)}{'c' * i}" for i in range(90)))
    (root / "eval.txt").write_text("\n\n".join(f"ba dab {'ba ' * i}bac" for i in range(9)))
    return root


@pytest.mark.parametrize("method", METHODS)
def test_every_method_with_fewer_anchors_than_its_default_of_neighbours(few, method: str) -> None:
    more = {"source_auxiliary": str(few / "v.vec"), "dictionary": str(few / "pairs.txt")} if method == "wechsel" else {}
    done = transfer(few / "source", few / "target", few / "v.vec", config=TransferConfig(method=method, **more))
    assert done.input_rows.isfinite().all() and done.summary["new_tokens"] == 4


def test_a_comparison_of_few_tokens_with_defaults(few, tmp_path) -> None:
    done = compare(
        few / "source",
        few / "target",
        few / "v.vec",
        ["auto", "salt", "local-map"],
        few / "text.txt",
        tmp_path / "out",
        CompareConfig(probe_steps=2, seeds=1),
        eval_texts=few / "eval.txt",
        adapt_config=AdaptConfig(device="cpu", drop_overlap=True),
    )
    assert max(done.content["seq_lengths"].values()) <= 64 and done.best is not None
    assert all(torch.isfinite(torch.tensor(run["bits_per_byte"])).all() for run in done.content["results"])
