"""Every causal LM class of transformers, some composite ones, and kinds of donors: what a transfer makes of them.

Each model is tiny: the class's default config with small sizes, and drawn weights. It is transferred to another tokenizer; the
result is loaded again by transformers, and the logits of shared tokens are compared with the source's, by the transfer itself
(the reload check) and again here, by other code. No bar; a class that is built, and neither transferred correctly nor
refused with a message, is a fault.

Usage: python bench/models.py [--only NAME ...] [--no-donors]
"""

import argparse
import collections
import contextlib
import json
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from harness import record

sys.path.insert(
    0, str(Path(__file__).parents[1] / "tests" / "support")
)  # before this folder, which also has a module `pairs`
import composites_tiny
import models_every
import models_tiny
from tokenizers_tiny import KINDS, TEXT, tiny

CAUSAL, IMAGE = "AutoModelForCausalLM", "AutoModelForImageTextToText"
WHOLE = "the class that config.json names"  # for the models of composites_tiny
SOURCE, TARGET = "byte_level_bpe", "sentencepiece_unigram"
# Donor name -> function that saves one with a tokenizer; each is tried with each kind of tokenizer.
DONORS: dict[str, Callable[..., Path]] = {
    "BERT": models_tiny.save_bert,
    "BERT with its head": lambda folder, tokenizer: models_tiny.save_bert(folder, tokenizer, masked_lm=True),
    "XLM-R": models_tiny.save_xlm_roberta,
    "T5": models_tiny.save_t5,
    "mT5": lambda folder, tokenizer: models_tiny.save_t5(folder, tokenizer, multilingual=True),
    "GPT-2": models_tiny.save_gpt2,
    "Llama": models_tiny.save_llama,
    "Qwen2": models_tiny.save_qwen2,
}


def logits(folder: Path, ids, auto: str):
    """Logits of a folder for a batch of ids, loaded by transformers with default settings."""
    import torch
    import transformers

    if auto == WHOLE:
        auto = json.loads((folder / "config.json").read_text())["architectures"][0]
    model = getattr(transformers, auto).from_pretrained(folder, local_files_only=True).eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # some classes draw at random when they run
        return model(input_ids=ids, use_cache=False).logits.double()


def difference(source: Path, out: Path, auto: str) -> float:
    """Largest difference of the logits of shared tokens, in units of the largest logit."""
    import numpy as np
    import torch
    from safetensors.numpy import load_file

    rows = load_file(out / "provenance.safetensors")
    new = np.flatnonzero(rows["origin"] == 0)
    old = rows["source_id"][new]
    order = np.random.default_rng(1).permutation(len(new))[:20].reshape(2, 10)
    first = logits(source, torch.from_numpy(old[order].astype(np.int64)), auto)[..., old]
    second = logits(out, torch.from_numpy(new[order].astype(np.int64)), auto)[..., new]
    return float((second - first).abs().max() / first.abs().max())


def export(out: Path, folder: Path) -> str:
    """Whether the result is converted to a GGUF file."""
    from saltlm import InputError
    from saltlm.export.gguf_file import export_gguf

    name = json.loads((out / "config.json").read_text())["architectures"][0]
    try:
        export_gguf(out, folder / "model.gguf")
    except InputError as error:
        return f"refused: {message(error, out, name)}"
    except Exception as error:
        return f"**fault**: {type(error).__name__}: {message(error, out)}"
    return "converted"


def first_line(error: BaseException) -> str:
    """First line of the error's text, short enough for a table."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def message(error: BaseException, *names: object) -> str:
    """The error's first line without what differs between classes: paths, names of the class, examples, and the advice."""
    text = first_line(error).split(" differ from the source's")[0]
    for name in names:
        text = text.replace(str(name), "…")
    text = re.sub(r" ?\([^()]*\)", "", re.sub("source …(, |: )", "", text))
    return "; ".join(text.split("; ")[:2])[:150].replace("|", "/")


def try_model(model_type: str, auto: str, folder: Path) -> tuple[str, str]:
    """Transfer a tiny model of a type.

    Returns:
        What came of it, and whether the result was converted to GGUF.
    """
    from saltlm import InputError, TransferConfig, transfer
    from saltlm.errors import BackendError

    source, target, out = folder / "source", folder / "target", folder / "out"
    try:
        if auto == WHOLE:
            composites_tiny.save_composite(source, model_type)
        else:
            models_every.save(source, model_type, tiny(SOURCE), auto=auto)
    except Exception as error:
        return f"cannot be built so small: {message(error, model_type)}", "-"
    name = json.loads((source / "config.json").read_text())["architectures"][0]
    models_tiny.save_bert(target, tiny(TARGET))
    try:
        done = transfer(source, target, out=out, config=TransferConfig(heldout=0.0))
    except InputError as error:
        return f"refused: {message(error, source, model_type, name)}", "-"
    except BackendError as error:
        return f"**fault, nothing written**: {message(error, out, name)}", "-"
    except Exception as error:
        return f"**fault**: {type(error).__name__}: {message(error, source, out, name)}", "-"
    check = done.summary["reload_check"]
    if check["difference"] is None:
        return f"accepted, not compared: {check['reason']}", export(out, folder)
    found = difference(source, out, auto)
    if found > check["tolerance"]:
        return f"**fault**: the reload check passes logits that differ by {found:.1e}", export(out, folder)
    return f"accepted, logits equal {'exactly' if found == check['difference'] == 0 else 'up to rounding'}", export(
        out, folder
    )


