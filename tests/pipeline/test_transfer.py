"""The whole transfer on tiny models: identity, bit-identical shared rows, rows against their definition, a loadable folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from models_tiny import save_bert, save_gpt2, save_llama, save_phi, save_t5
from pairs import make_pair, write_vectors
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers_tiny import KINDS, TEXT, byte_level_bpe, tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

import saltlm
from saltlm.alignment.align import MatchKind
from saltlm.config import TransferConfig
from saltlm.errors import InputError
from saltlm.model.checkpoint import load_source
from saltlm.pipeline import transfer
from saltlm.rows.assembly import COMPOSED, COPIED, DRAWN, PADDING, ROLE, SOLVED

SALT = TransferConfig(method="salt")


def logits(folder, text: str = TEXT[0]) -> torch.Tensor:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder)(**tokenizer(text, return_tensors="pt")).logits


def weights(folder) -> dict[str, torch.Tensor]:
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        if path.name != "provenance.safetensors":
            with safe_open(path, "pt") as file:
                tensors.update({name: file.get_tensor(name) for name in file.keys()})
    return tensors


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("tokenizer_kind", KINDS)
def test_a_models_own_tokenizer_changes_nothing(tmp_path, tokenizer_kind: str, tied: bool) -> None:
    save_llama(tmp_path / "source", tiny(tokenizer_kind), tied=tied)
    save_bert(tmp_path / "target", tiny(tokenizer_kind))
    write_vectors(tmp_path / "v.vec", tiny(tokenizer_kind))
    done = transfer(tmp_path / "source", tmp_path / "target", tmp_path / "v.vec", tmp_path / "out", SALT)
    assert set(np.unique(done.origin)) <= {COPIED, ROLE}
    assert torch.equal(logits(tmp_path / "out"), logits(tmp_path / "source"))


@pytest.mark.parametrize("name", ["pair", "untied"])
def test_shared_rows_are_bit_identical(name: str, request, tmp_path) -> None:
    case = request.getfixturevalue(name)
    done = transfer(case.source, case.target, case.vectors, tmp_path / "out", SALT)
    before, after = weights(case.source), weights(tmp_path / "out")
    shared = np.flatnonzero(done.alignment.shared)
    ids = torch.from_numpy(done.alignment.source_id[shared].astype(np.int64))
    assert len(shared) > 20
    changed = {"model.embed_tokens.weight", "lm_head.weight"} & set(before)
    for key in changed:
        assert torch.equal(after[key][torch.from_numpy(shared)], before[key][ids]), key
        assert after[key].dtype == before[key].dtype and after[key].isfinite().all()
    for key in set(before) - changed:
        assert torch.equal(after[key], before[key]), key
    assert set(after) == set(before)


def test_solved_rows_follow_the_papers_formula(untied) -> None:
    from saltlm.vectors.auxiliary import load_auxiliary

    done = transfer(untied.source, untied.target, untied.vectors, config=SALT)
    before, donor = weights(untied.source), weights(untied.target)
    vectors = load_auxiliary(untied.vectors, done.alignment.target.words())
    plm = donor["embeddings.word_embeddings.weight"].double()
    anchors = np.flatnonzero(done.alignment.shared & (done.alignment.kind != MatchKind.ROLE) & vectors.known.numpy())
    unit = torch.nn.functional.normalize(vectors.vectors.double(), dim=1)
    source = torch.from_numpy(done.alignment.source_id[anchors].astype(np.int64))
    solved = np.flatnonzero(done.origin == SOLVED)
    assert len(solved) > 30
    for token in solved:
        z = unit[anchors] @ unit[token]
        order = z.argsort(descending=True)
        sums = z[order].cumsum(0)
        size = int((1 + torch.arange(1, len(z) + 1) * z[order] > sums).sum())
        support = order[:size]
        coefficients = plm[token] @ torch.linalg.pinv(plm[torch.from_numpy(anchors)[support]])
        for key, rows in (("model.embed_tokens.weight", done.input_rows), ("lm_head.weight", done.output_rows)):
            expected = coefficients @ before[key].double()[source[support]]
            assert (rows[token].double() - expected).norm() <= 1e-4 * expected.norm(), (token, key)


def test_what_cannot_be_solved_is_drawn_and_says_why(untied) -> None:
    done = transfer(untied.source, untied.target, untied.vectors, config=SALT)
    statuses = {entry["name"]: entry["count"] for entry in done.summary["statuses"]}
    assert statuses["no_vector"] == done.summary["counts"]["drawn"] > 0
    drawn = done.origin == DRAWN
    rows = weights(untied.source)["model.embed_tokens.weight"]
    assert abs(done.input_rows[drawn].std() / rows.std() - 1) < 0.2


def test_the_same_seed_gives_the_same_bytes(pair, tmp_path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        config = TransferConfig(method="normal", seed=seed)
        transfer(pair.source, pair.target, None, tmp_path / name, config)
    read = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert read[0] == read[1] != read[2]
    one, other = (weights(tmp_path / name)["model.embed_tokens.weight"] for name in "ac")
    done = transfer(pair.source, pair.target, None, config=TransferConfig(method="normal"))
    assert torch.equal((one != other).any(dim=1), torch.from_numpy(done.origin == DRAWN))


def test_subword_means_are_the_means_of_their_pieces(untied) -> None:
    done = transfer(untied.source, untied.target, config=TransferConfig(method="subword-mean"))
    composed = np.flatnonzero(done.origin == COMPOSED)
    assert len(composed) > 30
    before = weights(untied.source)
    for token in composed:
        pieces = torch.from_numpy(done.alignment.cover(token).astype(np.int64))
        for key, rows in (("model.embed_tokens.weight", done.input_rows), ("lm_head.weight", done.output_rows)):
            torch.testing.assert_close(rows[token], before[key][pieces].mean(dim=0))


@pytest.mark.parametrize("method", ["mean", "zero"])
def test_flat_starts(pair, method: str) -> None:
    done = transfer(pair.source, pair.target, config=TransferConfig(method=method))
    rows = weights(pair.source)["model.embed_tokens.weight"]
    expected = rows.double().mean(dim=0).float() if method == "mean" else torch.zeros(rows.shape[1])
    built = done.input_rows[done.origin == COMPOSED]
    assert len(built) and torch.allclose(built, expected.expand_as(built), atol=1e-6)


def test_options_reach_the_solver(pair) -> None:
    plain = transfer(pair.source, pair.target, pair.vectors, config=SALT)
    capped = transfer(pair.source, pair.target, pair.vectors, config=TransferConfig(method="salt", max_support=2))
    assert capped.summary["support"]["max"] == 2 < plain.summary["support"]["max"]
    for option in ({"ridge": 0.5}, {"center": True}):
        other = transfer(pair.source, pair.target, pair.vectors, config=TransferConfig(method="salt", **option))
        solved = torch.from_numpy(plain.origin == SOLVED)
        assert not torch.allclose(other.input_rows[solved], plain.input_rows[solved], rtol=1e-3)
        assert torch.equal(other.input_rows[~solved], plain.input_rows[~solved])


def test_padding_rows(pair, tmp_path) -> None:
    config = TransferConfig(method="subword-mean", pad_to_multiple_of=64)
    done = transfer(pair.source, pair.target, None, tmp_path / "out", config)
    size = done.alignment.target.size
    assert len(done.origin) % 64 == 0 and len(done.origin) > size
    assert (done.origin[size:] == PADDING).all() and (done.origin[:size] != PADDING).all()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == len(done.origin)
    assert logits(tmp_path / "out").shape[-1] == len(done.origin)


@pytest.mark.parametrize("keep", [False, True])
def test_an_exact_number_of_rows(pair, tmp_path, keep: bool) -> None:
    size = len(transfer(pair.source, pair.target, config=config_with(keep)).origin)
    for rows in (size, size + 1, size + 37):
        done = transfer(pair.source, pair.target, None, tmp_path / str(rows), config_with(keep, rows=rows))
        assert len(done.origin) == len(done.input_rows) == rows
        assert (done.origin[size:] == PADDING).all() and (done.origin[:size] != PADDING).all()
        assert logits(tmp_path / str(rows)).shape[-1] == rows
    for rows in (1, size - 1, size + 65537, 10**12):
        with pytest.raises(InputError, match=rf"rows: found {rows:,} for a tokenizer of {size:,} ids"):
            transfer(pair.source, pair.target, None, tmp_path / "out", config_with(keep, rows=rows))
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="with pad_to_multiple_of; expected one of the two"):
        config_with(keep, rows=size, pad_to_multiple_of=64)


def config_with(keep: bool, **options) -> TransferConfig:
    return TransferConfig(method="subword-mean", keep_source_vocabulary=keep, **options)


def test_a_tokenizer_longer_than_the_source_matrix(tmp_path) -> None:
    tokenizer = byte_level_bpe()
    tokenizer.add_tokens(["kissa", "talossa"])
    save_llama(tmp_path / "source", tokenizer, rows=len(tokenizer) - 2)
    save_bert(tmp_path / "target", tiny("sentencepiece_unigram"))
    write_vectors(tmp_path / "v.vec", tiny("sentencepiece_unigram"))
    done = transfer(tmp_path / "source", tmp_path / "target", tmp_path / "v.vec", config=SALT)
    rows = weights(tmp_path / "source")["model.embed_tokens.weight"]
    assert int(max(done.summary["counts"].values())) and done.input_rows.isfinite().all()
    copied = np.flatnonzero((done.origin == COPIED) | (done.origin == ROLE))
    assert (done.alignment.source_id[copied] < len(rows)).all()


def test_head_bias_follows_the_coefficients(tmp_path) -> None:
    save_phi(tmp_path / "source", tiny("byte_level_bpe"))
    save_bert(tmp_path / "target", tiny("sentencepiece_unigram"))
    done = transfer(
        tmp_path / "source", tmp_path / "target", None, tmp_path / "out", TransferConfig(method="subword-mean")
    )
    bias = weights(tmp_path / "source")["lm_head.bias"]
    assert bias.abs().max() > 0
    for token in range(len(done.origin)):
        if done.origin[token] == COMPOSED:
            pieces = torch.from_numpy(done.alignment.cover(token).astype(np.int64))
            torch.testing.assert_close(done.output_bias[token], bias[pieces].mean())
        elif done.origin[token] == COPIED:
            assert done.output_bias[token] == bias[done.alignment.source_id[token]]
    assert logits(tmp_path / "out").isfinite().all()


@pytest.mark.parametrize("donor", [save_bert, save_t5, save_gpt2])
@pytest.mark.parametrize("source", [save_llama, save_gpt2])
def test_every_kind_of_donor_and_source(tmp_path, source, donor) -> None:
    source(tmp_path / "source", tiny("byte_level_bpe"))
    donor(tmp_path / "target", tiny("sentencepiece_unigram"))
    write_vectors(tmp_path / "v.vec", tiny("sentencepiece_unigram"))
    done = transfer(tmp_path / "source", tmp_path / "target", tmp_path / "v.vec", tmp_path / "out", SALT)
    assert done.summary["counts"]["solved"] > 30
    assert logits(tmp_path / "out").isfinite().all()


def test_the_plms_own_rows_as_vectors(pair) -> None:
    done = transfer(pair.source, pair.target, "plm", config=SALT)
    assert done.summary["counts"]["solved"] > 30 and done.summary["inputs"]["auxiliary"]["kind"] == "plm"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtypes_are_kept_or_converted(tmp_path, dtype: str) -> None:
    case = make_pair(tmp_path, "byte_level_bpe", "wordpiece", dtype=getattr(torch, dtype))
    kept = transfer(case.source, case.target, case.vectors, tmp_path / "kept", SALT)
    assert kept.input_rows.dtype == getattr(torch, dtype)
    assert {tensor.dtype for tensor in weights(tmp_path / "kept").values()} == {getattr(torch, dtype)}
    converted = transfer(case.source, case.target, case.vectors, config=TransferConfig(method="salt", dtype="float32"))
    copied = (converted.origin == COPIED).nonzero()[0]
    assert torch.equal(converted.input_rows[copied], kept.input_rows[copied].float())


@pytest.mark.parametrize("body", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("asked", ["float32", "bfloat16", "float16", None])
def test_a_plain_load_gives_the_rows_of_the_transfer(tmp_path, body: str, asked: str | None) -> None:
    source = save_llama(tmp_path / "source", tiny("byte_level_bpe"), tied=False, dtype=getattr(torch, body))
    target = save_bert(tmp_path / "target", tiny("wordpiece"))
    config = TransferConfig(method="subword-mean", heldout=0.0, dtype=asked)
    done = transfer(source, target, out=tmp_path / "out", config=config)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for layer, rows in (
        (model.get_input_embeddings(), done.input_rows),
        (model.get_output_embeddings(), done.output_rows),
    ):
        assert rows.dtype == getattr(torch, asked or body)
        assert torch.equal(layer.weight.to(rows.dtype), rows)
        assert torch.equal(layer.weight, rows.to(layer.weight.dtype)), "nor is anything added to them"


def test_the_folder_says_what_it_is(untied, tmp_path) -> None:
    done = transfer(untied.source, untied.target, untied.vectors, tmp_path / "out", SALT)
    out = tmp_path / "out"
    summary = json.loads((out / "saltlm.json").read_text())
    assert summary == json.loads(json.dumps({**done.summary, "seconds": summary["seconds"]}))
    assert {
        "format",
        "saltlm_version",
        "method",
        "config",
        "inputs",
        "origins",
        "counts",
        "support",
        "statuses",
        "seconds",
    } <= set(summary)
    assert summary["saltlm_version"] == saltlm.__version__
    assert sum(summary["counts"].values()) == sum(s["count"] for s in summary["statuses"]) == len(done.origin)
    with safe_open(out / "provenance.safetensors", "np") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}
    types = {name: str(array.dtype) for name, array in arrays.items()}
    assert types == {
        "origin": "uint8",
        "source_id": "int32",
        "support_size": "int32",
        "rank": "int32",
        "residual": "float32",
        "status": "uint8",
        "rule": "uint8",
        "rule_offsets": "int64",
        "rule_ids": "int32",
        "rule_weights": "float32",
        "rule_kept": "float32",
        "source_bytes": "uint8",
        "source_offsets": "int64",
    }
    np.testing.assert_array_equal(arrays["origin"], done.origin)
    assert ((arrays["source_id"] >= 0) == np.isin(arrays["origin"], (COPIED, ROLE))).all()
    names = [summary["statuses"][code]["name"] for code in arrays["status"]]
    assert all(
        (name == "not_solved") == (origin in (COPIED, ROLE, PADDING))
        for name, origin in zip(names, arrays["origin"], strict=True)
    )
    card = (out / "README.md").read_text()
    assert "has not been adapted" in card and "licence" in card


def test_stock_transformers_loads_it_without_saltlm(untied, tmp_path) -> None:
    transfer(untied.source, untied.target, untied.vectors, tmp_path / "out", SALT)
    code = (
        "import sys; sys.modules['saltlm'] = None\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"folder = {str(tmp_path / 'out')!r}\n"
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        "model = AutoModelForCausalLM.from_pretrained(folder)\n"
        "batch = tokenizer('kissa talossa', return_tensors='pt')\n"
        "assert model.config.vocab_size == model.get_input_embeddings().num_embeddings >= len(tokenizer)\n"
        "assert model.config.eos_token_id == tokenizer.eos_token_id == model.generation_config.eos_token_id\n"
        "out = model.generate(**batch, max_new_tokens=5, do_sample=False)\n"
        "print(tokenizer.decode(out[0]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("method", ["subword-mean", "mean"])
def test_nothing_to_build_for_an_untied_head(tmp_path, method: str) -> None:
    folder = save_llama(tmp_path / "m", tiny("byte_level_bpe"), tied=False)
    done = transfer(folder, folder, config=TransferConfig(method=method))
    assert done.summary["new_tokens"] == 0
    assert torch.equal(done.output_rows, load_source(folder).output_rows)


def test_options_without_effect_are_told(pair) -> None:
    options = TransferConfig(method="zero", source_revision="main")
    warnings = transfer(pair.source, pair.target, pair.vectors, config=options).summary["warnings"]
    assert sum(warning.startswith("method 'zero' does not read auxiliary vectors") for warning in warnings) == 1
    assert "source_revision has no effect on a local folder" in warnings


TEMPLATE, OTHER = "{% for m in messages %}{{ m['content'] }}{% endfor %}", "{{ messages[0]['content'] }}"


@pytest.mark.parametrize(
    ("source_template", "target_template", "options", "lost"),
    [
        pytest.param(TEMPLATE, None, {}, True, id="the target has none"),
        pytest.param(TEMPLATE, OTHER, {}, True, id="the target has another"),
        pytest.param(TEMPLATE, TEMPLATE, {}, False, id="the target has the same"),
        pytest.param(
            {"default": TEMPLATE, "tools": OTHER}, {"default": TEMPLATE, "tools": OTHER}, {}, False, id="same set"
        ),
        pytest.param({"default": TEMPLATE, "tools": OTHER}, TEMPLATE, {}, True, id="one of two is missing"),
        pytest.param(TEMPLATE, OTHER, {"chat_template": "source"}, False, id="the source's was asked for"),
        pytest.param(TEMPLATE, OTHER, {"chat_template": "none"}, False, id="none was asked for"),
        pytest.param(TEMPLATE, OTHER, {"keep_source_vocabulary": True}, False, id="the source's tokenizer is kept"),
        pytest.param(None, OTHER, {}, False, id="the source has none"),
    ],
)
def test_a_lost_chat_template_is_reported_and_a_kept_one_is_not(
    pair, tmp_path, source_template, target_template, options, lost: bool
) -> None:
    folders = {"source": (pair.source, source_template), "target": (pair.target, target_template)}
    for name, (folder, template) in folders.items():
        shutil.copytree(folder, tmp_path / name)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / name)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(tmp_path / name)
    config = TransferConfig(method="subword-mean", heldout=0.0, **options)
    done = transfer(tmp_path / "source", tmp_path / "target", config=config, dry_run=True)
    reported = any("chat template is left out" in warning for warning in done.summary["warnings"])
    assert reported == lost
    if not lost and options.get("chat_template") != "none" and source_template:
        assert done.tokenizer.chat_template == source_template


def test_a_tokenizer_without_an_end_of_text_is_reported(pair, tmp_path) -> None:
    endless = byte_level_bpe()
    endless.eos_token = endless.pad_token = None
    donor = save_gpt2(tmp_path / "donor", endless)
    for target, count in ((donor, 1), (pair.target, 0)):
        warnings = transfer(pair.source, target, config=TransferConfig(method="zero")).summary["warnings"]
        assert sum("no token that ends a text" in warning for warning in warnings) == count


def test_an_input_inside_the_replaced_folder_is_kept(pair, tmp_path) -> None:
    out = tmp_path / "out"
    transfer(pair.source, pair.target, out=out, config=TransferConfig(method="zero"))
    inside = shutil.copy(pair.vectors, out / "v.vec")
    with pytest.raises(InputError, match=r"holds the input file .*v\.vec"):
        transfer(pair.source, pair.target, inside, out, TransferConfig(method="salt", force=True))
    assert Path(inside).is_file()


def test_rows_near_the_largest_number_do_not_break_the_report(tmp_path) -> None:
    folder = save_llama(tmp_path / "m", tiny("byte_level_bpe"), dtype=torch.bfloat16)
    rows = load_file(folder / "model.safetensors")
    rows["model.embed_tokens.weight"][300:] = 3e38
    save_file(rows, folder / "model.safetensors", {"format": "pt"})
    donor = save_bert(tmp_path / "donor", tiny("byte_level_bpe"))
    done = transfer(folder, donor, "plm", tmp_path / "out", TransferConfig(method="salt", heldout=0.5))
    assert done.summary["norms"]["copied"]["max"] > 3e38


def test_a_dry_run_tells_and_writes_nothing(pair, tmp_path) -> None:
    done = transfer(pair.source, pair.target, pair.vectors, tmp_path / "out", SALT, dry_run=True)
    assert done.summary["counts"]["padding"] == 0
    assert sum(done.summary["counts"].values()) + done.summary["new_tokens"] == len(done.origin)
    assert done.summary["new_tokens"] > 0 and done.summary["anchors"] > 0
    assert not list(tmp_path.iterdir()) and done.out is None


def test_progress_is_told(pair) -> None:
    seen: list[tuple[str, int, int]] = []
    transfer(pair.source, pair.target, pair.vectors, config=SALT, progress=lambda *event: seen.append(event))
    stages = list(dict.fromkeys(stage for stage, _, _ in seen))
    assert stages == ["load", "align", "vectors", "rows", "self-check"]
    done, total = next((d, t) for stage, d, t in reversed(seen) if stage == "rows")
    assert done == total > 0


def test_the_self_check_rewards_a_map_that_exists(tmp_path) -> None:
    """Source rows that are a linear image of the PLM's are predicted better than unrelated ones."""
    case = make_pair(tmp_path, "byte_level_bpe", "sentencepiece_unigram")
    config = TransferConfig(method="salt", heldout=0.3)
    unrelated = transfer(case.source, case.target, "plm", config=config)
    path = case.source / "model.safetensors"
    tensors = weights(case.source)
    rows = tensors["model.embed_tokens.weight"]
    plm = weights(case.target)["embeddings.word_embeddings.weight"]
    shared = np.flatnonzero(unrelated.alignment.shared)
    image = plm @ torch.randn(plm.shape[1], rows.shape[1], generator=torch.Generator().manual_seed(0))
    rows[torch.from_numpy(unrelated.alignment.source_id[shared].astype(np.int64))] = image[torch.from_numpy(shared)]
    save_file(tensors, path, metadata={"format": "pt"})
    related = transfer(case.source, case.target, "plm", config=config)
    one, other = related.summary["heldout"], unrelated.summary["heldout"]
    for self_check in (one, other):
        assert 0 < self_check["tokens"] <= 0.3 * related.summary["anchors"]
        assert 1 <= self_check["rank"] <= self_check["candidates"] and 0 <= self_check["top1"] <= 1
    assert one["relative_error"] < 0.9 < other["relative_error"]
    assert one["cosine"] > 0.5 > other["cosine"] and one["rank"] < other["rank"]


def test_no_shared_tokens_is_refused(tmp_path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    model = Tokenizer(models.Unigram([("<unk>", 0.0), *((chr(c), -1.0) for c in range(0x4E00, 0x4E40))], unk_id=0))
    model.pre_tokenizer = pre_tokenizers.Metaspace()
    chinese = PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>")
    latin = Tokenizer(models.Unigram([("<unk>", 0.0), *((chr(c), -1.0) for c in range(97, 123))], unk_id=0))
    latin.pre_tokenizer = pre_tokenizers.Metaspace()
    save_llama(tmp_path / "source", PreTrainedTokenizerFast(tokenizer_object=latin, unk_token="<unk>"))
    save_bert(tmp_path / "target", chinese)
    write_vectors(tmp_path / "v.vec", chinese)
    with pytest.raises(InputError, match="none of them text"):
        transfer(tmp_path / "source", tmp_path / "target", tmp_path / "v.vec", tmp_path / "out", SALT)
    assert not (tmp_path / "out").exists()
