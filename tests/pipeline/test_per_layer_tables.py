"""Tables of per-layer inputs (Gemma 3n and 4): one more matrix of rows, copied and built like the input rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from models_tiny import roles, save, save_bert
from pairs import write_vectors
from safetensors.torch import load_file
from tokenizers_tiny import tiny

from saltlm.config import TransferConfig
from saltlm.model.checkpoint import load_source
from saltlm.pipeline import Transfer, transfer
from saltlm.rows.assembly import COPIED, ROLE

TOKENIZER = tiny("sentencepiece_bpe")
WIDTH, LAYERS, PER_LAYER = 32, 2, 8
TABLE = "model.embed_tokens_per_layer.weight"
TEXT = "the cat sat on the mat while the other cats were sleeping. " * 12


def save_gemma(folder: Path, kind: str, *, table_rows: int | None = None, per_layer: int = PER_LAYER) -> Path:
    """A Gemma 3n or 4 causal LM; its table has ``table_rows`` rows, by default as many as the input matrix."""
    common: dict[str, Any] = {
        "vocab_size": len(TOKENIZER),
        "vocab_size_per_layer_input": table_rows or len(TOKENIZER),
        "hidden_size_per_layer_input": per_layer,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_kv_shared_layers": 0,
        "layer_types": ["sliding_attention", "full_attention"],
        **roles(TOKENIZER),
    }
    config: Any
    if kind == "Gemma3n":
        own = {"laurel_rank": 4, "altup_num_inputs": 2, "activation_sparsity_pattern": [0.0] * LAYERS}
        config = transformers.Gemma3nTextConfig(**common, **own, intermediate_size=[64] * LAYERS)
    else:
        own = {"global_head_dim": 8, "num_global_key_value_heads": 2}
        config = transformers.Gemma4TextConfig(**common, **own, intermediate_size=64)
    return save(folder, f"{kind}ForCausalLM", config, TOKENIZER, dtype=torch.float32)


@pytest.fixture(scope="module")
def donor(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("donor")
    write_vectors(folder / "v.vec", tiny("wordpiece"))
    return save_bert(folder / "donor", tiny("wordpiece"))


def tables(source: Path, done: Transfer) -> tuple[torch.Tensor, torch.Tensor]:
    """The table before and after."""
    assert done.out is not None
    return tuple(load_file(folder / "model.safetensors")[TABLE] for folder in (source, done.out))


def assert_same_logits(source: Path, done: Transfer) -> None:
    """Models give the same logits for shared tokens, those of special roles included."""
    ids = np.flatnonzero(done.alignment.shared)[-14:]
    both = (ids, done.alignment.source_id[ids])
    results = []
    for folder, tokens in zip((done.out, source), both, strict=True):
        model, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert not any(report.values()), report
        chosen = torch.from_numpy(tokens.astype(np.int64))
        with torch.no_grad():
            results.append(model.eval()(input_ids=chosen[None]).logits[0][:, chosen])
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["Gemma3n", "Gemma4"])
def test_the_table_is_copied_and_built(kind: str, tmp_path: Path, donor: Path) -> None:
    source = save_gemma(tmp_path / "source", kind)
    done = transfer(source, donor, None, tmp_path / "out", TransferConfig(method="subword-mean"))
    before, after = tables(source, done)
    assert after.shape == (len(done.input_rows), LAYERS * PER_LAYER)
    copied = np.flatnonzero(np.isin(done.origin, (COPIED, ROLE)))
    matched = torch.from_numpy(done.alignment.source_id[copied].astype(np.int64))
    assert torch.equal(after[torch.from_numpy(copied)], before[matched])
    spelled = [token for token in range(len(done.origin)) if len(done.alignment.cover(token))]
    assert len(spelled) > 50
    for token in spelled:
        pieces = torch.from_numpy(done.alignment.cover(token).astype(np.int64))
        torch.testing.assert_close(after[token], before[pieces].mean(dim=0))
    config = transformers.AutoConfig.from_pretrained(done.out)
    assert config.vocab_size == config.vocab_size_per_layer_input == len(done.input_rows)
    assert_same_logits(source, done)


@pytest.mark.parametrize("method", ["salt", "auto", "ridge-map", "clp", "multivariate", "subword-asymmetric"])
def test_rows_of_the_table_come_by_the_rule_of_input_rows(method: Any, tmp_path: Path, donor: Path) -> None:
    """A table that equals the input matrix gets the rows of the input matrix."""
    source = save_gemma(tmp_path / "source", "Gemma4", per_layer=WIDTH // LAYERS)
    content = load_file(source / "model.safetensors")
    content[TABLE] = content["model.embed_tokens.weight"].clone()
    from safetensors.torch import save_file

    save_file(content, source / "model.safetensors", metadata={"format": "pt"})
    config = TransferConfig(method=method, clean_anchors=0.1 if method == "ridge-map" else 0.0)
    auxiliary = donor.parent / "v.vec" if method == "salt" else None
    done = transfer(source, donor, auxiliary, tmp_path / "out", config)
    assert torch.equal(tables(source, done)[1], done.input_rows)


def test_tokens_beyond_the_table_read_its_first_row(tmp_path: Path, donor: Path) -> None:
    """The published Gemma 3n has fewer rows in its tables than in its input matrix."""
    rows = len(TOKENIZER) - 40
    source = save_gemma(tmp_path / "source", "Gemma3n", table_rows=rows)
    done = transfer(source, donor, None, tmp_path / "out", TransferConfig(method="subword-mean"))
    before, after = tables(source, done)
    beyond = np.flatnonzero(done.alignment.source_id >= rows)
    assert len(beyond) > 3 and len(after) == len(done.input_rows)
    assert torch.equal(after[torch.from_numpy(beyond)], before[:1].expand(len(beyond), -1))
    assert after.isfinite().all() and (after != 0).any(dim=1).all()
    assert_same_logits(source, done)


def test_an_expanded_vocabulary_extends_the_table(tmp_path: Path, donor: Path) -> None:
    rows = len(TOKENIZER) - 40
    source = save_gemma(tmp_path / "source", "Gemma3n", table_rows=rows)
    config = TransferConfig(method="subword-mean", keep_source_vocabulary=True)
    done = transfer(source, donor, None, tmp_path / "out", config)
    before, after = tables(source, done)
    assert torch.equal(after[:rows], before) and len(after) == len(done.input_rows) > len(TOKENIZER)
    assert torch.equal(after[rows : len(TOKENIZER)], before[:1].expand(40, -1))


def test_a_table_that_the_config_switches_off(tmp_path: Path, donor: Path) -> None:
    source = save_gemma(tmp_path / "source", "Gemma4", per_layer=0)
    assert load_source(source).tables == ()
    done = transfer(source, donor, None, tmp_path / "out")
    assert_same_logits(source, done)


def test_options_are_tuned_with_the_table(tmp_path: Path, donor: Path) -> None:
    source = save_gemma(tmp_path / "source", "Gemma3n")
    (tmp_path / "text.txt").write_text(TEXT)
    config = TransferConfig(method="blend", tune_text=str(tmp_path / "text.txt"), device="cpu")
    done = transfer(source, donor, None, tmp_path / "out", config)
    trials = done.summary["tuning"]["trials"]
    assert len(trials) > 3 and all(np.isfinite(trial["bits_per_byte"]) for trial in trials)
    import saltlm

    # Trials score the model as it is written, its tables included.
    chosen = min(trial["bits_per_byte"] for trial in trials)
    written = saltlm.evaluate(done.out, texts=[tmp_path / "text.txt"], device="cpu").bits_per_byte
    assert abs(chosen - written) < 0.5
