"""Files that are not what they seem: pipes, sockets, devices, folders, links and sparse giants, at any path."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Kinds for a path that an argument names; a link to a regular file is not among them, because the user named it.
SPECIAL = ("pipe", "socket", "folder", "zero", "dangling", "loop")
# Kinds for a file in an input folder.
IN_FOLDER = ("pipe", "socket", "zero", "dangling", "outside", "giant")


def put(path: Path, kind: str) -> None:
    """Put a strange file at a path, in place of what is there."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        # The path of a socket has at most 108 bytes, so it is bound under a short name.
        folder = os.open(path.parent, os.O_RDONLY)
        server = socket.socket(socket.AF_UNIX)
        server.bind(f"/proc/self/fd/{folder}/{path.name}")
        server.close()
        os.close(folder)
    elif kind == "folder":
        path.mkdir()
    elif kind == "zero":
        path.symlink_to("/dev/zero")
    elif kind == "dangling":
        path.symlink_to(path.with_name("no such file"))
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "outside":
        secret = path.parent.parent / "secret"
        secret.write_text("{}")
        path.symlink_to(secret)
    elif kind == "giant":
        with path.open("wb") as file:
            file.truncate(1 << 40)
    else:
        raise ValueError(kind)


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in a block that takes longer, also while it waits for a pipe."""

    def stop(number: int, frame: Any) -> None:
        raise TimeoutError(f"more than {seconds} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def tree(folder: Path) -> list[str]:
    """Names of everything below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
