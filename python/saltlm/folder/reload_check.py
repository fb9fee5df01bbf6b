"""The check of a written folder: transformers loads it, and its logits at shared tokens are compared with the source's.

Both models run on the CPU, in one dtype, on the same tokens, each under its own ids. The output matrix of both is cut to the
compared tokens, so that all matrices of both models have equal shapes; with correct rows they have equal bits, too, and the
logits are equal. :data:`TOLERANCE` allows for a model whose output matrix cannot be cut: products with matrices of
different sizes may be rounded differently.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import gc
import inspect
import itertools
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from ..config import ReloadCheck
from ..environment import available_memory, quiet_transformers
from ..errors import BackendError, first_line
from ..files.json_files import read_json, write_json
from ..files.summary_file import ReloadReport
from ..model.checkpoint import Source
from ..model.positions import POSITIONS
from ..model.weights import Weights, find_weights, release_pages
from ..rows.assembly import COPIED, Assembly
from ..shared import Shared

FULL_BYTES = 2 << 30  # weights of a model up to which ``auto`` loads all of it; it takes seconds, and as much memory
SEQUENCES, LENGTH = 2, 12  # several sequences of several tokens, because faults of positions show only there
COLUMNS = 256  # compared tokens of each position
LAYERS = (1, 2)  # of a truncated copy; some classes cannot be built with one layer
# Largest difference of two logits that counts as rounding, in units of the largest logit, by dtype of the models. A product
# is rounded once to the dtype (2^-8 of its size in bfloat16, 2^-11 in float16); in float32 sums of another order differ.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 2e-3}
# The same where the written rows are of a narrower dtype than the source's: rounded rows change every state after them.
ROUNDED_ROWS = {torch.float32: 1e-3, torch.bfloat16: 1e-1, torch.float16: 2e-2}
# Names of the number of layers in config.json; the name by the class's ``attribute_map`` is added.
LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "num_decoder_layers")
TOKEN_IDS = ("_token_id", "_token_ids", "_token_index")  # ends of config keys that name token ids
ROLE_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")  # of these, which name tokens of the text
KEY_REPORTS = ("missing_keys", "unexpected_keys", "mismatched_keys")  # of transformers, on loading
# So that keys of another shape are in the report, like missing ones, instead of an error that does not name them.
REPORTING: Mapping[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ids:
    """What one model computes.

    Attributes:
        inputs: int64 [:data:`SEQUENCES`, n], ids of the input tokens.
        columns: int64 [m], ids of the tokens whose logits are compared.
    """

    inputs: torch.Tensor
    columns: torch.Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A model that was loaded and run.

    Attributes:
        logits: float64 [:data:`SEQUENCES`, n, m]; empty where the model could not be loaded or run.
        keys: by name in :data:`KEY_REPORTS`, the keys that transformers reports.
        dtype: of the model; ``None`` where it could not be loaded.
        error: why it could not be loaded or run; ``None`` if it could.
    """

    logits: torch.Tensor
    keys: Mapping[str, frozenset[str]]
    dtype: torch.dtype | None
    error: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scope:
    """How much of the models is loaded.

    Attributes:
        checked: ``full``, ``truncated`` or ``off``.
        layers: of a truncated copy; ``None`` for another.
        reason: why nothing is checked; ``None`` where something is.
    """

    checked: str
    layers: int | None = None
    reason: str | None = None


