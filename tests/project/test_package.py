"""The package as installed: one version everywhere, a light import, libraries that ask only for stable symbols."""

from __future__ import annotations

import importlib.metadata
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import saltlm

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = sorted((Path(saltlm.__file__).parent / "lib").glob("_ops_*.so"))
STABLE = re.compile(r"^(aoti_torch_|torch_|_Z|__|_Unwind|_ITM)")


def test_cargo_toml_alone_states_the_version() -> None:
    from saltlm import _rust

    cargo = tomllib.loads((ROOT / "Cargo.toml").read_text(encoding="utf-8"))
    version = cargo["workspace"]["package"]["version"]
    crate = tomllib.loads((ROOT / "rust/Cargo.toml").read_text(encoding="utf-8"))["package"]
    assert crate["version"] == {"workspace": True}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "version" not in project and project["dynamic"] == ["version"]
    assert _rust.__version__ == version
    assert saltlm.__version__ == version
    assert importlib.metadata.version("saltlm") == version
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_one_minimum_of_rust_is_stated_everywhere() -> None:
    minimum = tomllib.loads((ROOT / "Cargo.toml").read_text(encoding="utf-8"))["workspace"]["package"]["rust-version"]
    for path in ("Makefile", "cuda_ext/backend.py"):
        stated = re.findall(r"Rust (?:>= )?(\d+\.\d+)", (ROOT / path).read_text(encoding="utf-8"))
        assert stated and set(stated) == {minimum}, path


def test_the_version_needs_no_torch_and_no_numpy() -> None:
    code = (
        "import sys, saltlm\n"
        "assert saltlm.__version__ and '__version__' in vars(saltlm)\n"
        "assert not {'torch', 'numpy', 'importlib.metadata'} & set(sys.modules), sorted(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_import_needs_no_network_and_not_transformers() -> None:
    code = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise OSError('network at import')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "import saltlm\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'import saltlm pulls them in'\n"
        "saltlm.transfer, saltlm.align, saltlm.adapt, saltlm.evaluate\n"
        "assert 'transformers' not in sys.modules, 'its names pull in transformers'\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_commands_help_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "from saltlm.cli.main import main\n"
        "try: main(['adapt', '--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "--phases" in done.stdout, done.stderr


def test_no_module_has_a_public_name() -> None:
    """Importing a submodule binds it in the package, where it would hide a function of the same name."""
    modules = {module.name for module in pkgutil.iter_modules(saltlm.__path__)}
    assert not modules & set(saltlm.__all__)
    with pytest.raises(AttributeError, match="no attribute 'transfers'"):
        _ = saltlm.transfers


def test_public_names() -> None:
    for name in ("transfer", "TransferConfig", "align", "Alignment", "salt_rows", "load_auxiliary", "evaluate"):
        assert hasattr(saltlm, name), name
    assert sorted(saltlm.__all__) == list(saltlm.__all__), "the public names are kept sorted"
    assert all(getattr(saltlm, name).__doc__ for name in saltlm.__all__ if not name.startswith("__"))


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm (binutils) is not installed")
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name)
def test_operators_ask_only_for_stable_symbols(library: Path) -> None:
    lines = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True).stdout
    names = [line.split()[-1] for line in lines.splitlines()]
    foreign = [n for n in names if "@" not in n and not STABLE.match(n)]
    assert not foreign, f"{library.name} asks for symbols outside torch's stable C shims: {foreign[:5]}"
    assert not [n for n in names if "c10" in n or "2at" in n or n.startswith("Py")]


def test_there_are_operators_to_check() -> None:
    assert any(path.name == "_ops_cpu.so" for path in LIBRARIES), "build them: python cuda_ext/build_ops.py"
