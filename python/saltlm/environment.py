"""What runs here and why: versions, operators, devices."""

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
from typing import Any

from .errors import input_error

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy")


def versions() -> dict[str, str | None]:
    """Versions of saltlm, Python and the packages it stands on; ``None`` for one that is not installed."""
    from . import __version__

    found: dict[str, str | None] = {"saltlm": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def status() -> dict[str, Any]:
    """Versions, the operators that run on each device with the reason, and the devices.

    Returns:
        ``versions``; ``operators``, by device: ``name`` (``compiled`` or ``reference``), ``reason`` and what is known of the
        library; ``devices``, a list of names; ``threads``, of torch; ``platform``.

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
    """Check that an optional package is installed.

    Raises:
        InputError: ``module`` is missing; the message names the extra that brings it.
    """
    if not is_installed(module):
        raise input_error(purpose, f"no {module}", f"the package {module}", f'pip install "saltlm[{extra}]"')


def is_installed(module: str) -> bool:
    """Whether an optional package is installed; it is not imported.

    Args:
        module: name of the package's top module.
    """
    return importlib.util.find_spec(module) is not None


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' remarks and progress bars off stderr, which belongs to saltlm's own messages."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    gguf = None
    with contextlib.suppress(ImportError):
        gguf = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    own = getattr(gguf, "tqdm", None)  # its bar heeds no setting of the library
    if own is not None:
        gguf.tqdm = functools.partial(own, disable=True)
    try:
        yield
    finally:
        if own is not None:
            gguf.tqdm = own
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def silence_libraries() -> None:
    """Libraries' own progress bars and advice would mix with ours."""
    import logging

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    logging.getLogger("transformers").setLevel(logging.ERROR)
