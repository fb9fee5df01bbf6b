"""PEP 517/660 build backend: builds the torch operators with ninja, then lets maturin build the Rust module and the wheel.

maturin knows nothing of torch operators and torch's own extension builder needs a CUDA build of torch to compile CUDA
sources, so this thin wrapper joins them: every hook delegates to maturin, and the two that produce an importable
package first run :mod:`build_ops`, whose results maturin then packages (``tool.maturin.include``).
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # build front ends import the backend alone, not its folder

import build_ops
import maturin

ROOT = Path(__file__).resolve().parent.parent

build_sdist = maturin.build_sdist
prepare_metadata_for_build_wheel = maturin.prepare_metadata_for_build_wheel
prepare_metadata_for_build_editable = maturin.prepare_metadata_for_build_editable
get_requires_for_build_sdist = maturin.get_requires_for_build_sdist


def _requirements(from_maturin: list[str]) -> list[str]:
    # torch is asked for only when no headers are at hand: under pip's isolation the environment's own torch is still
    # visible by path, and a second one would be a download of gigabytes.
    extra = ["ninja>=1.11"]
    if build_ops.torch_include() is None:
        extra.append("torch>=2.10")
    return [*from_maturin, *extra]


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    """What pip has to install before :func:`build_wheel`."""
    return _requirements(maturin.get_requires_for_build_wheel(config_settings))


def get_requires_for_build_editable(config_settings: dict[str, Any] | None = None) -> list[str]:
    """What pip has to install before :func:`build_editable`."""
    return _requirements(maturin.get_requires_for_build_editable(config_settings))


def _prepare() -> None:
    # Without an activated environment its scripts (maturin, ninja) are not on PATH and maturin's backend fails.
    os.environ["PATH"] = sysconfig.get_path("scripts") + os.pathsep + os.environ.get("PATH", "")
    # Fail at once when Rust is missing instead of letting maturin try to fetch a toolchain.
    os.environ.setdefault("MATURIN_NO_INSTALL_RUST", "1")
    if shutil.which("cargo") is None:
        sys.exit(
            "saltlm: cargo was not found; the Rust module needs Rust >= 1.85: see https://rustup.rs, then try again"
        )
    build_ops.build(ROOT)


def build_wheel(
    wheel_directory: str, config_settings: dict[str, Any] | None = None, metadata_directory: str | None = None
) -> str:
    """Build the operators, then the wheel."""
    _prepare()
    return maturin.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(
    wheel_directory: str, config_settings: dict[str, Any] | None = None, metadata_directory: str | None = None
) -> str:
    """Build the operators in place, then the editable wheel."""
    _prepare()
    return maturin.build_editable(wheel_directory, config_settings, metadata_directory)
