"""SALT rows: saltlm's operators against the plain loop over tokens in torch, and against one bare product, two threads.

The real Finnish pair: the bar is 20 times the loop. ``--full`` runs the loop over all tokens; without it a sample is timed and
scaled up. Stock torch without a loop over tokens (gpu_stock.py) is timed on all of them, too.

``--sizes`` takes made-up problems instead (synthetic.py says how), 30,000 new tokens x 12,000 anchors and P 300, for each E
and D asked for, a dense case, and one of 10,000 x 100,000; ``--sizes 384x576 384x2304 768x576 768x2304 dense many`` is the
default. The bar, which the last two have none of, is the time of torch's own float32 ``new_auxiliary @ anchor_auxiliary.T`` in
the same process with the same threads: no more than that where the processor multiplies bfloat16 in hardware (AMX), no more
than twice elsewhere. A table shows where the time goes.

``--profile`` shows it stage by stage instead, in processor time with one thread and with ``--threads``, on the problems that
``--sizes`` names or else on the real pair; nothing is recorded. ``SALTLM_CPU_PRODUCT`` chooses the filter's product.
"""

import argparse
import sys
import time
from pathlib import Path

import synthetic
import torch
from gpu_stock import stock_rows
from harness import fetching, figure, forget_peak, peak_megabytes, record, timed

from demo.finnish import finnish_pair, finnish_problem
from saltlm import salt_rows
from saltlm.operators.ops import STATUSES, backend, combine, sparsemax_support, support_lstsq
from saltlm.operators.profile import stage_times

BAR = 20
NEW, ANCHORS, WIDTH = 30_000, 12_000, 300
SIZES = ("384x576", "384x2304", "768x576", "768x2304", "dense", "many")
DENSE = 200  # new tokens of the dense case: a plain loop would take minutes for more
BLOCK = 2048  # rows of one piece of the bare product, so that its result stays small, too
SAMPLE = 300
TOLERANCE = 1e-4


def plain(new_auxiliary, anchor_auxiliary, new_plm, anchor_plm, anchor_lm) -> torch.Tensor:
    """The paper's steps 3 and 4, one token after the other."""
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
    """Equality first, on the sample and in float64: how many well-conditioned tokens, and the largest relative difference.

    With ``any_rank`` those with more neighbours than dimensions count, too: the solution of least norm is theirs.
    """
    new_auxiliary, anchor_auxiliary, new_plm, anchor_plm, anchor_lm = (tensor.double() for tensor in problem.tensors)
    exact = plain(new_auxiliary[sample], anchor_auxiliary, new_plm[sample], anchor_plm, anchor_lm)
    last = STATUSES.index("rank_deficient" if any_rank else "full_rank")
    well = built.status[sample] <= last
    off = ((built.rows[sample].double() - exact).norm(dim=1) / exact.norm(dim=1))[well]
    if not len(off) or float(off.max()) > TOLERANCE:
        worst = float(off.max()) if len(off) else float("nan")
        raise SystemExit(f"rows differ from the plain loop's by {worst:.1e} of their norm")
    return len(off), float(off.max())


def bare(new: torch.Tensor, anchors: torch.Tensor, out: torch.Tensor) -> None:
    """The similarity alone: torch's float32 product, nothing kept."""
    for part in new.split(BLOCK):
        torch.mm(part, anchors.T, out=out[: len(part)])


def fast_bfloat16() -> bool:
    """Whether the processor multiplies matrices of bfloat16 in hardware."""
    info = Path("/proc/cpuinfo")
    return info.is_file() and "amx_bf16" in info.read_text()


def profile(problem, runs: int) -> list[tuple[str, float]]:
    """Seconds of each step, the steps run one after the other on all tokens."""
    new_auxiliary, anchor_auxiliary, new_plm, anchor_plm, anchor_lm = problem.tensors
    support = sparsemax_support(new_auxiliary, anchor_auxiliary)
    solution = support_lstsq(new_plm, anchor_plm, support)
    few = torch.zeros(1, new_auxiliary.shape[1])
    few[0, 0] = 1
    steps = {
        "anchors made ready (part of the next)": lambda: sparsemax_support(few, anchor_auxiliary),
        "similarity filter and exact support": lambda: sparsemax_support(new_auxiliary, anchor_auxiliary),
        "regression": lambda: support_lstsq(new_plm, anchor_plm, support),
        "apply": lambda: combine(support, solution.coefficients, anchor_lm),
    }
    return [(name, timed(job, runs=runs).median) for name, job in steps.items()]


