"""A target that is a tokenizer alone: a folder without weights, or a tokenizer.json."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import adapt_tiny
import numpy as np
import pytest
import torch
from models_tiny import save_bert
from pairs import write_vectors
from tokenizers_donors import DONOR_KINDS
from tokenizers_tiny import tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

from saltlm import AdaptConfig, BatchConfig, CompareConfig, TransferConfig, batch, compare, transfer
from saltlm.cli.main import main
from saltlm.errors import InputError
from saltlm.model.checkpoint import load_donor
from saltlm.model.tokenizer_alone import find_alone
from saltlm.rows.methods import METHODS

KIND = "sentencepiece_unigram"
WITHOUT_ROWS = [name for name, method in METHODS.items() if not method.plm and not method.source_vectors]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """A folder with the files of a tokenizer, and forms of it."""
    root = tmp_path_factory.mktemp("alone")
    tiny(KIND).save_pretrained(root / "folder")
    (root / "bare").mkdir()
    shutil.copy(root / "folder" / "tokenizer.json", root / "bare" / "tokenizer.json")
    shutil.copy(root / "folder" / "tokenizer.json", root / "mine.json")
    save_bert(root / "model", tiny(KIND))
    shutil.copytree(root / "model", root / "config")
    (root / "config" / "model.safetensors").unlink()
    write_vectors(root / "v.vec", tiny(KIND))
    return root


@pytest.mark.parametrize(
    "name",
    ["folder", "folder/tokenizer.json", "bare", "bare/tokenizer.json", "mine.json", "config", "model/tokenizer.json"],
)
def test_every_form_gives_the_same_tokenizer(alone: Path, name: str) -> None:
    donor = load_donor(alone / name)
    assert donor.alone is not None and donor.architecture is None and len(donor.input_rows) == 0
    assert donor.tokenizer.get_vocab() == tiny(KIND).get_vocab()
    assert (donor.tokenizer.bos_token, donor.tokenizer.eos_token, donor.tokenizer.pad_token) == ("<s>", "</s>", "<pad>")
    assert donor.path == (alone / name).resolve()
    assert len(donor.files["tokenizer.json"]) == 64
    assert any("has no weights: its tokenizer alone is used" in note for note in donor.notes)


@pytest.mark.parametrize("kind", DONOR_KINDS)
def test_auto_builds_rows_of_pieces_and_says_so(pair, tmp_path: Path, kind: str) -> None:
    DONOR_KINDS[kind]().save_pretrained(tmp_path / "tokenizer")
    done = transfer(pair.source, tmp_path / "tokenizer", out=tmp_path / "out")
    assert sum("auto builds each new row as the mean of its source pieces" in w for w in done.summary["warnings"]) == 1
    assert done.summary["method"] == "auto" and "blend" not in done.summary
    assert done.summary["inputs"]["target"]["architecture"] is None
    mean = transfer(pair.source, tmp_path / "tokenizer", config=TransferConfig(method="subword-mean"))
    assert torch.equal(done.input_rows, mean.input_rows) and np.array_equal(done.origin, mean.origin)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer("the cat sat on the mat", return_tensors="pt")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out")(**ids).logits.isfinite().all()


@pytest.mark.parametrize("method", WITHOUT_ROWS)
def test_a_method_without_plm_rows_gives_what_it_gives_with_the_whole_plm(pair, alone: Path, method: str) -> None:
    config, vectors = TransferConfig(method=method), alone / "v.vec" if METHODS[method].vectors else None
    one, other = (transfer(pair.source, alone / name, vectors, config=config) for name in ("folder", "model"))
    assert torch.equal(one.input_rows, other.input_rows)
    assert not any("auto" in warning for warning in one.summary["warnings"])


@pytest.mark.parametrize(
    ("options", "vectors", "reader"),
    [
        *(
            ({"method": name}, METHODS[name].vectors, f"method '{name}'")
            for name in METHODS
            if METHODS[name].plm and name != "auto"
        ),
        ({"method": "focus", "clean_anchors": 0.1}, True, "clean_anchors"),
        ({"method": "auto", "clean_anchors": 0.1}, False, "clean_anchors"),
        ({"method": "focus"}, "plm", "--auxiliary plm"),
        ({"method": "blend", "blend_with": "omp"}, False, "method 'blend' with 'omp'"),
    ],
)
def test_what_reads_plm_rows_is_refused(pair, alone: Path, tmp_path: Path, options, vectors, reader: str) -> None:
    auxiliary = "plm" if vectors == "plm" else alone / "v.vec" if vectors else None
    with pytest.raises(
        InputError, match=r"a tokenizer without weights; expected a PLM with its rows.*subword-mean"
    ) as caught:
        transfer(pair.source, alone / "folder", auxiliary, tmp_path / "out", TransferConfig(**options))
    assert reader in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_blend_with_a_regression_on_vectors_works(pair, alone: Path) -> None:
    config = TransferConfig(method="blend", blend_with="focus")
    done = transfer(pair.source, alone / "folder", alone / "v.vec", config=config)
    assert done.summary["counts"]["solved"] and done.summary["blend"]["weight"] == 0.5


@pytest.mark.parametrize("more", [["--tune"], ["--keep-source-vocabulary"], ["--dry-run"]])
def test_options_go_with_it(pair, alone: Path, tmp_path: Path, capsys, more: list[str]) -> None:
    words = [
        "transfer",
        "--source",
        pair.source,
        "--target",
        alone / "mine.json",
        "--out",
        tmp_path / "out",
        "--json",
        *more,
    ]
    assert main(list(map(str, words))) == 0
    assert "blend" not in json.loads(capsys.readouterr().out)
    assert (tmp_path / "out").exists() == (more != ["--dry-run"])


@pytest.mark.parametrize(
    "file", ["model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "adapter_config.json", "a.gguf"]
)
def test_a_folder_with_anything_of_a_model_is_a_model(alone: Path, tmp_path: Path, file: str) -> None:
    shutil.copytree(alone / "folder", tmp_path / "model")
    assert find_alone(tmp_path / "model")
    (tmp_path / "model" / file).write_bytes(b"{}")
    assert find_alone(tmp_path / "model") is None
    with pytest.raises(InputError):
        load_donor(tmp_path / "model")


@pytest.mark.parametrize("content", ["{", "[]", '{"model": {"type": "BPE"}}', "version https://git-lfs"])
def test_a_broken_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    for name in (tmp_path, tmp_path / "tokenizer.json"):
        with pytest.raises(InputError, match=r"tokenizer\.json"):
            load_donor(name)


def test_the_output_must_not_touch_it(pair, alone: Path) -> None:
    for name, out in (("folder", "folder/out"), ("mine.json", "mine.json")):
        with pytest.raises(InputError, match="output"):
            transfer(pair.source, alone / name, out=alone / out, config=TransferConfig(method="zero", force=True))
    done = transfer(pair.source, alone / "mine.json", out=alone / "beside", config=TransferConfig(method="zero"))
    assert done.out == alone / "beside"


def test_in_a_batch(pair, alone: Path, tmp_path: Path) -> None:
    jobs = tmp_path / "jobs.toml"
    lines = [f'[defaults]\nsource = "{pair.source}"\n']
    for index, name in enumerate(("folder", "mine.json")):
        lines.append(f'[[job]]\ntarget = "{alone / name}"\nout = "{tmp_path / str(index)}"\n')
    jobs.write_text("".join(lines))
    config = BatchConfig(workers=1)
    assert not batch(jobs, config).failed
    assert batch(jobs, config).to_json()["skipped"] == 2, "finished work is recognised"
    jobs.write_text(
        "".join([*lines, f'[[job]]\ntarget = "{alone / "folder"}"\nmethod = "omp"\nout = "{tmp_path / "2"}"\n'])
    )
    with pytest.raises(InputError, match=r"line 9: job 3: .*a tokenizer without weights"):
        batch(jobs, config)


@pytest.mark.parametrize("name", ["folder", "mine.json"])
def test_in_a_comparison(pair, alone: Path, tmp_path: Path, name: str) -> None:
    adapt_tiny.text_file(tmp_path / "text.txt", 60)
    adapt_tiny.text_file(tmp_path / "eval.txt", 12, seed=7)

    def run(methods: list[str]):
        return compare(
            pair.source,
            alone / name,
            None,
            methods,
            tmp_path / "text.txt",
            tmp_path / "out",
            CompareConfig(probe_steps=1, seeds=1),
            eval_texts=tmp_path / "eval.txt",
            transfer_config=TransferConfig(heldout=0.0, device="cpu"),
            adapt_config=AdaptConfig(device="cpu", seq_length=16),
        )

    with pytest.raises(InputError, match=r"method 'omp': .*a tokenizer without weights"):
        run(["mean", "omp"])
    assert {result["method"] for result in run(["auto", "mean"]).content["results"]} == {"original", "auto", "mean"}
