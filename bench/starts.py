"""Starts adapted on real text: held-out bits per byte along the same probe, beside the original model and its own tokenizer.

Usage: python bench/starts.py [--language fi] [--starts salt:3,normal,...] [--steps 200] [--phases TEMPLATE]

Every start gets the same text, steps and seeds. The control ``original`` keeps its own tokenizer, whose tokens hold less:
its blocks have more tokens, so that a step holds the same bytes. A run that is finished is kept in the cache and not repeated.
"""

import argparse
import hashlib
import json
import shutil
import statistics
import sys
from pathlib import Path

import torch
from harness import commit, fetching, record
from saltlm import AdaptConfig, TransferConfig, adapt, transfer
from saltlm.checkpoint import load_source
from saltlm.finnish import language_pair
from saltlm.input_text import MORE, catalogue_text
from saltlm.methods import METHODS
from saltlm.train_vectors import cache_folder

STARTS = {
    "original": None,
    "normal": {"method": "normal"},
    "subword-mean": {"method": "subword-mean"},
    "salt": {"method": "salt"},
    "salt-centred": {"method": "salt", "center": True, "ridge": 0.01},
    "blend": {"method": "blend"},
}
NAMES = {
    "original": "control: own tokenizer, same bytes",
    "normal": "random",
    "subword-mean": "mean of source pieces",
    "salt": "SALT as published",
    "salt-centred": "SALT --center --ridge 0.01",
    "blend": "blend",
}


def tokens_per_byte(tokenizer, documents: list[str]) -> float:
    """Of a tokenizer on these documents."""
    ids = tokenizer(documents, add_special_tokens=False)["input_ids"]
    return sum(map(len, ids)) / sum(len(document.encode()) for document in documents)


def run(
    start: str, pair, text: dict[str, Path], out: Path, options: argparse.Namespace, seed: int, length: int
) -> dict:
    """Transfer and adapt; returns the points [step, bits per byte] of both languages."""
    model = out / "start"
    if STARTS[start] is None:
        model = load_source(pair.source, gguf_file=pair.gguf_file).folder
    else:
        config = TransferConfig(**STARTS[start], gguf_file=pair.gguf_file, seed=seed, force=True)
        vectors = pair.vectors if METHODS[config.method].vectors else None
        transfer(pair.source, pair.donor, vectors, model, config)
    config = AdaptConfig(
        phases=options.phases.replace("STEPS", str(options.steps)), seq_length=length, eval_steps=options.eval_steps,
        save_steps=10**6, seed=seed, drop_overlap=True, force=True,
    )  # fmt: skip

    def progress(report) -> None:
        if report.step % 10 == 0:
            print(f"{out.name}: step {report.step}", file=sys.stderr, flush=True)

    done = adapt(
        model, text["training"], out / "adapted", config, eval_texts=text["heldout"], source_eval_texts=text["english"],
        progress=progress,
    )  # fmt: skip
    return {
        "heldout": done.heldout,
        "english": done.source,
        "bytes": done.bytes,
        "seconds": done.seconds,
        "tokens": done.tokens,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--language", default="fi")
    parser.add_argument(
        "--starts", default=",".join(STARTS), help="NAME or NAME:SEEDS, the number of seeds (default 1)"
    )
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--eval-steps", type=int, default=50)
    parser.add_argument("--seq-length", type=int, default=128)
    parser.add_argument("--phases", default="all:STEPS", help="of saltlm adapt; STEPS stands for --steps")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-record", action="store_true", help="only make what is missing")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pair = language_pair(options.language, fetching)
    text = catalogue_text(options.language, MORE)
    work = cache_folder() / "bench" / "starts"
    folder = work / hashlib.sha256(repr(text).encode()).hexdigest()[:12] / options.language
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name in ("heldout", "training", "english"):
        files[name] = folder / f"{name}.txt"
        files[name].write_text("\n\n".join(getattr(text, name)) + "\n", encoding="utf-8")
    import transformers

    ours = tokens_per_byte(transformers.AutoTokenizer.from_pretrained(pair.donor), text.training)
    own = load_source(pair.source, gguf_file=pair.gguf_file)
    longer = round(options.seq_length * tokens_per_byte(own.tokenizer, text.training) / ours)
    found: dict[str, dict[int, dict]] = {}
    for item in options.starts.split(","):
        start, _, count = item.partition(":")
        for seed in range(int(count or 1)):
            length = longer if start == "original" else options.seq_length
            shape = f"{options.phases.replace('STEPS', str(options.steps))} {length}"
            key = f"{start}-{seed}-{hashlib.sha256(shape.encode()).hexdigest()[:8]}"
            kept = folder / f"{key}.json"
            if not kept.is_file():
                out = folder / key
                result = run(start, pair, files, out, options, seed, length)
                kept.write_text(json.dumps({**result, "commit": commit()}), encoding="utf-8")
                shutil.rmtree(out)
            found.setdefault(start, {})[seed] = json.loads(kept.read_text(encoding="utf-8"))
    if not options.no_record:
        report(found, options, text, longer)


def report(found: dict[str, dict[int, dict]], options: argparse.Namespace, text, longer: int) -> None:
    """The table, to RESULTS.md."""
    steps = sorted({0, options.eval_steps, options.steps})
    rows = []
    for start, runs in found.items():
        cells = []
        for step in steps:
            values = [dict(map(tuple, run["heldout"]))[step] for run in runs.values()]
            cells.append(f"{statistics.mean(values):.3f}" + spread(values))
        english = [dict(map(tuple, run["english"]))[step] for step in (0, options.steps) for run in runs.values()]
        half = len(english) // 2
        cells.append(f"English {statistics.mean(english[:half]):.3f} -> {statistics.mean(english[half:]):.3f}")
        cells.append(f"{statistics.mean(run['bytes'] for run in runs.values()):,.0f} bytes")
        rows.append((NAMES[start], "; ".join(cells)))
    commits = ", ".join(sorted({run["commit"] for runs in found.values() for run in runs.values()}))
    held = sum(len(document.encode()) for document in text.heldout)
    record(
        f"Starts adapted, {options.language}: bits per byte at steps {', '.join(map(str, steps))}",
        rows,
        f"python bench/starts.py --language {options.language} --starts {options.starts} "
        f"--steps {options.steps} --eval-steps {options.eval_steps} --phases {options.phases}",
        [
            f"SmolLM2-135M, blocks of {options.seq_length} tokens a step ({longer} for the control: the same bytes), {held:,}"
            " held-out bytes. Where there are several seeds: mean (smallest to largest). Nothing here is a time.",
            f"The trainings ran at {commits}.",
        ],
        timed=False,
    )


def spread(values: list[float]) -> str:
    return f" ({min(values):.3f}-{max(values):.3f}, {len(values)} seeds)" if len(values) > 1 else ""


if __name__ == "__main__":
    main()
