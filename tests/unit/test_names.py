"""A name means one thing: no two modules define the same public top-level name."""

import ast
from collections.abc import Iterator

import pytest
from paths import ROOT

FOLDERS = ("actors", "cluster", "configs", "pipelines")
SHARED = {
    "log": "the logger of a module",
    "main": "the entry point of a module that is run",
    "ENDPOINT": "the one endpoint that a module of `pipelines.serve.endpoints` adds",
    "Blender": "the class of the public API, and the one that the drop-in for `llm_blender` has to have",
}


def defined(source: str) -> set[str]:
    """Public names that a module defines at its top level, those in `if` and `try` included; imports are none."""
    return {name for name in _names(ast.parse(source).body) if not name.startswith("_")}


def _names(body: list[ast.stmt]) -> Iterator[str]:
    for statement in body:
        match statement:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Assign(targets=targets):
                parts = [part for one in targets for part in ast.walk(one) if isinstance(part, ast.Name)]
                yield from (part.id for part in parts if isinstance(part.ctx, ast.Store))
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case ast.If() | ast.Try() | ast.With():
                for inner in ("body", "orelse", "finalbody", "handlers"):
                    for one in getattr(statement, inner, []):
                        yield from _names(one.body if isinstance(one, ast.ExceptHandler) else [one])


def test_no_public_name_is_defined_in_two_modules() -> None:
    places: dict[str, list[str]] = {}
    for file in sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")):
        for name in defined(file.read_text()):
            places.setdefault(name, []).append(str(file.relative_to(ROOT)))
    twice = {name: files for name, files in places.items() if len(files) > 1}
    assert {name: files for name, files in twice.items() if name not in SHARED} == {}
    assert twice.keys() == SHARED.keys(), "an exception that is needed no more"


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("def a(): ...\nasync def b(): ...\nclass C: ...\n", {"a", "b", "C"}),
        ("A, (B, _C) = D = 1, (2, 3)\nE: int = 1\n", {"A", "B", "D", "E"}),
        ("if x:\n    A = 1\nelse:\n    B = 1\n", {"A", "B"}),
        ("try:\n    A = 1\nexcept E:\n    B = 1\nelse:\n    C = 1\nfinally:\n    D = 1\n", {"A", "B", "C", "D"}),
        ("from a import b\nimport c\ndef d():\n    e = 1\nf.g = 1\n", {"d"}),
    ],
)
def test_names_that_a_module_defines(source: str, names: set[str]) -> None:
    assert defined(source) == names
