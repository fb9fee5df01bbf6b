"""Open files for reading: only regular files, within a size limit by kind of file, and no links that lead out of a folder.

Every read of the package goes through this module. A FIFO, device or socket would block or never end, a sparse file of a
terabyte would fill the memory, and a link in a folder from strangers could lead to any file of the user.
"""

from __future__ import annotations

import enum
import os
import stat
from pathlib import Path
from typing import BinaryIO

from ..errors import InputError, input_error

MIB, GIB = 1 << 20, 1 << 30


class FileKind(enum.Enum):
    """Kind of file: its name, and the largest size in bytes that is read; ``None`` for files that are mapped or streamed."""

    SETTINGS = (
        "settings",
        64 * MIB,
    )  # config.json, tokenizer_config.json, chat templates, saltlm.json, records of runs
    INDEX = ("index", 256 * MIB)  # model.safetensors.index.json: one line for each tensor
    TOKENIZER = ("tokenizer", 512 * MIB)  # tokenizer.json and every other vocabulary file
    TERMS = ("terms", 16 * MIB)  # licences, model cards, Python files
    JOBS = ("jobs", 16 * MIB)  # a jobs file
    DICTIONARY = ("dictionary", 256 * MIB)  # word pairs
    TEXT = ("text", 4 * GIB)  # text that is read whole
    KEYS = ("keys", 1 * GIB)  # the hash table of a spaCy folder
    LOCK = ("lock", 4096)
    STREAM = ("stream", None)

    @property
    def limit(self) -> int | None:
        """The largest size in bytes; ``None`` for no limit."""
        return self.value[1]


# What a file is if it is not a regular one.
_SPECIAL = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe (FIFO)"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)
# Files that transformers, tokenizers and saltlm open in a model folder, by the end of the name; licences by its beginning.
_SETTINGS_ENDS = (".json", ".jinja", ".yaml", ".yml", ".cfg", ".toml")
_TOKENIZER_ENDS = (".model", ".spm", ".tiktoken", ".txt")
_TERMS_ENDS = (".md", ".py")
_TERMS_STARTS = ("LICENSE", "LICENCE", "COPYING", "NOTICE", "USE_POLICY")
_STREAM_ENDS = (".safetensors", ".gguf")
_TOKENIZER_NAMES = ("tokenizer.json", "vocab.json", "added_tokens.json", "tekken.json", "vocab.txt", "merges.txt")
# Subfolder of a model folder in which transformers looks for further chat templates.
_TEMPLATES = "additional_chat_templates"


def file_kind(name: str) -> FileKind | None:
    """Kind of a file in a model folder, by its name; ``None`` for a file that nothing opens."""
    if name.endswith(".index.json"):
        return FileKind.INDEX
    if name in _TOKENIZER_NAMES or name.endswith(_TOKENIZER_ENDS) or name.startswith("vocab."):
        return FileKind.TOKENIZER
    if name.endswith(_STREAM_ENDS):
        return FileKind.STREAM
    if name.endswith(_SETTINGS_ENDS):
        return FileKind.SETTINGS
    if name.endswith(_TERMS_ENDS) or name.startswith(_TERMS_STARTS):
        return FileKind.TERMS
    return None


def open_file(
    path: str | Path, kind: FileKind = FileKind.STREAM, *, inside: Path | None = None, what: str | None = None
) -> BinaryIO:
    """Open a regular file for reading bytes. The call never waits for another process.

    Args:
        path: the file. Links are followed, but see ``inside``.
        kind: kind of the file, which limits its size.
        inside: an input folder; a link in it may lead to files of this folder and of its blobs in the hub's cache alone.
        what: name of the file in messages; ``None`` is the path.

    Returns:
        The open file.

    Raises:
        InputError: the file is not a regular one, is larger than the limit of its kind, or a link leads out of ``inside``.
        OSError: the file is missing or cannot be read, as from :func:`open`.
    """
    what = what or str(path)
    # Before the call of open, which can have an effect on a device; a name with a zero byte raises ValueError.
    try:
        _check_regular(os.stat(path), what)
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise input_error(what, f"a name that no file can have ({error})", "a file", "check the path") from None
    try:
        status = os.fstat(handle)
        _check_regular(status, what)
        if kind.limit is not None and status.st_size > kind.limit:
            raise too_large(what, status.st_size, kind)
        if inside is not None:
            check_inside(Path(path), inside, what)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_file(path: str | Path, kind: FileKind, *, inside: Path | None = None, what: str | None = None) -> bytes:
    """Content of a regular file.

    Args:
        path: as in :func:`open_file`.
        kind: as in :func:`open_file`; a kind with a limit.
        inside: as in :func:`open_file`.
        what: as in :func:`open_file`.

    Raises:
        InputError: as :func:`open_file`; also for a file that grows beyond the limit while it is read.
        OSError: as :func:`open_file`.
    """
    if kind.limit is None:
        raise ValueError(f"{path}: a file that is read whole needs a kind with a limit")
    with open_file(path, kind, inside=inside, what=what) as file:
        # The size is given, because Python allocates what it is asked to read, up to the limit, before it reads.
        size = os.fstat(file.fileno()).st_size
        data = file.read(size + 1)
        if len(data) > size:
            data += file.read(kind.limit - size)
    if len(data) > kind.limit:
        raise too_large(what or str(path), len(data), kind)
    return data


