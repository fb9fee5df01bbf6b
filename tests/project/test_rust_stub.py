"""The stub of the native module against the binary: same names, same parameters."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import saltlm
from saltlm import _rust

STUB = ast.parse((Path(saltlm.__file__).parent / "_rust.pyi").read_text(encoding="utf-8"))


def parameters(function: ast.FunctionDef) -> list[str]:
    arguments = function.args
    return [a.arg for a in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs] if a.arg != "self"]


def test_every_name_of_the_stub_is_there_with_its_parameters() -> None:
    named = set()
    for node in STUB.body:
        if isinstance(node, ast.ClassDef):
            named.add(node.name)
            cls = getattr(_rust, node.name)
            public = {name for name in vars(cls) if not name.startswith("_")}
            methods = {item.name: item for item in node.body if isinstance(item, ast.FunctionDef)}
            assert public == set(methods), node.name
            for name, item in methods.items():
                if any(isinstance(d, ast.Name) and d.id == "property" for d in item.decorator_list):
                    assert inspect.isgetsetdescriptor(vars(cls)[name]), name
                else:
                    real = [p for p in inspect.signature(getattr(cls, name)).parameters if p != "self"]
                    assert real == parameters(item), f"{node.name}.{name}"
        elif isinstance(node, ast.FunctionDef):
            named.add(node.name)
            assert list(inspect.signature(getattr(_rust, node.name)).parameters) == parameters(node), node.name
        elif isinstance(node, ast.AnnAssign):
            named.add(node.target.id)
    assert named == {name for name in dir(_rust) if not name.startswith("_") or name == "__version__"}


def test_native_parts_are_documented() -> None:
    for name in dir(_rust):
        if not name.startswith("_"):
            assert getattr(_rust, name).__doc__, name