def stages(title: str, problem, threads: int) -> None:
    """Print the processor time of each stage of one call, with one thread and with all."""
    columns = []
    for count in sorted({1, threads}):
        torch.set_num_threads(count)
        salt_rows(*problem.tensors)
        wall, start = time.perf_counter(), time.process_time()
        with stage_times() as spent:
            salt_rows(*problem.tensors)
        whole, wall = time.process_time() - start, time.perf_counter() - wall
        spent["results laid out and checked, all else"] = whole - sum(spent.values())
        spent["all"] = whole
        columns.append((f"{count} thread{'s' * (count > 1)} (wall time {figure(wall)} s)", spent, whole))
    lines = [f"\n{title}: processor time of one call\n", f"| stage | {' | '.join(name for name, *_ in columns)} |"]
    lines.append("| --- " * (len(columns) + 1) + "|")
    for stage in columns[0][1]:
        cells = (f"{figure(spent[stage] * 1e3)} ms, {spent[stage] / whole:.1%}" for _, spent, whole in columns)
        lines.append(f"| {stage} | {' | '.join(cells)} |")
    sys.stdout.write("\n".join(lines) + "\n")


def drawn(size: str):
    """The problem that a word of ``--sizes`` names."""
    dense = size == "dense"
    new, anchors = {"dense": (DENSE, ANCHORS), "many": (10_000, 100_000)}.get(size, (NEW, ANCHORS))
    width, out = (384, 576) if size in ("dense", "many") else map(int, size.split("x"))
    return synthetic.problem(new, anchors, WIDTH, width, out, dense=dense)


def made_up(size: str, runs: int) -> None:
    """One problem of ``--sizes``."""
    dense, problem = size == "dense", drawn(size)
    width, out = problem.new_plm.shape[1], problem.anchor_lm.shape[1]
    before = forget_peak()
    built = salt_rows(*problem.tensors)
    grown = peak_megabytes() - before
    sample = torch.linspace(0, len(problem.new) - 1, 5 if dense else 60).long()
    checked, worst = check(problem, built, sample, any_rank=dense)
    new, anchors = problem.new_auxiliary, problem.anchor_auxiliary
    room = torch.empty(min(BLOCK, len(new)), len(anchors))
    # In turn, so that a slower moment of the machine hits both.
    pairs = [(timed(lambda: bare(new, anchors, room), runs=1), timed(lambda: salt_rows(*problem.tensors), runs=1, warm=0))
             for _ in range(runs)]  # fmt: skip
    product, ours = (type(pairs[0][0])(tuple(pair[side].median for pair in pairs)) for side in (0, 1))
    ratio, bar = ours.median / product.median, 1 if fast_bfloat16() else 2
    sizes = built.support_size.double()
    rows = [
        ("torch's bare float32 product new_auxiliary @ anchor_auxiliary.T", str(product)),
        (f"saltlm, {backend('cpu').name} operators, all of SALT's rows", f"**{ours}**"),
        (
            "saltlm / bare product",
            f"**{ratio:.2f}** (" + ("no bar" if size in ("dense", "many") else f"bar {bar}: {met(ratio <= bar)}") + ")",
        ),
        *((f"of it: {name}", f"{figure(seconds * 1e3)} ms") for name, seconds in profile(problem, min(runs, 3))),
        ("largest relative difference of a row", f"{worst:.1e} ({checked} tokens of the sample)"),
        (
            "support sizes: smallest, median, 95 %, largest",
            ", ".join(f"{int(sizes.quantile(q)):,}" for q in (0, 0.5, 0.95, 1)),
        ),
        ("statuses", counted(built)),
        ("peak memory: growth during the first call, the rows included", f"{figure(grown)} MB"),
    ]
    kind = "dense supports" if dense else "made up"
    record(
        f"SALT rows, {kind}: N {len(new):,} x A {len(anchors):,}, P {WIDTH}, E {width}, D {out}", rows,
        f"python bench/rows.py --sizes {size}", [f"{torch.get_num_threads()} threads for both sides."],
    )  # fmt: skip


