"""What the documents say: docstring examples run, and the commands, options and names they show exist."""

from __future__ import annotations

import ast
import doctest
import functools
import importlib
import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import saltlm

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(saltlm.__file__).parent
# Modules whose docstrings hold an example; a module without one would give a test that cannot fail.
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if re.search(r"^ +>>> ", path.read_text(encoding="utf-8"), re.MULTILINE)
)
DOCUMENTS = [
    path
    for path in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *ROOT.glob("*/README.md"),
        *ROOT.glob("bench/*.md"),
        *ROOT.glob("docs/**/*.md"),
    )
    if path.is_file()
]
IDS = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*[a-z0-9]")


def blocks(document: Path, *languages: str) -> Iterator[str]:
    text = document.read_text(encoding="utf-8")
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if language in languages:
            yield block


def commands(document: Path) -> Iterator[list[str]]:
    """Each command of the document's shell blocks as words, continued lines joined, comments and prompts left out."""
    for block in blocks(document, "sh", "bash", "shell", "console"):
        for line in block.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words: list[str] = []
            for word in [*lexer, ";"]:
                if word and set(word) <= set("();<>|&"):
                    if words:
                        yield words
                    words = []
                else:
                    words.append(word)


@functools.cache
def help_of(*command: str) -> str:
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run(
        [sys.executable, "-m", "saltlm", *command, "--help"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, f"saltlm {' '.join(command)} --help failed: {done.stderr or done.stdout}"
    return done.stdout


def saltlm_arguments(words: list[str]) -> list[str] | None:
    """What follows ``saltlm`` if that is the program which the words call."""
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if words and Path(words[0]).name == "saltlm":
        return words[1:]
    if len(words) > 2 and Path(words[0]).name.startswith("python") and words[1:3] == ["-m", "saltlm"]:
        return words[3:]
    return None


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("saltlm"):
            raise
        pytest.skip(f"{name} needs the optional package {error.name}")
    results = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.attempted and not results.failed, (
        f"{results.failed} of {results.attempted} examples of {name} failed"
    )


def test_modules_with_examples_are_found() -> None:
    assert {"saltlm.environment", "saltlm.evaluation.evaluate", "saltlm.alignment.align"} <= set(MODULES)


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_shell_blocks_use_commands_and_options_that_exist(document: Path) -> None:
    for words in commands(document):
        arguments = saltlm_arguments(words)
        if arguments is None:
            continue
        shown = "saltlm " + " ".join(arguments)
        if not arguments or arguments[0].startswith("-"):
            known = set(OPTION.findall(help_of()))
        else:
            assert re.search(rf"\b{re.escape(arguments[0])}\b", help_of()), f"no such command: {shown}"
            known = set(OPTION.findall(help_of(arguments[0])))
        unknown = {word.split("=")[0] for word in arguments if OPTION.match(word)} - known
        assert not unknown, f"{sorted(unknown)} do not exist: {shown}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_shell_blocks_call_targets_and_scripts_that_exist(document: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for words in commands(document):
        if words[0] == "make":
            goals = {word for word in words[1:] if "=" not in word and not word.startswith("-")}
            assert goals <= targets, f"no such target: {' '.join(words)}"
        elif Path(words[0]).name.startswith("python") and len(words) > 1 and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), f"no such script: {' '.join(words)}"


COMMANDS = (
    "transfer",
    "evaluate",
    "inspect",
    "verify",
    "align",
    "adapt",
    "compare",
    "batch",
    "convert",
    "export",
    "methods",
    "status",
)
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_prose_names_commands_and_options_that_exist(page: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", prose)
    mentioned = {words[1] for span in spans if (words := span.split()) and words[0] == "saltlm" and len(words) > 1}
    unknown_commands = {word for word in mentioned if re.fullmatch(r"[a-z][a-z-]*", word)} - {*COMMANDS}
    assert not unknown_commands, f"{page.name} names commands that do not exist: {sorted(unknown_commands)}"
    known = set(OPTION.findall(help_of())).union(*(OPTION.findall(help_of(command)) for command in COMMANDS))
    options = {option for span in spans if span.startswith(("--", "saltlm ")) for option in OPTION.findall(span)}
    assert options <= known, f"{page.name} names options that no command has: {sorted(options - known)}"


def test_every_command_is_checked() -> None:
    assert set(re.findall(r"^    ?([a-z]+) {2,}", help_of(), re.MULTILINE)) == {*COMMANDS}


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_python_blocks_use_names_and_arguments_that_exist(document: Path) -> None:
    for block in blocks(document, "python", "py"):
        imported = {"saltlm": saltlm}
        tree = ast.parse(block)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "saltlm":
                module = importlib.import_module(node.module)
                imported |= {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "saltlm":
                assert hasattr(saltlm, node.attr), f"{document.name}: saltlm.{node.attr} does not exist"
            if isinstance(node, ast.Call) and (called := _called(node.func, imported)) is not None:
                parameters = inspect.signature(called).parameters
                if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                    unknown = {keyword.arg for keyword in node.keywords if keyword.arg} - parameters.keys()
                    assert not unknown, f"{document.name}: {ast.unparse(node)}: no argument {sorted(unknown)}"


def _called(function: ast.expr, imported: dict[str, object]) -> object:
    if isinstance(function, ast.Name):
        return imported.get(function.id) if function.id != "saltlm" else None
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == "saltlm":
        return getattr(saltlm, function.attr, None)
    return None


def test_installs_name_extras_that_exist() -> None:
    known = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE))
    for document in DOCUMENTS:
        for extras in re.findall(r"saltlm\[([\w,]+)\]", document.read_text(encoding="utf-8")):
            assert set(extras.split(",")) <= known, f"{document.name}: saltlm[{extras}]"


def test_the_checks_of_this_file_find_what_is_wrong(tmp_path: Path) -> None:
    document = tmp_path / "x.md"
    document.write_text("```sh\nA=1 saltlm transfer --x \\\n  --y=1 && make demo # not this --z\n```\n")
    blocks = list(commands(document))
    assert blocks == [["A=1", "saltlm", "transfer", "--x", "--y=1"], ["make", "demo"]]
    assert saltlm_arguments(blocks[0]) == ["transfer", "--x", "--y=1"]
    assert saltlm_arguments(blocks[1]) is None
    assert saltlm_arguments(["python3", "-m", "saltlm", "status"]) == ["status"]
    assert OPTION.findall("`--max-support N`, --no; a--b ---") == ["--max-support", "--no"]
