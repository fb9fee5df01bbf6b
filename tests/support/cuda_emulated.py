"""Builds the CUDA operators for the emulated device of cuda_emulated.h, as ``torch.ops.saltlm_emulated`` on CPU tensors.

The sources are compiled unchanged, except for constructs that are not C++ (launches, shared memory) and the names under
which the operators and the product are registered.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch

from saltlm.operators import ops

HEADER = Path(__file__).with_name("cuda_emulated.h")
FAULTS = Path(__file__).with_name("cuda_emulated_faults.cu")
CSRC = Path(__file__).parents[2] / "cuda_ext" / "csrc"
TARGET = re.search(r'^TARGET = "(\w+)"', (CSRC.parent / "build_ops.py").read_text(encoding="utf-8"), re.MULTILINE)[1]
LAUNCH = re.compile(r"(?P<kernel>\w+(?:<[\w, ]+>)?)<<<(?P<config>.*?)>>>\(", re.DOTALL)
SHARED = re.compile(r"__shared__ (?P<type>\w+) (?P<name>\w+)(?P<size>\[\w+\])?;")
RENAMED = {
    "extern __shared__ double shared[];": "double* const shared = ::emulated::dynamic_shared();",
    "STABLE_TORCH_LIBRARY(saltlm, m)": "STABLE_TORCH_LIBRARY(saltlm_emulated, m)",
    "STABLE_TORCH_LIBRARY_IMPL(saltlm, CUDA, m)": "STABLE_TORCH_LIBRARY_IMPL(saltlm_emulated, CPU, m)",
    "torch::stable::accelerator::DeviceGuard": "::emulated::DeviceGuard",
    '"aten::mm", "dtype"': '"saltlm_emulated::product", ""',
}
# Lets the tests set up the device.
CHOICES = """
extern "C" __attribute__((visibility("default"))) void choose(int order, int multiprocessors, int shared_bytes,
                                                              bool races) {
  emulated::device = {order, multiprocessors, shared_bytes, races};
}
"""
# The functions that gcc calls for every memory access under -fsanitize=thread; here they check for races.
ACCESS_CALLS = (
    "".join(
        f"""extern "C" NOT_INSTRUMENTED void __tsan_{unaligned}{access}{size}(void* memory) {{
  emulated::on_access(memory, emulated::Access::k{access.capitalize()});
}}
"""
        for access in ("read", "write")
        for unaligned in ("", "unaligned_")
        for size in (1, 2, 4, 8, 16)
    )
    + """
