"""The operators on a GPU: comparison with the reference in float64 first, then times, compared with stock torch.

Run by gpu.sh, which takes or builds the operators. It needs torch and numpy alone: only the operator modules of the
package are loaded. ``--cpu`` does the same on the CPU with small sizes, so that the script itself can be tested
without a GPU.

Bars for the large size: 60 % of the roofline, and 10 times the speed of stock torch. The roofline is the larger of two
times, as if each could be hidden behind the other: all similarities at the rate of the device's bfloat16 product; and
every input, every gathered row and every result once at the rate of a memory copy. Both rates are measured in the same
run. ``gpu.md`` is the table for RESULTS.md.
"""

import argparse
import importlib
import json
import os
import platform
import statistics
import sys
import time
import types
from pathlib import Path

import torch
from gpu_checks import run_checks
from gpu_stock import stock_rows

# name: new tokens, anchors, auxiliary width, PLM width, model width
SIZES = {
    "small": (2_000, 3_000, 64, 96, 128),
    "finnish": (30_000, 12_000, 300, 384, 576),
    "large": (256_000, 100_000, 300, 768, 4096),
}
STOCK_TOKENS = 4096  # tokens that stock torch is timed on; the time is scaled up
ROOFLINE, STOCK = 0.6, 10


def operators(package: Path) -> tuple[types.ModuleType, ...]:
    """Import ``saltlm.operators.ops`` and ``saltlm.operators.reference`` from ``package`` without ``saltlm/__init__.py``."""
    shell = types.ModuleType("saltlm")
    shell.__path__ = [str(package / "saltlm")]
    sys.modules["saltlm"] = shell
    return tuple(importlib.import_module(f"saltlm.{name}") for name in ("operators.ops", "operators.reference"))


def problem(size: tuple[int, ...], device: str) -> dict[str, torch.Tensor]:
    """Generate rows with a falling spectrum and a common mean, like embeddings, and new tokens near means of three anchors."""
    new, anchors, P, E, D = size
    generator = torch.Generator(device=device).manual_seed(0)

    def rows(count: int, width: int) -> torch.Tensor:
        spectrum = torch.linspace(1, 0.2, width, device=device)
        return torch.randn(count, width, generator=generator, device=device) * spectrum + 0.2

    auxiliary, plm, lm = rows(anchors, P), rows(anchors, E), 0.02 * rows(anchors, D)
    neighbours = torch.randint(anchors, (new, 3), generator=generator, device=device)
    return {
        "new_auxiliary": auxiliary[neighbours].mean(1) + 0.5 * rows(new, P),
        "anchor_auxiliary": auxiliary,
        "new_plm": plm[neighbours].mean(1) + 0.5 * rows(new, E),
        "anchor_plm": plm,
        "anchor_lm": lm,
    }


def timed(work, device: str, runs: int = 5) -> float:
    """Median seconds of ``work`` after one warm-up run, with the device synchronized before and after each run."""

    def once() -> float:
        wait(device)
        start = time.perf_counter()
        work()
        wait(device)
        return time.perf_counter() - start

    once()
    return statistics.median(once() for _ in range(runs))


