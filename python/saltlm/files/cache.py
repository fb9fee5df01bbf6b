"""The cache: files that were fetched, converted or trained once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError
from .output_folder import CACHE_ADVICE, whole_folder


def cache_folder() -> Path:
    """Where fetched and trained files are kept: ``$SALTLM_CACHE``, else ``~/.cache/saltlm``."""
    return Path(os.environ.get("SALTLM_CACHE") or Path.home() / ".cache" / "saltlm")


@contextlib.contextmanager
def cached_folder(folder: Path) -> Iterator[Path]:
    """:func:`whole_folder` for what any run would write alike: where another one was faster its folder stays, ours is dropped.

    Raises:
        InputError, BackendError: as there, with advice for the cache.
    """
    try:
        with whole_folder(folder.absolute(), advice=CACHE_ADVICE) as part:
            yield part
    except InputError:
        if not folder.is_dir():
            raise
