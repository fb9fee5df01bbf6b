"""Choice of the operators' implementation: the compiled libraries where they load, else stock torch; with the reason."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from ..errors import BackendError, first_line, input_error

LIBRARY_FOLDER = Path(__file__).resolve().parents[1] / "lib"
VARIABLE = "SALTLM_BACKEND"
NAMES = ("compiled", "reference")
_forced: list[str] = []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backend:
    """The implementation that runs the operators on one device.

    Attributes:
        name: ``compiled`` or ``reference`` (stock torch).
        reason: why this implementation was chosen, in a few words.
    """

    name: str
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Library:
    loaded: bool
    reason: str
    path: str | None = None


@functools.cache
def _cpu_library() -> _Library:
    library = _first_cpu_library()
    schemas = map(str, torch._C._jit_get_schemas_for_operator("saltlm::sparsemax_support"))
    if library.loaded and not any("most_entries" in schema for schema in schemas):
        reason = "the library is of an older build (run cuda_ext/build_ops.py)"
        return dataclasses.replace(library, loaded=False, reason=reason)
    return library


def _first_cpu_library() -> _Library:
    # A second definition of the schemas would abort the process. Where another copy of the library (a wheel next to an
    # editable install) has defined the operators, these are used.
    try:
        torch._C._dispatch_find_schema_or_throw("saltlm::combine", "")
    except RuntimeError:
        return _load(LIBRARY_FOLDER / "_ops_cpu.so")
    return _Library(loaded=True, reason="loaded before from another place")


@functools.cache
def _cuda_library() -> _Library:
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise BackendError(
            "the CUDA operators are loaded by their first call, which waits: make one before capturing a graph"
        )
    if torch.version.cuda is None:
        return _Library(loaded=False, reason="this torch is built without CUDA")
    if not _cpu_library().loaded:
        return _Library(loaded=False, reason="the CPU library, which defines the operators, is not loaded")
    if torch._C._dispatch_has_kernel_for_dispatch_key("saltlm::combine", "CUDA"):
        return _Library(loaded=True, reason="loaded before from another place")
    library = _load(LIBRARY_FOLDER / "_ops_cuda.so")
    return _probe(library) if library.loaded and torch.cuda.is_available() else library


def _load(path: Path) -> _Library:
    if not path.is_file():
        return _Library(loaded=False, reason=f"{path.name} was not built (run cuda_ext/build_ops.py)")
    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        return _Library(loaded=False, reason=f"{path.name} does not load: {first_line(error)}", path=str(path))
    return _Library(loaded=True, reason=f"{path.name} loaded", path=str(path))


def _probe(library: _Library) -> _Library:
    # The library contains a CUDA runtime, which may be newer than the driver: the library then loads but cannot launch.
    try:
        like = torch.ones(1, 1, device="cuda")
        offsets = torch.tensor([0, 1], device="cuda")
        row = torch.ops.saltlm.combine(
            offsets, torch.zeros(1, dtype=torch.int32, device="cuda"), like[0].double(), like
        )
        works = row.item() == 1
        reason = library.reason if works else "a trial launch gave a wrong answer"
    except RuntimeError as error:
        works, reason = False, f"a trial launch failed: {first_line(error)}"
    return dataclasses.replace(library, loaded=works, reason=reason)


@functools.cache
def _register_fakes() -> None:
    # Shapes of the results, for torch.compile and export. The number of entries of a support is known only at run time.
    @torch.library.register_fake("saltlm::sparsemax_support")
    def _(
        new_auxiliary: torch.Tensor, anchor_auxiliary: torch.Tensor, max_support: int, slack: float, most_entries: int
    ) -> tuple:
        context = torch.library.get_ctx()
        nnz = context.new_dynamic_size()
        bounds = context.new_dynamic_size() if most_entries else new_auxiliary.shape[0] + 1
        return (
            new_auxiliary.new_empty(bounds, dtype=torch.int64),
            new_auxiliary.new_empty(nnz, dtype=torch.int32),
            new_auxiliary.new_empty(nnz, dtype=torch.float64),
        )

    @torch.library.register_fake("saltlm::support_lstsq")
    def _(
        new_plm: torch.Tensor,
        anchor_plm: torch.Tensor,
        offsets: torch.Tensor,
        ids: torch.Tensor,
        ridge: float,
        center: bool,
    ) -> tuple:
        rows = new_plm.shape[0]
        return (
            new_plm.new_empty(ids.shape[0], dtype=torch.float64),
            new_plm.new_empty(rows, dtype=torch.int32),
            new_plm.new_empty(rows, dtype=torch.float32),
            new_plm.new_empty(rows, dtype=torch.uint8),
        )

    @torch.library.register_fake("saltlm::pursue")
    def _(products: torch.Tensor, gram: torch.Tensor, squares: torch.Tensor, most: int) -> tuple:
        rows = products.shape[0]
        return products.new_empty(rows, most, dtype=torch.int32), products.new_empty(rows, dtype=torch.int32)

    @torch.library.register_fake("saltlm::combine")
    def _(
        offsets: torch.Tensor, ids: torch.Tensor, coefficients: torch.Tensor, anchor_lm: torch.Tensor
    ) -> torch.Tensor:
        dtype = torch.float64 if anchor_lm.dtype == torch.float64 else torch.float32
        return anchor_lm.new_empty((offsets.shape[0] - 1, anchor_lm.shape[1]), dtype=dtype)

    @torch.library.register_fake("saltlm::salt_rows_fixed")
    def _(
        new_auxiliary: torch.Tensor,
        anchor_auxiliary: torch.Tensor,
        new_plm: torch.Tensor,
        anchor_plm: torch.Tensor,
        anchor_lm: torch.Tensor,
        anchor_output: torch.Tensor,
        max_support: int,
        slack: float,
        capacity: int,
        ridge: float,
        center: bool,
    ) -> tuple:
        rows = new_plm.shape[0]
        made = [
            target.new_empty(rows, target.shape[1], dtype=torch.promote_types(target.dtype, torch.float32))
            for target in (anchor_lm, anchor_output)
        ]
        numbers = [
            new_plm.new_empty(rows, dtype=dtype) for dtype in (torch.int32, torch.int32, torch.float32, torch.uint8)
        ]
        return (*made, *numbers)

    @torch.library.register_fake("saltlm::combine_into")
    def _(
        offsets: torch.Tensor,
        ids: torch.Tensor,
        coefficients: torch.Tensor,
        anchor_lm: torch.Tensor,
        rows: torch.Tensor,
    ) -> torch.Tensor:
        return rows.new_empty(rows.shape[0], dtype=torch.bool)


def _library(device_type: str) -> _Library:
    library = _cpu_library() if device_type == "cpu" else _cuda_library()
    if _cpu_library().loaded:
        _register_fakes()
    return library


def backend(device: torch.device | str = "cpu") -> Backend:
    """The implementation that runs on a device, and the reason.

    ``SALTLM_BACKEND=reference`` in the environment forces stock torch, ``compiled`` forbids it.

    Args:
        device: ``cpu`` or ``cuda[:index]``.

    Raises:
        InputError: the environment variable is neither of the two names.
        BackendError: it asks for compiled operators and they cannot be loaded.
    """
    device_type = torch.device(device).type
    asked, by = (_forced[-1], "forced") if _forced else (os.environ.get(VARIABLE), VARIABLE)
    if asked and asked not in NAMES:
        raise input_error(VARIABLE, repr(asked), "compiled or reference", "unset it to let saltlm choose")
    if asked == "reference":
        return Backend(name="reference", reason=f"asked for ({by})")
    library = _library(device_type)
    if library.loaded:
        return Backend(name="compiled", reason=library.reason)
    if asked == "compiled":
        raise BackendError(
            f"compiled operators were asked for ({by}) but cannot run on {device_type}: {library.reason}"
        )
    return Backend(name="reference", reason=library.reason)


def backends() -> dict[str, dict[str, object]]:
    """Describe both devices' operators, for a status report.

    Returns:
        for ``cpu`` and ``cuda``: ``name`` and ``reason`` as in :func:`backend`, ``library`` (its path or ``None``),
        ``build`` (content of build.json: torch headers, compiler, nvcc, architectures; empty if unknown) and, for the
        CPU, ``level`` (the instruction set in use).
    """
    note = LIBRARY_FOLDER / "build.json"
    try:
        build = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        build = {}
    report: dict[str, dict[str, object]] = {}
    for device_type in ("cpu", "cuda"):
        try:
            chosen = backend(device_type)
        except BackendError as error:
            chosen = Backend(name="none", reason=str(error))
        try:
            library = _library(device_type)
        except BackendError as error:
            library = _Library(loaded=False, reason=str(error))
        report[device_type] = {"name": chosen.name, "reason": chosen.reason, "library": library.path, "build": build}
    if _cpu_library().loaded:
        report["cpu"]["level"] = torch.ops.saltlm.cpu_level()
    return report


@contextlib.contextmanager
def forced(name: str) -> Iterator[None]:
    """Run the body with one implementation, ``compiled`` or ``reference``; overrides the environment variable."""
    if name not in NAMES:
        raise input_error("backend", repr(name), "compiled or reference", "choose one of these")
    _forced.append(name)
    try:
        yield
    finally:
        _forced.pop()
