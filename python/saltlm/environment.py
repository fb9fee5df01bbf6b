"""What runs here and why: versions, operators, devices."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from typing import Any

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
