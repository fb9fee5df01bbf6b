"""A model larger than memory: saltlm transfer compared with ``cp -r --sparse=auto`` of the same folder.

Bars: writing at 80 % of the speed of cp, and less than 3 GB of memory.

Usage: python bench/outofcore.py [--layouts sparse dense] [--link copy hard] [--methods salt auto] [--folder DIR]
           [--runs 3] [--cold]

Two generated models with the tensor names of a Llama, their tokenizers, and a target PLM of 32,000 tokens, of which
12,000 are shared:

- ``sparse``: 103 GB in shards of 4.2 GB, vocabulary 128,256 x 8192 in bfloat16 with its own head. Everything but the
  vocabulary rows is a hole in the file, so about 10 GB of disk are needed. This times the work around the copying.
- ``dense``: 6 GB of random bytes, vocabulary 64,000 x 4096 with its own head; needs 13 GB of disk.

Each run of saltlm is a process of its own, from reading the folder to the renamed result, without the self-check; the
auxiliary vectors are the rows of the target PLM. cp does not wait until its copy is on the disk; times with and
without ``sync`` are given. ``--cold`` drops the system's caches before each run (root only). The folder must not be in
memory (tmpfs).
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
TARGET, SHARED, PLM_WIDTH = 32_000, 12_000, 384
SHARD = 4_200_000_000
# vocabulary rows, width, inner width, layers, width of keys and values, whether the layers hold random bytes (else holes)
LAYOUTS = {
    "sparse": (128_256, 8192, 28_672, 58, 1024, False),
    "dense": (64_000, 4096, 14_336, 11, 1024, True),
}


def words(count: int) -> list[str]:
    """Generate ``count`` different words."""
    onsets, vowels = "bdfghjklmnprstv", "aeiouy"
    syllables = [a + b for a in onsets for b in vowels]
    result = []
    for index in range(count):
        word, rest = "", index + len(syllables)
        while rest:
            word, rest = word + syllables[rest % len(syllables)], rest // len(syllables)
        result.append(word)
    return result


def save_tokenizers(source: Path, target: Path, rows: int) -> None:
    """Save a byte-level tokenizer of ``rows`` tokens, and a Unigram one of ``TARGET`` that shares ``SHARED`` words with it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    text = words(rows + TARGET)
    tokens = ["<|begin|>", "<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens += ["Ġ" + word for word in text[: rows - len(tokens)]]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|begin|>", eos_token="<|end|>").save_pretrained(
        source
    )
    pieces = ["<s>", "<pad>", "</s>", "<unk>"]
    target_words = text[rows : rows + TARGET - SHARED - len(pieces)]
    pieces += ["▁" + word for word in (*text[:SHARED], *target_words)]
    tokenizer = Tokenizer(models.Unigram([(piece, -float(index)) for index, piece in enumerate(pieces)], unk_id=3))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    roles = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles).save_pretrained(target)


