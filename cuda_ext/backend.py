"""PEP 517/660 build backend: builds the torch operators with ninja, then maturin builds the Rust module and the wheel.

maturin cannot build torch operators, and torch's own extension builder needs a CUDA build of torch to compile CUDA
sources. So every hook delegates to maturin, and the two hooks that produce an importable package first run
:mod:`build_ops`, whose results maturin packages (``tool.maturin.include``).
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # build front ends import this file by itself

import build_ops
import maturin  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parent.parent

build_sdist = maturin.build_sdist
prepare_metadata_for_build_wheel = maturin.prepare_metadata_for_build_wheel
prepare_metadata_for_build_editable = maturin.prepare_metadata_for_build_editable
get_requires_for_build_sdist = maturin.get_requires_for_build_sdist


def _requirements(from_maturin: list[str]) -> list[str]:
    # torch is requested only when its headers are not found: under pip's isolation the environment's torch is still
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
    # The environment's scripts (maturin, ninja) may not be on PATH, and maturin's backend needs them there.
    os.environ["PATH"] = sysconfig.get_path("scripts") + os.pathsep + os.environ.get("PATH", "")
    # When Rust is missing the build fails immediately; maturin must not try to download a toolchain.
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
    return str(maturin.build_wheel(wheel_directory, config_settings, metadata_directory))


def build_editable(
    wheel_directory: str, config_settings: dict[str, Any] | None = None, metadata_directory: str | None = None
) -> str:
    """Build the operators in place, then the editable wheel."""
    _prepare()
    return str(maturin.build_editable(wheel_directory, config_settings, metadata_directory))
