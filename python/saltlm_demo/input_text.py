"""Text for training and evaluation: dialogue in Debian packages with its English original, or a text file of the user."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from saltlm.errors import InputError, input_error
from saltlm.files.cache import cache_folder, cached_folder
from saltlm.files.hashing import sha256_file
from saltlm.files.json_files import read_json, write_json

# Debian packages of The Battle for Wesnoth (GPL-2+) contain translations of its campaigns. "The South Guard" is a small one:
# 8 MB, 58 languages, 80 kB of Finnish. Package names contain the game's version; newer Debian releases have the later one.
PACKAGES = ("wesnoth-1.16-tsg", "wesnoth-1.18-tsg")
# sha256 of the package in Debian 12. Another release gives other figures, so it is used with a warning.
SHA256 = "38b5f564253b8e0d9c093b2b7c58aabfef24f688968d9cbaf42abfc1e76d8288"
# Campaign -> sha256 of its package. Further campaigns for longer training: 105 and 50 kB of Finnish, two to six times as much
# in other languages; 26 MB.
MORE = {
    "httt": "05b16a3f8f8204278794aae14d8e6a7c95d2b2faef7337c4997c827a146d1bbd",
    "utbs": "81e05717bebbfb6348c0bed2cd6ce2560c4fd9205ed419c2e7bc039b4a70e228",
}
HELDOUT_BYTES = 20_000
ENGLISH_BYTES = 5_000
DOCUMENT_CHARACTERS = 1_000
MIN_CHARACTERS = 40  # of a string that is used


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    """Documents of one language, split into training and held-out documents.

    Attributes:
        heldout: documents to evaluate on, about 20 kB in total.
        training: all other documents.
        english: English documents to measure what the model forgets, about 5 kB; empty if there is no English original.
        origin: description of the text for the user.
        warning: why figures are not comparable, or ``None``.
    """

    heldout: list[str]
    training: list[str]
    english: list[str]
    origin: str
    warning: str | None = None

    def __repr__(self) -> str:
        return f"Text(heldout={len(self.heldout)}, training={len(self.training)}, english={len(self.english)}, {self.origin!r})"


def finnish_text() -> Text:
    """Finnish documents: of the file that ``SALTLM_TEXT`` names if it is set, else of Debian's package, kept in the cache.

    Raises:
        InputError: the file is missing or not UTF-8 text, or the package cannot be fetched.
    """
    if path := os.environ.get("SALTLM_TEXT"):
        return file_text(Path(path))
    return catalogue_text("fi")


def file_text(path: Path) -> Text:
    """Documents of a UTF-8 text file: its paragraphs, joined to documents of about :data:`DOCUMENT_CHARACTERS`.

    Raises:
        InputError: the file cannot be read, is not UTF-8, or is empty.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise input_error(f"SALTLM_TEXT={path}", str(error), "a UTF-8 text file", "check the path") from None
    documents = join_documents(re.sub(r"\s+", " ", part).strip() for part in re.split(r"\n\s*\n", text))
    heldout, rest = split_off(documents, HELDOUT_BYTES)
    if not heldout:
        raise input_error(f"SALTLM_TEXT={path}", "an empty file", "text of the language", "give some kilobytes of text")
    return Text(heldout=heldout, training=rest, english=[], origin=str(path))


def catalogue_text(language: str, more: Iterable[str] = ()) -> Text:
    """Documents of one language in Debian's package. The order of the strings is the same in all languages.

    Args:
        language: language of a catalogue, such as ``fi`` or ``pt_BR``.
        more: further campaigns, keys of :data:`MORE`. Their documents are for training; if the first campaign has fewer than
            :data:`HELDOUT_BYTES`, the missing bytes are held out of them.

    Raises:
        InputError: a package cannot be fetched, or lacks the language.
    """
    _, origin, warning = _catalogues()
    usable = dialogue_pairs(language)
    heldout, training = split_off(join_documents(b for _, b in usable), HELDOUT_BYTES)
    english, _ = split_off(join_documents(a for a, _ in usable), ENGLISH_BYTES)
    for campaign in more:
        _, more_origin, more_warning = _catalogues(campaign)
        origin, warning = f"{origin} and {more_origin}", warning or more_warning
        missing = HELDOUT_BYTES - sum(len(document.encode()) for document in heldout)
        further, rest = split_off(join_documents(b for _, b in dialogue_pairs(language, campaign)), missing)
        heldout, training = heldout + further, training + rest
    return Text(heldout=heldout, training=training, english=english, origin=origin, warning=warning)


def dialogue_lines(language: str) -> list[str]:
    """Lines of one language in Debian's package. The order is the same in all languages.

    Args:
        language: language of a catalogue; ``en`` is the English side of the Finnish one.

    Raises:
        InputError: the package cannot be fetched, or lacks the language.
    """
    return [a for a, _ in dialogue_pairs("fi")] if language == "en" else [b for _, b in dialogue_pairs(language)]


def dialogue_pairs(language: str, campaign: str | None = None) -> list[tuple[str, str]]:
    """(English, translation) of the strings that are plain prose, ordered by a hash of the English string.

    Args:
        language: language of a catalogue.
        campaign: a key of :data:`MORE`; ``None`` is the first package.

    Raises:
        InputError: the package cannot be fetched, or lacks the language.
    """
    folder, _, _ = _catalogues(campaign)
    pairs = list(read_mo(folder / f"{language}.mo"))
    # The order by this hash is independent of the content and is the same in all languages.
    pairs.sort(key=lambda pair: hashlib.sha256(pair[0].encode()).digest())
    usable = [(_plain(a), _plain(b)) for a, b in pairs if a and a != b]
    return [(a, b) for a, b in usable if len(b) >= MIN_CHARACTERS and "$" not in b]


