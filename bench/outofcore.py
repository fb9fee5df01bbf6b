"""A model larger than memory: saltlm transfer against ``cp -r --sparse=auto`` of the same folder.

Bar: 80 % of cp's speed, under 3 GB of memory.

Usage: python bench/outofcore.py [--layouts sparse dense] [--link copy hard] [--methods salt auto] [--folder DIR] [--runs 3]
           [--cold]

Two made-up models with the tensor names of a Llama, their tokenizers and a donor of 32,000 tokens of which 12,000 are shared:

- ``sparse``: 103 GB in 4.2 GB shards, 128,256 x 8192 in bfloat16 with its own head; every byte but the vocabulary's is a
  hole, so about 10 GB of disk are needed. What is timed is the work around the copying.
- ``dense``: 6 GB of drawn bytes, 64,000 x 4096 with its own head; needs 13 GB of disk.

Each run of ours is a process of its own, from reading the folder to the renamed result, without the self-check; vectors are the
donor's own. cp does not bring its copy to the disk; both figures, with and without, are given. ``--cold`` drops the system's
caches before each run (root only). The folder must not lie in memory (tmpfs).
"""

import argparse
import itertools
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from harness import figure, record

BAR, MEMORY = 0.8, 3000
TARGET, SHARED, DONOR_WIDTH = 32_000, 12_000, 384
SHARD = 4_200_000_000
# rows, width, inner width, layers, width of keys and values, drawn bytes everywhere
LAYOUTS = {
    "sparse": (128_256, 8192, 28_672, 58, 1024, False),
    "dense": (64_000, 4096, 14_336, 11, 1024, True),
}


def words(count: int) -> list[str]:
    """Made-up words, all different."""
    onsets, vowels = "bdfghjklmnprstv", "aeiouy"
    syllables = [a + b for a in onsets for b in vowels]
    found = []
    for index in range(count):
        word, left = "", index + len(syllables)
        while left:
            word, left = word + syllables[left % len(syllables)], left // len(syllables)
        found.append(word)
    return found


def save_tokenizers(source: Path, target: Path, rows: int) -> None:
    """A byte-level vocabulary of ``rows`` tokens and a Unigram one of ``TARGET`` with ``SHARED`` of its words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    text = words(rows + TARGET)
    tokens = ["<|begin|>", "<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens += ["Ġ" + word for word in text[: rows - len(tokens)]]
    made = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<|begin|>", eos_token="<|end|>").save_pretrained(source)
    pieces = ["<s>", "<pad>", "</s>", "<unk>"]
    own = text[rows : rows + TARGET - SHARED - len(pieces)]
    pieces += ["▁" + word for word in (*text[:SHARED], *own)]
    made = Tokenizer(models.Unigram([(piece, -float(index)) for index, piece in enumerate(pieces)], unk_id=3))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    roles = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=made, **roles).save_pretrained(target)


def save_donor(folder: Path) -> None:
    """Rows in clusters, so that cosines spread as those of words do and supports have some tens of neighbours."""
    from safetensors.torch import save_file
    from transformers import BertConfig

    draw = torch.Generator().manual_seed(1)
    centres = torch.randn(TARGET // 20, DONOR_WIDTH, generator=draw)
    near = torch.randint(len(centres), (TARGET,), generator=draw)
    rows = centres[near] + 0.8 * torch.randn(TARGET, DONOR_WIDTH, generator=draw)
    save_file({"embeddings.word_embeddings.weight": rows}, folder / "model.safetensors", metadata={"format": "pt"})
    BertConfig(
        vocab_size=TARGET, hidden_size=DONOR_WIDTH, num_hidden_layers=1, architectures=["BertModel"]
    ).save_pretrained(folder)


def save_model(folder: Path, layout: str) -> int:
    """The sharded model; returns its bytes."""
    from transformers import LlamaConfig

    rows, width, inner, layers, narrow, drawn = LAYOUTS[layout]
    tensors = [("model.embed_tokens.weight", (rows, width))]
    for layer in range(layers):
        shapes = {
            "self_attn.q_proj": (width, width), "self_attn.k_proj": (narrow, width), "self_attn.v_proj": (narrow, width),
            "self_attn.o_proj": (width, width), "mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner), "input_layernorm": (width,), "post_attention_layernorm": (width,),
        }  # fmt: skip
        tensors += [(f"model.layers.{layer}.{name}.weight", shape) for name, shape in shapes.items()]
    tensors += [("model.norm.weight", (width,)), ("lm_head.weight", (rows, width))]
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    room = SHARD
    for name, shape in tensors:
        if math.prod(shape) * 2 > room:
            shards.append([])
            room = SHARD
        shards[-1].append((name, shape))
        room -= math.prod(shape) * 2
    where, total = {}, 0
    block = torch.randn(32 << 20, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
    data = memoryview(block.view(torch.uint8).numpy())
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        header, place = {}, 0
        for key, shape in shard:
            size = math.prod(shape) * 2
            header[key] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [place, place + size]}
            where[key], place = name, place + size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with (folder / name).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for key, shape in shard:
                left = math.prod(shape) * 2
                if not drawn and "layers" in key:
                    file.seek(left, os.SEEK_CUR)
                    continue
                skip = 2 * (hash_of(key) % 1000)  # no two tensors alike
                while left:
                    left -= file.write(data[skip : skip + left])
            file.truncate(8 + len(text) + place)
        total += place
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    LlamaConfig(
        vocab_size=rows, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=width // 128,
        num_key_value_heads=narrow // 128, tie_word_embeddings=False, architectures=["LlamaForCausalLM"], dtype="bfloat16",
        bos_token_id=0, eos_token_id=1,
    ).save_pretrained(folder)  # fmt: skip
    return total


def hash_of(text: str) -> int:
    """The same in every process, unlike Python's own."""
    return int.from_bytes(text.encode(), "little") % 1_000_003


