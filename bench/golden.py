"""Digests of everything that saltlm writes, to show that a refactoring changes nothing.

    python bench/golden.py --out old.json          # on the code before the change
    python bench/golden.py --out new.json          # on the code after it: same machine, same libraries
    python bench/golden.py --diff old.json new.json

The script writes tiny tokenizers, models, vectors and texts into a temporary folder, runs saltlm on them with one thread, and
records each result under the name of its case. It uses public names and the command line only, so that the same script runs on
both sides of a change. A case that raises an error is recorded as failed.

The record has two parts. ``bits``: weights, tokenizer files, JSON records, figures, names of options. ``prose``: model cards,
warnings, help texts, pictures and pages, which may be reworded. ``--diff`` prints the differences of both parts, field by field
for JSON files and tensor by tensor for weights, and exits with 1 if bits differ. Left out are times, versions, the environment
and the path of the temporary folder.
"""

import argparse
import dataclasses
import hashlib
import itertools
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

# Set before the libraries that read them are imported, and inherited by the commands.
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", RAYON_NUM_THREADS="1")
os.environ.update(TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", COLUMNS="200")

import numpy as np
import torch
import transformers
from golden_inputs import MODELS, make_inputs, options_in
from safetensors import safe_open

import saltlm

# Each method runs on each of these pairs. Beyond that, each entry is a transfer: source, target, method, options.
PAIRS = ("tied t5", "untied bert", "biased other")
NEEDED = {"wechsel": " source_auxiliary=english.vec dictionary=pairs.txt", "ofa": " auxiliary=multilingual.vec"}
TRANSFERS = """tied t5 salt ridge=0.01; tied t5 salt center=true; tied t5 salt max_support=5; tied t5 salt heldout=0.3
untied bert salt ridge=0.1 center=true max_support=8; tied t5 salt clean_anchors=0.1 map_ridge=0.5
untied bert salt overlap=case; biased bert salt overlap=word-start
tied bert salt auxiliary=plm; tied bert salt auxiliary=others.vec.gz; untied bert salt norm_guard=shrink
tied t5 focus max_support=3; tied t5 clp-plus max_support=3; untied bert omp ridge=0.1 center=true max_support=6
untied bert sava-affine ridge=0.5; biased other ridge-map ridge=0.1; biased other local-map max_support=9 map_ridge=0.1
biased other local-map support_rule=plm ridge=0.1; biased other local-map support_rule=auxiliary center=true
untied bert blend blend_with=local-map blend_weight=0.4; untied bert blend blend_with=salt
untied bert blend blend_with=focus; untied bert blend blend_with=clp; untied bert blend blend_with=clp-plus
untied bert blend blend_with=omp; untied bert blend blend_with=sava-affine; untied bert blend blend_with=sava-orthogonal
tied t5 blend blend_weight=pieces; tied t5 blend blend_weight=support blend_with=local-map
tied t5 blend blend_weight=precision blend_length=1.2; biased t5 auto blend_weight=0.6 blend_length=1.0 ridge=0.3
biased t5 auto clean_anchors=0.2; tied t5 normal seed=7; untied bert multivariate seed=7
tied t5 salt tune=true; tied bert auto tune=true; tied bert auto tune_text=others.txt
untied bert salt tune_text=others.txt
untied t5 auto unigram_shift=1.0; biased bert salt unigram_shift=0.5 unigram_text=others.txt
tied t5 auto keep_source_vocabulary=true; untied bert salt keep_source_vocabulary=true pad_to_multiple_of=64
biased other subword-mean keep_source_vocabulary=true; padded bert salt keep_source_vocabulary=true
tied bert auto; tied bert auto pad_to_multiple_of=64; untied t5 auto pad_to_multiple_of=128 dtype=float32
tied bert auto dtype=bfloat16; padded t5 auto dtype=float16; untied bert auto link=hard heldout=0
tied t5 auto chat_template=source; biased bert auto chat_template=none
biased bert auto special_overrides={"[SEP]":"<|begin|>","[MASK]":"<|pad|>"}
padded other subword-asymmetric; gpt2 t5 auto; gpt2 other subword-asymmetric; qwen2 bert auto; qwen2 other salt"""

# Keys of saltlm's JSON records whose values differ from run to run or from version to version; keys and files that hold text.
VARYING = re.compile(r"(.*_)?(seconds|version)|.*_per_second|environment|format|memory|saltlm\.json")
PROSE_KEYS = ("warnings", "notes", "broken")
PROSE_FILES = (".md", ".png", ".html", "help")
METHODS = """auto salt focus clp clp-plus omp sava-affine sava-orthogonal ridge-map local-map blend wechsel ofa subword-mean
subword-length subword-asymmetric multivariate mean normal zero"""


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def tensor_digest(value: torch.Tensor | np.ndarray | None) -> str | None:
    """Dtype, shape and the digest of the bytes."""
    if value is None:
        return None
    tensor = torch.as_tensor(value).detach().contiguous()
    digest = sha256(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} {digest[:24]}"


def digests(result: object, names: str) -> dict[str, str | None]:
    """Of these attributes of a result."""
    return {name: tensor_digest(getattr(result, name)) for name in names.split()}


def file_value(path: Path) -> object:
    """The digest of a file; with it the content of JSON and the tensors of safetensors, so that a difference can be read."""
    data = path.read_bytes().replace(str(Path.cwd()).encode(), b"$ROOT")
    if path.name in ("saltlm.json", "run.json"):
        return json.loads(data)
    if path.name == "metrics.jsonl":
        return [json.loads(line) for line in data.splitlines()]
    if path.suffix == ".json":
        return {"sha256": sha256(data), "content": json.loads(data)}
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            tensors = {name: tensor_digest(file.get_tensor(name)) for name in file.keys()}
        return {"sha256": sha256(data), "tensors": tensors}
    return data.decode() if path.suffix == ".md" else sha256(data)


def folder_value(folder: str) -> dict[str, object]:
    """All files but TensorBoard's, which hold times."""
    files = [path for path in sorted(Path(folder).rglob("*")) if path.is_file() and "tensorboard" not in path.parts]
    return {str(path.relative_to(folder)): file_value(path) for path in files}


def bits_of(value: object, prose: dict, path: str) -> object:
    """The value without what varies; text for people goes to ``prose``."""
    if isinstance(value, list):
        return [bits_of(item, prose, f"{path}[{index}]") for index, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    prose.update({f"{path} | {key}": value[key] for key in PROSE_KEYS if value.get(key)})
    kept = [key for key in value if key not in PROSE_KEYS and not VARYING.fullmatch(key)]
    return {key: bits_of(value[key], prose, f"{path} | {key}") for key in kept}


class Record:
    """The values of all cases, bits and prose apart."""

    def __init__(self) -> None:
        self.bits: dict[str, dict] = {}
        self.prose: dict[str, dict] = {}

    def case(self, name: str, make: Callable[..., Mapping[str, object]], *given: object) -> None:
        """Record what ``make(*given)`` returns: values by name, or by the name of a file."""
        if name in self.bits:
            raise ValueError(f"two cases are named {name!r}")
        root, prose = str(Path.cwd()), {}
        try:
            values = json.loads(json.dumps(make(*given), ensure_ascii=False).replace(root, "$ROOT"))
        except Exception as error:
            print(f"failed: {name}: {type(error).__name__}: {error}")
            values, prose["failed"] = {"failed": type(error).__name__}, str(error).replace(root, "$ROOT")
        prose |= {key: values.pop(key) for key in list(values) if key.endswith(PROSE_FILES)}
        self.bits[name] = {key: bits_of(value, prose, key) for key, value in values.items()}
        self.prose[name] = prose


def out_of(line: str) -> str:
    return "out/" + re.sub(r"[^\w.=-]+", "_", line)


def transferred(line: str) -> dict:
    """The folder that a transfer writes, and what it returns."""
    source, target, method, options = f"{line}{NEEDED.get(line.split()[2], '')} ".split(" ", 3)
    given = {"device": "cpu", "method": method, "auxiliary": "others.vec", **options_in(options)}
    auxiliary, out = given.pop("auxiliary"), out_of(line)
    done = saltlm.transfer(source, target, auxiliary, out, saltlm.TransferConfig(**given))
    return {**folder_value(out), "returned": digests(done, "input_rows output_rows output_bias origin")}


def dry_run(source: str, target: str, method: str) -> dict:
    config = saltlm.TransferConfig(method=method, device="cpu")
    return {"summary": saltlm.transfer(source, target, "others.vec", None, config, dry_run=True).summary}


def aligned(source, target, overlap: str) -> dict:
    done = saltlm.align(source, target, overlap=overlap)
    return {**digests(done, "kind source_id cover_offsets cover_ids"), "counts": done.counts()}


def rows_of(dtype: str, options: str) -> dict:
    """Rows of a drawn problem in which each outcome of a row occurs."""
    random = torch.Generator().manual_seed(0)
    shapes = ((50, 6), (90, 6), (50, 16), (90, 16), (90, 24), (90, 8))
    tensors = [torch.randn(*shape, generator=random, dtype=torch.float64) for shape in shapes]
    new_auxiliary, _, _, anchor_plm, anchor_lm, _ = tensors
    new_auxiliary[3], new_auxiliary[4, 1], anchor_lm[9, 2] = 0, float("nan"), float("inf")
    anchor_plm[10:30] = anchor_plm[30:50]  # equal anchors
    anchor_plm[50:60] = anchor_plm[60:70] + 1e-4 * anchor_plm[:10]  # nearly equal anchors
    *problem, head = [tensor.to(getattr(torch, dtype)) for tensor in tensors]
    done = saltlm.salt_rows(*problem, anchor_output=head, **options_in(options))
    return digests(done, "rows output_rows support_size rank residual status")


def looked_up(spec: str, source, target) -> dict:
    """Vectors of the target's tokens."""
    words = saltlm.align(source, target).target.words()
    plm = torch.randn(len(words), 6, generator=torch.Generator().manual_seed(1)) if spec == "plm" else None
    done = saltlm.load_auxiliary(spec, words, plm_rows=plm)
    return {**digests(done, "vectors known"), "description": done.description}


def evaluated(model: str, options: str) -> dict:
    done = saltlm.evaluate(model, "held-out.txt", device="cpu", **options_in(options))
    return {"figures": done.to_json(per_document=True)}


def adapted(model: str, options: str) -> dict:
    out, given = (
        f"{model}-adapted",
        options_in(f"seq_length=32 batch_size=2 device=cpu save_steps=3 eval_steps=2 {options}"),
    )
    texts = {"eval_texts": "held-out.txt", "replay": {"english.txt": 0.25}}
    done = saltlm.adapt(model, "others.txt", out, saltlm.AdaptConfig(**given), **texts)
    return {**folder_value(out), "returned": done.to_json()}


def compared(*methods: str) -> dict:
    texts = {"eval_texts": "held-out.txt", "source_eval_texts": "english.txt"}
    base = {"transfer_config": saltlm.TransferConfig(device="cpu")}
    base["adapt_config"] = saltlm.AdaptConfig(seq_length=32, batch_size=2, device="cpu", eval_bytes=600)
    config = saltlm.CompareConfig(probe_steps=4, seeds=2, eval_steps=2)
    done = saltlm.compare("tied", "bert", "others.vec", methods, "others.txt", "compared", config, **texts, **base)
    return {"returned": done.content, "files": sorted(str(path) for path in done.out.rglob("*.*"))}


def command(line: str) -> str:
    """What the command line writes to stdout."""
    environment = {**os.environ, "PYTHONPATH": str(Path(saltlm.__file__).parents[1])}
    words = [sys.executable, "-m", "saltlm", *line.split()]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr}")
    return done.stdout


def command_value(line: str, out: str | None = None) -> dict:
    """The JSON result of a command, and the folder that it writes."""
    return {"result": json.loads(command(f"{line} --json")), **(folder_value(out) if out else {})}


def options_of(name: str) -> dict:
    """The options of a command with their choices, by its usage line."""
    text = command(f"{name} --help")
    usage = re.sub(r"\s+", " ", text.split("\n\n")[0])
    return {"options": re.findall(r"--[a-z][a-z-]*(?: \{[^}]*\})?", usage), "help": text}


def batched() -> dict:
    """Three jobs, and the statuses of a second run, which finds them done."""
    defaults = '[defaults]\nsource = "tied"\ntarget = "bert"\nauxiliary = "others.vec"\ndevice = "cpu"\n'
    jobs = ('method = "salt"\nridge = 0.1', 'method = "subword-mean"\nsource = "untied"', "pad-to-multiple-of = 32")
    tables = [f'[[job]]\nout = "batch/{number}"\n{job}\n' for number, job in enumerate(jobs, 1)]
    Path("jobs.toml").write_text(defaults + "".join(tables), encoding="utf-8")
    runs = [json.loads(command("batch jobs.toml --workers 1 --json"))["jobs"] for _ in range(2)]
    return {"statuses": [[[job["out"], job["status"]] for job in run] for run in runs], **folder_value("batch")}


def public_names() -> dict:
    configs = (saltlm.TransferConfig, saltlm.AdaptConfig, saltlm.CompareConfig)
    return {"all": sorted(saltlm.__all__), **{config.__name__: dataclasses.asdict(config()) for config in configs}}


def all_cases(record: Record) -> None:
    """Run every case in the current folder."""
    tokenizers = make_inputs()
    record.case("public names", public_names)
    for line in MODELS.splitlines():
        record.case(f"input {line.split()[0]}", folder_value, line.split()[0])
    for name in ("transfer", "evaluate", "adapt", "batch", "inspect", "compare", "status"):
        record.case(f"options of {name}", options_of, name)
    for source, target, overlap in itertools.product(tokenizers, tokenizers, ("exact", "word-start", "case")):
        record.case(f"align {source} {target} {overlap}", aligned, tokenizers[source], tokenizers[target], overlap)
    for spec in ("others.vec", "others.vec.gz", "plm"):
        record.case(f"load_auxiliary {spec}", looked_up, spec, tokenizers["bytes"], tokenizers["unigram"])
    solves = ("", "center=true", "ridge=0.1", "max_support=7", "center=true ridge=1 max_support=30")
    for dtype, options in itertools.product(("float32", "float64", "bfloat16", "float16"), solves):
        record.case(f"salt_rows {dtype} {options}", rows_of, dtype, options)
    methods = METHODS.split()
    lines = [f"{pair} {method}" for method in methods for pair in PAIRS]
    for line in [*lines, *(entry.strip() for entry in re.split(r"[;\n]", TRANSFERS))]:
        record.case(f"transfer {line}", transferred, line)
    record.case("transfer dry run", dry_run, "tied", "t5", "salt")
    tied, untied, biased = (out_of(line) for line in ("tied bert auto", "untied bert salt", "biased other auto"))
    for model in ("tied", "untied", "biased", "qwen2", tied, untied, biased):
        record.case(f"evaluate {model}", evaluated, model, "")
    record.case("evaluate windows", evaluated, "tied", "max_length=24 stride=7 batch_tokens=100")
    record.case("evaluate bfloat16", evaluated, "untied", "dtype=bfloat16")
    phases = "phases=rows:3,all:4@1e-3/1e-2 schedule=wsd weight_decay=0.1 accumulate=2"
    record.case("adapt in two phases", adapted, tied, phases)
    distilled = "distill_rows=true distill_steps=3 phases=embeddings:4 early_stop=1 dtype=float32"
    record.case("adapt with distilled rows", adapted, untied, distilled)
    record.case("compare", compared, "auto", "salt:center=true", "subword-mean")
    written = "transfer --source untied --target t5 --out out/command"
    record.case("command transfer", command_value, written, "out/command")
    sides = "--text held-out.txt --retention english.txt --prompt kissa --device cpu"
    record.case("command evaluate", command_value, f"evaluate tied {tied} biased {sides}")
    Path("pages").mkdir()
    record.case("command inspect", command_value, f"inspect {tied} --html pages/rows.html", "pages")
    record.case("command inspect tokens", command_value, f"inspect {untied} #488 kissa")
    record.case("command batch", batched)


def differences(old: object, new: object, path: str) -> Iterator[str]:
    """A line for each value that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        if ("failed" in old) != ("failed" in new):  # a line for the case, not one for each of its files
            old, new = ({"failed": side.get("failed", "no")} for side in (old, new))
        is_file = "sha256" in old and old.keys() <= {"sha256", "content", "tensors"}
        lines: list[str] = []
        for key in sorted({*old, *new} - ({"sha256"} if is_file else set())):
            lines += differences(old.get(key, "absent"), new.get(key, "absent"), f"{path} | {key}")
        if is_file and not lines and old["sha256"] != new.get("sha256"):
            lines.append(f"{path}: the content is equal, the bytes of the file differ")
        yield from lines
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, pair in enumerate(zip(old, new, strict=True)):
            yield from differences(*pair, f"{path}[{index}]")
    elif json.dumps(old) != json.dumps(new):
        shown = [json.dumps(value, ensure_ascii=False)[:120] for value in (old, new)]
        yield f"{path}: {shown[0]} -> {shown[1]}"


def show_differences(old: Path, new: Path) -> int:
    records, counts = [json.loads(path.read_text(encoding="utf-8")) for path in (old, new)], {}
    for part in ("machine", "bits", "prose"):
        lines = list(differences(records[0][part], records[1][part], part))
        counts[part] = len(lines)
        print(*lines, f"{part}: {len(lines)} differences in {len(records[1][part])} entries", sep="\n")
    return 1 if counts["bits"] else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--out", type=Path, help="JSON file to write the record to")
    choice.add_argument("--diff", type=Path, nargs=2, metavar=("OLD", "NEW"), help="compare two of these files")
    arguments = parser.parse_args()
    if arguments.diff:
        return show_differences(*arguments.diff)
    out, start, record = arguments.out.resolve(), time.perf_counter(), Record()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(HOME=folder, XDG_CACHE_HOME=folder)
        os.chdir(Path(folder).resolve())
        all_cases(record)
        os.chdir(out.parent)
    machine = {"processor": torch.backends.cpu.get_cpu_capability(), "python": platform.python_version()}
    machine |= {module.__name__: module.__version__ for module in (np, torch, transformers)}
    content = {"machine": machine, "bits": record.bits, "prose": record.prose}
    out.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
    failed = sum("failed" in values for values in record.bits.values())
    print(f"{len(record.bits)} cases, {failed} failed, in {time.perf_counter() - start:.0f} s: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
