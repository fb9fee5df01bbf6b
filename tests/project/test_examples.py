"""Every example of the README and of the documentation runs, in the order of its page, on tiny models."""

from __future__ import annotations

import contextlib
import io
import random
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from models_tiny import save_bert, save_llama
from pairs import write_vectors
from tokenizers_tiny import TEXT, tiny

from saltlm.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Programs of other projects that an example may call; everything else in a shell block must be saltlm.
NOT_RUN = {"pip", "make", "torchrun", "vllm", "llama-server"}


def examples(page: Path) -> list[tuple[str, str, str]]:
    """Language, title and content of each fenced block of a page that is an example."""
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [(language, title, content) for language, title, content in blocks if language in {"sh", "python", "toml"}]


def shell_commands(block: str) -> Iterator[list[str]]:
    """Words of each command of a shell block, continued lines joined and comments removed."""
    for line in block.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def write_text(path: Path, seed: int, documents: int) -> None:
    """Documents of words from the text that the tiny tokenizers were trained on; no two files share one."""
    generator = random.Random(seed)
    words = " ".join(TEXT).split()
    texts = [f"{seed} {number} " + " ".join(generator.choices(words, k=40)) for number in range(documents)]
    path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all files that the documentation names as the reader's own."""
    folder = tmp_path_factory.mktemp("examples")
    save_llama(folder / "source-model", tiny("byte_level_bpe"))
    save_llama(folder / "small-model", tiny("byte_level_bpe"))
    save_bert(folder / "finnish-plm", tiny("sentencepiece_unigram"))
    write_vectors(folder / "vectors.vec", tiny("sentencepiece_unigram"))
    for seed, (name, documents) in enumerate({"finnish.txt": 40, "held-out.txt": 12, "english.txt": 12}.items()):
        write_text(folder / name, seed, documents)
    return folder


@pytest.fixture(scope="module")
def models(inputs: Path) -> Path:
    """The models that the README makes first; later pages use them by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(inputs)
        for words in (
            "transfer --source source-model --target finnish-plm --out my-model --quiet",
            "transfer --source source-model --target finnish-plm --method subword-mean --out as-published --quiet",
        ):
            assert main(shlex.split(words)) == 0
    return inputs


@pytest.mark.parametrize(
    "page", [page for page in PAGES if examples(page)], ids=lambda page: str(page.relative_to(ROOT))
)
def test_examples_of_a_page_run(page: Path, models: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    blocks = examples(page)
    written = [
        words[words.index("--out") + 1] for _, _, block in blocks for words in shell_commands(block) if "--out" in words
    ]
    written += re.findall(r'out="([^"]+)"', "".join(block for language, _, block in blocks if language == "python"))
    for name in written:  # a page makes its own folders, with the models of the README at hand
        shutil.rmtree(models / name, ignore_errors=True)
    monkeypatch.chdir(models)
    for language, title, block in blocks:
        if language == "toml":
            Path(title or "jobs.toml").write_text(block, encoding="utf-8")
        elif language == "python":
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(block, f"{page.name}", "exec"), {"__name__": "example"})
        else:
            for words in shell_commands(block):
                if words[0] in NOT_RUN:
                    continue
                assert words[0] == "saltlm", f"{page.name}: {shlex.join(words)} is not run by this test"
                code = main(words[1:])
                assert code == 0, f"{page.name}: {shlex.join(words)}: {capsys.readouterr().err}"


def test_pages_have_examples() -> None:
    counts = {page.name: len(examples(page)) for page in PAGES}
    assert counts["README.md"] >= 3 and counts["tutorial.md"] >= 7, counts
    assert sum(counts.values()) >= 20, counts
