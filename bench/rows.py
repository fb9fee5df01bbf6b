"""SALT rows of the real Finnish pair: saltlm's operators against the plain loop over tokens in torch, two threads.

Bar: at least 20 times faster. ``--full`` runs the loop over all tokens; without it a sample is timed and scaled up.
"""

import argparse

import torch
from harness import fetching, figure, forget_peak, peak_megabytes, record, timed
from saltlm import salt_rows
from saltlm.finnish import finnish_pair, finnish_problem
from saltlm.ops import STATUSES, backend

BAR = 20
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


def check(problem, built, sample) -> tuple[int, float]:
    """Equality first, on the sample and in float64: how many well-conditioned tokens, and the largest relative difference."""
    new_auxiliary, anchor_auxiliary, new_plm, anchor_plm, anchor_lm = (tensor.double() for tensor in problem.tensors)
    exact = plain(new_auxiliary[sample], anchor_auxiliary, new_plm[sample], anchor_plm, anchor_lm)
    well = built.status[sample] == STATUSES.index("full_rank")
    off = ((built.rows[sample].double() - exact).norm(dim=1) / exact.norm(dim=1))[well]
    if not len(off) or float(off.max()) > TOLERANCE:
        worst = float(off.max()) if len(off) else float("nan")
        raise SystemExit(f"rows differ from the plain loop's by {worst:.1e} of their norm")
    return len(off), float(off.max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="run the plain loop over all tokens, once")
    full = parser.parse_args().full
    torch.set_num_threads(2)
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
    scaled = loop.median * tokens / SAMPLE
    sizes = built.support_size.double()
    quantiles = [int(sizes.quantile(q)) for q in (0, 0.5, 0.95, 1)]
    statuses = ", ".join(
        f"{name} {int((built.status == code).sum()):,}"
        for code, name in enumerate(STATUSES)
        if (built.status == code).any()
    )
    ratio = scaled / ours.median
    rows = [
        (f"saltlm, {backend('cpu').name} operators, all {tokens:,} tokens", f"**{ours}**"),
        (f"plain loop, {SAMPLE} tokens spread over all", str(loop)),
        ("plain loop, scaled to all tokens", f"{figure(scaled)} s"),
        ("loop / saltlm", f"**{figure(ratio)} x** (bar {BAR} x: {'met' if ratio >= BAR else 'missed'})"),
        ("largest relative difference of a row", f"{worst:.1e} ({checked} full-rank tokens of the sample)"),
        ("support sizes: smallest, median, 95 %, largest", ", ".join(f"{size:,}" for size in quantiles)),
        ("statuses", statuses),
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
