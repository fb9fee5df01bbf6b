"""The operators on a GPU: right first (against the reference in float64), then how fast, beside stock torch.

Run by gpu.sh, which finds or builds the operators. It needs torch and numpy alone: only the operator modules of the
package are loaded. ``--cpu`` does the same on the CPU in small, so that the script itself is tried where no GPU is.
"""

import argparse
import importlib
import json
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
STOCK_TOKENS = 4096  # stock torch is timed on so many and scaled up


def operators(package: Path) -> tuple[types.ModuleType, types.ModuleType]:
    """saltlm.ops and saltlm.reference from ``package``, without the rest of the package and what that imports."""
    shell = types.ModuleType("saltlm")
    shell.__path__ = [str(package / "saltlm")]
    sys.modules["saltlm"] = shell
    return importlib.import_module("saltlm.ops"), importlib.import_module("saltlm.reference")


def problem(size: tuple[int, ...], device: str) -> dict[str, torch.Tensor]:
    """Rows with a falling spectrum and a common mean, as embeddings have, new tokens near mixtures of anchors."""
    new, anchors, P, E, D = size
    draw = torch.Generator(device=device).manual_seed(0)

    def rows(count: int, width: int) -> torch.Tensor:
        spectrum = torch.linspace(1, 0.2, width, device=device)
        return torch.randn(count, width, generator=draw, device=device) * spectrum + 0.2

    auxiliary, plm, lm = rows(anchors, P), rows(anchors, E), 0.02 * rows(anchors, D)
    near = torch.randint(anchors, (new, 3), generator=draw, device=device)
    return {
        "new_auxiliary": auxiliary[near].mean(1) + 0.5 * rows(new, P),
        "anchor_auxiliary": auxiliary,
        "new_plm": plm[near].mean(1) + 0.5 * rows(new, E),
        "anchor_plm": plm,
        "anchor_lm": lm,
    }


def timed(work, device: str, runs: int = 5) -> float:
    """Median seconds of ``work`` after one run to warm up; the device is waited for."""

    def once() -> float:
        wait(device)
        start = time.perf_counter()
        work()
        wait(device)
        return time.perf_counter() - start

    once()
    return statistics.median(once() for _ in range(runs))


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measure(ops, size: tuple[int, ...], device: str, runs: int) -> dict[str, object]:
    """Seconds of the whole and of its parts, of the bare product, and of stock torch."""
    tensors = problem(size, device)
    new = size[0]
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    whole = ops.salt_rows(**tensors)
    result: dict[str, object] = {"size": dict(zip(("N", "A", "P", "E", "D"), size, strict=True))}
    if device == "cuda":
        result["device_memory_beyond_inputs_mb"] = (torch.cuda.max_memory_allocated() - held) / 1e6
    kept = whole.support_size.double()
    result["support_size"] = {q: kept.quantile(float(q)).item() for q in ("0.0", "0.5", "0.95", "1.0")}
    result["statuses"] = {name: int((whole.status == code).sum()) for code, name in enumerate(ops.STATUSES)}
    result["salt_rows_s"] = timed(lambda: ops.salt_rows(**tensors), device, runs)

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

    sample = {name: t[:STOCK_TOKENS] if name.startswith("new") else t for name, t in tensors.items()}
    rows = stock_rows(**sample)
    sound = whole.status[:STOCK_TOKENS] == 0
    off = (rows - whole.rows[:STOCK_TOKENS]).norm(dim=1) / whole.rows[:STOCK_TOKENS].norm(dim=1)
    count = len(sample["new_plm"])
    result["stock_tokens"] = count
    result["stock_largest_relative_difference"] = off[sound].max().item() if sound.any() else None
    result["stock_scaled_s"] = timed(lambda: stock_rows(**sample), device, max(1, runs // 2)) * new / count
    result["stock_over_saltlm"] = result["stock_scaled_s"] / result["salt_rows_s"]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--package", type=Path, default=Path(__file__).resolve().parent.parent / "python")
    parser.add_argument("--out", type=Path, default=Path("build/gpu"))
    parser.add_argument("--cpu", action="store_true", help="the same on the CPU, in small")
    parser.add_argument("--checks-only", action="store_true", help="no timing (under compute-sanitizer)")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, help="what is timed")
    arguments = parser.parse_args()
    device = "cpu" if arguments.cpu else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device is visible to torch; --cpu tries the script on the CPU")
    ops, reference = operators(arguments.package)
    chosen = ops.backend(device)
    print(f"{device}: {chosen.name} operators ({chosen.reason})", flush=True)
    if chosen.name != "compiled":
        raise SystemExit("the compiled operators do not run here, so there is nothing to measure")
    report = {
        "machine": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "operators": ops.backends(),
        "checks": run_checks(ops, reference, device),
    }
    failed = [name for name, fault in report["checks"].items() if fault]
    if not arguments.checks_only and not failed:
        sizes = arguments.sizes or (["small"] if arguments.cpu else list(SIZES))
        report["timings"] = {}
        for name in sizes:
            report["timings"][name] = measure(ops, SIZES[name], device, runs=3 if arguments.cpu else 5)
            print(f"{name}: {json.dumps(report['timings'][name])}", flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / ("checks.json" if arguments.checks_only else "gpu.json")
    file.write_text(json.dumps(report, indent=1, default=str) + "\n", encoding="utf-8")
    print(f"written: {file}")
    if failed:
        raise SystemExit(f"{len(failed)} of {len(report['checks'])} checks failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