def ceilings(device: str) -> dict[str, float]:
    """Measured ceilings of the device: FLOP/s of a bfloat16 and a float32 product, and bytes/s of a copy (read and write)."""
    side, size = (8192, 1 << 30) if device == "cuda" else (512, 1 << 24)
    rates = {}
    for dtype in (torch.bfloat16, torch.float32):
        left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        rates[f"{str(dtype)[6:]}_flops"] = 2 * side**3 / timed(lambda a=left, b=right: a @ b, device)
    source = torch.zeros(size // 4, device=device)
    target = torch.empty_like(source)
    rates["bytes"] = 2 * size / timed(lambda: target.copy_(source), device)
    return rates


def roofline(size: tuple[int, ...], neighbours: float, ceiling: dict[str, float]) -> dict[str, float]:
    """The two times of the roofline, in seconds.

    Args:
        size: N, A, P, E and D.
        neighbours: mean support size.
        ceiling: result of :func:`ceilings`.
    """
    new, anchors, P, E, D = size
    numbers = new * (P + E + D) + anchors * (P + E + D) + new * neighbours * (E + D)
    return {"product_s": 2 * new * anchors * P / ceiling["bfloat16_flops"], "memory_s": 4 * numbers / ceiling["bytes"]}


def wait(device: str) -> None:
    """Wait until the device has finished its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def measure(ops, size: tuple[int, ...], device: str, runs: int, ceiling: dict[str, float]) -> dict[str, object]:
    """Time salt_rows as a whole and in parts, the bare product, and stock torch; returns the figures of one size."""
    tensors = problem(size, device)
    new = size[0]
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    whole = ops.salt_rows(**tensors)
    result: dict[str, object] = {"size": dict(zip(("N", "A", "P", "E", "D"), size, strict=True))}
    if device == "cuda":
        beyond = torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
        result["device_memory_beyond_inputs_and_results_mb"] = beyond / 1e6
    support_size = whole.support_size.double()
    result["support_size"] = {q: support_size.quantile(float(q)).item() for q in ("0.0", "0.5", "0.95", "1.0")}
    result["statuses"] = {name: int((whole.status == code).sum()) for code, name in enumerate(ops.STATUSES)}
    result["salt_rows_s"] = timed(lambda: ops.salt_rows(**tensors), device, runs)
    result["roofline"] = roofline(size, support_size.mean().item(), ceiling)
    result["share_of_roofline"] = max(result["roofline"].values()) / result["salt_rows_s"]

    block = slice(0, min(new, 8192))
    auxiliary, plm = tensors["new_auxiliary"][block], tensors["new_plm"][block]
    support = ops.sparsemax_support(auxiliary, tensors["anchor_auxiliary"])
    solution = ops.support_lstsq(plm, tensors["anchor_plm"], support)
    parts = {
        "sparsemax_support": lambda: ops.sparsemax_support(auxiliary, tensors["anchor_auxiliary"]),
        "support_lstsq": lambda: ops.support_lstsq(plm, tensors["anchor_plm"], support),
        "combine": lambda: ops.combine(support, solution.coefficients, tensors["anchor_lm"]),
        "bare float32 product": lambda: auxiliary @ tensors["anchor_auxiliary"].T,
    }
    result["rows_in_parts"] = len(auxiliary)
    result["parts_s"] = {name: timed(work, device, runs) for name, work in parts.items()}

    if device == "cuda":
        result["salt_rows_s_by_buffer_mb"] = by_buffer(ops, tensors, block, device, runs)

    sample = {name: t[:STOCK_TOKENS] if name.startswith("new") else t for name, t in tensors.items()}
    rows = stock_rows(**sample)
    full_rank = whole.status[:STOCK_TOKENS] == 0
    difference = (rows - whole.rows[:STOCK_TOKENS]).norm(dim=1) / whole.rows[:STOCK_TOKENS].norm(dim=1)
    count = len(sample["new_plm"])
    result["stock_tokens"] = count
    result["stock_largest_relative_difference"] = difference[full_rank].max().item() if full_rank.any() else None
    result["stock_scaled_s"] = timed(lambda: stock_rows(**sample), device, max(1, runs // 2)) * new / count
    result["stock_over_saltlm"] = result["stock_scaled_s"] / result["salt_rows_s"]
    return result


def by_buffer(ops, tensors: dict[str, torch.Tensor], block: slice, device: str, runs: int) -> dict[int, float]:
    """Seconds of the block's rows by the size of the buffer for cosines, to see whether one that fits the cache is faster."""
    given = {name: t[block] if name.startswith("new") else t for name, t in tensors.items()}
    result = {}
    for megabytes in (16, 32, 64, 128, 256, 512):
        os.environ["SALTLM_CUDA_BUFFER_MB"] = str(megabytes)
        result[megabytes] = timed(lambda: ops.salt_rows(**given), device, runs)
    del os.environ["SALTLM_CUDA_BUFFER_MB"]
    return result


def table(report: dict) -> str:
    """The section for RESULTS.md: the figures of each size, with the bars."""
    ceiling = report["ceilings"]
    lines = [
        f"## Operators on {report['machine']}\n",
        f"torch {report['torch']}, Python {report['python']}; `bash bench/gpu.sh`. Measured ceilings: bfloat16"
        f" {ceiling['bfloat16_flops'] / 1e12:.3g} TFLOP/s, float32 {ceiling['float32_flops'] / 1e12:.3g} TFLOP/s, copies"
        f" {ceiling['bytes'] / 1e9:.3g} GB/s. {len(report['checks'])} checks passed.\n",
        f"| N, A, P, E, D | SALT rows | share of the roofline (bar {ROOFLINE:.0%}) | stock torch / saltlm (bar {STOCK})"
        " | device memory beyond inputs and results |",
        "| --- | --- | --- | --- | --- |",
    ]
    for result in report["timings"].values():
        memory = result.get("device_memory_beyond_inputs_and_results_mb")
        lines.append(
            f"| {', '.join(f'{n:,}' for n in result['size'].values())} | {result['salt_rows_s']:.3g} s |"
            f" {result['share_of_roofline']:.1%} | {result['stock_over_saltlm']:.3g} |"
            f" {'-' if memory is None else f'{memory:,.0f} MB'} |"
        )
    return "\n".join(lines) + "\n"


def save(file: Path, report: dict) -> None:
    """Write the report as far as it is complete."""
    file.write_text(json.dumps(report, indent=1, default=str) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    package = Path(__file__).resolve().parent.parent / "python"
    parser.add_argument("--package", type=Path, default=package, help="folder that holds the package saltlm")
    parser.add_argument(
        "--out", type=Path, default=Path("build/gpu"), help="folder for the results (default: build/gpu)"
    )
    parser.add_argument("--cpu", action="store_true", help="run on the CPU, with small sizes")
    parser.add_argument("--checks-only", action="store_true", help="do not measure times (for compute-sanitizer)")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, help="sizes to time")
    arguments = parser.parse_args()
    device = "cpu" if arguments.cpu else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch finds no CUDA device; expected one; --cpu runs the script on the CPU")
    ops, reference = operators(arguments.package)
    chosen = ops.backend(device)
    print(f"{device}: {chosen.name} operators ({chosen.reason})", flush=True)
    if chosen.name != "compiled":
        raise SystemExit("the compiled operators cannot be loaded, so there is nothing to measure")
    report = {
        "machine": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "operators": ops.backends(),
        "checks": run_checks(ops, reference, device),
    }
    failed = [name for name, fault in report["checks"].items() if fault]
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / ("checks.json" if arguments.checks_only else "gpu.json")
    save(file, report)
    if not arguments.checks_only and not failed:
        sizes = arguments.sizes or (["small"] if arguments.cpu else list(SIZES))
        report["ceilings"], report["timings"] = ceilings(device), {}
        for name in sizes:
            runs = 3 if arguments.cpu else 5
            report["timings"][name] = measure(ops, SIZES[name], device, runs, report["ceilings"])
            save(file, report)
            print(f"{name}: {json.dumps(report['timings'][name])}", flush=True)
    print(f"results: {file}")
    if "timings" in report:
        (arguments.out / "gpu.md").write_text(table(report), encoding="utf-8")
        print(table(report))
    if failed:
        raise SystemExit(f"{len(failed)} of {len(report['checks'])} checks failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