extern "C" NOT_INSTRUMENTED void __tsan_init() {}
extern "C" NOT_INSTRUMENTED void __tsan_func_entry(void*) {}
extern "C" NOT_INSTRUMENTED void __tsan_func_exit() {}
extern "C" NOT_INSTRUMENTED void __tsan_vptr_update(void**, void*) {}
extern "C" NOT_INSTRUMENTED void __tsan_vptr_read(void**) {}
extern "C" NOT_INSTRUMENTED void __tsan_read_range(void*, unsigned long) {}
extern "C" NOT_INSTRUMENTED void __tsan_write_range(void*, unsigned long) {}
extern "C" NOT_INSTRUMENTED char __tsan_atomic8_load(const volatile char* at, int order) { return __atomic_load_n(at, order); }
extern "C" NOT_INSTRUMENTED int __tsan_atomic32_fetch_add(volatile int* at, int more, int order) {
  return __atomic_fetch_add(at, more, order);
}
"""
)
FLAGS = [
    "-std=c++17",
    "-O2",
    "-g1",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-strict-aliasing",
    "-ffp-contract=off",
    "-w",
    "-U_FORTIFY_SOURCE",
]
# A misaligned load ends the process with a message that names the line.
CHECKS = ["-fsanitize=alignment,bounds,shift,signed-integer-overflow", "-fno-sanitize-recover=all", "-static-libubsan"]


def as_cpp(text: str) -> str:
    """Translate a CUDA source to C++ that compiles with cuda_emulated.h."""
    for before, after in RENAMED.items():
        text = text.replace(before, after)
    text = SHARED.sub(
        lambda m: (
            f"static {m['type']} {m['name']}{m['size'] or ''}; ::emulated::clear_shared(&{m['name']}, sizeof {m['name']});"
        ),
        text,
    )
    call = r"::emulated::launch(::emulated::Config(\g<config>), [](auto... a) { \g<kernel>(a...); }, "
    text = LAUNCH.sub(call, text)
    assert "<<<" not in text and "__shared__ " not in re.sub(r"//.*", "", text)
    return text


@functools.cache
def missing() -> str | None:
    """Why the emulated device is not available here, or ``None``."""
    if ops.backend("cpu").name != "compiled":
        return "needs the compiled CPU operators, which solve the tokens that the device leaves to them"
    if shutil.which("g++") is None:
        return "needs g++"
    # gcc prints an absolute path only if it finds the library.
    result = subprocess.run(["g++", "-print-file-name=libubsan.a"], capture_output=True, text=True, check=False)
    return None if Path(result.stdout.strip()).is_absolute() else "needs g++ with libubsan.a"


@functools.cache
def device() -> ctypes.CDLL:
    """Build the library unless it is up to date, and load it. Its function ``choose`` sets up the device."""
    sources = [CSRC / "contract.h", CSRC / "ops.h", CSRC / "ops.cpp", *sorted((CSRC / "cuda").iterdir()), FAULTS]
    digest = hashlib.blake2b(torch.__version__.encode(), digest_size=8)
    for file in (HEADER, Path(__file__), *sources):
        digest.update(file.read_bytes())
    library_file = CSRC.parent.parent / "build" / f"cuda_emulated-{digest.hexdigest()}.so"
    if not library_file.exists():
        library_file.parent.mkdir(exist_ok=True)
        for outdated in library_file.parent.glob("cuda_emulated-*.so"):
            outdated.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(dir=library_file.parent) as folder:
            _build(Path(folder), sources).replace(library_file)
    torch.ops.load_library(str(library_file))
    product = torch.library.Library("saltlm_emulated", "FRAGMENT")
    product.define("product(Tensor a, Tensor b, ScalarType dtype) -> Tensor")
    product.impl("product", lambda a, b, dtype: a.float() @ b.float(), "CPU")
    library = ctypes.CDLL(str(library_file))
    library.product = product  # the registration ends when this object is deleted
    return library


def _build(folder: Path, sources: list[Path]) -> Path:
    for source in sources:
        copy = folder / (source.relative_to(CSRC) if source.is_relative_to(CSRC) else source.name)
        copy.parent.mkdir(exist_ok=True)
        copy.write_text(f'#line 1 "{source}"\n' + as_cpp(source.read_text(encoding="utf-8")), encoding="utf-8")
    for name in ("cuda_runtime.h", "cuda_bf16.h", "cuda_fp16.h"):
        (folder / name).write_text("", encoding="utf-8")
    with (folder / "ops.cpp").open("a", encoding="utf-8") as file:
        file.write(CHOICES + ACCESS_CALLS)
    torch_folder = Path(torch.__file__).parent
    words = [
        "g++",
        *FLAGS,
        *CHECKS,
        "-fsanitize=thread",
        f"-DTORCH_TARGET_VERSION={TARGET}",
        "-DUSE_CUDA",
        "-include",
        str(HEADER),
    ]
    words += ["-include", str(HEADER), "-isystem", str(torch_folder / "include"), "-I", str(folder)]
    sources = [folder / "ops.cpp", *sorted(folder.rglob("*.cu"))]
    objects = [source.with_suffix(".o") for source in sources]

    def compiled(source: Path, result: Path) -> None:
        subprocess.run([*words, "-x", "c++", "-c", str(source), "-o", str(result)], check=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compiled, sources, objects))
    library = folder / "emulated.so"
    link = ["g++", "-shared", *CHECKS, *map(str, objects), "-o", str(library), f"-L{torch_folder / 'lib'}", "-ltorch"]
    subprocess.run([*link, "-ltorch_cpu", "-lc10", "-Wl,-z,defs"], check=True)
    return library


class _Operators:
    """``torch.ops.saltlm`` with the emulated device's kernels."""

    def __getattr__(self, name: str):
        return getattr(torch.ops.saltlm_emulated, name)

    @staticmethod
    def combine_into(*arguments: torch.Tensor) -> torch.Tensor:
        """Only the CPU has this operator, so it is composed of ``combine`` and a check."""
        *inputs, rows = arguments
        rows.copy_(torch.ops.saltlm_emulated.combine(*inputs))
        return rows.isfinite().all(dim=1)


class _Torch:
    """torch with the emulated operators."""

    ops = SimpleNamespace(saltlm=_Operators())

    def __getattr__(self, name: str):
        return getattr(torch, name)


@contextlib.contextmanager
def in_use(
    *, order: int = 2, multiprocessors: int = 2, shared_bytes: int = 227 << 10, races: bool = True
) -> Iterator[None]:
    """Let ``saltlm.operators.ops`` call the emulated device's operators for CPU tensors in the body.

    Args:
        order: Order of a block's warps and of a warp's threads: 0 ascending, 1 descending, else shuffled with this seed.
        multiprocessors: Number of the device's multiprocessors.
        shared_bytes: Largest shared memory of a block in bytes.
        races: Whether to detect races, which doubles the time.
    """
    device().choose(order, multiprocessors, shared_bytes, races)
    with mock.patch.object(ops, "torch", _Torch()):
        yield
