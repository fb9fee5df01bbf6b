"""The cache: files that are fetched, converted or trained once and then kept."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError
from .file_errors import CACHE_ADVICE
from .output_folder import whole_folder


def cache_folder() -> Path:
    """Folder of all cached files: ``$SALTLM_CACHE``, else ``~/.cache/saltlm``."""
    return Path(os.environ.get("SALTLM_CACHE") or Path.home() / ".cache" / "saltlm")


@contextlib.contextmanager
def cached_folder(folder: Path) -> Iterator[Path]:
    """Create a folder of the cache by :func:`whole_folder`; yields the temporary folder to write into.

    Every process writes the same content into it. If another process creates ``folder`` first, its content stays and
    the content of this process is removed.

    Raises:
        InputError: the cache cannot be written.
        BackendError: another failure of the file system.
    """
    try:
        with whole_folder(folder.absolute(), advice=CACHE_ADVICE) as part:
            yield part
    except InputError:
        if not folder.is_dir():
            raise
