"""Code of a model is written beside the adapted one only where the user lets it run, as a transfer does."""

from __future__ import annotations

import json
from pathlib import Path

import adapt_tiny
import pytest
from checkpoints_tiny import change_config

from saltlm import AdaptConfig, adapt
from saltlm.model.portable import PLAIN, PLAIN_MAP
from saltlm.model.remote_code import MAPPED, drop_auto_maps

OPTIONS = {"seq_length": 32, "batch_size": 2, "device": "cpu", "phases": "embeddings:1"}
FOREIGN = {"AutoModelForCausalLM": "modeling_own.Own", "AutoTokenizer": [None, "own.Own"]}


def change(path: Path, **entries: object) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**content, **entries}))


@pytest.mark.parametrize("plain", [False, True], ids=["foreign", "own"])
def test_code_is_left_out(tmp_path: Path, plain: bool) -> None:
    model = adapt_tiny.transferred(tmp_path / "model")
    (model / "modeling_own.py").write_text("raise SystemExit('ran')\n")
    (model / "tokenizer.py").write_text(PLAIN if plain else "raise SystemExit('ran')\n")
    change_config(model, auto_map=FOREIGN)
    # The class that transformers 4 knows, so that the file is kept as it is.
    entries = {"auto_map": PLAIN_MAP if plain else FOREIGN, "tokenizer_class": "PreTrainedTokenizerFast"}
    change(model / "tokenizer_config.json", **entries)
    text = adapt_tiny.text_file(tmp_path / "text.txt", 20)
    out = adapt(model, text, tmp_path / "out", AdaptConfig(**OPTIONS)).out
    assert [path.name for path in out.glob("*.py")] == (["tokenizer.py"] if plain else [])
    assert "auto_map" not in json.loads((out / "config.json").read_text())
    assert json.loads((out / "tokenizer_config.json").read_text()).get("auto_map") == (PLAIN_MAP if plain else None)


def test_code_is_kept_where_it_may_run(tmp_path: Path) -> None:
    model = adapt_tiny.transferred(tmp_path / "model")
    (model / "own.py").write_text("VALUE = 1\n")
    change(model / "generation_config.json", top_k=3)
    change_config(model, auto_map={"AutoModelForSequenceClassification": "own.Own"})
    text = adapt_tiny.text_file(tmp_path / "text.txt", 20)
    out = adapt(model, text, tmp_path / "out", AdaptConfig(**OPTIONS, trust_remote_code=True)).out
    assert (out / "own.py").is_file()
    assert "auto_map" in json.loads((out / "config.json").read_text())


@pytest.mark.parametrize("name", [pattern.replace("*", "pre") for pattern in MAPPED])
@pytest.mark.parametrize("content", ['{"auto_map": {"AutoConfig": "x.Y"}, "a": 1}', "[1]", "{"])
def test_every_file_that_can_name_code_is_changed_or_left(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    drop_auto_maps(tmp_path)
    text = (tmp_path / name).read_text()
    assert json.loads(text) == {"a": 1} if "auto_map" in content else text == content
