"""The reload check: a result that computes what its source computes passes, and each kind of fault in it is an error."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from models_tiny import save, save_bert, save_gpt2, save_llama, save_phi
from safetensors.torch import load_file, save_file
from tokenizers_tiny import tiny
from transformers import LlamaConfig

from saltlm import TransferConfig, transfer
from saltlm.cli.main import main
from saltlm.errors import BackendError
from saltlm.folder import reload_check
from saltlm.folder.reload_check import check_reload, full_bytes
from saltlm.model.checkpoint import Source, load_source
from saltlm.model.weights import release_pages
from saltlm.pipeline import Transfer
from saltlm.rows.assembly import Assembly
from saltlm.shared import Shared

MEANS = TransferConfig(method="mean", heldout=0.0, reload_check="off")
FAMILIES = {
    "tied": save_llama,
    "untied": lambda folder, tokenizer: save_llama(folder, tokenizer, tied=False),
    "learned positions": save_gpt2,
    "head bias": save_phi,
    "bfloat16": lambda folder, tokenizer: save_llama(folder, tokenizer, dtype=torch.bfloat16),
    "float16 shards": lambda folder, tokenizer: save_gpt2(
        folder, tokenizer, dtype=torch.float16, max_shard_size=20_000
    ),
}


@dataclasses.dataclass(frozen=True)
class Finished:
    """A finished transfer that was not checked."""

    source: Source
    done: Transfer
    out: Path

    def check(self, mode: str, **changes) -> dict:
        """Check the folder ``out``, or another result of the same transfer."""
        given = {"folder": self.out, "source": self.source, "shared": Shared(), **changes}
        folder, source, shared = given["folder"], given["source"], given["shared"]
        assembly = Assembly(self.source, self.done.alignment, len(self.done.origin), None)
        return check_reload(folder, source, assembly, self.done.tokenizer, mode=mode, shared=shared)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finished]:
    """One finished transfer of each family."""
    root = tmp_path_factory.mktemp("finished")
    target = save_bert(root / "target", tiny("sentencepiece_unigram"))
    results = {}
    for name, family in FAMILIES.items():
        source = family(root / name, tiny("byte_level_bpe"))
        done = transfer(source, target, out=root / f"{name} result", config=MEANS)
        results[name] = Finished(load_source(source), done, root / f"{name} result")
    return results


@pytest.mark.parametrize("mode", ["auto", "full", "truncated"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_correct_result_has_the_sources_logits(finished, family: str, mode: str) -> None:
    report = finished[family].check(mode)
    assert report["checked"] == ("truncated" if mode == "truncated" else "full") and report["reason"] is None
    assert report["layers"] == (1 if mode == "truncated" else None)
    assert report["difference"] == 0 < report["tolerance"] and report["compared"] > report["tokens"] == 24


def tensors_changed(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return edit


def file_changed(name: str, **entries) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))

    return edit


def roll(key: str) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: tensors.update({key: tensors[key].roll(1, 0)})


def add(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.0.mlp.extra.weight"] = torch.zeros(3)


EMBEDDING, INNER = "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"
FAULTS = {
    "input rows of other tokens": ("tied", tensors_changed(roll(EMBEDDING)), "differ from the source's by up to"),
    "output rows of other tokens": ("untied", tensors_changed(roll("lm_head.weight")), "differ from the source's"),
    "biases of other tokens": ("head bias", tensors_changed(roll("lm_head.bias")), "differ from the source's"),
    "another weight": (
        "tied",
        tensors_changed(lambda tensors: tensors[INNER].mul_(1.01)),
        "differ from the source's by up to",
    ),
    "another weight in bfloat16": (
        "bfloat16",
        tensors_changed(lambda tensors: tensors[INNER].mul_(1.5)),
        "differ from the source's by up to",
    ),
    "other positions": (
        "learned positions",
        tensors_changed(roll("transformer.wpe.weight")),
        "differ from the source's by up to",
    ),
    "not a number": (
        "tied",
        tensors_changed(lambda tensors: tensors[INNER].fill_(float("nan"))),
        "differ from the source's by up to inf",
    ),
    "a lost tensor": ("tied", tensors_changed(lambda tensors: tensors.pop(INNER)), r"missing keys .*\(.*up_proj"),
    "an added tensor": ("tied", tensors_changed(add), r"unexpected keys .*\(.*extra"),
    "a tensor of another shape": (
        "tied",
        tensors_changed(lambda tensors: tensors.update({INNER: torch.zeros(3, 3)})),
        r"mismatched keys .*\(.*up_proj",
    ),
    "a config of another model": (
        "tied",
        file_changed("config.json", num_attention_heads=2, head_dim=16, num_key_value_heads=2),
        "differ from",
    ),
    "sizes of another model": ("tied", file_changed("config.json", intermediate_size=48), "mismatched keys"),
    "a config of an unknown model": ("tied", file_changed("config.json", model_type="none"), "but not the result"),
    "an id without a row": ("tied", file_changed("config.json", bos_token_id=9999), r"bos_token_id \[9999\] in a voc"),
    "an id in a nested config without a row": (
        "tied",
        file_changed("config.json", vision_config={"image_token_id": 9999}),
        r"vision_config.image_token_id \[9999\] in a voc",
    ),
    "an id for generation without a row": (
        "tied",
        file_changed("generation_config.json", eos_token_id=[1, 9999]),
        r"generation_config.json names eos_token_id \[1, 9999\]",
    ),
}


@pytest.mark.parametrize("mode", ["full", "truncated"])
@pytest.mark.parametrize("fault", FAULTS)
def test_every_kind_of_fault_is_an_error(finished, tmp_path, fault: str, mode: str) -> None:
    family, edit, words = FAULTS[fault]
    folder = shutil.copytree(finished[family].out, tmp_path / "out")
    edit(folder)
    with pytest.raises(BackendError, match=rf"(?s)reload check: .*{words}.*nothing was written"):
        finished[family].check(mode, folder=folder)


@pytest.mark.parametrize(("key", "passes"), [("image_token_index", True), ("eos_token_id", False)])
def test_the_number_of_rows_stands_for_no_token_but_not_for_a_role(finished, tmp_path, key: str, passes: bool) -> None:
    folder = Path(shutil.copytree(finished["tied"].out, tmp_path / "out"))
    file_changed("config.json", **{key: len(finished["tied"].done.origin)})(folder)
    with contextlib.nullcontext() if passes else pytest.raises(BackendError, match=rf"names {key}"):
        assert finished["tied"].check("full", folder=folder)["difference"] == 0


def test_after_a_fault_nothing_is_in_place(pair, tmp_path, monkeypatch, capsys) -> None:
    """The fault is in a later layer, which auto loads, too."""
    from saltlm.folder import write

    def broken(*arguments) -> dict:
        return {**original(*arguments), "rms_norm_eps": 5.0}

    original = write._config
    monkeypatch.setattr(write, "_config", broken)
    out = tmp_path / "deep" / "out"
    with pytest.raises(BackendError, match="reload check"):
        transfer(pair.source, pair.target, out=out, config=TransferConfig(method="mean"))
    assert main(["transfer", f"--source={pair.source}", f"--target={pair.target}", f"--out={out}"]) == 1
    assert "--reload-check off writes the folder anyway" in capsys.readouterr().err.replace("\n", " ")
    assert not list(tmp_path.iterdir())
    done = transfer(pair.source, pair.target, out=out, config=TransferConfig(method="mean", reload_check="off"))
    assert done.summary["reload_check"]["reason"] == "it is switched off" and out.is_dir()
    assert not any("not compared" in warning for warning in done.summary["warnings"])


def test_the_records_say_what_was_checked(pair, tmp_path, capsys) -> None:
    arguments = pair.arguments(tmp_path / "out", "--reload-check=truncated", "--method=mean")
    assert main(arguments) == 0
    saved = json.loads((tmp_path / "out" / "saltlm.json").read_text(encoding="utf-8"))
    assert saved["config"]["reload_check"] == saved["reload_check"]["checked"] == "truncated"
    shown = " ".join(capsys.readouterr().out.split())
    assert "reload check: logits of shared tokens equal the source's exactly (1 of its layers, float32)" in shown
    assert transfer(pair.source, pair.target).summary["reload_check"] is None, "nothing was written"


def test_auto_loads_large_models_in_part(finished, monkeypatch) -> None:
    case = finished["untied"]
    size = sum(header.data_bytes for header in case.source.weights.headers.values())
    assert full_bytes(case.source.weights, "auto") == size and full_bytes(case.source.weights, "truncated") == 0
    monkeypatch.setattr(reload_check, "FULL_BYTES", size - 1)
    assert case.check("auto")["checked"] == "truncated" and case.check("full")["checked"] == "full"
    assert full_bytes(case.source.weights, "auto") == 0
    monkeypatch.setattr(reload_check, "FULL_BYTES", size)
    monkeypatch.setattr(reload_check, "available_memory", lambda: 2 * size - 1)
    assert case.check("auto")["checked"] == "truncated"


def test_what_cannot_be_compared_is_said_and_is_no_error(finished, tmp_path) -> None:
    case = finished["tied"]
    quantised = dataclasses.replace(case.source, config={**case.source.config, "quantization_config": {"bits": 4}})
    report = case.check("auto", source=quantised)
    assert (report["checked"], report["reason"], report["difference"]) == ("off", "the source is quantised", None)
    shutil.copy(case.source.folder / "config.json", tmp_path)
    report = case.check("full", source=dataclasses.replace(case.source, folder=tmp_path))
    assert report["checked"] == "off" and "the source cannot be run here (OSError" in report["reason"]


def test_a_model_that_lacks_weights_is_not_compared(pair, tmp_path) -> None:
    """transformers draws them at random; saltlm needs the vocabulary rows alone."""
    source = Path(shutil.copytree(pair.source, tmp_path / "source"))
    tensors_changed(lambda tensors: tensors.pop(INNER))(source)
    done = transfer(source, pair.target, out=tmp_path / "out", config=TransferConfig(method="mean"))
    told = [warning for warning in done.summary["warnings"] if "not compared with the source" in warning]
    assert len(told) == 1 and "lacks weights" in told[0] and "up_proj" in told[0]


def test_the_sources_logits_are_computed_once(finished, monkeypatch) -> None:
    loaded: list[Path] = []
    run = reload_check._run

    def counted(folder: Path, *arguments):
        loaded.append(folder)
        return run(folder, *arguments)

    monkeypatch.setattr(reload_check, "_run", counted)
    case, shared = finished["tied"], Shared(1 << 20)
    reports = [case.check("full", shared=shared) for _ in range(3)]
    assert loaded.count(case.source.folder) == 1 and loaded.count(case.out) == 3 and reports[0] == reports[2]
    case.check("truncated", shared=shared)
    assert loaded.count(case.source.folder) == 2


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="needs /proc/self/statm")
def test_a_truncated_copy_of_a_large_model_takes_little_memory(tmp_path, monkeypatch) -> None:
    """12 layers of 34 MB each are holes in the file; auto must not load them."""
    config = LlamaConfig(
        vocab_size=len(tiny("byte_level_bpe")),
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=1,
        num_attention_heads=8,
    )
    folder = save(tmp_path / "source", "LlamaForCausalLM", config, tiny("byte_level_bpe"), dtype=torch.bfloat16)
    layers_added(folder, 12)
    target = save_bert(tmp_path / "target", tiny("sentencepiece_unigram"))
    sizes: list[int] = []

    def sampled() -> None:
        sizes.append(resident())
        release_pages()

    monkeypatch.setattr(reload_check, "release_pages", sampled)
    monkeypatch.setattr(reload_check, "FULL_BYTES", 1 << 28)
    done = transfer(folder, target, out=tmp_path / "out", config=dataclasses.replace(MEANS, reload_check="auto"))
    assert done.summary["reload_check"]["checked"] == "truncated"
    assert len(sizes) > 20 and max(sizes) - min(sizes) < 64 << 20


def resident() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def layers_added(folder: Path, count: int) -> None:
    """Give a model of one layer more layers, whose tensors are holes in the file."""
    path = folder / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    offset = len(data)
    first = [(name, entry) for name, entry in header.items() if ".layers.0." in name]
    for layer in range(1, count):
        for name, entry in first:
            size = entry["data_offsets"][1] - entry["data_offsets"][0]
            added = {**entry, "data_offsets": [offset, offset + size]}
            header[name.replace(".layers.0.", f".layers.{layer}.")] = added
            offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + data)
        file.truncate(8 + len(text) + offset)
    file_changed("config.json", num_hidden_layers=count)(folder)