def check_reload(
    folder: Path, source: Source, assembly: Assembly, tokenizer: Any, *, mode: ReloadCheck, shared: Shared
) -> ReloadReport:
    """Compare a written folder with the source, both loaded by transformers.

    Nothing is compared where the source itself cannot be loaded or run on this machine, and where its weights are quantised.

    Args:
        folder: the written folder, complete but for its records.
        source: the source model.
        assembly: says which rows are copies of which source rows.
        tokenizer: the new one; its special tokens are not compared.
        mode: how much to load, see :class:`~saltlm.TransferConfig`.
        shared: keeps the source's logits for later transfers.

    Returns:
        What was checked, for ``saltlm.json``: ``checked`` (``full``, ``truncated`` or ``off``), ``reason`` (why it is
        ``off``, else ``None``), ``layers`` (of a truncated copy), ``dtype``, ``tokens`` (of the input), ``compared`` (logits a
        token) and, in units of the largest logit, ``difference`` and ``tolerance``.

    Raises:
        BackendError: transformers cannot load or run the folder, reports keys that it does not report for the source, a token
            id lies outside the vocabulary, or logits differ by more than the tolerance.
    """
    rows = len(assembly.origin)
    _check_ids(folder, source, rows)
    scope = _scope(source, mode)
    if scope.checked == "off":
        return _report(scope)
    old, new = _tokens(folder, source, assembly, tokenizer)
    near = source.input_name
    written = _run(folder, find_weights(folder, "result"), near, scope, new, None, source.trust_remote_code)

    def run_source() -> Run:
        return _run(source.folder, source.weights, near, scope, old, written.dtype, source.trust_remote_code)

    content = tuple(sorted(source.files.items()))
    bits = (old.inputs.numpy().tobytes(), old.columns.numpy().tobytes())
    key = ("reload check", str(source.folder), content, scope, written.dtype, bits)
    original = shared.get(key, run_source, lambda run: run.logits.numel() * 8)
    if original.error is not None:
        return _report(Scope(checked="off", reason=f"the source cannot be run here ({original.error})"))
    if written.error is not None:
        raise _fault(f"transformers loads and runs the source, but not the result ({written.error})")
    for name in KEY_REPORTS:
        if keys := sorted(written.keys[name] - original.keys[name]):
            examples = f"{', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}"
            raise _fault(f"transformers reports {name.replace('_', ' ')} that the source has not ({examples})")
    if drawn := sorted(original.keys["missing_keys"] | original.keys["mismatched_keys"]):
        return _report(
            Scope(checked="off", reason=f"the source lacks weights, which loading draws at random ({drawn[0]})")
        )
    return _compare(scope, written, original, new, _tolerance(source, assembly, written.dtype))


def full_bytes(weights: Weights, mode: ReloadCheck) -> int:
    """Bytes of weights that the check has in memory at a time; 0 where it runs a truncated copy or nothing.

    Args:
        weights: of the source.
        mode: how much to load.
    """
    size = sum(entry.end - entry.start for header in weights.headers.values() for entry in header.entries.values())
    return size if mode == "full" or (mode == "auto" and size <= FULL_BYTES) else 0


def _fault(found: str) -> BackendError:
    return BackendError(
        f"reload check: {found}; the result must compute what the source computes on shared tokens, so nothing was written;"
        " please report it with the name of the source; --reload-check off writes the folder anyway"
    )


def _report(scope: Scope, **figures: Any) -> ReloadReport:
    report: ReloadReport = {
        "checked": scope.checked,
        "reason": scope.reason,
        "layers": scope.layers,
        "dtype": None,
        "tokens": 0,
        "compared": 0,
        "difference": None,
        "tolerance": None,
    }
    return cast("ReloadReport", {**report, **figures})


def _scope(source: Source, mode: ReloadCheck) -> Scope:
    """How much to load, by the option, the size of the source and the free memory."""
    if mode == "off":
        return Scope(checked="off", reason="it is switched off")
    parts = [source.config, *(part for part in source.config.values() if isinstance(part, Mapping))]
    if any(part.get("quantization_config") for part in parts) or (source.folder / "hf_quant_config.json").is_file():
        return Scope(checked="off", reason="the source is quantised")
    if mode == "full":
        return Scope(checked="full")
    size = full_bytes(source.weights, "full")
    fits = size <= available_memory() / 2
    if mode == "auto" and size <= FULL_BYTES and fits:
        return Scope(checked="full")
    for layers in LAYERS:
        with contextlib.suppress(Exception), _quiet(), _truncated(source.folder, layers, source.trust_remote_code):
            return Scope(checked="truncated", layers=layers)
    if mode == "auto" and fits:
        return Scope(checked="full")
    return Scope(checked="off", reason="its class cannot be built with fewer layers, and the whole model is too large")


