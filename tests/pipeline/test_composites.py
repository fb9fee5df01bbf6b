"""Transfers from and to models of several parts: the text part gets new rows, and everything else stays as it is."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from composites_tiny import KINDS, WIDTH, save_composite, tokenizer_of
from models_tiny import save, save_bert, save_llama
from safetensors.torch import load_file
from tokenizers_tiny import tiny

import saltlm
from saltlm.alignment.align import MatchKind
from saltlm.config import TransferConfig
from saltlm.errors import InputError
from saltlm.model.checkpoint import load_donor, load_source
from saltlm.pipeline import Transfer, transfer

# Ends of the keys of vocabulary rows in these models; all other tensors must not change.
VOCABULARY = ("embed_tokens.weight", "lm_head.weight", "embed_tokens_per_layer.weight")
IMAGE_PATCHES = 4  # of an image of 28 by 28 pixels in patches of 14 by 14


@dataclasses.dataclass(frozen=True)
class Case:
    """A source of one kind, the transfer from it, and both models loaded by their own class."""

    kind: str
    source: Path
    done: Transfer
    before: Any
    after: Any

    @property
    def out(self) -> Path:
        assert self.done.out is not None
        return self.done.out


@pytest.fixture(scope="module")
def donor(tmp_path_factory) -> Path:
    return save_bert(tmp_path_factory.mktemp("donor"), tiny("wordpiece"))


@pytest.fixture(scope="module")
def cases(donor, tmp_path_factory) -> Callable[[str], Case]:
    root = tmp_path_factory.mktemp("composites")

    @functools.cache
    def case(kind: str) -> Case:
        source = save_composite(root / kind, kind)
        done = transfer(source, donor, None, root / f"{kind}-out")
        return Case(kind, source, done, load_whole(source, kind), load_whole(root / f"{kind}-out", kind))

    return case


def shared_ids(done: Transfer, count: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Target and source ids [1, n] of shared text tokens."""
    ids = np.flatnonzero(done.alignment.shared & (done.alignment.kind == MatchKind.EXACT))[:count]
    source = done.alignment.source_id[ids]
    return torch.from_numpy(ids.astype(np.int64))[None], torch.from_numpy(source.astype(np.int64))[None]


def load_whole(folder: Path, kind: str) -> Any:
    """The model by its own class; all tensors of the folder belong to it."""
    model, report = getattr(transformers, KINDS[kind].model_class).from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


def logits(model: Any, ids: torch.Tensor, columns: torch.Tensor, **images: Any) -> torch.Tensor:
    """Logits of some tokens at all positions of one sequence."""
    # Llama4ForConditionalGeneration of transformers 5.24 computes its logits and fails at building its output.
    model = model.language_model if model.config.model_type == "llama4" else model
    with torch.no_grad():
        return model(input_ids=ids, **images).logits[0][:, columns[0]]


def assert_close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def images_of(kind: str) -> dict[str, Any]:
    """One image as the model takes it; empty where the test has none for this kind of model."""
    pixels = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    if kind in ("gemma3", "llava", "internvl"):
        return {"pixel_values": pixels}
    if kind in ("smolvlm", "idefics3"):
        return {"pixel_values": pixels[None]}
    return {}


@pytest.mark.parametrize("kind", KINDS)
def test_everything_but_the_vocabulary_stays_bit_for_bit(kind: str, cases) -> None:
    case = cases(kind)
    before, after = (load_file(folder / "model.safetensors") for folder in (case.source, case.out))
    assert before.keys() == after.keys()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {key for key in before if key.endswith(VOCABULARY)}
    assert any("vision" in key or "visual" in key for key in before) or kind == "gemma4"


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_computes_the_same_on_text(kind: str, cases) -> None:
    case = cases(kind)
    assert case.after.config.get_text_config().vocab_size == len(case.done.input_rows) == len(case.done.tokenizer)
    target, matched = shared_ids(case.done)
    assert target.shape[1] == 12
    assert_close(logits(case.after, target, target), logits(case.before, matched, matched))
    bits = saltlm.evaluate(case.out, documents=["the cat sat on the mat"], device="cpu").bits_per_byte
    assert np.isfinite(bits) and bits > 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokens_that_mark_images_come_along(kind: str, cases) -> None:
    case = cases(kind)
    markers, source = KINDS[kind].markers, load_source(case.source)
    assert set(source.markers) == set(markers.values())
    config, tokenizer = case.after.config, transformers.AutoTokenizer.from_pretrained(case.out)
    for name, token in markers.items():
        index = tokenizer.convert_tokens_to_ids(token)
        assert getattr(tokenizer, name) == token and tokenizer.encode(token, add_special_tokens=False) == [index]
        old = source.input_rows[source.tokenizer.convert_tokens_to_ids(token)]
        assert torch.equal(case.done.input_rows[index], old)
        entries = [entry for entry in (f"{name}_id", f"{name}_index") if hasattr(config, entry)]
        assert entries and all(getattr(config, entry) == index for entry in entries), entries
    text = config.get_text_config()
    for entry in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(text, entry) == getattr(tokenizer, entry) is not None, entry
    assert f"{KINDS[kind].model_class}.from_pretrained" in (case.out / "README.md").read_text()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if images_of(kind)])