def try_donor(name: str, kind: str, folder: Path) -> str:
    """Transfer a tiny Llama to a donor with a kind of tokenizer, and compare the segmentation of texts."""
    from transformers import AutoTokenizer

    from saltlm import InputError, TransferConfig, transfer

    source, target, out = folder / "source", folder / "target", folder / "out"
    models_tiny.save_llama(source, tiny(SOURCE))
    try:
        DONORS[name](target, tiny(kind))
    except Exception as error:
        return f"cannot be saved: {message(error)}"
    try:
        transfer(source, target, out=out, config=TransferConfig(heldout=0.0))
    except InputError as error:
        return f"refused: {message(error, target)}"
    except Exception as error:
        return f"**fault**: {message(error, target, out)}"
    result = AutoTokenizer.from_pretrained(out)
    for text in TEXT:
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for tokenizer in (result, tiny(kind))]
        if ids[0] != ids[1]:
            return f"**fault**: other ids for {text[:20]!r}"
    return "accepted, same ids"


def grouped(results: dict[str, str]) -> list[tuple[str, str, str]]:
    """Table rows: outcome, number, names; the largest groups first."""
    names = collections.defaultdict(list)
    for name, outcome in results.items():
        names[outcome].append(name)
    order = sorted(names, key=lambda outcome: (outcome.split(":")[0], -len(names[outcome]), outcome))
    return [(outcome, str(len(names[outcome])), ", ".join(sorted(names[outcome]))) for outcome in order]


def progress(done: int, total: int, name: str, outcome: str, start: float) -> None:
    seconds = time.perf_counter() - start
    print(f"{done}/{total} {seconds:.0f} s  {name}: {outcome}", file=sys.stderr, flush=True)


def survey(items: dict[str, Callable[[Path], object]]) -> dict[str, object]:
    """Run each item in a folder of its own; prints progress."""
    start, results = time.perf_counter(), {}
    for number, (name, run) in enumerate(items.items(), 1):
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results[name] = run(Path(folder))
        progress(number, len(items), name, str(results[name]), start)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="model types, as in config.json; no table is recorded"
    )
    parser.add_argument("--no-donors", action="store_true", help="models alone")
    arguments = parser.parse_args()
    import transformers

    transformers.logging.set_verbosity_error()
    with contextlib.suppress(AttributeError):
        transformers.logging.disable_progress_bar()
    types = {name: (name, CAUSAL) for name in models_every.causal_types()}
    types |= {f"{name} (all parts)": (name, WHOLE) for name in composites_tiny.KINDS}
    further = [name for name in models_every.COMPOSITES if name not in composites_tiny.KINDS]
    types |= {f"{name} (all parts)": (name, IMAGE) for name in further}
    if arguments.only:
        types = {label: value for label, value in types.items() if value[0] in arguments.only}
    models = survey({label: lambda folder, value=value: try_model(*value, folder) for label, value in types.items()})
    rows = grouped({name: result[0] for name, result in models.items()})
    gguf = grouped({name: result[1] for name, result in models.items() if result[0].startswith("accepted")})
    if arguments.only:
        for row in (*rows, *gguf):
            print(" | ".join(row))
        return
    accepted = sum(int(count) for _, count, _ in gguf)
    faults = sum(int(count) for outcome, count, _ in (*rows, *gguf) if "**fault" in outcome)
    notes = [f"Of {len(types)} types {accepted} are accepted; {faults} faults."]
    headings = ("outcome", "number", "model types")
    record("Model classes", rows, "python bench/models.py", notes, headings=headings, timed=False)
    record("Model classes as GGUF", gguf, "python bench/models.py", headings=headings, timed=False)
    if not arguments.no_donors:
        items = {
            f"{name} with {kind}": lambda folder, name=name, kind=kind: try_donor(name, kind, folder)
            for name in DONORS
            for kind in KINDS
        }
        donors = grouped(survey(items))
        record(
            "Kinds of donors", donors, "python bench/models.py", headings=("outcome", "number", "donors"), timed=False
        )


if __name__ == "__main__":
    main()
