"""Laws of a written model folder: the same rows give the same model; stock transformers loads whatever is written."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import models_tiny
import pytest
import torch
from models_tiny import save_gpt2, save_llama, save_phi, save_qwen2
from safetensors.torch import load_file, save_file
from tokenizers_tiny import KINDS, TEXT, tiny
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from saltlm.errors import BackendError, InputError
from saltlm.folder.write import write_folder
from saltlm.model.checkpoint import Source, load_source
from saltlm.model.weights import with_dtype
from saltlm.rows.matrices import NewMatrices

BPE = tiny("byte_level_bpe")
SMALL = 20_000  # bytes a shard: several shards for each tiny model

MAKERS = {
    "llama tied": lambda folder, **options: save_llama(folder, BPE, tied=True, **options),
    "llama untied": lambda folder, **options: save_llama(folder, BPE, tied=False, **options),
    "gpt2": lambda folder, **options: save_gpt2(folder, BPE, **options),
    "phi with head bias": lambda folder, **options: save_phi(folder, BPE, **options),
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def matrices_of(source: Source) -> NewMatrices:
    return NewMatrices(input_rows=source.input_rows, output_rows=source.output_rows, output_bias=source.output_bias)


def resized(source: Source, rows: int, dtype: torch.dtype | None = None) -> NewMatrices:
    """Rows of the source over and over, changed a little, in other numbers and perhaps another dtype."""

    def make(old: torch.Tensor | None) -> torch.Tensor | None:
        if old is None:
            return None
        return (old[torch.arange(rows) % len(old)] * 0.5 + 0.25).to(dtype or old.dtype)

    return NewMatrices(
        input_rows=make(source.input_rows), output_rows=make(source.output_rows), output_bias=make(source.output_bias)
    )


def write(out: Path, source: Source, matrices: NewMatrices, tokenizer=BPE, **options) -> Path:
    write_folder(out, source, matrices, tokenizer=tokenizer, **({"config_changes": {}} | options))
    return out


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {key: value for path in sorted(folder.glob("*.safetensors")) for key, value in load_file(path).items()}


def logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        return model(torch.tensor([[5, 9, 20, 33, 7]]), attention_mask=torch.ones(1, 5, dtype=torch.long)).logits


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for key in one:
        assert one[key].dtype == other[key].dtype and one[key].shape == other[key].shape, key
        assert torch.equal(one[key].view(torch.uint8), other[key].view(torch.uint8)), key


def state(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("dtype", "size"),
    [(torch.float32, "1GB"), (torch.bfloat16, SMALL), (torch.float16, SMALL)],
    ids=["float32 one file", "bfloat16 sharded", "float16 sharded"],
)
@pytest.mark.parametrize("family", MAKERS)
def test_unchanged_rows_give_the_same_model(tmp_path: Path, family: str, dtype: torch.dtype, size) -> None:
    model = MAKERS[family](tmp_path / "model", dtype=dtype, max_shard_size=size)
    source = load_source(model)
    assert (source.weights.index is not None) == (size == SMALL)
    out = write(tmp_path / "out", source, matrices_of(source))
    assert_same(tensors(out), tensors(model))
    assert torch.equal(logits(out), logits(model))
    assert AutoTokenizer.from_pretrained(out)(TEXT)["input_ids"] == BPE(TEXT)["input_ids"]
    if size == SMALL:
        name = "model.safetensors.index.json"
        assert json.loads((out / name).read_text()) == json.loads((model / name).read_text())


@pytest.mark.parametrize("rows", [70, 1000])
@pytest.mark.parametrize("family", MAKERS)
def test_sharded_equals_whole_and_all_other_tensors_pass_through(tmp_path: Path, family: str, rows: int) -> None:
    written = []
    for name, size in (("whole", "1GB"), ("sharded", SMALL)):
        source = load_source(MAKERS[family](tmp_path / name, max_shard_size=size))
        new = resized(source, rows)
        out = write(tmp_path / f"{name} out", source, new)
        saved, old = tensors(out), tensors(tmp_path / name)
        for key, value in ((source.input_name, new.input_rows), (source.output_name, new.output_rows)):
            if key is not None:
                assert torch.equal(saved.pop(key), value)
                old.pop(key)
        if source.bias_name:
            assert torch.equal(saved.pop(source.bias_name), new.output_bias)
            old.pop(source.bias_name)
        assert_same(saved, old)
        assert json.loads((out / "config.json").read_text())["vocab_size"] == rows
        assert logits(out).shape[-1] == rows
        written.append(out)
    assert_same(tensors(written[0]), tensors(written[1]))
    assert torch.equal(logits(written[0]), logits(written[1]))
    model = AutoModelForCausalLM.from_pretrained(written[1])
    model.save_pretrained(tmp_path / "again", max_shard_size=SMALL)
    index = [
        json.loads((folder / "model.safetensors.index.json").read_text()) for folder in (written[1], tmp_path / "again")
    ]
    assert index[0]["metadata"] == index[1]["metadata"], "sums as transformers itself would write them"


def test_only_shards_with_rows_are_rewritten(tmp_path: Path) -> None:
    source = load_source(save_llama(tmp_path / "model", BPE, tied=False, max_shard_size=SMALL))
    out = write(tmp_path / "out", source, resized(source, 500))
    changed = {source.shards[source.input_name], source.shards[source.output_name]}
    same = {name for name in source.weights.headers if (out / name).read_bytes() == (source.folder / name).read_bytes()}
    assert same == set(source.weights.headers) - changed and same


@pytest.mark.parametrize("tokenizer_kind", KINDS)
@pytest.mark.parametrize("maker", [save_llama, save_gpt2, save_qwen2])
def test_autotokenizer_gives_the_new_tokenizer_back(tmp_path: Path, monkeypatch, maker, tokenizer_kind: str) -> None:
    """Qwen2's type makes transformers put that class's own pre-tokenizer in place of the saved one, unless prevented."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    source = load_source(maker(tmp_path / "model", BPE))
    out = write(tmp_path / "out", source, resized(source, len(tiny(tokenizer_kind))), tokenizer=tiny(tokenizer_kind))
    assert (out / "tokenizer.py").exists() == (maker is save_qwen2), "code only where nothing else helps"
    for trust in (False, True):
        read = AutoTokenizer.from_pretrained(out, trust_remote_code=trust)
        assert read(TEXT)["input_ids"] == tiny(tokenizer_kind)(TEXT)["input_ids"]
        assert read.get_vocab() == tiny(tokenizer_kind).get_vocab()
        for role in ("bos_token", "eos_token", "pad_token", "unk_token", "mask_token"):
            assert getattr(read, role) == getattr(tiny(tokenizer_kind), role)


