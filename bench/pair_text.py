"""Text of the research pairs beyond the game dialogue: software help and a handbook out of Debian's packages."""

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

from demo.input_text import (
    HELDOUT_BYTES,
    MORE,
    SHORTEST,
    Text,
    catalogue_text,
    download,
    join_documents,
    read_mo,
    run_quietly,
    split_off,
)
from saltlm.errors import input_error
from saltlm.files.cache import cache_folder, cached_folder
from saltlm.files.hashing import sha256_file

HANDBOOK = "debian-handbook"
HEADS = re.compile(r"(?s)<(script|style|head|header|nav|aside|pre)\b.*?</\1\s*>")
BLOCKS = re.compile(r"(?i)</?(?:p|div|li|[udo]l|h\d|d[td]|t[drh]|table|br|body|html|section|caption)\b[^>]*>")
# Runs of characters that held-out and training text may not have in common.
COMMON = 60


def dialogue(language: str) -> Text:
    """Game dialogue of a language; documents that repeat a held-out sentence are not trained on."""
    text = catalogue_text(language, MORE)
    return Text(
        heldout=text.heldout,
        training=apart(text.training, text.heldout),
        english=catalogue_text("fi").english,
        origin=text.origin,
        warning=text.warning,
    )


def arabic() -> Text:
    """The Arabic part of the Debian handbook; no catalogue has enough of the language."""
    seen = collections.Counter(handbook("ar-MA"))
    documents: list[str] = []
    for page in "\n".join(handbook("ar-MA")).split("\n\n"):
        documents += join_documents(line for line in page.splitlines() if seen[line] == 1 and is_arabic(line))
    documents = [document for document in documents if len(document) >= SHORTEST]
    documents.sort(key=lambda document: hashlib.sha256(document.encode()).digest())
    heldout, training = split_off(documents, HELDOUT_BYTES)
    return Text(
        heldout=heldout,
        training=apart(training, heldout),
        english=catalogue_text("fi").english,
        origin="debian-handbook, ar-MA (GPL-2+ or CC-BY-SA-3.0)",
    )


def is_arabic(line: str) -> bool:
    """Whether most of a line's letters are Arabic, and it is long enough to count."""
    letters = sum(character.isalpha() for character in line)
    return len(line) >= SHORTEST and 2 * sum("\u0600" <= c <= "\u06ff" and c.isalpha() for c in line) > letters


def apart(training: Iterable[str], heldout: Iterable[str]) -> list[str]:
    """The training documents that share no run of :data:`COMMON` characters with the held-out ones."""
    runs = {document[at : at + COMMON] for document in heldout for at in range(len(document) - COMMON + 1)}
    return [
        document
        for document in training
        if not any(document[at : at + COMMON] in runs for at in range(max(1, len(document) - COMMON + 1)))
    ]


def help_text(language: str) -> list[str]:
    """Paragraphs of LibreOffice's help (MPL-2.0) that are translated, each once."""
    own, english = (
        lines_of(f"libreoffice-help-{code}", "usr/share/libreoffice/help/*/text/**/*.html")
        for code in (language, "en-us")
    )
    untranslated = set(english)
    return [line for line in dict.fromkeys(own) if line and line not in untranslated]


def arabic_labels() -> list[str]:
    """Arabic labels and messages of LibreOffice (MPL-2.0), each once."""
    own = lines_of("libreoffice-l10n-ar", "usr/lib/libreoffice/program/resource/ar/LC_MESSAGES/*.mo", translations)
    return list(dict.fromkeys(line for line in own if line))


def handbook(locale: str) -> list[str]:
    """Paragraphs of the Debian handbook, an empty one after each page."""
    return lines_of(HANDBOOK, f"usr/share/doc/{HANDBOOK}/html/{locale}/*.html", key=locale)


def paragraphs(page: Path) -> list[str]:
    """Text of a page's blocks, code and navigation left out."""
    source = HEADS.sub(" ", page.read_text(encoding="utf-8"))
    _, mark, body = source.partition('id="DisplayArea"')
    blocks = BLOCKS.split(body.partition(">")[2] if mark else source)
    lines = (re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", "", block))).strip() for block in blocks)
    return [line for line in lines if any(map(str.isalpha, line))]


def translations(catalogue: Path) -> list[str]:
    """The translated side of a catalogue's strings that are more than a word, key marks taken off."""
    lines = (re.sub(r"\s+", " ", text.replace("_", "")).strip() for name, text in read_mo(catalogue) if name)
    return [line for line in lines if " " in line]


def lines_of(
    package: str, pattern: str, read: Callable[[Path], list[str]] = paragraphs, *, key: str = "text"
) -> list[str]:
    """Lines read from a Debian package's files, with an empty one after each file; kept in the cache.

    Raises:
        InputError: the package cannot be fetched.
    """
    folder = cache_folder() / "inputs" / f"{package}-{key}-1"
    if not folder.is_dir():
        with cached_folder(folder) as part:
            archive = download(package)
            if archive is None:
                raise input_error(
                    f"text from Debian's package {package}", "no way to fetch it", "a Debian machine with a network",
                    "run it where apt-get and dpkg are",
                )  # fmt: skip
            try:
                tree = part / "tree"
                if not run_quietly("dpkg", "-x", str(archive), str(tree), folder=part):
                    raise input_error(archive.name, "a broken archive", "a whole one", "run it again")
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
    """A file of the cache with one text a line, named by its content."""
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
