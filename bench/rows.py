"""SALT rows: operators of saltlm compared with a plain loop over tokens in torch, and with one matrix product.

Without ``--sizes``, the real Finnish pair is measured. The bar is 20 times the speed of the loop. ``--full`` runs
the loop over all tokens; otherwise a sample is timed and scaled up. Stock torch without a loop over tokens
(gpu_stock.py) is timed on all of them.

``--sizes`` uses generated problems (synthetic.py): 30,000 new tokens x 12,000 anchors and P 300 for each pair ExD of
widths; ``dense``, where nearly every anchor is in every support; and ``many``, 10,000 x 100,000. Without values,
``--sizes`` takes ``384x576 384x2304 768x576 768x2304 dense many``. The bar is the time of torch's own float32
product ``new_auxiliary @ anchor_auxiliary.T`` in the same process with the same threads: at most that time where the
processor multiplies bfloat16 matrices in hardware (AMX), at most twice that time elsewhere. ``dense`` and ``many``
have no bar. A table shows the time of each step.

``--profile`` shows the processor time of each stage instead, with one thread and with ``--threads``, for the
problems of ``--sizes`` or else for the real pair; nothing is recorded. ``SALTLM_CPU_PRODUCT`` chooses the product of
the filter.
"""

import argparse
import sys
import time
from pathlib import Path

import synthetic
import torch
from gpu_stock import stock_rows
from harness import Timing, fetching, figure, forget_peak, peak_megabytes, record, timed

from saltlm import salt_rows
from saltlm.operators.ops import STATUSES, backend, combine, sparsemax_support, support_lstsq
from saltlm.operators.profile import stage_times
from saltlm_demo.finnish import finnish_pair, finnish_problem

BAR = 20
NEW, ANCHORS, WIDTH = 30_000, 12_000, 300
SIZES = ("384x576", "384x2304", "768x576", "768x2304", "dense", "many")
DENSE = 200  # new tokens of the dense case: the plain loop would take minutes for more
BLOCK = 2048  # rows of one block of the bare product, so that its result stays small as well
SAMPLE = 300
TOLERANCE = 1e-4


def plain(new_auxiliary, anchor_auxiliary, new_plm, anchor_plm, anchor_lm) -> torch.Tensor:
    """SALT rows, one token after the other (steps 3 and 4 of the paper).

    Returns:
        Rows [N, D] in the dtype of the inputs.
    """
    anchors = torch.nn.functional.normalize(anchor_auxiliary, dim=1)
    rows = []
    for vector, row in zip(torch.nn.functional.normalize(new_auxiliary, dim=1), new_plm, strict=True):
        cosines = anchors @ vector
        ordered, order = cosines.sort(descending=True)
        above = torch.arange(1, len(ordered) + 1, dtype=ordered.dtype)
        size = int((1 + above * ordered > ordered.cumsum(0)).sum())
        support = order[:size]
        rows.append(row @ (torch.linalg.pinv(anchor_plm[support]) @ anchor_lm[support]))
    return torch.stack(rows)


def check(problem, built, sample, *, any_rank: bool = False) -> tuple[int, float]:
    """Compare rows with the plain loop in float64, on a sample of the tokens.

    Args:
        problem: the inputs.
        built: result of :func:`saltlm.salt_rows`.
        sample: ids of the tokens to compare.
        any_rank: also compare tokens with more neighbours than dimensions, whose solution is the one of least norm.

    Returns:
        The number of compared tokens, and the largest relative difference of a row.
    """
    new_auxiliary, anchor_auxiliary, new_plm, anchor_plm, anchor_lm = (tensor.double() for tensor in problem.tensors)
    exact = plain(new_auxiliary[sample], anchor_auxiliary, new_plm[sample], anchor_plm, anchor_lm)
    last = STATUSES.index("rank_deficient" if any_rank else "full_rank")
    compared = built.status[sample] <= last
    difference = ((built.rows[sample].double() - exact).norm(dim=1) / exact.norm(dim=1))[compared]
    if not len(difference) or float(difference.max()) > TOLERANCE:
        worst = float(difference.max()) if len(difference) else float("nan")
        raise SystemExit(f"rows differ from the plain loop's by {worst:.1e} of their norm")
    return len(difference), float(difference.max())


def bare(new: torch.Tensor, anchors: torch.Tensor, out: torch.Tensor) -> None:
    """Torch's float32 product of all new tokens with all anchors, in blocks; the results are overwritten."""
    for part in new.split(BLOCK):
        torch.mm(part, anchors.T, out=out[: len(part)])