@pytest.mark.parametrize("body", DTYPES, ids=str)
@pytest.mark.parametrize("rows", DTYPES, ids=str)
@pytest.mark.parametrize("family", ["llama tied", "phi with head bias"])
def test_a_plain_load_rounds_neither_rows_nor_body(
    tmp_path: Path, family: str, body: torch.dtype, rows: torch.dtype
) -> None:
    """config.json names the narrowest dtype that holds both: transformers casts everything to it."""
    source = load_source(MAKERS[family](tmp_path / "model", dtype=body))
    new = resized(source, 430, rows)
    out = write(tmp_path / "out", source, new)
    saved = tensors(out)
    assert {saved[key].dtype for key in (source.input_name, source.output_name, source.bias_name) if key} == {rows}
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == torch.promote_types(body, rows)
    assert model.dtype == body or rows != body, "the dtype of the checkpoint where nothing else is written"
    assert_loaded(model, new)
    loaded = model.state_dict()
    for key, tensor in saved.items():
        assert torch.equal(loaded[key].to(tensor.dtype), tensor), key


def assert_loaded(model, new: NewMatrices) -> None:
    """The model has these rows bit for bit."""
    head = model.get_output_embeddings()
    for weight, written in (
        (model.get_input_embeddings().weight, new.input_rows),
        (head.weight, new.input_rows if new.output_rows is None else new.output_rows),
        (head.bias, new.output_bias),
    ):
        if written is not None:
            assert torch.equal(weight.to(written.dtype).view(torch.uint8), written.view(torch.uint8))