OURS = """
import json, sys, time
begin = time.perf_counter()
from saltlm import TransferConfig, output_folder, transfer
sync, stages, flushed = output_folder._sync, {}, []
def timed(folder):
    start = time.perf_counter()
    sync(folder)
    flushed.append(time.perf_counter() - start)
output_folder._sync = timed
def progress(stage, done, total):
    stages.setdefault(stage, time.perf_counter())
source, target, out, link, method = sys.argv[1:]
done = transfer(source, target, "plm", out, TransferConfig(method=method, heldout=0, link=link), progress=progress)
end = time.perf_counter()
with open("/proc/self/status") as status:
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024 / 1e6
names = list(stages)
parts = {name: (stages[after] if after else end) - stages[name] for name, after in zip(names, [*names[1:], None])}
found = {"seconds": end - begin, "fsync": flushed[0], "peak": peak, "stages": parts}
print(json.dumps({**found, "support": done.summary["support"]}))
"""


def ours(source: Path, target: Path, out: Path, link: str, method: str) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", OURS, *map(str, (source, target, out)), link, method],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def copy(source: Path, out: Path) -> dict:
    start = time.perf_counter()
    subprocess.run(["cp", "-r", "--sparse=auto", str(source), str(out)], check=True)
    seconds = time.perf_counter() - start
    subprocess.run(["sync", *map(str, out.iterdir()), str(out)], check=True)
    return {"seconds": seconds, "synced": time.perf_counter() - start}


