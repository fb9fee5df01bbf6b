"""Every method on the real Finnish pair: seconds to build the rows, norms, and the self-check on hidden shared tokens.

``ofa`` is on the French pair: there are no word vectors of English and Finnish in one space.
"""

import argparse
import time

import torch
from harness import fetching, figure, record
from pair_words import ofa_options, wechsel_options
from pairs import research_pair

from demo.finnish import finnish_pair
from saltlm import TransferConfig, transfer
from saltlm.rows.methods import METHODS

BAR = 10
OFA = "fr"


def inputs(method: str, pair) -> tuple[tuple, dict]:
    """Source, target and vectors of a method's transfer, and its options."""
    if method == "ofa":
        other = research_pair(OFA)
        return (other.source, other.donor, ofa_options(OFA)["auxiliary"]), {"gguf_file": other.gguf_file}
    more = wechsel_options("fi") if method == "wechsel" else {}
    return (pair.source, pair.donor, pair.vectors), {"gguf_file": pair.gguf_file, **more}


def measure(method: str, pair) -> tuple[str, float]:
    """A method's line, and its wall-clock seconds."""
    begin: dict[str, float] = {}

    def progress(stage: str, done: int, total: int) -> None:
        begin.setdefault(stage, time.process_time())

    given, options = inputs(method, pair)
    summary = transfer(*given, config=TransferConfig(method=method, **options), progress=progress).summary
    processor = begin.get("self-check", time.process_time()) - begin["rows"]
    seconds, support, held = summary["seconds"]["rows"], summary["support"], summary["heldout"]
    built = next(summary["norms"][kind] for kind in ("solved", "composed", "drawn") if kind in summary["norms"])
    parts = [f"{figure(seconds)} s ({figure(processor)} s of processor)"]
    parts.append(f"{support['median']:.0f} {support['of']}" if support else "-")
    parts.append(f"norms {built['median']:.2f}, at most {built['max']:.2f}")
    if held:
        parts.append(
            f"score {held['score']:.3f}, error {held['relative_error']:.3f}, cosine {held['cosine']:.3f},"
            f" place {held['rank']:,}, first {held['top1']:.1%}"
        )
    else:
        parts.append("-")
    return "; ".join(parts), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("methods", nargs="*", help="default: all")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pair = finnish_pair(fetching)
    names = arguments.methods or list(METHODS)
    rows, slow = [], []
    for name in names:
        line, seconds = measure(name, pair)
        rows.append((f"{name} ({OFA})" if name == "ofa" else name, line))
        if seconds > BAR:
            slow.append(name)
    record(
        "Methods, Finnish pair: rows in seconds, median neighbours, norms (median, largest), self-check (medians)",
        rows,
        f"python bench/methods.py --threads {arguments.threads}",
        [f"Bar: {BAR} s each on two idle cores; {'missed by ' + ', '.join(slow) if slow else 'met by all'}."],
    )


if __name__ == "__main__":
    main()
