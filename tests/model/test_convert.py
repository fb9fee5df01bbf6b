"""``saltlm convert``: pickled weights become safetensors without running code; slow BPE tokenizers get a tokenizer.json."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from models_tiny import roles, save_bert, save_gpt2, save_llama, save_t5
from safetensors.torch import load_file
from tokenizers_donors import ROLES, save_phobert
from tokenizers_tiny import TEXT, tiny
from transformers import AutoModel, AutoTokenizer

from saltlm import TransferConfig, transfer
from saltlm.cli.main import main
from saltlm.errors import InputError
from saltlm.model.checkpoint import load_donor, load_source
from saltlm.model.convert import convert

DONORS = {
    "bert": lambda folder: save_bert(folder, tiny("wordpiece")),
    "gpt2": lambda folder: save_gpt2(folder, tiny("byte_level_bpe")),
    "t5": lambda folder: save_t5(folder, tiny("sentencepiece_unigram")),
    "shards": lambda folder: save_llama(folder, tiny("byte_level_bpe"), tied=False, max_shard_size=20_000),
}


def pickle_weights(folder: Path, **options) -> dict[str, torch.Tensor]:
    """Replace the safetensors files of a folder by pickled ones; returns the tensors."""
    tensors = {}
    files = sorted(folder.glob("*.safetensors"))
    for path in files:
        content = load_file(path)
        torch.save(
            content, folder / path.name.replace("model", "pytorch_model").replace(".safetensors", ".bin"), **options
        )
        tensors.update(content)
        path.unlink()
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        text = index.read_text().replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
        (folder / "pytorch_model.bin.index.json").write_text(text)
        index.unlink()
    return tensors


@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize("kind", DONORS)
def test_pickled_weights_are_the_same_tensors(tmp_path: Path, kind: str, old_format: bool) -> None:
    folder = DONORS[kind](tmp_path / "model")
    rows = load_donor(folder).input_rows.clone()
    tensors = pickle_weights(folder, _use_new_zipfile_serialization=not old_format)
    with pytest.raises(InputError, match=rf"pickled weights.*saltlm convert {folder} --out NEW_FOLDER"):
        load_donor(folder)
    done = convert(folder, tmp_path / "new")
    assert len(done.weights) == (1 if kind != "shards" else 7) and not done.tokenizer and not done.added_rows
    read = {name: tensor for file in done.weights for name, tensor in load_file(tmp_path / "new" / file).items()}
    assert read.keys() == tensors.keys() and all(torch.equal(read[name], tensors[name]) for name in read)
    donor = load_donor(tmp_path / "new")
    assert torch.equal(donor.input_rows, rows)
    assert donor.tokenizer(TEXT[0])["input_ids"] == AutoTokenizer.from_pretrained(folder)(TEXT[0])["input_ids"]
    AutoModel.from_pretrained(tmp_path / "new")
    assert not list((tmp_path / "new").glob("*.bin"))


def test_tensors_that_share_memory_are_stored_each(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "model", tiny("byte_level_bpe"), tied=True)
    content = load_file(folder / "model.safetensors")
    content["lm_head.weight"] = content["model.embed_tokens.weight"]
    torch.save(content, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    convert(folder, tmp_path / "new")
    source = load_source(tmp_path / "new")
    assert source.tied and source.copies == {"lm_head.weight": "model.embed_tokens.weight"}


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


@pytest.mark.parametrize("form", ["torch", "plain pickle", "inside a state dict"])
def test_code_in_a_pickled_file_never_runs(tmp_path: Path, form: str) -> None:
    folder, mark = save_bert(tmp_path / "model", tiny("wordpiece")), tmp_path / "ran"
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    if form == "plain pickle":
        path.write_bytes(pickle.dumps(Evil(mark)))
    else:
        torch.save({"a": torch.zeros(2), "b": Evil(mark)} if form == "inside a state dict" else Evil(mark), path)
    for _ in range(2):
        with pytest.raises(
            InputError, match=r"pytorch_model.bin: found a (pickled file with more than tensors|file that torch)"
        ):
            convert(folder, tmp_path / "new")
    assert not mark.exists() and not (tmp_path / "new").exists()


DAMAGE = {
    "cut": (
        lambda f: (f / "pytorch_model.bin").write_bytes((f / "pytorch_model.bin").read_bytes()[:500]),
        "cannot read|more than",
    ),
    "empty": (lambda f: (f / "pytorch_model.bin").write_bytes(b""), "cannot read|more than"),
    "a list": (lambda f: torch.save([torch.zeros(2)], f / "pytorch_model.bin"), "no state dict"),
    "nested": (lambda f: torch.save({"model": {"a": torch.zeros(2)}}, f / "pytorch_model.bin"), "no state dict"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer"),
    "nothing to do": (lambda f: (f / "pytorch_model.bin").unlink(), "neither pickled weights"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_bad_input_writes_nothing(tmp_path: Path, capsys, name: str) -> None:
    damage, words = DAMAGE[name]
    folder = save_bert(tmp_path / "model", tiny("wordpiece"))
    pickle_weights(folder)
    damage(folder)
    with pytest.raises(InputError, match=words):
        convert(folder, tmp_path / "new")
    assert main(["convert", str(folder), "--out", str(tmp_path / "new")]) == 2
    assert "saltlm: " in capsys.readouterr().err and not (tmp_path / "new").exists()


@pytest.fixture(scope="module")
def slow(tmp_path_factory) -> Path:
    """A RoBERTa encoder with a slow tokenizer of the PhoBERT kind."""
    folder = save_phobert(tmp_path_factory.mktemp("slow") / "model")
    tokenizer = transformers.PhobertTokenizer.from_pretrained(folder)
    config = transformers.RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=64,
        tokenizer_class="PhobertTokenizer",
        **roles(tokenizer),
    )
    torch.manual_seed(0)
    transformers.RobertaModel(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("pickled", [False, True])
def test_a_slow_tokenizer_gets_a_file_with_its_ids(slow: Path, tmp_path: Path, pickled: bool) -> None:
    folder = tmp_path / "model"
    shutil.copytree(slow, folder)
    rows = load_file(folder / "model.safetensors")["embeddings.word_embeddings.weight"]
    if pickled:
        pickle_weights(folder)
    else:
        with pytest.raises(InputError, match=r"PhobertTokenizer, which has no fast form.*saltlm convert .* --out"):
            load_donor(folder)
    done = convert(folder, tmp_path / "new")
    assert done.tokenizer and done.added_rows == 3
    old, donor = transformers.PhobertTokenizer.from_pretrained(folder), load_donor(tmp_path / "new")
    for text in [*TEXT, "kissat nukkuivat\ntalossa 🙂", "a", ""]:
        ids = donor.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert [i if i < len(old) else old.unk_token_id for i in ids] == old(text, add_special_tokens=False)[
            "input_ids"
        ]
    assert torch.equal(donor.input_rows[: len(rows)], rows) and not donor.input_rows[len(rows) :].any()
    assert {role: getattr(donor.tokenizer, role) for role in ROLES} == ROLES and donor.tokenizer.mask_token == "<mask>"
    AutoModel.from_pretrained(tmp_path / "new")


def test_a_converted_donor_serves_a_transfer(pair, slow: Path, tmp_path: Path) -> None:
    convert(slow, tmp_path / "new")
    done = transfer(pair.source, tmp_path / "new", out=tmp_path / "out", config=TransferConfig())
    assert done.summary["counts"]["copied"] > 50 and done.summary["counts"]["solved"] > 20
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.decode(tokenizer("the cat sat on the mat")["input_ids"]) == "the cat sat on the mat"


def test_a_slow_tokenizer_alone(slow: Path, tmp_path: Path, capsys) -> None:
    save_phobert(tmp_path / "tokenizer")
    assert main(["convert", str(tmp_path / "tokenizer"), "--out", str(tmp_path / "new"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == {"out": str(tmp_path / "new"), "weights": [], "tokenizer": True, "added_rows": 3}
    assert load_donor(tmp_path / "new").alone is not None


def test_a_slow_tokenizer_of_another_kind_is_refused(tmp_path: Path) -> None:
    """Its words are split by a rule that no fast tokenizer here has."""
    folder = save_phobert(tmp_path / "tokenizer")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"}))
    with pytest.raises(InputError, match="ByT5Tokenizer, whose ids no fast tokenizer gives"):
        convert(folder, tmp_path / "new")
    with pytest.raises(InputError, match="no fast form"):
        load_donor(folder)