def met(is_met: bool) -> str:
    return "met" if is_met else "missed"


def counted(built) -> str:
    """The statuses that occur."""
    found = ((name, int((built.status == code).sum())) for code, name in enumerate(STATUSES))
    return ", ".join(f"{name} {count:,}" for name, count in found if count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="run the plain loop over all tokens, once")
    parser.add_argument("--sizes", nargs="*", metavar="ExD", help="made-up problems instead of the Finnish pair")
    parser.add_argument("--profile", action="store_true", help="processor time of each stage; nothing is recorded")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
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
            made_up(size, arguments.runs)


def finnish(full: bool) -> None:
    """The real pair."""
    problem = finnish_problem(finnish_pair(fetching))
    before = forget_peak()
    built = salt_rows(*problem.tensors)
    grown = peak_megabytes() - before
    tokens = len(problem.new)
    sample = torch.linspace(0, tokens - 1, SAMPLE).long()
    checked, worst = check(problem, built, sample)
    ours = timed(lambda: salt_rows(*problem.tensors), runs=5)
    new_auxiliary, anchor_auxiliary, new_plm, *rest = problem.tensors
    part = (new_auxiliary[sample], anchor_auxiliary, new_plm[sample], *rest)
    loop = timed(lambda: plain(*part), runs=3)
    before_stock = forget_peak()
    stock = stock_rows(*problem.tensors)
    stock_grown = peak_megabytes() - before_stock
    off = float(((stock - built.rows).norm(dim=1) / built.rows.norm(dim=1)).max())
    if not off <= TOLERANCE:
        raise SystemExit(f"rows differ from stock torch's by {off:.1e} of their norm")
    batched = timed(lambda: stock_rows(*problem.tensors), runs=3, warm=0)
    scaled = loop.median * tokens / SAMPLE
    sizes = built.support_size.double()
    quantiles = [int(sizes.quantile(q)) for q in (0, 0.5, 0.95, 1)]
    ratio = scaled / ours.median
    rows = [
        (f"saltlm, {backend('cpu').name} operators, all {tokens:,} tokens", f"**{ours}**"),
        (f"plain loop, {SAMPLE} tokens spread over all", str(loop)),
        ("plain loop, scaled to all tokens", f"{figure(scaled)} s"),
        ("loop / saltlm", f"**{figure(ratio)} x** (bar {BAR} x: {'met' if ratio >= BAR else 'missed'})"),
        (f"stock torch in batches, all {tokens:,} tokens", f"{batched}, {figure(stock_grown)} MB"),
        ("stock torch / saltlm", f"**{figure(batched.median / ours.median)} x**"),
        ("largest relative difference of a row", f"{worst:.1e} ({checked} full-rank tokens of the sample)"),
        ("the same, from stock torch's, all tokens", f"{off:.1e}"),
        ("support sizes: smallest, median, 95 %, largest", ", ".join(f"{size:,}" for size in quantiles)),
        ("statuses", counted(built)),
        ("peak memory: growth during the first call", f"{figure(grown)} MB"),
        ("resident before it, packages and inputs included", f"{figure(before)} MB"),
    ]
    if full:
        whole = timed(lambda: plain(*problem.tensors), runs=1, warm=0)
        rows.insert(3, ("plain loop, all tokens, one run", f"{figure(whole.median)} s"))
    record(
        f"SALT rows, Finnish: N {tokens:,} new x A {len(problem.anchors):,} anchors, P {new_auxiliary.shape[1]},"
        f" E {new_plm.shape[1]}, D {rest[-1].shape[1]}",
        rows,
        "python bench/rows.py" + (" --full" if full else ""),
        ["Two threads for both sides. The loop is float32; rows are checked against the same loop in float64."],
    )


if __name__ == "__main__":
    main()