def check(source: Path, out: Path) -> tuple[int, int]:
    """Equality first: every kept tensor by samples of its bytes, every copied row by its bits, the index by the headers."""
    from safetensors.torch import load_file

    from saltlm.model.weights import find_weights

    old, new = find_weights(source, "source"), find_weights(out, "out")
    if old.files_of() != new.files_of() or json.loads((out / "model.safetensors.index.json").read_text())[
        "weight_map"
    ] != {name: old.files_of()[name] for name in old.index["weight_map"]}:
        raise SystemExit("the index or the files of tensors differ")
    vocabulary = ("model.embed_tokens.weight", "lm_head.weight")
    sampled = 0
    for name, file in old.files_of().items():
        one, other = old.entry(name), new.entry(name)
        if name in vocabulary:
            continue
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            raise SystemExit(f"{name} changed its shape")
        size = one.end - one.start
        with (source / file).open("rb") as a, (out / file).open("rb") as b:
            for part in (0, size // 3, size // 2 + 1, max(0, size - 65536)):
                a.seek(old.headers[file].data_start + one.start + part)
                b.seek(new.headers[file].data_start + other.start + part)
                if a.read(min(65536, size - part)) != b.read(min(65536, size - part)):
                    raise SystemExit(f"{name} changed near byte {part}")
                sampled += 1
    origin = load_file(out / "provenance.safetensors")["source_id"]
    copied = torch.nonzero(origin >= 0).flatten()
    for name in vocabulary:
        for block in copied.split(1024):
            if not torch.equal(
                new.tensor(name)[block].view(torch.int16), old.tensor(name)[origin[block].long()].view(torch.int16)
            ):
                raise SystemExit(f"{name}: copied rows differ")
    return sampled, len(copied)


def drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("1")


def measure(layout: str, link: str, method: str, root: Path, runs: int, cold: bool) -> None:
    source, target = root / layout, root / "donor"
    theirs, mine = [], []
    for number in range(runs):
        for side in ("cp", "saltlm"):
            if cold:
                drop_caches()
            out = root / "out"
            if side == "cp":
                theirs.append(copy(source, out))
            else:
                mine.append(ours(source, target, out, link, method))
                if number == 0:
                    sampled, copied = check(source, out)
            shutil.rmtree(out)

    def middle(found: list[dict], name: str) -> float:
        return statistics.median(run[name] for run in found)

    whole, write = middle(mine, "seconds"), statistics.median(run["stages"]["write"] for run in mine)
    flush, peak = middle(mine, "fsync"), max(run["peak"] for run in mine)
    plain, synced = middle(theirs, "seconds"), middle(theirs, "synced")
    taken = sum(path.stat().st_blocks * 512 for path in source.iterdir())
    size = sum(path.stat().st_size for path in source.iterdir())
    stages = ", ".join(f"{name} {figure(seconds)}" for name, seconds in mine[-1]["stages"].items())
    record(
        f"Out of core, {layout} layout, {method}, --link {link}: {size / 1e9:.0f} GB in"
        f" {len(list(source.glob('*.safetensors')))} shards, {taken / 1e9:.1f} GB of them no holes",
        [
            ("cp -r --sparse=auto", f"{figure(plain)} s"),
            ("the same, and brought to the disk", f"{figure(synced)} s"),
            ("saltlm, writing the folder (brought to the disk)", f"{figure(write)} s"),
            ("of it: waiting for the disk at the end", f"{figure(flush)} s"),
            ("saltlm, whole process", f"{figure(whole)} s"),
            ("stages of the last run", stages),
            ("cp and disk / saltlm writing", f"**{synced / write:.0%}** (bar {BAR:.0%}: {verdict(synced / write)})"),
            ("cp and disk / saltlm whole", f"**{synced / whole:.0%}**"),
            ("cp alone / saltlm writing without the wait", f"{plain / max(1e-9, write - flush):.0%}"),
            ("cp alone / saltlm whole", f"{plain / whole:.0%}"),
            (
                "largest memory of the process",
                f"**{figure(peak)} MB** (bar {MEMORY:,}: {'met' if peak < MEMORY else 'missed'})",
            ),
            ("support sizes", json.dumps(mine[-1]["support"])),
        ],
        f"python bench/outofcore.py --layouts {layout} --link {link} --methods {method} --runs {runs}"
        + (" --cold" if cold else ""),
        [
            f"Medians of {runs} runs in turn, caches {'dropped before each' if cold else 'warm'}. Before: {sampled:,} samples"
            f" of kept tensors and {copied:,} copied rows of both matrices equal bit for bit, sizes and index right."
        ],
    )  # fmt: skip


def verdict(ratio: float) -> str:
    return "met" if ratio >= BAR else "missed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layouts", nargs="+", choices=list(LAYOUTS), default=list(LAYOUTS))
    parser.add_argument("--link", nargs="+", choices=("copy", "hard"), default=["copy"])
    parser.add_argument(
        "--folder", type=Path, help="where the models are made (default: the system's temporary folder)"
    )
    parser.add_argument("--methods", nargs="+", default=["salt"], help="of saltlm transfer (default: salt)")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--cold", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="outofcore-") as name:
        root = Path(name)
        (root / "donor").mkdir()
        save_donor(root / "donor")
        for layout in arguments.layouts:
            (root / layout).mkdir()
            save_model(root / layout, layout)
            save_tokenizers(root / layout, root / "donor", LAYOUTS[layout][0])
            os.sync()
            for link, method in itertools.product(arguments.link, arguments.methods):
                measure(layout, link, method, root, arguments.runs, arguments.cold)
            shutil.rmtree(root / layout)


if __name__ == "__main__":
    main()