def fast_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 matrices in hardware (AMX)."""
    info = Path("/proc/cpuinfo")
    return info.is_file() and "amx_bf16" in info.read_text()


def profile(problem, runs: int) -> list[tuple[str, float]]:
    """Time each step on all tokens: pairs of name and median seconds."""
    new_auxiliary, anchor_auxiliary, new_plm, anchor_plm, anchor_lm = problem.tensors
    support = sparsemax_support(new_auxiliary, anchor_auxiliary)
    solution = support_lstsq(new_plm, anchor_plm, support)
    one_token = torch.zeros(1, new_auxiliary.shape[1])
    one_token[0, 0] = 1
    steps = {
        "preparing the anchors (part of the next step)": lambda: sparsemax_support(one_token, anchor_auxiliary),
        "similarity filter and exact support": lambda: sparsemax_support(new_auxiliary, anchor_auxiliary),
        "regression": lambda: support_lstsq(new_plm, anchor_plm, support),
        "apply": lambda: combine(support, solution.coefficients, anchor_lm),
    }
    return [(name, timed(job, runs=runs).median) for name, job in steps.items()]


def stages(title: str, problem, threads: int) -> None:
    """Print the processor time of each stage of one call, with one thread and with ``threads``."""
    columns = []
    for count in sorted({1, threads}):
        torch.set_num_threads(count)
        salt_rows(*problem.tensors)
        wall, start = time.perf_counter(), time.process_time()
        with stage_times() as spent:
            salt_rows(*problem.tensors)
        whole, wall = time.process_time() - start, time.perf_counter() - wall
        spent["copying and checking results, everything else"] = whole - sum(spent.values())
        spent["all"] = whole
        columns.append((f"{count} thread{'s' * (count > 1)} (wall time {figure(wall)} s)", spent, whole))
    lines = [f"\n{title}: processor time of one call\n", f"| stage | {' | '.join(name for name, *_ in columns)} |"]
    lines.append("| --- " * (len(columns) + 1) + "|")
    for stage in columns[0][1]:
        cells = (f"{figure(spent[stage] * 1e3)} ms, {spent[stage] / whole:.1%}" for _, spent, whole in columns)
        lines.append(f"| {stage} | {' | '.join(cells)} |")
    sys.stdout.write("\n".join(lines) + "\n")


def drawn(size: str):
    """Generate the problem for one value of ``--sizes``."""
    dense = size == "dense"
    new, anchors = {"dense": (DENSE, ANCHORS), "many": (10_000, 100_000)}.get(size, (NEW, ANCHORS))
    width, out = (384, 576) if size in ("dense", "many") else map(int, size.split("x"))
    return synthetic.problem(new, anchors, WIDTH, width, out, dense=dense)


def generated(size: str, runs: int) -> None:
    """Measure one problem of ``--sizes`` and record the figures."""
    dense, problem = size == "dense", drawn(size)
    width, out = problem.new_plm.shape[1], problem.anchor_lm.shape[1]
    before = forget_peak()
    built = salt_rows(*problem.tensors)
    grown = peak_megabytes() - before
    sample = torch.linspace(0, len(problem.new) - 1, 5 if dense else 60).long()
    checked, worst = check(problem, built, sample, any_rank=dense)
    new, anchors = problem.new_auxiliary, problem.anchor_auxiliary
    product_out = torch.empty(min(BLOCK, len(new)), len(anchors))
    # Alternately, so that a slow moment of the machine affects both.
    product_seconds, our_seconds = [], []
    for _ in range(runs):
        product_seconds.append(timed(lambda: bare(new, anchors, product_out), runs=1).median)
        our_seconds.append(timed(lambda: salt_rows(*problem.tensors), runs=1, warm=0).median)
    product, ours = Timing(tuple(product_seconds)), Timing(tuple(our_seconds))
    ratio, bar = ours.median / product.median, 1 if fast_bfloat16() else 2
    sizes = built.support_size.double()
    rows = [
        ("torch's bare float32 product new_auxiliary @ anchor_auxiliary.T", str(product)),
        (f"saltlm, {backend('cpu').name} operators, all rows", f"**{ours}**"),
        (
            "saltlm / bare product",
            f"**{ratio:.2f}** (" + ("no bar" if size in ("dense", "many") else f"bar {bar}: {met(ratio <= bar)}") + ")",
        ),
        *((f"of which {name}", f"{figure(seconds * 1e3)} ms") for name, seconds in profile(problem, min(runs, 3))),
        ("largest relative difference of a row", f"{worst:.1e} ({checked} tokens)"),
        (
            "support sizes: smallest, median, 95 %, largest",
            ", ".join(f"{int(sizes.quantile(q)):,}" for q in (0, 0.5, 0.95, 1)),
        ),
        ("statuses", counted(built)),
        ("growth of peak memory during the first call, results included", f"{figure(grown)} MB"),
    ]
    title = "dense supports" if dense else "generated data"
    record(
        f"SALT rows, {title}: N {len(new):,} x A {len(anchors):,}, P {WIDTH}, E {width}, D {out}",
        rows,
        f"python bench/rows.py --sizes {size}",
        [f"{torch.get_num_threads()} threads for both sides."],
    )


def met(is_met: bool) -> str:
    return "met" if is_met else "missed"


def counted(built) -> str:
    """The statuses that occur, with the number of rows of each."""
    counts = ((name, int((built.status == code).sum())) for code, name in enumerate(STATUSES))
    return ", ".join(f"{name} {count:,}" for name, count in counts if count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="run the plain loop over all tokens, once")
    parser.add_argument("--sizes", nargs="*", metavar="ExD", help="generated problems instead of the Finnish pair")
    parser.add_argument("--profile", action="store_true", help="processor time of each stage; nothing is recorded")
    parser.add_argument("--runs", type=int, default=5, help="timed runs with --sizes (default: 5)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default: 2)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.sizes is None and arguments.profile:
        stages("Finnish pair", finnish_problem(finnish_pair(fetching)), arguments.threads)
    elif arguments.sizes is None:
        finnish(arguments.full)
    for size in arguments.sizes if arguments.sizes else SIZES if arguments.sizes is not None else ():
        if arguments.profile:
            stages(size, drawn(size), arguments.threads)
        else:
            generated(size, arguments.runs)


def finnish(full: bool) -> None:
    """Measure the real Finnish pair and record the figures."""
    problem = finnish_problem(finnish_pair(fetching))
    before = forget_peak()
    built = salt_rows(*problem.tensors)
    grown = peak_megabytes() - before
    tokens = len(problem.new)
    sample = torch.linspace(0, tokens - 1, SAMPLE).long()
    checked, worst = check(problem, built, sample)
    ours = timed(lambda: salt_rows(*problem.tensors), runs=5)
    new_auxiliary, anchor_auxiliary, new_plm, *rest = problem.tensors
    sampled = (new_auxiliary[sample], anchor_auxiliary, new_plm[sample], *rest)
    loop = timed(lambda: plain(*sampled), runs=3)
    before_stock = forget_peak()
    stock = stock_rows(*problem.tensors)
    stock_grown = peak_megabytes() - before_stock
    difference = float(((stock - built.rows).norm(dim=1) / built.rows.norm(dim=1)).max())
    if not difference <= TOLERANCE:
        raise SystemExit(f"rows differ from stock torch's by {difference:.1e} of their norm")
    batched = timed(lambda: stock_rows(*problem.tensors), runs=3, warm=0)
    scaled = loop.median * tokens / SAMPLE
    sizes = built.support_size.double()
    quantiles = [int(sizes.quantile(q)) for q in (0, 0.5, 0.95, 1)]
    ratio = scaled / ours.median
    rows = [
        (f"saltlm, {backend('cpu').name} operators, all {tokens:,} tokens", f"**{ours}**"),
        (f"plain loop, {SAMPLE} tokens evenly spread", str(loop)),
        ("plain loop, scaled to all tokens", f"{figure(scaled)} s"),
        ("plain loop / saltlm", f"**{figure(ratio)} x** (bar {BAR} x: {'met' if ratio >= BAR else 'missed'})"),
        (f"stock torch in batches, all {tokens:,} tokens", f"{batched}, {figure(stock_grown)} MB"),
        ("stock torch / saltlm", f"**{figure(batched.median / ours.median)} x**"),
        (
            "largest relative difference of a row, from the float64 loop",
            f"{worst:.1e} ({checked} full-rank tokens)",
        ),
        ("largest relative difference of a row, from stock torch", f"{difference:.1e} (all tokens)"),
        ("support sizes: smallest, median, 95 %, largest", ", ".join(f"{size:,}" for size in quantiles)),
        ("statuses", counted(built)),
        ("growth of peak memory during the first call", f"{figure(grown)} MB"),
        ("resident memory before it, packages and inputs included", f"{figure(before)} MB"),
    ]
    if full:
        whole = timed(lambda: plain(*problem.tensors), runs=1, warm=0)
        rows.insert(3, ("plain loop, all tokens, one run", f"{figure(whole.median)} s"))
    record(
        f"SALT rows, Finnish: N {tokens:,} new x A {len(problem.anchors):,} anchors, P {new_auxiliary.shape[1]},"
        f" E {new_plm.shape[1]}, D {rest[-1].shape[1]}",
        rows,
        "python bench/rows.py" + (" --full" if full else ""),
        ["Two threads for both sides. The loop is in float32; rows are compared with the same loop in float64."],
    )


if __name__ == "__main__":
    main()
