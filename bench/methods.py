"""Every method on the real Finnish pair: time to build the rows, norms, and the self-check on hidden shared tokens.

``ofa`` uses the French pair, because there are no word vectors of English and Finnish in one space. Bar: 10 s for each
method on two idle cores.
"""

import argparse
import time

import torch
from harness import fetching, figure, record
from pair_words import ofa_options, wechsel_options
from pairs import research_pair

from saltlm import TransferConfig, transfer
from saltlm.rows.methods import METHODS
from saltlm_demo.finnish import finnish_pair

BAR = 10
OFA = "fr"


def inputs(method: str, pair) -> tuple[tuple, dict]:
    """Inputs of a method's transfer.

    Returns:
        The positional arguments of :func:`saltlm.transfer` (source, target, vectors), and the options.
    """
    if method == "ofa":
        other = research_pair(OFA)
        return (other.source, other.donor, ofa_options(OFA)["auxiliary"]), {"gguf_file": other.gguf_file}
    more = wechsel_options("fi") if method == "wechsel" else {}
    return (pair.source, pair.donor, pair.vectors), {"gguf_file": pair.gguf_file, **more}


HEADINGS = (
    "method",
    "rows, wall s",
    "rows, processor s",
    "neighbours (median)",
    "norm: median, largest",
    "score",
    "error",
    "cosine",
    "rank",
    "first",
)


def measure(method: str, pair) -> tuple[tuple[str, ...], float]:
    """Run a transfer by one method.

    Returns:
        The cells of :data:`HEADINGS` after the first, and the wall-clock seconds of the rows stage.
    """
    begin: dict[str, float] = {}

    def progress(stage: str, done: int, total: int) -> None:
        begin.setdefault(stage, time.process_time())

    arguments, options = inputs(method, pair)
    summary = transfer(*arguments, config=TransferConfig(method=method, **options), progress=progress).summary
    processor = begin.get("self-check", time.process_time()) - begin["rows"]
    seconds, support, check = summary["seconds"]["rows"], summary["support"], summary["heldout"]
    norms = next(summary["norms"][origin] for origin in ("solved", "composed", "drawn") if origin in summary["norms"])
    cells = [figure(seconds), figure(processor)]
    cells.append(f"{support['median']:.0f} {support['of']}" if support else "-")
    cells.append(f"{norms['median']:.2f}, {norms['max']:.2f}")
    if check:
        cells += [f"{check[name]:.3f}" for name in ("score", "relative_error", "cosine")]
        cells += [f"{check['rank']:,}", f"{check['top1']:.1%}"]
    else:
        cells += ["-"] * 5
    return tuple(cells), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("methods", nargs="*", help="methods to measure (default: all)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default: 2)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pair = finnish_pair(fetching)
    names = arguments.methods or list(METHODS)
    rows, slow = [], []
    for name in names:
        cells, seconds = measure(name, pair)
        rows.append((f"`{name}` ({OFA})" if name == "ofa" else f"`{name}`", *cells))
        if seconds > BAR:
            slow.append(name)
    record(
        "Methods, Finnish pair: time of the rows stage, norms of the built rows, self-check (medians)",
        rows,
        f"python bench/methods.py --threads {arguments.threads}",
        [f"Bar: {BAR} s each on two idle cores; {'missed by ' + ', '.join(slow) if slow else 'met by all'}."],
        headings=HEADINGS,
    )


if __name__ == "__main__":
    main()