def test_an_image_is_read_as_before(kind: str, cases) -> None:
    case = cases(kind)
    target, matched = shared_ids(case.done)
    count = {"internvl": 1, "smolvlm": 1, "idefics3": 1}.get(kind, IMAGE_PATCHES)
    outputs = []
    for model, ids in ((case.before, matched), (case.after, target)):
        mark = torch.full((1, count), model.config.image_token_id)
        outputs.append(logits(model, torch.cat([ids[:, :4], mark, ids[:, 4:]], dim=1), ids, **images_of(kind)))
    assert_close(outputs[1], outputs[0])
    assert not torch.allclose(outputs[1][-1], logits(case.after, target, target)[-1])


def test_processor_files_come_along_and_load(tmp_path: Path, donor: Path) -> None:
    source = save_composite(tmp_path / "source", "llava")
    tokenizer = tokenizer_of("llava")
    tokenizer.chat_template = "{% for message in messages %}<image>{{ message.content }}{% endfor %}"
    processor = transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=28),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    processor.save_pretrained(source)
    done = transfer(source, donor, None, tmp_path / "out", TransferConfig(chat_template="source"))
    read = transformers.AutoProcessor.from_pretrained(done.out, backend="pil")
    assert type(read).__name__ == "LlavaProcessor" and read.chat_template == tokenizer.chat_template
    image = np.zeros((28, 28, 3), dtype=np.uint8)
    inputs = read(text="the <image> cat", images=image, return_tensors="pt")
    model = load_whole(done.out, "llava")
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == IMAGE_PATCHES
    with torch.no_grad():
        assert model(**inputs).logits.isfinite().all()


def test_an_expanded_vocabulary_keeps_all_ids(tmp_path: Path, cases, donor: Path) -> None:
    done = transfer(cases("gemma3").source, donor, None, tmp_path / "out", TransferConfig(keep_source_vocabulary=True))
    source, written = load_whole(cases("gemma3").source, "gemma3"), load_whole(done.out, "gemma3")
    assert written.config.image_token_index == source.config.image_token_index
    ids = torch.arange(4, 40)[None]
    assert_close(logits(written, ids, ids), logits(source, ids, ids))


def test_a_flat_config_gets_the_size_at_the_top(tmp_path: Path, donor: Path) -> None:
    """Older files of Qwen2-VL hold the text part's entries at the top."""
    source = save_composite(tmp_path / "source", "qwen2_5_vl")
    raw = json.loads((source / "config.json").read_text())
    text = raw.pop("text_config")
    text.pop("model_type")
    (source / "config.json").write_text(json.dumps({**text, **raw}))
    done = transfer(source, donor, None, tmp_path / "out")
    written = json.loads((done.out / "config.json").read_text())
    assert "text_config" not in written and written["vocab_size"] == len(done.input_rows)
    assert load_whole(done.out, "qwen2_5_vl").get_input_embeddings().weight.shape[0] == len(done.input_rows)


@pytest.mark.parametrize("kind", ["gemma3", "llava", "qwen3_vl", "smolvlm"])
def test_a_model_of_several_parts_as_donor(kind: str, tmp_path: Path, cases) -> None:
    source = save_llama(tmp_path / "source", tiny("sentencepiece_bpe"))
    donor = load_donor(cases(kind).source)
    assert donor.input_rows.shape[1] == WIDTH and len(donor.input_rows) >= len(donor.tokenizer)
    done = transfer(source, cases(kind).source, None, tmp_path / "out", TransferConfig(method="ridge-map"))
    assert done.summary["counts"]["solved"] and done.input_rows.isfinite().all()
    model = transformers.AutoModelForCausalLM.from_pretrained(done.out).eval()
    before = transformers.AutoModelForCausalLM.from_pretrained(source).eval()
    target, matched = shared_ids(done)
    assert_close(logits(model, target, target), logits(before, matched, matched))


def test_a_target_without_padding_token_gets_one_where_the_class_needs_it(tmp_path: Path, cases) -> None:
    """Gemma 4 puts the padding id in the place of an image's tokens."""
    target = save_bert(tmp_path / "target", tiny("sentencepiece_bpe"))
    done = transfer(cases("gemma4").source, target, None, tmp_path / "out")
    model = load_whole(done.out, "gemma4")
    assert model.config.get_text_config().pad_token_id == done.tokenizer.pad_token_id is not None
    ids, matched = shared_ids(done)
    assert_close(logits(model, ids, ids), logits(cases("gemma4").before, matched, matched))


def test_a_part_with_token_ids_of_its_own_is_refused(tmp_path: Path, cases, donor: Path) -> None:
    raw = json.loads((cases("gemma3").source / "config.json").read_text())
    raw["vision_config"]["vocab_offset"] = 400
    source = save_composite(tmp_path / "source", "gemma3")
    (source / "config.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match=r"vision_config\.vocab_offset"):
        transfer(source, donor, None, tmp_path / "out")


def test_a_model_that_does_not_write_text_is_refused(tmp_path: Path, donor: Path) -> None:
    config = transformers.CLIPConfig(
        text_config={"vocab_size": 420, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        vision_config={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28},
        projection_dim=16,
    )
    source = save(tmp_path / "source", "CLIPModel", config, tiny("byte_level_bpe"), dtype=torch.float32)
    with pytest.raises(InputError, match="which is no causal LM"):
        transfer(source, donor, None, tmp_path / "out")