KEYS = [("dtype",), ("torch_dtype",), ("dtype", "torch_dtype"), ()]


@pytest.mark.parametrize("body", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("size", ["1GB", SMALL], ids=["one file", "sharded"])
@pytest.mark.parametrize("keys", KEYS, ids=" ".join)
def test_every_way_to_name_the_dtype(tmp_path: Path, keys: tuple[str, ...], size, body: torch.dtype) -> None:
    """The key of transformers 5, that of 4, both, or none: then the first tensor of a file would decide."""
    folder = save_llama(tmp_path / "model", BPE, tied=False, dtype=body, max_shard_size=size)
    edit_config(
        folder, lambda config: {**config, **dict.fromkeys(keys, str(body).removeprefix("torch."))}, drop=("dtype",)
    )
    source = load_source(folder)
    rows = torch.float32 if body == torch.bfloat16 else torch.bfloat16
    new = resized(source, 430, rows)
    out = write(tmp_path / "out", source, new)
    named = {key: value for key, value in json.loads((out / "config.json").read_text()).items() if key in KEYS[2]}
    assert named == dict.fromkeys(keys or ["torch_dtype"], "float32")
    for dtype in ({}, {"dtype": "auto"}):
        assert_loaded(AutoModelForCausalLM.from_pretrained(out, **dtype), new)


def test_a_checkpoint_that_names_no_dtype_and_has_one_is_left_so(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "model", BPE, dtype=torch.bfloat16)
    edit_config(folder, dict, drop=("dtype",))
    source = load_source(folder)
    out = write(tmp_path / "out", source, resized(source, 430))
    assert not set(json.loads((out / "config.json").read_text())) & {"dtype", "torch_dtype"}
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16


@pytest.mark.parametrize("named", ["bfloat16", None])
@pytest.mark.parametrize("rows", DTYPES, ids=str)
def test_a_body_of_several_dtypes(tmp_path: Path, rows: torch.dtype, named: str | None) -> None:
    """A few float32 tensors in a bfloat16 model do not make it a float32 model, unless the rows are."""
    folder = save_llama(tmp_path / "model", BPE, tied=False, dtype=torch.bfloat16)
    content = load_file(folder / "model.safetensors")
    content["model.norm.weight"] = content["model.norm.weight"].float()
    save_file(content, folder / "model.safetensors", metadata={"format": "pt"})
    if named is None:
        edit_config(folder, dict, drop=("dtype",))
    source = load_source(folder)
    new = resized(source, 430, rows)
    model = AutoModelForCausalLM.from_pretrained(write(tmp_path / "out", source, new))
    assert_loaded(model, new)
    assert model.dtype == (torch.bfloat16 if named and rows == torch.bfloat16 else torch.float32)


def edit_config(folder: Path, change, *, drop: tuple[str, ...] = ()) -> None:
    """Rewrite config.json without some keys, then by a function."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(change({key: value for key, value in config.items() if key not in drop})))


@pytest.mark.parametrize("keys", KEYS[:3], ids=" ".join)
def test_the_dtype_is_named_in_the_parts_too(keys: tuple[str, ...], tmp_path: Path) -> None:
    """Where a model has parts, AutoModelForCausalLM may load by the configuration of the text part."""
    part = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 16}
    names = dict.fromkeys(keys, "bfloat16")
    nested = {
        "model_type": "gemma3",
        "architectures": ["Gemma3ForConditionalGeneration"],
        **names,
        "text_config": {"model_type": "gemma3_text", **part, **names},
        "vision_config": {"hidden_size": 32, **names},
    }
    changed = with_dtype(nested, torch.float32)
    (tmp_path / "config.json").write_text(json.dumps(changed))
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.dtype == config.get_text_config().dtype == config.vision_config.dtype == torch.float32
    assert nested["text_config"] == {"model_type": "gemma3_text", **part, **names}, "the argument is left as it is"
    for name in ("text_config", "vision_config"):
        assert set(changed[name]) == set(nested[name])


def test_a_dtype_is_added_at_the_top_alone() -> None:
    bare = {"text_config": {"hidden_size": 3}, "layers": 2}
    assert with_dtype(bare, torch.float16) == bare
    assert with_dtype(bare, torch.float16, add=True) == {**bare, "torch_dtype": "float16"}


def test_config_dtype_follows_when_everything_has_it(tmp_path: Path) -> None:
    """Where config.json says another dtype than all tensors have, the tensors are right."""
    folder = save_llama(tmp_path / "model", BPE, dtype=torch.bfloat16)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    source = load_source(folder)
    out = write(tmp_path / "out", source, resized(source, 430))
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


def hold_twice(folder: Path, *, differ: bool) -> None:
    """Some checkpoints hold a tied matrix twice; if the two differ, transformers leaves them untied."""
    from safetensors.torch import save_file

    content = load_file(folder / "model.safetensors")
    content["lm_head.weight"] = content["model.embed_tokens.weight"] + (1 if differ else 0)
    save_file(content, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_tied_matrix_held_twice_is_written_twice(tmp_path: Path) -> None:
    hold_twice(save_llama(tmp_path / "model", BPE), differ=False)
    source = load_source(tmp_path / "model")
    assert source.tied and len(source.copies) == 1
    new = resized(source, 300)
    out = write(tmp_path / "out", source, new)
    saved = tensors(out)
    assert torch.equal(saved["lm_head.weight"], new.input_rows)
    assert torch.equal(saved["model.embed_tokens.weight"], new.input_rows)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_two_matrices_under_a_tying_config_are_untied_as_transformers_has_it(tmp_path: Path) -> None:
    hold_twice(save_llama(tmp_path / "model", BPE), differ=True)
    source = load_source(tmp_path / "model")
    assert not source.tied and source.output_name == "lm_head.weight"
    out = write(tmp_path / "out", source, matrices_of(source))
    assert torch.equal(logits(out), logits(tmp_path / "model"))
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False


def test_tied_stays_tied(tmp_path: Path) -> None:
    source = load_source(save_llama(tmp_path / "model", BPE, tied=True))
    out = write(tmp_path / "out", source, resized(source, 99))
    assert "lm_head.weight" not in tensors(out)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_which_files_come_along(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "model", BPE)
    for name in (
        "LICENSE",
        "NOTICE.txt",
        "README.md",
        "vocab.txt",
        "modeling_own.py",
        "pytorch_model.bin",
        "merges.txt",
    ):
        (folder / name).write_text(name)
    config = json.loads((folder / "config.json").read_text())
    remote = {"auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}, "tokenizer_class": "LlamaTokenizer"}
    (folder / "config.json").write_text(json.dumps(config | remote))
    source = load_source(folder)
    files = {"saltlm.json": b"{}", "README.md": lambda path: path.write_text("card") and None}
    out = write(
        tmp_path / "out",
        source,
        matrices_of(source),
        config_changes={"bos_token_id": 3, "new": [1]},
        generation_changes={"eos_token_id": 4},
        extra_files=files,
    )
    assert sorted(path.name for path in out.iterdir()) == [
        "LICENSE",
        "NOTICE.txt",
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "saltlm.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    new = json.loads((out / "config.json").read_text())
    assert (out / "README.md").read_text() == "card"
    changes = {"bos_token_id": 3, "new": [1], "rope_theta": 10000.0}  # transformers 4's name for rope_parameters
    assert new == config | changes, "the rest unchanged, auto_map and tokenizer_class gone"
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation == {**source.generation_config, "eos_token_id": 4}


def test_progress_reaches_the_whole(tmp_path: Path) -> None:
    source = load_source(save_llama(tmp_path / "model", BPE, max_shard_size=SMALL))
    calls: list[tuple[int, int]] = []
    write(tmp_path / "out", source, resized(source, 500), progress=lambda done, total: calls.append((done, total)))
    assert calls == sorted(calls) and calls[-1][0] == calls[-1][1]


def test_wrong_matrices_are_refused(tmp_path: Path) -> None:
    source = load_source(save_llama(tmp_path / "model", BPE, tied=False))
    rows = torch.zeros(50, models_tiny.WIDTH)
    for matrices in (NewMatrices(input_rows=rows), NewMatrices(input_rows=rows[:, :5], output_rows=rows)):
        with pytest.raises(ValueError, match=r"the source's"):
            write(tmp_path / "out", source, matrices)
    for wrong in ({"output_rows": rows[:3]}, {"output_bias": rows[0]}, {"output_rows": rows.long()}):
        with pytest.raises(ValueError, match="cannot be written"):
            NewMatrices(input_rows=rows, **wrong)
    rows[7, 3] = float("nan")
    with pytest.raises(BackendError, match="row 7 "):
        write(tmp_path / "out", source, NewMatrices(input_rows=rows, output_rows=rows))
    assert not (tmp_path / "out").exists()


def test_places_that_are_refused(tmp_path: Path) -> None:
    source = load_source(save_llama(tmp_path / "model", BPE))
    before = state(tmp_path / "model")
    for out, protected in (("model", []), ("model/out", []), ("donor", ["donor"]), (".", [])):
        with pytest.raises(InputError, match="input folder"):
            write(
                tmp_path / out,
                source,
                matrices_of(source),
                protected=[tmp_path / name for name in protected],
                force=True,
            )
    write(tmp_path / "out", source, matrices_of(source))
    with pytest.raises(InputError, match="--force"):
        write(tmp_path / "out", source, matrices_of(source))
    write(tmp_path / "out", source, resized(source, 99), force=True)
    assert len(tensors(tmp_path / "out")[source.input_name]) == 99
    assert state(tmp_path / "model") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


def big(path: Path) -> None:
    path.write_bytes(bytes(3_000_000))


@pytest.mark.parametrize("strikes", ["in the weights", "in an extra file"])
def test_a_limit_on_file_size_leaves_nothing(tmp_path: Path, strikes: str) -> None:
    """A true limit of the kernel."""
    source = load_source(save_llama(tmp_path / "model", BPE))
    (tmp_path / "room").mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(InputError, match="limit on the size of files"):
            if strikes == "in the weights":
                write(tmp_path / "room" / "out", source, resized(source, 30_000))
            else:
                write(tmp_path / "room" / "out", source, matrices_of(source), extra_files={"provenance": big})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "room").iterdir()) == []


@pytest.fixture
def powerless():
    """A folder that others may read, while this process, if root, is one of the others."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    root = os.geteuid() == 0

    def drop() -> None:
        if root:
            os.seteuid(65534)

    try:
        yield folder, drop
    finally:
        if root:
            os.seteuid(0)
        shutil.rmtree(folder)


def test_no_permission_to_write(powerless) -> None:
    folder, drop = powerless
    source = load_source(save_llama(folder / "model", BPE))
    (folder / "room").mkdir(mode=0o555)
    drop()
    for out in ("room/out", "room/deep/out"):
        with pytest.raises(InputError, match=r"output .*no permission to write"):
            write(folder / out, source, matrices_of(source))


@pytest.mark.skipif(os.geteuid() != 0, reason="to become another user takes root")
def test_no_permission_to_read(powerless) -> None:
    folder, drop = powerless
    source = load_source(save_llama(folder / "model", BPE))
    (folder / "room").mkdir()
    (folder / "room").chmod(0o777)
    for shut in (folder / "model" / "model.safetensors", folder / "model"):
        shut.chmod(0)
        drop()
        with pytest.raises(InputError, match=r"model.safetensors: found Permission denied"):
            write(folder / "room" / "out", source, matrices_of(source))
        os.seteuid(0)
        assert list((folder / "room").iterdir()) == []


FULL = """
import sys
from pathlib import Path
import torch
from saltlm.errors import InputError
from saltlm.files.output_folder import whole_folder
from saltlm.model.safetensors_header import read_header
from saltlm.model.safetensors_stream import rewrite
header, out = read_header(Path(sys.argv[1]) / "model.safetensors"), Path(sys.argv[2])
def rows(folder):
    rewrite(header, folder / "model.safetensors", {"model.embed_tokens.weight": torch.ones(40_000, 32)})
def more(folder):
    rewrite(header, folder / "model.safetensors", {})
    (folder / "more").write_bytes(bytes(3_000_000))
for write in (rows, more):
    try:
        with whole_folder(out) as folder:
            write(folder)
    except InputError as error:
        print(error)
    print([path.name for path in out.parent.iterdir()])
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare to mount a small disk")
def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """A real disk of 2 MB, in a new mount namespace."""
    model = save_llama(tmp_path / "model", BPE)
    room = tmp_path / "room"
    room.mkdir()
    mount = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*mount, f"mount -t tmpfs none {room}"], capture_output=True).returncode:
        pytest.skip("this system lets nobody mount")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "SCRIPT": FULL, "OMP_NUM_THREADS": "1"}
    command = f'mount -t tmpfs -o size=2m none {room} && {sys.executable} -c "$SCRIPT" {model} {room}/out'
    result = subprocess.run([*mount, command], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert "no space left" in lines[0] and "no space left" in lines[2]
    assert lines[1] == lines[3] == "[]"


KILLED = """
import json, os, random, shutil, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from saltlm.model.checkpoint import load_source
from saltlm.model.weights import with_dtype
from saltlm.folder.write import NewMatrices, write_folder
model, out = Path(sys.argv[1]), Path(sys.argv[2])
source = load_source(model)
EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "fcntl.flock", "fcntl.ioctl",
          "ctypes.dlsym", "os.listdir", "os.scandir", "shutil.rmtree"}