def save_target(folder: Path) -> None:
    """Save a target PLM with rows in clusters, so that cosines vary like those of words and supports have tens of anchors."""
    from safetensors.torch import save_file
    from transformers import BertConfig

    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(TARGET // 20, PLM_WIDTH, generator=generator)
    cluster = torch.randint(len(centres), (TARGET,), generator=generator)
    rows = centres[cluster] + 0.8 * torch.randn(TARGET, PLM_WIDTH, generator=generator)
    save_file({"embeddings.word_embeddings.weight": rows}, folder / "model.safetensors", metadata={"format": "pt"})
    BertConfig(
        vocab_size=TARGET, hidden_size=PLM_WIDTH, num_hidden_layers=1, architectures=["BertModel"]
    ).save_pretrained(folder)


def save_model(folder: Path, layout: str) -> int:
    """Save the sharded model; returns its size in bytes."""
    from transformers import LlamaConfig

    rows, width, inner, layers, key_width, random = LAYOUTS[layout]
    tensors = [("model.embed_tokens.weight", (rows, width))]
    for layer in range(layers):
        shapes = {
            "self_attn.q_proj": (width, width),
            "self_attn.k_proj": (key_width, width),
            "self_attn.v_proj": (key_width, width),
            "self_attn.o_proj": (width, width),
            "mlp.gate_proj": (inner, width),
            "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner),
            "input_layernorm": (width,),
            "post_attention_layernorm": (width,),
        }
        tensors += [(f"model.layers.{layer}.{name}.weight", shape) for name, shape in shapes.items()]
    tensors += [("model.norm.weight", (width,)), ("lm_head.weight", (rows, width))]
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    free = SHARD
    for name, shape in tensors:
        if math.prod(shape) * 2 > free:
            shards.append([])
            free = SHARD
        shards[-1].append((name, shape))
        free -= math.prod(shape) * 2
    shard_of, total = {}, 0
    block = torch.randn(32 << 20, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
    data = memoryview(block.view(torch.uint8).numpy())
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        header, offset = {}, 0
        for key, shape in shard:
            size = math.prod(shape) * 2
            header[key] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
            shard_of[key], offset = name, offset + size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with (folder / name).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for key, shape in shard:
                remaining = math.prod(shape) * 2
                if not random and "layers" in key:
                    file.seek(remaining, os.SEEK_CUR)
                    continue
                skip = 2 * (hash_of(key) % 1000)  # so that tensors of the same shape differ
                while remaining:
                    remaining -= file.write(data[skip : skip + remaining])
            file.truncate(8 + len(text) + offset)
        total += offset
    index = {"metadata": {"total_size": total}, "weight_map": shard_of}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    LlamaConfig(
        vocab_size=rows,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=width // 128,
        num_key_value_heads=key_width // 128,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
        bos_token_id=0,
        eos_token_id=1,
    ).save_pretrained(folder)
    return total


def hash_of(text: str) -> int:
    """Hash that is the same in every process, unlike Python's ``hash``."""
    return int.from_bytes(text.encode(), "little") % 1_000_003


OURS = """
import json, sys, time
begin = time.perf_counter()
from saltlm import TransferConfig, transfer
from saltlm.files import output_folder
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
figures = {"seconds": end - begin, "fsync": flushed[0], "peak": peak, "stages": parts}
print(json.dumps({**figures, "support": done.summary["support"]}))
"""


def ours(source: Path, target: Path, out: Path, link: str, method: str) -> dict:
    """Run a transfer in a process of its own; returns its seconds, fsync seconds, peak MB, stages and support sizes."""
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
    """Copy the folder with cp; returns the seconds of cp, and of cp and sync."""
    start = time.perf_counter()
    subprocess.run(["cp", "-r", "--sparse=auto", str(source), str(out)], check=True)
    seconds = time.perf_counter() - start
    subprocess.run(["sync", *map(str, out.iterdir()), str(out)], check=True)
    return {"seconds": seconds, "synced": time.perf_counter() - start}


def check(source: Path, out: Path) -> tuple[int, int]:
    """Compare a transferred folder with its source.

    Unchanged tensors are compared by samples of their bytes, copied rows bit for bit, and the index with the file headers.

    Returns:
        The number of samples, and the number of copied rows.
    """
    from safetensors.torch import load_file

    from saltlm.model.weights import find_weights

    old, new = find_weights(source, "source"), find_weights(out, "out")
    if old.files_of() != new.files_of() or json.loads((out / "model.safetensors.index.json").read_text())[
        "weight_map"
    ] != {name: old.files_of()[name] for name in old.index["weight_map"]}:
        raise SystemExit("the index, or the files that tensors are stored in, differ")
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
    """Drop the page cache of the system (root only)."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("1")


def measure(layout: str, link: str, method: str, root: Path, runs: int, cold: bool) -> None:
    """Time cp and saltlm alternately, and record the figures."""
    source, target = root / layout, root / "target"
    copies, transfers = [], []
    for number in range(runs):
        for side in ("cp", "saltlm"):
            if cold:
                drop_caches()
            out = root / "out"
            if side == "cp":
                copies.append(copy(source, out))
            else:
                transfers.append(ours(source, target, out, link, method))
                if number == 0:
                    sampled, copied = check(source, out)
            shutil.rmtree(out)

    def median(measured: list[dict], name: str) -> float:
        return statistics.median(run[name] for run in measured)

    whole, write = median(transfers, "seconds"), statistics.median(run["stages"]["write"] for run in transfers)
    flush, peak = median(transfers, "fsync"), max(run["peak"] for run in transfers)
    plain, synced = median(copies, "seconds"), median(copies, "synced")
    stored = sum(path.stat().st_blocks * 512 for path in source.iterdir())
    size = sum(path.stat().st_size for path in source.iterdir())
    stages = ", ".join(f"{name} {figure(seconds)}" for name, seconds in transfers[-1]["stages"].items())
    record(
        f"Out of core, {layout} layout, {method}, --link {link}: {size / 1e9:.0f} GB in"
        f" {len(list(source.glob('*.safetensors')))} shards, {stored / 1e9:.1f} GB of them not holes",
        [
            ("cp -r --sparse=auto", f"{figure(plain)} s"),
            ("cp and sync", f"{figure(synced)} s"),
            ("saltlm, writing the folder (fsync included)", f"{figure(write)} s"),
            ("of which final fsync", f"{figure(flush)} s"),
            ("saltlm, whole process", f"{figure(whole)} s"),
            ("stages of the last run", stages),
            ("cp and sync / saltlm writing", f"**{synced / write:.0%}** (bar {BAR:.0%}: {verdict(synced / write)})"),
            ("cp and sync / saltlm whole process", f"**{synced / whole:.0%}**"),
            ("cp / saltlm writing without fsync", f"{plain / max(1e-9, write - flush):.0%}"),
            ("cp / saltlm whole process", f"{plain / whole:.0%}"),
            (
                "peak memory of the process",
                f"**{figure(peak)} MB** (bar {MEMORY:,}: {'met' if peak < MEMORY else 'missed'})",
            ),
            ("support sizes", json.dumps(transfers[-1]["support"])),
        ],
        f"python bench/outofcore.py --layouts {layout} --link {link} --methods {method} --runs {runs}"
        + (" --cold" if cold else ""),
        [
            f"Medians of {runs} alternating runs, caches {'dropped before each' if cold else 'warm'}. Checked before:"
            f" {sampled:,} samples of unchanged tensors and {copied:,} copied rows of both matrices are equal bit for bit,"
            " and sizes and index are right."
        ],
    )


def verdict(ratio: float) -> str:
    """Whether the ratio meets the bar."""
    return "met" if ratio >= BAR else "missed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layouts", nargs="+", choices=list(LAYOUTS), default=list(LAYOUTS), help="models")
    parser.add_argument("--link", nargs="+", choices=("copy", "hard"), default=["copy"], help="as for saltlm transfer")
    parser.add_argument(
        "--folder", type=Path, help="where the models are generated (default: the system's temporary folder)"
    )
    parser.add_argument("--methods", nargs="+", default=["salt"], help="as for saltlm transfer (default: salt)")
    parser.add_argument("--runs", type=int, default=3, help="timed runs of each side (default: 3)")
    parser.add_argument("--cold", action="store_true", help="drop the system's caches before each run (root only)")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="outofcore-") as name:
        root = Path(name)
        (root / "target").mkdir()
        save_target(root / "target")
        for layout in arguments.layouts:
            (root / layout).mkdir()
            save_model(root / layout, layout)
            save_tokenizers(root / layout, root / "target", LAYOUTS[layout][0])
            os.sync()
            for link, method in itertools.product(arguments.link, arguments.methods):
                measure(layout, link, method, root, arguments.runs, arguments.cold)
            shutil.rmtree(root / layout)


if __name__ == "__main__":
    main()
