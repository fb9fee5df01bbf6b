"""Text of the research pairs other than game dialogue: software help and a handbook from Debian packages."""

import collections
import hashlib
import html
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from saltlm.errors import input_error
from saltlm.files.cache import cache_folder, cached_folder
from saltlm.files.hashing import sha256_file
from saltlm_demo.input_text import (
    HELDOUT_BYTES,
    MIN_CHARACTERS,
    MORE,
    Text,
    catalogue_text,
    download,
    join_documents,
    read_mo,
    run_quietly,
    split_off,
)

HANDBOOK = "debian-handbook"
SKIPPED = re.compile(r"(?s)<(script|style|head|header|nav|aside|pre)\b.*?</\1\s*>")
BLOCKS = re.compile(r"(?i)</?(?:p|div|li|[udo]l|h\d|d[td]|t[drh]|table|br|body|html|section|caption)\b[^>]*>")
# Held-out and training text must not share a run of this many characters.
MIN_OVERLAP = 60


def dialogue(language: str) -> Text:
    """Game dialogue of a language; training documents that repeat a held-out sentence are removed."""
    text = catalogue_text(language, MORE)
    return Text(
        heldout=text.heldout,
        training=without_overlap(text.training, text.heldout),
        english=catalogue_text("fi").english,
        origin=text.origin,
        warning=text.warning,
    )


def arabic() -> Text:
    """The Arabic Debian handbook, because no message catalogue has enough Arabic text."""
    seen = collections.Counter(handbook("ar-MA"))
    documents: list[str] = []
    for page in "\n".join(handbook("ar-MA")).split("\n\n"):
        documents += join_documents(line for line in page.splitlines() if seen[line] == 1 and is_arabic(line))
    documents = [document for document in documents if len(document) >= MIN_CHARACTERS]
    documents.sort(key=lambda document: hashlib.sha256(document.encode()).digest())
    heldout, training = split_off(documents, HELDOUT_BYTES)
    return Text(
        heldout=heldout,
        training=without_overlap(training, heldout),
        english=catalogue_text("fi").english,
        origin="debian-handbook, ar-MA (GPL-2+ or CC-BY-SA-3.0)",
    )


def is_arabic(line: str) -> bool:
    """Whether most letters of a line are Arabic, and it has at least :data:`MIN_CHARACTERS` characters."""
    letters = sum(character.isalpha() for character in line)
    return len(line) >= MIN_CHARACTERS and 2 * sum("\u0600" <= c <= "\u06ff" and c.isalpha() for c in line) > letters


def without_overlap(training: Iterable[str], heldout: Iterable[str]) -> list[str]:
    """Training documents that share no run of :data:`MIN_OVERLAP` characters with the held-out ones."""
    runs = {
        document[start : start + MIN_OVERLAP]
        for document in heldout
        for start in range(len(document) - MIN_OVERLAP + 1)
    }
    return [
        document
        for document in training
        if not any(
            document[start : start + MIN_OVERLAP] in runs for start in range(max(1, len(document) - MIN_OVERLAP + 1))
        )
    ]


def help_text(language: str) -> list[str]:
    """Translated paragraphs of LibreOffice's help (MPL-2.0), without duplicates."""
    translated, english = (
        lines_of(f"libreoffice-help-{code}", "usr/share/libreoffice/help/*/text/**/*.html")
        for code in (language, "en-us")
    )
    untranslated = set(english)
    return [line for line in dict.fromkeys(translated) if line and line not in untranslated]


def arabic_labels() -> list[str]:
    """Arabic labels and messages of LibreOffice (MPL-2.0), without duplicates."""
    labels = lines_of("libreoffice-l10n-ar", "usr/lib/libreoffice/program/resource/ar/LC_MESSAGES/*.mo", translations)
    return list(dict.fromkeys(line for line in labels if line))


def handbook(locale: str) -> list[str]:
    """Paragraphs of the Debian handbook, with an empty string after each page."""
    return lines_of(HANDBOOK, f"usr/share/doc/{HANDBOOK}/html/{locale}/*.html", key=locale)


def paragraphs(page: Path) -> list[str]:
    """Text of the blocks of an HTML page, without code and navigation."""
    source = SKIPPED.sub(" ", page.read_text(encoding="utf-8"))
    _, mark, body = source.partition('id="DisplayArea"')
    blocks = BLOCKS.split(body.partition(">")[2] if mark else source)
    lines = (re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", "", block))).strip() for block in blocks)
    return [line for line in lines if any(map(str.isalpha, line))]


def translations(catalogue: Path) -> list[str]:
    """Translations of more than one word in a message catalogue, without keyboard marks (``_``)."""
    lines = (re.sub(r"\s+", " ", text.replace("_", "")).strip() for name, text in read_mo(catalogue) if name)
    return [line for line in lines if " " in line]


def lines_of(
    package: str, pattern: str, read: Callable[[Path], list[str]] = paragraphs, *, key: str = "text"
) -> list[str]:
    """Lines of the files of a Debian package, with an empty string after each file; kept in the cache.

    Args:
        package: name of the Debian package.
        pattern: glob pattern of the files in the package.
        read: returns the lines of one file.
        key: distinguishes several readings of the same package in the cache.

    Raises:
        InputError: the package cannot be downloaded.
    """
    folder = cache_folder() / "inputs" / f"{package}-{key}-1"
    if not folder.is_dir():
        with cached_folder(folder) as part:
            archive = download(package)
            if archive is None:
                raise input_error(
                    f"text from Debian's package {package}",
                    "no way to download it",
                    "a Debian machine with a network",
                    "run it where apt-get and dpkg are available",
                )
            try:
                tree = part / "tree"
                if not run_quietly("dpkg", "-x", str(archive), str(tree), folder=part):
                    raise input_error(archive.name, "a broken archive", "a complete archive", "run it again")
                lines = [line for file in sorted(tree.glob(pattern)) for line in [*read(file), ""]]
                (part / "lines.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
                for text in tree.glob(f"usr/share/doc/{package}/copyright"):
                    shutil.copy(text, part / "copyright")
                about = {"file": archive.name.replace("%3a", ":"), "sha256": sha256_file(archive)}
                (part / "about.json").write_text(json.dumps(about), encoding="utf-8")
                shutil.rmtree(tree)
            finally:
                shutil.rmtree(archive.parent, ignore_errors=True)
    return (folder / "lines.txt").read_text(encoding="utf-8").splitlines()


def text_file(name: str, lines: Iterable[str]) -> Path:
    """Write a cache file with one text a line, named by a hash of its content."""
    content = ("\n".join(lines) + "\n").encode()
    path = cache_folder() / "inputs" / "texts" / f"{name}-{hashlib.sha256(content).hexdigest()[:12]}.txt"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=path.parent, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.replace(part, path)
        finally:
            Path(part).unlink(missing_ok=True)
    return path