def write(folder, number):
    matrices = NewMatrices(input_rows=source.input_rows + number, output_rows=source.output_rows)
    write_folder(folder, source, matrices, tokenizer=source.tokenizer, config_changes={}, force=True)

def state(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}

def child(before):
    # Write in a child process; returns its id.
    process = os.fork()
    if process == 0:
        before()
        write(out, 2.0)
        os._exit(0)
    return process

def check():
    hidden = [path for path in out.parent.iterdir() if path.name.startswith(".out.")]
    assert len(hidden) <= 1, hidden
    seen["hidden"] += len(hidden)
    if not out.exists():
        seen["absent"] += 1
    else:
        content = state(out)
        assert content in (old, new), sorted(content)
        seen["old" if content == old else "new"] += 1

def at_event(count):
    left = count
    def hook(event, arguments):
        nonlocal left
        if event in EVENTS:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
    return lambda: sys.addaudithook(hook)

seen = dict.fromkeys(("absent", "old", "new", "hidden", "killed"), 0)
write(out.with_name("one"), 1.0)
write(out.with_name("two"), 2.0)
old, new = state(out.with_name("one")), state(out.with_name("two"))

# At the first, second, ... opening, renaming, locking of a file: over an old folder, then without one.
for case in ("replacing", "new"):
    count, status = 0, 1
    while status:
        shutil.rmtree(out, ignore_errors=True)
        if case == "replacing":
            shutil.copytree(out.with_name("one"), out)
        count += 1 if count < 8 else 6
        status = os.waitpid(child(at_event(count)), 0)[1]
        assert status in (0, signal.SIGKILL), status
        seen["killed"] += status != 0
        check()

# At random moments; their span is steered so that about half of the writers finish.
chance, span = random.Random(0), 0.2
for turn in range(8):
    process = child(lambda: None)
    time.sleep(chance.random() * span)
    os.kill(process, signal.SIGKILL)
    span *= 0.7 if os.waitpid(process, 0)[1] == 0 else 1.3
    check()

write(out, 1.0)
assert sorted(path.name for path in out.parent.iterdir()) == ["one", "out", "two"]
assert state(out) == old
print(json.dumps(seen))
"""


def test_killed_at_any_moment_the_folder_is_whole_or_absent(tmp_path: Path) -> None:
    model = save_llama(tmp_path / "model", BPE, tied=False, max_shard_size=SMALL)
    (tmp_path / "room").mkdir()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, str(model), str(tmp_path / "room" / "out")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout)
    assert all(seen.values()) and seen["killed"] > 20, f"the kills did not meet all states: {seen}"
