"""``saltlm batch`` compared with the same number of ``saltlm transfer`` processes, one after another.

Tiny jobs use models and tokenizers of the tests. Real jobs transfer SmolLM2-135M to multilingual-e5-small cut to each of six
languages, by two methods each. No bar.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import fetching, figure, record

from saltlm_demo.e5 import language_donor
from saltlm_demo.inputs import source_lm

sys.path.insert(
    0, str(Path(__file__).parents[1] / "tests" / "support")
)  # before this folder, which also has a module `pairs`
from pairs import make_pair

LANGUAGES = ("fi", "de", "fr", "ar", "vi", "pt")
METHODS = ("clp-plus", "subword-mean")


def tiny(root: Path, count: int) -> list[dict[str, object]]:
    """``count`` jobs on one pair of tiny models, which differ in method and seed."""
    pair = make_pair(root, "byte_level_bpe", "sentencepiece_unigram")
    common = {"source": str(pair.source), "target": str(pair.target), "auxiliary": str(pair.vectors)}
    methods = ("salt", "focus", "clp-plus", "omp", "multivariate")
    return [{**common, "method": methods[i % len(methods)], "seed": i} for i in range(count)]


def real(count: int) -> list[dict[str, object]]:
    """The first ``count`` jobs of all combinations of language and method."""
    with fetching("SmolLM2-135M-Instruct") as progress:
        source, gguf_file = source_lm(progress)
    jobs = []
    for language in LANGUAGES[: -(-count // len(METHODS))]:
        with fetching(f"multilingual-e5-small, cut to {language}") as progress:
            donor = language_donor(language, progress)
        common = {"source": str(source), "gguf_file": gguf_file, "target": str(donor)}
        jobs += [{**common, "method": method} for method in METHODS]
    return jobs[:count]


def saltlm(*arguments: str) -> tuple[dict, float]:
    """Run a saltlm command.

    Returns:
        Its JSON result, and the wall-clock seconds of the process, interpreter included.
    """
    start = time.perf_counter()
    command = [sys.executable, "-m", "saltlm", *arguments, "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout), time.perf_counter() - start


def content(folder: Path) -> dict[str, object]:
    """File contents of a model folder by name, without the times in saltlm.json."""
    files: dict[str, object] = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {**files, "saltlm.json": {**json.loads(files["saltlm.json"]), "seconds": None}}


def compare(root: Path, jobs: list[dict[str, object]], workers: int | None) -> tuple[str, float]:
    """Run the jobs both ways, and check that all folders are equal.

    Returns:
        The figures as text, and the ratio of single processes to batch.
    """
    lines = []
    for index, job in enumerate(jobs):
        values = {**job, "out": str(root / f"batch-{index}")}
        lines += ["[[job]]\n", *(f"{name} = {json.dumps(value)}\n" for name, value in values.items())]
    (root / "jobs.toml").write_text("".join(lines), encoding="utf-8")
    report, together = saltlm("batch", str(root / "jobs.toml"), *([f"--workers={workers}"] if workers else []))
    alone = 0.0
    for index, job in enumerate(jobs):
        out = root / f"single-{index}"
        options = [f"--{name.replace('_', '-')}={value}" for name, value in job.items()]
        alone += saltlm("transfer", *options, f"--out={out}")[1]
        if content(out) != content(root / f"batch-{index}"):
            raise SystemExit(f"job {index + 1}: the batch's folder differs from the single transfer's")
    peak = max(job["peak"] for job in report["jobs"]) / 1e6
    text = f"batch {figure(together)} s, single processes {figure(alone)} s; {report['workers']} workers of {report['threads']}"
    text += f" threads; {report['shared']['found']} results reused; largest worker {figure(peak)} MB"
    return text, alone / together


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", type=int, default=100, help="number of tiny jobs (default: 100)")
    parser.add_argument("--real", type=int, default=12, help="number of real jobs, at most 12 (default: 12)")
    parser.add_argument("--workers", type=int, help="number of workers (default: chosen by saltlm batch)")
    arguments = parser.parse_args()
    rows = []
    for count, name in ((arguments.tiny, "tiny"), (arguments.real, "real")):
        if count:
            with tempfile.TemporaryDirectory() as folder:
                jobs = tiny(Path(folder), count) if name == "tiny" else real(count)
                text, ratio = compare(Path(folder), jobs, arguments.workers)
            rows += [(f"{len(jobs)} {name} jobs", text), ("single / batch", f"**{figure(ratio)} x**")]
    options = "".join(f" --{name} {value}" for name, value in vars(arguments).items() if value is not None)
    notes = [
        "Every folder of the batch equals the single transfer's byte for byte, except for `seconds` in saltlm.json."
    ]
    record("Batch against single transfers", rows, f"python bench/batch.py{options}", notes)


if __name__ == "__main__":
    main()