def _check_ids(folder: Path, source: Source, rows: int) -> None:
    """Check that the token ids in the written configs have rows; an id that has none in the source either is passed."""
    for name, before in (("config.json", source.config), ("generation_config.json", source.generation_config or {})):
        path = folder / name
        old = dict(_token_ids(before))
        for key, ids in _token_ids(read_json(path)) if path.is_file() else ():
            # The number of rows stands for no token, where a class takes no null (see fill_refused_nulls).
            known = rows if key.rpartition(".")[2] in ROLE_KEYS else rows + 1
            if not all(0 <= id_ < known for id_ in ids) and ids != old.get(key):
                raise _fault(f"{name} names {key} {ids} in a vocabulary of {rows} rows")


def _token_ids(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, list[int]]]:
    """(key, ids) of every entry of a config that names token ids; keys of nested configs are joined by dots."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _token_ids(value, f"{prefix}{key}.")
        elif key.endswith(TOKEN_IDS):
            ids = value if isinstance(value, list) else [value]
            yield prefix + key, [id_ for id_ in ids if isinstance(id_, int) and not isinstance(id_, bool)]


def _tokens(folder: Path, source: Source, assembly: Assembly, tokenizer: Any) -> tuple[Ids, Ids]:
    """The tokens to run and to compare: copied ones without any role, by their ids in the source and in the result."""
    config = read_json(folder / "config.json")
    tokenizers: tuple[Any, Any] = (source.tokenizer, tokenizer)
    roles = [set(side.all_special_ids) for side in tokenizers]
    for ids, content in zip(roles, (source.config, config), strict=True):
        ids.update(id_ for _, named in _token_ids(content) for id_ in named)
    new = np.flatnonzero(assembly.origin == COPIED)
    old = assembly.source_id[new].astype(np.int64)
    plain = ~(np.isin(old, list(roles[0])) | np.isin(new, list(roles[1])))
    new, old = new[plain], old[plain]
    length = max(1, min(LENGTH, _positions(config) // 2))
    order = np.random.default_rng(0).permutation(len(new))
    inputs = np.resize(order, SEQUENCES * length).reshape(SEQUENCES, length) if len(new) else order[None]
    compared = np.union1d(order[:COLUMNS], inputs.ravel())
    sides = [Ids(inputs=torch.from_numpy(ids[inputs]), columns=torch.from_numpy(ids[compared])) for ids in (old, new)]
    return sides[0], sides[1]


def _positions(config: Mapping[str, Any]) -> int:
    """The longest input by config.json, in tokens; large if it names no limit."""
    parts = [config, *(part for key, part in config.items() if key == "text_config" and isinstance(part, Mapping))]
    values = [part.get(name) for part in parts for name in POSITIONS]
    return min((value for value in values if isinstance(value, int) and value > 0), default=1 << 20)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without messages and warnings of the libraries; what matters of them is in the result."""
    with quiet_transformers(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _run(
    folder: Path,
    weights: Weights,
    near: str,
    scope: Scope,
    ids: Ids,
    dtype: torch.dtype | None,
    trust_remote_code: bool,
) -> Run:
    """Load a model and compute its logits. Any failure is returned, not raised.

    Args:
        folder: the model folder.
        weights: of that folder.
        near: key of the input matrix; the layers of a truncated copy are those of the same part of the model.
        scope: how much to load.
        ids: what to compute.
        dtype: to load in; ``None`` takes the one that a plain load takes.
        trust_remote_code: let transformers run code from the folder.
    """
    none = torch.zeros(0, dtype=torch.float64)
    model, keys, loaded = None, dict.fromkeys(KEY_REPORTS, frozenset[str]()), None
    try:
        with _quiet(), torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)  # some classes draw at random when they are built or run
            if scope.checked == "full":
                model, info = _load_full(folder, dtype, trust_remote_code)
            else:
                model, info = _load_truncated(folder, weights, near, scope.layers or 1, dtype, trust_remote_code)
            keys = {
                name: frozenset(key if isinstance(key, str) else str(key[0]) for key in info[name])
                for name in KEY_REPORTS
            }
            loaded = getattr(model.config, "dtype", None) or model.dtype
            torch.manual_seed(0)
            logits = _logits(model.eval(), ids).double() if ids.inputs.numel() else none
        return Run(logits=logits, keys=keys, dtype=loaded, error=None)
    except Exception as error:  # a model class may raise anything
        return Run(logits=none, keys=keys, dtype=loaded, error=f"{type(error).__name__}: {first_line(error)[:300]}")
    finally:
        del model
        if full_bytes(weights, "full") > 1 << 28:
            gc.collect()  # so that two large models are not in memory at a time
            release_pages()