def check_file(
    path: str | Path, kind: FileKind = FileKind.STREAM, *, inside: Path | None = None, what: str | None = None
) -> None:
    """Check a file that a library will open by its path; the arguments are those of :func:`open_file`.

    Raises:
        InputError: as :func:`open_file`.
        OSError: as :func:`open_file`.
    """
    open_file(path, kind, inside=inside, what=what).close()


def check_model_folder(folder: Path, side: str) -> None:
    """Check the files of a model folder before libraries open them by their names. Hidden files are not opened by anyone.

    Args:
        folder: the model folder, or any other folder of input files.
        side: name of the model in messages, such as ``source my-model``.

    Raises:
        InputError: a link leads out of the folder (and its blobs in the hub's cache), or a file that a library opens is no
            regular file, cannot be read, or is larger than the limit of its kind.
    """
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        templates = folder / _TEMPLATES
        if templates.is_dir():
            check_inside(templates, folder, f"{side}, {templates}")
            entries += sorted(os.scandir(templates), key=lambda entry: entry.name)
    except OSError as error:
        raise input_error(
            f"{side}, {folder}", f"{error.strerror}", "a folder that can be read", "check its permissions"
        ) from None
    for entry in entries:
        if entry.name.startswith("."):
            continue
        path, kind = Path(entry.path), file_kind(entry.name)
        what = f"{side}, {path}"
        is_folder = path.is_dir()  # unlike the method of the entry, False for a link to itself
        if entry.is_symlink() and not is_folder:
            check_inside(path, folder, what)
        if kind is None or is_folder:
            # A folder with the name of a file is refused where the file is required.
            continue
        try:
            check_file(path, kind, what=what)
        except FileNotFoundError:
            raise input_error(
                what, "a link to a file that does not exist", "the file", "fetch it, or remove the link"
            ) from None
        except OSError as error:
            raise input_error(what, f"{error.strerror}", "a readable file", "check its permissions") from None


def check_tree(folder: Path, what: str) -> None:
    """Check all files below a folder before a library reads them.

    Args:
        folder: the folder.
        what: its name in messages.

    Raises:
        InputError: a file is no regular file or cannot be read, or a link leads out of the folder.
    """
    for root, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            path = Path(root, name)
            if path.is_symlink():
                check_inside(path, folder, f"{what}, {path}")
        for name in names:
            path = Path(root, name)
            try:
                check_file(path, what=f"{what}, {path}")
            except OSError as error:
                raise input_error(
                    f"{what}, {path}", f"{error.strerror}", "a readable file", "check the folder"
                ) from None


def check_inside(path: Path, folder: Path, what: str) -> None:
    """Check that a path, with all links followed, lies in a folder or among its blobs in the hub's cache.

    In the hub's cache, ``models--NAME/snapshots/COMMIT/FILE`` is a link to ``models--NAME/blobs/DIGEST``.

    Args:
        path: a file or folder.
        folder: the input folder.
        what: name of the file in messages.

    Raises:
        InputError: the path lies elsewhere.
    """
    real, root = os.path.realpath(path), os.path.realpath(folder)
    allowed = [root]
    snapshots = os.path.dirname(root)
    if os.path.basename(snapshots) == "snapshots":
        allowed.append(os.path.join(os.path.dirname(snapshots), "blobs"))
    if not any(real.startswith(os.path.join(parent, "")) for parent in allowed):
        raise input_error(
            what,
            f"a link to {real}, outside of the folder",
            "a file in the folder itself",
            "if you trust the link, put the file itself in its place (cp -L, or a hard link by ln)",
        )


def too_large(what: str, size: int, kind: FileKind) -> InputError:
    """The error of a file above the limit of its kind.

    Args:
        what: name of the file.
        size: its size in bytes.
        kind: its kind; one with a limit.
    """
    limit = kind.limit or 0
    advice = {
        FileKind.TEXT: "split it into several files",
        FileKind.DICTIONARY: "give a part of it",
        FileKind.JOBS: "split it into several jobs files",
    }.get(kind, "fetch the file again")
    return input_error(what, f"{size:,} bytes", f"at most {limit:,} bytes", advice)


def _check_regular(status: os.stat_result, what: str) -> None:
    if stat.S_ISREG(status.st_mode):
        return
    found = next((name for is_kind, name in _SPECIAL if is_kind(status.st_mode)), "a special file")
    raise input_error(what, found, "a regular file", "write the content to a file and name that")
