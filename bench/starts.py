"""Starts of several methods, trained on real text: ``saltlm compare`` on real pairs.

Usage: python bench/starts.py [--pairs fi,fr] [--methods salt,blend,...] [--probe all] [--steps 200] [--seeds 1]

A start is a transferred model before training. The control ``original`` keeps its own tokenizer, whose tokens are
shorter, so its blocks have more tokens: a step of the control holds the same number of bytes. A finished run is kept
in the cache under its options and the code of the installed package, and is not repeated. ``wechsel`` is given English
vectors and a dictionary, and ``ofa`` vectors of its own; a method is left out for a pair that has none. ``auto`` is
tuned on the training text, as in ``compare``; ``auto:tune-text=none`` is what a transfer without a text makes. No bar.
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
    """Hash of the installed package, so that results of other code are not reused."""
    digest = hashlib.sha256()
    root = Path(saltlm.__file__).parent
    for path in sorted(path for end in ("*.py", "*.so") for path in root.rglob(end)):
        digest.update(path.relative_to(root).as_posix().encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def cells_of(name: str, methods: list[str]) -> tuple[dict[str, str], TransferConfig]:
    """Cells of a comparison, with the files that ``wechsel`` and ``ofa`` need.

    Args:
        name: of the pair.
        methods: as given to ``--methods``.

    Returns:
        The cell for each method as given, and the options that all transfers share.
    """
    cells, base = {}, TransferConfig()
    for method in methods:
        base_name, cell = method.partition(":")[0], method
        if base_name in ("wechsel", "ofa"):
            more = wechsel_options(name) if base_name == "wechsel" else ofa_options(name)
            if more is None:
                print(f"{name}: no word vectors or dictionary for {base_name}, left out", file=sys.stderr, flush=True)
                continue
            if base_name == "wechsel":
                base = dataclasses.replace(base, **more)
            else:
                cell = f"{method}:auxiliary={more['auxiliary']}"
        cells[method] = cell
    return cells, base


def compared(name: str, options: argparse.Namespace) -> dict:
    """Run ``saltlm compare`` on a pair; returns the content of its ``compare.json``."""
    pair = research_pair(name)
    text = pair.text
    probe = {"probe": options.probe, "probe_steps": options.steps, "eval_steps": options.eval_steps}
    adapting = {
        "seq_length": options.seq_length,
        "learning_rate": options.learning_rate,
        "eval_bytes": options.eval_bytes,
        "drop_overlap": True,
    }
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
        pair.source,
        pair.donor,
        pair.auxiliary,
        list(cells.values()),
        files["training"],
        folder / "compared",
        CompareConfig(seeds=options.seeds, **probe),
        eval_texts=files["heldout"],
        source_eval_texts=None if options.no_english else files["english"],
        transfer_config=dataclasses.replace(base, gguf_file=pair.gguf_file),
        adapt_config=AdaptConfig(**adapting),
        progress=progress,
    )
    content = json.loads((done.out / "compare.json").read_text(encoding="utf-8"))
    names = {cell: method for method, cell in cells.items()}
    for entry in content["methods"]:  # names as given, without paths of this machine
        entry["method"] = names.get(entry["method"], entry["method"])
    return content


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", default="fi,fr", help=f"comma-separated, of {', '.join(NAMES)} (default: fi,fr)")
    parser.add_argument("--methods", default="normal,subword-mean,salt", help="comma-separated, as for saltlm compare")
    parser.add_argument("--probe", choices=("embeddings", "all"), default="all", help="which weights are trained")
    parser.add_argument("--steps", type=int, default=200, help="training steps (default: 200)")
    parser.add_argument("--eval-steps", type=int, default=50, help="steps between evaluations (default: 50)")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds (default: 1)")
    parser.add_argument("--seq-length", type=int, default=128, help="tokens a block (default: 128)")
    parser.add_argument("--learning-rate", type=float, default=AdaptConfig.learning_rate, help="as for saltlm adapt")
    parser.add_argument(
        "--eval-bytes", type=int, default=AdaptConfig.eval_bytes, help="bytes of held-out text that are used"
    )
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default: 2)")
    parser.add_argument(
        "--no-english", action="store_true", help="do not evaluate English, which takes a quarter of the time"
    )
    parser.add_argument(
        "--no-record", action="store_true", help="run what is missing from the cache, and record nothing"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    contents = {name: compared(name, options) for name in options.pairs.split(",")}
    if options.no_record:
        return
    command = "python bench/starts.py" + "".join(
        f" --{key.replace('_', '-')}" + ("" if value is True else f" {value}")
        for key, value in vars(options).items()
        if key not in ("threads", "no_record") and value != parser.get_default(key)
    )
    for name, content in contents.items():
        one_pair(name, content, options, command)
    if len(contents) > 1:
        all_pairs(contents, options, command)


def one_pair(name: str, content: dict, options: argparse.Namespace, command: str) -> None:
    """Record the starts of a pair, from best to worst."""
    steps = sorted({0, options.eval_steps, options.steps})
    rows = []
    for entry in in_order(content["methods"]):
        curve = {step: (mean, spread) for step, mean, spread in entry["curve"]}
        source, gap = entry["source"], entry["difference"]
        difference = "-"
        if gap is not None:
            interval = "" if gap["low"] is None else f" ({gap['low']:+.3f} to {gap['high']:+.3f})"
            difference = f"{gap['estimate']:+.3f}{interval}{', tie' if gap['tie'] else ''}"
        curved = [cell(*curve[step]) if step in curve else "diverged" for step in steps]
        english = f"{source['before']['mean']:.3f} -> {source['after']['mean']:.3f}" if source else "-"
        rows.append((shown(entry["method"]), *curved, difference, english, f"{entry['training_bytes']:,}"))
    choices = [f" `{e['method']}` chose {chosen(e['tuning'])}." for e in content["methods"] if e["tuning"]]
    lengths = content["seq_lengths"]
    record(
        f"Starts on {name}, {weights(options)}, held-out bits per byte",
        rows,
        command,
        [
            f"SmolLM2-135M, {count(options.seeds)}; blocks of {lengths['new']} tokens a step ({lengths['original']} for the"
            f" control, which are as many bytes), {content['heldout_bytes']:,} held-out bytes, rate"
            f" {options.learning_rate:g} (rows {AdaptConfig.embedding_learning_rate:g}). The untrained original model is at"
            f" {content['level']:.3f}. Intervals over documents; tie: neither the interval nor all seeds tell the two apart."
            " No figure here is a time." + "".join(choices),
        ],
        headings=("start", *(f"step {step}" for step in steps), "less the best", "English", "bytes"),
        timed=False,
    )


def all_pairs(contents: dict[str, dict], options: argparse.Namespace, command: str) -> None:
    """Record all starts and pairs at the last step, ordered by their mean over pairs."""
    columns = [{entry["method"]: entry["end"] for entry in content["methods"]} for content in contents.values()]
    methods = dict.fromkeys(method for column in columns for method in column)
    best = [
        min(entry["end"]["mean"] for entry in content["methods"] if entry["end"] and entry["method"] != "original")
        for content in contents.values()
    ]
    rows = []
    for method in methods:
        ends = [column.get(method) for column in columns]
        complete = all(ends)
        mean = statistics.mean(end["mean"] for end in ends) if complete else float("inf")
        behind = max(
            (end["mean"] - lowest for end, lowest in zip(ends, best, strict=True) if end), default=float("inf")
        )
        cells = [
            cell(end["mean"], end["spread"]) if end else "diverged" if method in column else "-"
            for end, column in zip(ends, columns, strict=True)
        ]
        shown_mean = f"{mean:.3f}" if complete else "-"
        rows.append((mean, (shown(method), *cells, shown_mean, "-" if method == "original" else f"{behind:.3f}")))
    record(
        f"Starts on {len(contents)} pairs, {weights(options)}, held-out bits per byte at step {options.steps}",
        [row for _, row in sorted(rows)],
        command,
        [
            f"{count(options.seeds)}; behind: largest distance to the best start of a pair. No figure here is a time."
            f" {correlations(contents)}"
        ],
        headings=("start", *contents, "mean", "behind"),
        timed=False,
    )


def correlations(contents: dict[str, dict]) -> str:
    """Rank correlations between the figures before training and bits per byte after it."""
    rhos: dict[str, list[float]] = {}
    for content in contents.values():
        for entry in content["rank_correlations"]:
            if entry["rho"] is not None and "end" in (entry["first"], entry["second"]):
                other = entry["second"] if entry["first"] == "end" else entry["first"]
                rhos.setdefault(other, []).append(entry["rho"])
    each = (f"{name} {statistics.fmean(rho):.2f} ({min(rho):.2f} to {max(rho):.2f})" for name, rho in rhos.items())
    return "Rank correlation with the last step, mean over pairs (smallest to largest): " + ", ".join(each) + "."


def shown(method: str) -> str:
    """Name of a method in a table."""
    return "control: own tokenizer, same bytes" if method == "original" else f"`{method}`"


def weights(options: argparse.Namespace) -> str:
    """Steps and trained weights, as words."""
    return f"{options.steps} steps on {'all weights' if options.probe == 'all' else 'the embeddings'}"


def count(seeds: int) -> str:
    """Number of seeds, as words."""
    return f"{seeds} seeds, mean ± standard deviation" if seeds > 1 else "one seed"


def cell(mean: float, spread: float | None) -> str:
    """Mean and standard deviation as a table cell."""
    return f"{mean:.3f}" + ("" if spread is None else f" ±{spread:.3f}")


if __name__ == "__main__":
    main()