def read_mo(path: Path) -> Iterator[tuple[str, str]]:
    """(English, translation) of each string in a compiled gettext catalogue, without contexts and plural forms.

    Raises:
        InputError: the file cannot be read or is not a little-endian catalogue.
    """
    try:
        data = path.read_bytes()
        magic, _, count, originals, translations = struct.unpack_from("<5I", data)
        if magic != 0x950412DE:
            raise ValueError("no little-endian gettext catalogue")
        for index in range(count):
            sides = []
            for table in (originals, translations):
                length, offset = struct.unpack_from("<2I", data, table + 8 * index)
                sides.append(data[offset : offset + length].decode("utf-8").split("\0")[0])
            yield sides[0].split("\x04")[-1], sides[1]
    except (OSError, ValueError, struct.error) as error:
        raise input_error(f"catalogue {path}", str(error), "a compiled gettext catalogue", "fetch it again") from None


def _plain(text: str) -> str:
    """The text without markup, white space normalized."""
    return re.sub(r"\s+", " ", re.sub(r"<[^<>]*>", "", text)).strip()


def join_documents(strings: Iterable[str]) -> list[str]:
    """Join strings by spaces to documents of at least :data:`DOCUMENT_CHARACTERS`; the last one may be shorter."""
    documents, current = [], ""
    for string in strings:
        if not string:
            continue
        current = f"{current} {string}" if current else string
        if len(current) >= DOCUMENT_CHARACTERS:
            documents.append(current)
            current = ""
    return [*documents, current] if current else documents


def split_off(documents: list[str], size: int) -> tuple[list[str], list[str]]:
    """Split the list: the first documents that together have at least ``size`` bytes, and the rest."""
    total = 0
    for index, document in enumerate(documents):
        if total >= size:
            return documents[:index], documents[index:]
        total += len(document.encode())
    return documents, []


def _catalogues(campaign: str | None = None) -> tuple[Path, str, str | None]:
    """Folder with ``LANGUAGE.mo`` files, its origin for the user, and a warning if the package has another sha256."""
    packages: tuple[str, ...] = PACKAGES
    sha256 = SHA256
    if campaign is not None:
        packages, sha256 = tuple(name.replace("tsg", campaign) for name in PACKAGES), MORE[campaign]
    for package in packages:
        folder = cache_folder() / "inputs" / package
        if not folder.is_dir() and (archive := download(package)):
            try:
                _unpack(archive, folder)
            finally:
                shutil.rmtree(archive.parent, ignore_errors=True)
        if folder.is_dir():
            about = read_json(folder / "about.json")
            same = about["sha256"] == sha256
            warning = None if same else f"{about['file']} is not the package the printed figures were made with"
            return folder, f"{about['file']} (GPL-2+)", warning
    raise input_error(
        f"text from Debian's package {packages[0]}",
        "no way to fetch it: no apt-get and dpkg here, or they did not find it",
        "a Debian or Ubuntu machine with a network",
        "or set SALTLM_TEXT=FILE to a UTF-8 text file in Finnish",
    )


def download(package: str) -> Path | None:
    """Fetch a Debian package by apt.

    Returns:
        Its archive, in a new temporary folder that the caller removes; ``None`` without apt or if apt does not find it.
    """
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        return None
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="saltlm-apt-"))
    try:
        # First by the machine's package lists; if these are missing or old, by lists fetched into the folder, without root.
        options = ["-o", f"Dir::State={folder}/state", "-o", f"Dir::Cache={folder}/cache", "-o", "Debug::NoLocking=1"]
        (folder / "state" / "lists" / "partial").mkdir(parents=True)
        (folder / "cache" / "archives" / "partial").mkdir(parents=True)
        for commands in ([["download", package]], [[*options, "update"], [*options, "download", package]]):
            done = [run_quietly("apt-get", *command, folder=folder) for command in commands]
            if done[-1] and (archives := sorted(folder.glob("*.deb"))):
                return archives[0]
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    return None


def run_quietly(*command: str, folder: Path) -> bool:
    """Run a command in a folder without showing its output; returns whether it succeeded."""
    done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return done.returncode == 0


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack the catalogues, the copyright file and the archive's sha256 into a folder of the cache."""
    with cached_folder(folder) as part:
        tree = part / "tree"
        if not run_quietly("dpkg", "-x", str(archive), str(tree), folder=part):
            raise InputError(f"{archive.name}: dpkg could not unpack it; the download may be cut short, run it again")
        campaign = folder.name.rsplit("-", 1)[1]
        for catalogue in tree.glob(f"usr/share/games/wesnoth/*/locale/*/LC_MESSAGES/wesnoth-{campaign}.mo"):
            shutil.copy(catalogue, part / f"{catalogue.parent.parent.name}.mo")
        for text in tree.glob("usr/share/doc/*/copyright"):
            shutil.copy(text, part / "copyright")
        shutil.rmtree(tree)
        if not (part / "fi.mo").is_file():
            raise InputError(f"{archive.name}: no Finnish catalogue inside; set SALTLM_TEXT=FILE to a text in Finnish")
        about = {"file": archive.name.replace("%3a", ":"), "sha256": sha256_file(archive)}
        write_json(part / "about.json", about)
