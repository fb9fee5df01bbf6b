"""The modules of the Rust crate import each other without a cycle."""

from __future__ import annotations

import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[2] / "rust" / "src"
NOT_CODE = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\])*"', re.DOTALL)
USE = re.compile(r"\buse\s+([^;]+);")
PATH = re.compile(r"\b\w+(?:::\w+)+")

Module = tuple[str, ...]  # ("vectors", "text") for vectors/text.rs; () for lib.rs


def expand(tree: str) -> list[str]:
    """The paths of a ``use`` tree: ``a::{b, c::{d, e}}`` is ``a::b``, ``a::c::d`` and ``a::c::e``."""
    start = tree.find("{")
    if start < 0:
        return [tree.split(" as ")[0].strip()]
    parts, depth, part = [], 0, ""
    for character in tree[start + 1 : tree.rindex("}")]:
        depth += {"{": 1, "}": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append(part)
            part = ""
        else:
            part += character
    return [tree[:start].strip() + path for part in [*parts, part] if part.strip() for path in expand(part.strip())]


def imports(modules: dict[Module, str]) -> dict[Module, set[Module]]:
    """The modules that each module names in a ``use`` or in a path. Unit tests at the end of a file do not count."""
    graph: dict[Module, set[Module]] = {}
    for module, text in modules.items():
        code = NOT_CODE.sub(" ", text).split("#[cfg(test)]\nmod tests")[0]
        paths = [path for tree in USE.findall(code) for path in expand(tree)] + PATH.findall(USE.sub("", code))
        graph[module] = set()
        for path in paths:
            names = path.split("::")
            base: Module = {"crate": (), "self": module, "super": module[:-1]}.get(names[0], module)
            full = base + tuple(names[1:] if names[0] in ("crate", "self", "super") else names)
            # The longest prefix of the path that is a module; the rest are items of that module.
            named = next((full[:n] for n in range(len(full), 0, -1) if full[:n] in modules), ())
            if named and named != module and (named != module[: len(named)] or names[0] in ("crate", "super")):
                graph[module].add(named)
    return graph


def sources() -> dict[Module, str]:
    files = {path.relative_to(SOURCES).with_suffix("").parts: path.read_text("utf-8") for path in SOURCES.rglob("*.rs")}
    return {() if module == ("lib",) else module: text for module, text in files.items()}


def test_the_crate_has_no_import_cycle() -> None:
    graph = imports(sources())
    assert ("index",) in graph[("cover",)] and ("vectors",) in graph[("vectors", "text")], "imports are recognised"
    assert ("python", "runtime") in graph[("python", "vectors")], "imports are recognised"
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("import cycle: " + " <- ".join("::".join(module) for module in error.args[1]))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("use crate::b::Thing;", "use super::a::{Other, More};"),
        ("use crate::{\n    b::{Thing, self},\n};", "fn f() { crate::a::other() }"),
        ("pub mod c; fn f() { b::c::g() }", "use crate::a;"),
    ],
)
def test_a_cycle_is_recognised(one: str, other: str) -> None:
    modules: dict[Module, str] = {(): "mod a; mod b;", ("a",): one.replace("b::c", "crate::b::c"), ("b",): other}
    with pytest.raises(CycleError):
        TopologicalSorter(imports(modules)).prepare()
    modules["b",] = "// use crate::a;\n" + '"crate::a::x"\n#[cfg(test)]\nmod tests { use crate::a::Thing; }'
    TopologicalSorter(imports(modules)).prepare()
