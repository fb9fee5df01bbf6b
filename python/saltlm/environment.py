"""The environment: versions, operators, devices, optional packages, and the output of the libraries."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import input_error

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy")


def versions() -> dict[str, str | None]:
    """Versions of saltlm, Python and :data:`PACKAGES`; ``None`` for a package that is not installed."""
    from . import __version__

    result: dict[str, str | None] = {"saltlm": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            result[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            result[name] = None
    return result


def status() -> dict[str, Any]:
    """Versions, devices, and which implementation of the operators runs on each device and why.

    Returns:
        ``versions``: package -> version; ``operators``: device -> ``name`` (``compiled`` or ``reference``), ``reason`` and
        facts about the compiled library; ``devices``: list of names; ``threads``: number of torch's threads; ``platform``.

    Example:
        >>> sorted(status())
        ['devices', 'operators', 'platform', 'threads', 'versions']
    """
    import torch

    from .operators.ops import backends

    devices = ["cpu"]
    if torch.cuda.is_available():
        devices += [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    return {
        "versions": versions(),
        "operators": backends(),
        "devices": devices,
        "threads": torch.get_num_threads(),
        "platform": f"{sys.platform} {platform.machine()}",
    }


def require(module: str, extra: str, purpose: str) -> None:
    """Check that an optional package is installed, without importing it.

    Args:
        module: name of the package's top module.
        extra: saltlm's extra that installs the package.
        purpose: what needs the package, the first words of the message.

    Raises:
        InputError: the package is missing; the message names the extra.
    """
    if not is_installed(module):
        raise input_error(purpose, f"no {module}", f"the package {module}", f'pip install "saltlm[{extra}]"')


def is_installed(module: str) -> bool:
    """Whether an optional package is installed; it is not imported.

    Args:
        module: name of the package's top module.
    """
    return importlib.util.find_spec(module) is not None


def available_memory() -> int:
    """Free memory in bytes: the smaller of the machine's and the control group's."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
    return max(free, 0)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' log messages and progress bars inside the ``with`` block; stderr is for saltlm's messages."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # The progress bar of transformers' GGUF reader ignores the library's setting, so it is replaced by a disabled one.
    gguf: Any = None
    with contextlib.suppress(ImportError):
        gguf = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    gguf_bar = getattr(gguf, "tqdm", None)
    if gguf_bar is not None:
        gguf.tqdm = functools.partial(gguf_bar, disable=True)
    try:
        yield
    finally:
        if gguf_bar is not None:
            gguf.tqdm = gguf_bar
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def silence_libraries() -> None:
    """Switch off the log messages and progress bars of transformers, huggingface_hub and tqdm for the whole process.

    The command line calls this first, because these messages would appear between saltlm's own.
    """
    import logging

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    logging.getLogger("transformers").setLevel(logging.ERROR)