def _class_of(config: Any) -> Any:
    """The class that a user loads: the one named by a composite model, the automatic class for another."""
    import transformers

    names = getattr(config, "architectures", None) or [""]
    named = getattr(transformers, names[0], None)
    if named is not None and config.get_text_config() is not config:
        return named
    return transformers.AutoModelForCausalLM


def _load_full(folder: Path, dtype: torch.dtype | None, trust_remote_code: bool) -> tuple[Any, Mapping[str, Any]]:
    from transformers import AutoConfig, AutoModelForCausalLM

    options: dict[str, Any] = {"local_files_only": True}  # and the default device, the CPU
    if trust_remote_code:
        options["trust_remote_code"] = True
    config = AutoConfig.from_pretrained(str(folder), **options)
    cls = _class_of(config)
    if cls is not AutoModelForCausalLM:
        options.pop("trust_remote_code", None)
    return cls.from_pretrained(str(folder), dtype=dtype or "auto", use_safetensors=True, **REPORTING, **options)


@contextlib.contextmanager
def _truncated(folder: Path, layers: int, trust_remote_code: bool) -> Iterator[tuple[Any, Any, int]]:
    """The config with fewer layers, the model class under it, and the number of layers in the whole model.

    Raises:
        ValueError: the config names no number of layers.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    options = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    whole = AutoConfig.from_pretrained(str(folder), **options)
    text = whole.get_text_config()
    count = getattr(text, "num_hidden_layers", None)
    if not isinstance(count, int) or count < layers:
        raise ValueError(f"{count} layers")
    raw = copy.deepcopy(read_json(folder / "config.json"))
    part = raw
    if text is not whole:
        part = next(raw[name] for name in whole.sub_configs if getattr(whole, name, None) is text)
    name = text.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    for key, value in part.items():
        if key in LAYER_KEYS and value == count:
            part[key] = layers
        elif isinstance(value, list) and len(value) == count:  # one entry a layer
            part[key] = value[:layers]
    part[name] = layers
    with tempfile.TemporaryDirectory(prefix="saltlm-") as room:
        write_json(Path(room) / "config.json", raw)
        for path in folder.glob("*.py") if trust_remote_code else ():
            shutil.copy(path, room)
        config = AutoConfig.from_pretrained(room, **options)
        cls = _class_of(config)
        with torch.device("meta"):
            if cls is AutoModelForCausalLM:
                cls = type(cls.from_config(config, trust_remote_code=trust_remote_code))
            else:
                cls(config)
        yield config, cls, count


def _load_truncated(
    folder: Path, weights: Weights, near: str, layers: int, dtype: torch.dtype | None, trust_remote_code: bool
) -> tuple[Any, Mapping[str, Any]]:
    """The model with its first layers alone; its weights stay in the files, whose pages are released after each module."""
    with _truncated(folder, layers, trust_remote_code) as (config, cls, count):
        keys = _kept_keys(weights, near, layers, count)
        size = sum(weights.entry(key).end - weights.entry(key).start for key in keys if re.search(r"\.\d+\.", key))
        if size > available_memory() / 2:
            raise MemoryError(f"even {layers} of {count} layers take {size / 1e9:.1f} GB")
        state = {}
        for file, header in weights.headers.items():
            entries = {key: entry for key, entry in header.entries.items() if key in keys}
            part = Weights({file: dataclasses.replace(header, entries=entries)}, None)
            state.update({key: part.tensor(key) for key in entries})
        model, info = cls.from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=dtype or "auto",
            local_files_only=True,
            **REPORTING,
        )
    for module in model.modules():
        if not any(True for _ in module.children()):
            module.register_forward_hook(lambda *arguments: release_pages())
    return model, info


def _kept_keys(weights: Weights, near: str, layers: int, count: int) -> set[str]:
    """Keys of all tensors but those of later layers of the part of the model that has the tensor ``near``."""
    keys = weights.files_of()
    indices: dict[str, set[int]] = {}
    for key in keys:
        if match := re.search(r"(?:^|\.)(\d+)\.", key):
            indices.setdefault(key[: match.start(1)], set()).add(int(match[1]))
    lists = [prefix for prefix, numbers in indices.items() if numbers >= set(range(count))]

    def parts_shared(prefix: str) -> int:
        pairs = zip(prefix.split("."), near.split("."), strict=False)
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

    prefix = max(lists, key=parts_shared, default=None)
    if prefix is None:
        return set(keys)
    number = re.compile(re.escape(prefix) + r"(\d+)\.")
    return {key for key in keys if not (match := number.match(key)) or int(match[1]) < layers}


def _logits(model: Any, ids: Ids) -> torch.Tensor:
    """Logits [:data:`SEQUENCES`, n, m] of the compared tokens, with the output matrix cut to them where the class allows it."""
    accepted = inspect.signature(model.forward).parameters
    inputs: dict[str, Any] = {"input_ids": ids.inputs}
    if "attention_mask" in accepted:
        inputs["attention_mask"] = torch.ones_like(ids.inputs)
    if "use_cache" in accepted:
        inputs["use_cache"] = False
    model.config.get_text_config().use_cache = False  # for classes that read it there alone
    rows = len(model.get_input_embeddings().weight)
    head = model.get_output_embeddings()
    if type(head) is torch.nn.Linear and len(head.weight) == rows:
        weight, bias = head.weight, head.bias
        try:
            # A class that needs all columns fails here; any other error comes again below.
            with contextlib.suppress(Exception):
                head.weight = torch.nn.Parameter(weight[ids.columns], requires_grad=False)
                if bias is not None:
                    head.bias = torch.nn.Parameter(bias[ids.columns], requires_grad=False)
                logits = model(**inputs).logits
                if logits.shape[-1] == len(ids.columns):
                    return logits
        finally:
            head.weight, head.bias = weight, bias
    return model(**inputs).logits[..., ids.columns]


def _tolerance(source: Source, assembly: Assembly, dtype: torch.dtype | None) -> float:
    """The tolerance for a dtype of the models, larger where the written rows are rounded."""
    pairs: Sequence[tuple[torch.Tensor, torch.Tensor]] = list(assembly.sides())
    narrower = [new.dtype for old, new in pairs if torch.promote_types(old.dtype, new.dtype) != new.dtype]
    return max(TOLERANCE.get(dtype or torch.float32, 1e-2), *(ROUNDED_ROWS[narrow] for narrow in narrower), 0.0)


def _compare(scope: Scope, written: Run, original: Run, ids: Ids, tolerance: float) -> ReloadReport:
    """The report on two runs.

    Raises:
        BackendError: their logits differ by more than the tolerance.
    """
    dtype = str(written.dtype).removeprefix("torch.")
    sizes = {"dtype": dtype, "tokens": ids.inputs.numel(), "compared": len(ids.columns)}
    finite = original.logits.isfinite()
    if not finite.any():
        what = "there are no shared tokens" if not ids.inputs.numel() else "the source's logits are not finite"
        return _report(dataclasses.replace(scope, reason=f"nothing was compared: {what}"), **sizes)
    difference = (written.logits - original.logits).abs()[finite].nan_to_num(nan=float("inf"))
    largest = float(original.logits[finite].abs().max())
    relative = float(difference.max()) / max(largest, 1e-30)
    if relative > tolerance:
        share = float((difference > tolerance * largest).double().mean())
        raise _fault(
            f"logits of shared tokens differ from the source's by up to {float(difference.max()):.3g} where the largest is"
            f" {largest:.3g} ({share:.0%} of them differ by more than rounding, {scope.checked} model in {dtype})"
        )
    return _report(scope, **sizes, difference=float(f"{relative:.2g}"), tolerance=tolerance)
