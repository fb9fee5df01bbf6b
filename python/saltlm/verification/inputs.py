"""The inputs of the transfer: found by the recorded paths or as given, and compared with the recorded digests."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from ..config import TransferConfig
from ..errors import InputError, first_line
from ..files.summary_file import ModelInput, Summary
from ..model.checkpoint import Donor, Source
from ..options import options_of
from ..shared import Shared
from ..vectors.auxiliary import Auxiliary, check_auxiliary
from .config import VerifyConfig

Loaded = TypeVar("Loaded", Source, Donor)
# Of a weight file; the time of its last change follows, which a copy of the file does not keep.
_NOT_HASHED = re.compile(r"not hashed: \d+ bytes")
# Entries of a description of vectors that say where they lay, not what they are.
_PLACES = ("path", "licence", "changed", "dictionary")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found(Generic[Loaded]):
    """A model that the transfer read, or why it is not at hand.

    Attributes:
        name: folder or hub name; empty where it is not at hand.
        loaded: the model; ``None`` where it is not at hand.
        reason: why it is not at hand; empty where it is.
    """

    name: str = ""
    loaded: Loaded | None = None
    reason: str = ""


def recorded_config(summary: Summary, config: VerifyConfig) -> TransferConfig | str:
    """The options of the transfer, with those that only choose, report or write set to do nothing.

    Args:
        summary: the record; its options are those in use, after tuning.
        config: options of the verification.

    Returns:
        The options, or why they cannot be used.
    """
    names = {field.name for field in dataclasses.fields(TransferConfig)}
    options: dict[str, Any] = {name: value for name, value in summary["config"].items() if name in names}
    options |= {
        "device": "cpu",
        "tune": False,
        "tune_text": None,
        "heldout": 0.0,
        "unigram_shift": None,
        "unigram_text": None,
        "link": "copy",
        "force": False,
        "trust_remote_code": config.trust_remote_code,
    }
    for side in ("source", "target"):
        options[f"{side}_revision"] = summary["inputs"][side]["revision"]
    for entry in options_of(TransferConfig):
        value, accepted = (
            options.get(entry.name, entry.default),
            (*entry.types, *([int] if float in entry.types else [])),
        )
        if not isinstance(value, accepted) and not (value is None and entry.optional):
            return f"the recorded options cannot be used: {entry.name} is a {type(value).__name__}"
    try:
        return TransferConfig(**options)
    except (InputError, TypeError) as error:
        return f"the recorded options cannot be used: {first_line(error)}"


def find_source(summary: Summary, given: str | None, options: TransferConfig, shared: Shared) -> Found[Source]:
    """The source of the transfer.

    Args:
        summary: the record.
        given: folder or hub name; ``None`` uses the recorded one.
        options: from :func:`recorded_config`.
        shared: keeps the loaded model.

    Raises:
        InputError: a given source cannot be loaded.
    """
    record = summary["inputs"]["source"]
    return _find("source", record, given, lambda name: shared.source(name, options))


def find_target(summary: Summary, given: str | None, options: TransferConfig, shared: Shared) -> Found[Donor]:
    """The target of the transfer; the arguments and errors are those of :func:`find_source`."""
    record = summary["inputs"]["target"]
    return _find("target", record, given, lambda name: shared.donor(name, options))


def _find(side: str, record: ModelInput, given: str | None, load: Any) -> Found[Any]:
    name = given if given is not None else _recorded_path(record)
    if name is None:
        return Found(reason=f"the {side} {record['path']} is not on this machine: name it by --{side}")
    try:
        loaded = load(name)
    except InputError as error:
        if given is not None:
            raise
        return Found(reason=f"the recorded {side} cannot be read: {first_line(error)}")
    changed = changed_files(record["sha256"], loaded.files)
    if changed:
        what = f"{', '.join(changed[:3])}{' and more' if len(changed) > 3 else ''}"
        return Found(reason=f"the {side} {name} is another one than recorded ({what}): name the right one by --{side}")
    return Found(name=name, loaded=loaded)


def _recorded_path(record: ModelInput) -> str | None:
    """The recorded path, or the snapshot of a recorded hub model in the hub's cache; nothing is fetched."""
    path = record["path"]
    if record["revision"] is None:
        return path if path and os.path.exists(os.path.expanduser(path)) else None
    from huggingface_hub import snapshot_download

    try:
        return str(snapshot_download(path, revision=record["revision"], local_files_only=True))
    except Exception:  # the hub client has many errors for what is not in its cache
        return None


def changed_files(recorded: Mapping[str, str], present: Mapping[str, str]) -> list[str]:
    """Names of the recorded files and tensors whose digest differs, or which are missing.

    Args:
        recorded: the entry ``sha256`` of an input in saltlm.json.
        present: :attr:`~saltlm.model.checkpoint.Checkpoint.files` of the model at hand.
    """

    def size_alone(digest: str) -> str:
        match = _NOT_HASHED.match(digest)
        return match[0] if match else digest

    return [name for name, digest in recorded.items() if size_alone(digest) != size_alone(present.get(name, ""))]


def find_vectors(summary: Summary, given: str | None) -> tuple[str | None, str]:
    """The vectors of the target language that the method read.

    Args:
        summary: the record.
        given: path or name; ``None`` uses the recorded one.

    Returns:
        What :func:`~saltlm.load_auxiliary` reads, ``None`` where the method read none; and why it is not at hand, empty
        where it is.

    Raises:
        InputError: given vectors do not exist.
    """
    record = summary["inputs"].get("auxiliary")
    if record is None:
        return None, ""
    if record.get("kind") == "plm":
        return "plm", ""
    path = given if given is not None else str(record.get("path", ""))
    if given is not None:
        check_auxiliary(given)
    if given is None and path.startswith("train:"):
        return None, "the vectors were trained for the transfer: name them by --auxiliary"
    if not path or (given is None and not os.path.exists(path)):
        return None, f"the vectors {path} are not on this machine: name them by --auxiliary"
    return path, ""


def changed_vectors(summary: Summary, auxiliary: Auxiliary | None, source_auxiliary: Auxiliary | None) -> str:
    """Which vectors differ from the recorded ones; empty where none do."""
    inputs = summary["inputs"]
    for name, vectors in (("auxiliary", auxiliary), ("source_auxiliary", source_auxiliary)):
        record: Mapping[str, Any] = inputs.get(name) or {}  # type: ignore[assignment]
        present: Mapping[str, Any] = {} if vectors is None else vectors.description
        names = (record.keys() | present.keys()) - set(_PLACES)
        if any(record.get(entry) != present.get(entry) for entry in names):
            return f"the {name.replace('_', ' ')} vectors are others than recorded"
    return ""
