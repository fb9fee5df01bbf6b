"""Starts trained on real text: ``saltlm compare`` on real pairs, and its figures side by side.

Usage: python bench/starts.py [--pairs fi,fr] [--methods salt,blend,...] [--probe all] [--steps 200] [--seeds 1]

The control ``original`` keeps its own tokenizer, whose tokens hold less: its blocks have more of them, so that a step holds
the same bytes. A finished run is kept in the cache, by its options and by the code of the installed package, and not repeated.
``wechsel`` gets English vectors and a dictionary, ``ofa`` vectors of its own; a pair that has none goes without them. ``auto``
is tuned by the training text, as ``compare`` does; ``auto:tune-text=none`` is what a transfer without a text makes.
"""

import argparse
import dataclasses
import hashlib
import json
import statistics
import sys
from pathlib import Path

import torch
from harness import record
from pair_words import ofa_options, wechsel_options
from pairs import NAMES, research_pair

import saltlm
from saltlm import AdaptConfig, CompareConfig, TransferConfig, compare
from saltlm.cli.show_compare import chosen
from saltlm.comparison.chart import in_order
from saltlm.files.cache import cache_folder


def code() -> str:
    """A hash of the installed package: figures of other code are not taken over."""
    digest = hashlib.sha256()
    root = Path(saltlm.__file__).parent
    for path in sorted(path for end in ("*.py", "*.so") for path in root.rglob(end)):
        digest.update(path.relative_to(root).as_posix().encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def cells_of(name: str, methods: list[str]) -> tuple[dict[str, str], TransferConfig]:
    """Cells of a pair by the methods as given, and what their transfers share; the files that they need are added."""
    cells, base = {}, TransferConfig()
    for method in methods:
        kind, cell = method.partition(":")[0], method
        if kind in ("wechsel", "ofa"):
            more = wechsel_options(name) if kind == "wechsel" else ofa_options(name)
            if more is None:
                print(f"{name}: nothing for {kind}, left out", file=sys.stderr, flush=True)
                continue
            if kind == "wechsel":
                base = dataclasses.replace(base, **more)
            else:
                cell = f"{method}:auxiliary={more['auxiliary']}"
        cells[method] = cell
    return cells, base


def compared(name: str, options: argparse.Namespace) -> dict:
    """What ``compare.json`` of a pair holds."""
    pair = research_pair(name)
    text = pair.text
    probe = {"probe": options.probe, "probe_steps": options.steps, "eval_steps": options.eval_steps}
    adapting = {
        "seq_length": options.seq_length, "learning_rate": options.learning_rate, "eval_bytes": options.eval_bytes,
        "drop_overlap": True,
    }  # fmt: skip
    shape = repr((sorted(probe.items()), sorted(adapting.items()), text, options.no_english))
    folder = cache_folder() / "bench" / "starts" / code()
    folder /= f"{name}-{options.probe}-{options.steps}-{hashlib.sha256(shape.encode()).hexdigest()[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for part in ("heldout", "training", "english"):
        files[part] = folder / f"{part}.txt"
        files[part].write_text("\n\n".join(getattr(text, part)) + "\n", encoding="utf-8")
    last = ""

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal last
        if stage != last or (done and done % 10 == 0):
            last = stage
            print(f"{name}: {stage} {f'{done}/{total}' if total else ''}", file=sys.stderr, flush=True)

    cells, base = cells_of(name, options.methods.split(","))
    done = compare(
        pair.source, pair.donor, pair.auxiliary, list(cells.values()), files["training"], folder / "compared",
        CompareConfig(seeds=options.seeds, **probe), eval_texts=files["heldout"],
        source_eval_texts=None if options.no_english else files["english"],
        transfer_config=dataclasses.replace(base, gguf_file=pair.gguf_file), adapt_config=AdaptConfig(**adapting),
        progress=progress,
    )  # fmt: skip
    content = json.loads((done.out / "compare.json").read_text(encoding="utf-8"))
    given = {cell: method for method, cell in cells.items()}
    for entry in content["methods"]:  # without the paths of this machine
        entry["method"] = given.get(entry["method"], entry["method"])
    return content


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", default="fi,fr", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--methods", default="normal,subword-mean,salt", help="as of saltlm compare")
    parser.add_argument("--probe", choices=("embeddings", "all"), default="all")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--eval-steps", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--seq-length", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=AdaptConfig.learning_rate)
    parser.add_argument("--eval-bytes", type=int, default=AdaptConfig.eval_bytes)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--no-english", action="store_true", help="leave out what becomes of English, a fourth of the time"
    )
    parser.add_argument("--no-record", action="store_true", help="only make what is missing")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = {name: compared(name, options) for name in options.pairs.split(",")}
    if options.no_record:
        return
    command = "python bench/starts.py" + "".join(
        f" --{key.replace('_', '-')}" + ("" if value is True else f" {value}")
        for key, value in vars(options).items()
        if key not in ("threads", "no_record") and value != parser.get_default(key)
    )
    for name, content in found.items():
        one_pair(name, content, options, command)
    if len(found) > 1:
        all_pairs(found, options, command)


def one_pair(name: str, content: dict, options: argparse.Namespace, command: str) -> None:
    """Starts of a pair, from best to worst."""
    steps = sorted({0, options.eval_steps, options.steps})
    rows = []
    for entry in in_order(content["methods"]):
        curve = {step: (mean, spread) for step, mean, spread in entry["curve"]}
        kept, less = entry["source"], entry["difference"]
        difference = "-"
        if less is not None:
            ends = "" if less["low"] is None else f" ({less['low']:+.3f} to {less['high']:+.3f})"
            difference = f"{less['estimate']:+.3f}{ends}{', tie' if less['tie'] else ''}"
        curved = [cell(*curve[step]) if step in curve else "diverged" for step in steps]
        english = f"{kept['before']['mean']:.3f} -> {kept['after']['mean']:.3f}" if kept else "-"
        rows.append((shown(entry["method"]), *curved, difference, english, f"{entry['training_bytes']:,}"))
    choices = [f" `{e['method']}` chose {chosen(e['tuning'])}." for e in content["methods"] if e["tuning"]]
    lengths = content["seq_lengths"]
    record(
        f"Starts on {name}, {weights(options)}, held-out bits per byte",
        rows,
        command,
        [
            f"SmolLM2-135M, {count(options.seeds)}; blocks of {lengths['new']} tokens a step ({lengths['original']} for the"
            f" control: the same bytes), {content['heldout_bytes']:,} held-out bytes, rate {options.learning_rate:g} (rows"
            f" {AdaptConfig.embedding_learning_rate:g}). The original model stands at {content['level']:.3f} untrained."
            " Intervals over documents; a tie is what neither they nor all seeds tell apart. Nothing here is a time."
            + "".join(choices),
        ],
        headings=("start", *(f"step {step}" for step in steps), "less the best", "English", "bytes"),
        timed=False,
    )


def all_pairs(found: dict[str, dict], options: argparse.Namespace, command: str) -> None:
    """Starts x pairs at the last step, by their mean over pairs."""
    columns = [{entry["method"]: entry["end"] for entry in content["methods"]} for content in found.values()]
    methods = dict.fromkeys(method for column in columns for method in column)
    best = [
        min(entry["end"]["mean"] for entry in content["methods"] if entry["end"] and entry["method"] != "original")
        for content in found.values()
    ]
    rows = []
    for method in methods:
        ends = [column.get(method) for column in columns]
        whole = all(ends)
        mean = statistics.mean(end["mean"] for end in ends) if whole else float("inf")
        behind = max((end["mean"] - least for end, least in zip(ends, best, strict=True) if end), default=float("inf"))
        cells = [
            cell(end["mean"], end["spread"]) if end else "diverged" if method in column else "-"
            for end, column in zip(ends, columns, strict=True)
        ]
        shown_mean = f"{mean:.3f}" if whole else "-"
        rows.append((mean, (shown(method), *cells, shown_mean, "-" if method == "original" else f"{behind:.3f}")))
    record(
        f"Starts on {len(found)} pairs, {weights(options)}, held-out bits per byte at step {options.steps}",
        [row for _, row in sorted(rows)],
        command,
        [
            f"{count(options.seeds)}; behind: the largest distance to the best start of a pair. Nothing here is a time."
            f" {foretold(found)}"
        ],
        headings=("start", *found, "mean", "behind"),
        timed=False,
    )


def foretold(found: dict[str, dict]) -> str:
    """How well the figures before training order the starts like those after it."""
    rhos: dict[str, list[float]] = {}
    for content in found.values():
        for entry in content["rank_correlations"]:
            if entry["rho"] is not None and "end" in (entry["first"], entry["second"]):
                other = entry["second"] if entry["first"] == "end" else entry["first"]
                rhos.setdefault(other, []).append(entry["rho"])
    each = (f"{name} {statistics.fmean(own):.2f} ({min(own):.2f} to {max(own):.2f})" for name, own in rhos.items())
    return "Rank correlation with the last step, mean over pairs (least to most): " + ", ".join(each) + "."


def shown(method: str) -> str:
    return "control: own tokenizer, same bytes" if method == "original" else f"`{method}`"


def weights(options: argparse.Namespace) -> str:
    return f"{options.steps} steps on {'all weights' if options.probe == 'all' else 'the embeddings'}"


def count(seeds: int) -> str:
    return f"{seeds} seeds, mean ± standard deviation" if seeds > 1 else "one seed"


def cell(mean: float, spread: float | None) -> str:
    return f"{mean:.3f}" + ("" if spread is None else f" ±{spread:.3f}")


if __name__ == "__main__":
    main()
