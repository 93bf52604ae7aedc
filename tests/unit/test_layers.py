"""Imports go one way: no arrow upward, no circle; the lower packages need no Ray."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import networkx
import pytest
from paths import ROOT

PACKAGE = "llm_blender_ray"
# Rooms from the lowest to the highest; those of one line don't import one another.
LAYERS = (
    ("configs",),
    ("actors",),
    ("cluster",),
    ("pipelines.interruption",),
    ("pipelines.rows",),
    ("pipelines.quality", "pipelines.llm_blender"),
    ("pipelines.online", "pipelines.train", "pipelines.datasets"),
    ("pipelines.bulk", "pipelines.serve", "pipelines.miniature"),
    ("pipelines.report", "pipelines.campaign"),
    ("pipelines.bench",),
    ("pipelines.cli",),
    ("pipelines.__main__",),
    ("package",),
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
CHECKOUT_ONLY = ("pipelines.bench", "pipelines.miniature")  # not in the wheel
# Function-level imports that close a circle between modules, each with its reason.
LISTED_CIRCLES = {
    frozenset(
        f"actors.engines{module}" for module in ("", ".adapted_engine", ".fitting_engine", ".reasoning", ".wrapper")
    ): "`load_engine`, beside the protocol, wraps an engine in classes that implement the protocol",
}


class Arrow(NamedTuple):
    """One import."""

    source: str
    target: str
    line: int
    lazy: bool


def modules() -> dict[str, Path]:
    """Modules of the package by name, the prefix aside."""
    found = {}
    for folder in ("actors", "cluster", "configs", "pipelines"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name.replace("pipelines.package", "package")] = file
    return found


MODULES = modules()


def arrows() -> Iterator[Arrow]:
    """Imports within the package, those under TYPE_CHECKING aside."""
    for name, file in MODULES.items():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node, lazy in imports(tree, lazy=False):
            for target in targets(node):
                if target in MODULES and target != name:
                    yield Arrow(name, target, node.lineno, lazy)


def imports(node: ast.AST, *, lazy: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, lazy
        elif not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from imports(child, lazy=lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))


def targets(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    else:
        assert node.level == 0, "imports are absolute"
        names = [
            full
            if (full := f"{node.module}.{alias.name}").removeprefix(f"{PACKAGE}.") in MODULES
            else str(node.module)
            for alias in node.names
        ]
    return [name.removeprefix(f"{PACKAGE}.") for name in names if name.startswith(f"{PACKAGE}.")]


ARROWS = list(arrows())


def room(module: str) -> str:
    return next((name for name in LEVEL if module == name or module.startswith(f"{name}.")), module)


def test_every_module_is_in_a_room() -> None:
    assert {module for module in MODULES if room(module) not in LEVEL} == {"pipelines"}


def test_no_import_goes_upward() -> None:
    upward = [
        f"{MODULES[one.source].relative_to(ROOT)}:{one.line} imports {one.target}"
        for one in ARROWS
        if room(one.source) != room(one.target) and LEVEL[room(one.source)] <= LEVEL.get(room(one.target), 99)
    ]
    assert upward == []


def test_no_circle_between_modules() -> None:
    """Imports within functions count."""
    graph = networkx.DiGraph((one.source, one.target) for one in ARROWS)
    circles = {frozenset(group) for group in networkx.strongly_connected_components(graph) if len(group) > 1}
    assert circles == LISTED_CIRCLES.keys()


def test_a_lazy_import_would_be_found() -> None:
    tree = ast.parse("import x\ndef f():\n    if y:\n        from z import w\nif TYPE_CHECKING:\n    import v\n")
    assert [(ast.unparse(node), lazy) for node, lazy in imports(tree, lazy=False)] == [
        ("import x", False),
        ("from z import w", True),
    ]


def test_lower_packages_do_not_name_ray() -> None:
    named = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for name, file in MODULES.items()
        if name.split(".")[0] in ("actors", "configs")
        for node, _ in imports(ast.parse(file.read_text(encoding="utf-8")), lazy=False)
        for top in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [str(node.module)])
        if top.split(".")[0] == "ray"
    ]
    assert named == []


@pytest.mark.parametrize(
    "module",
    ["actors.stages", "actors.ranker", "actors.engines.endpoint_engine", "configs.schema", "configs.loading"],
)
def test_lower_packages_import_without_ray(module: str) -> None:
    script = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "ray":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocker())
import {PACKAGE}.{module}
assert "ray" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("module", ["pipelines.bulk.worker", "pipelines.bulk.waves", "pipelines.serve.replicas"])
def test_actors_import_only_what_their_part_needs(module: str) -> None:
    """Every actor and every driver imports these: half a second for OpenAI's client, 1.4 s for torch."""
    script = f"""
import sys
import {PACKAGE}.{module}
assert not {{"openai", "torch", "transformers"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_local_files_need_no_http_client(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("{}")
    script = f"""
import sys
sys.modules["aiohttp"] = None  # importing it fails
from {PACKAGE}.pipelines.rows.uris import list_files, open_binary
assert [open_binary(one).read() for one in list_files({str(file)!r})] == [b"{{}}"]
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_wheel_imports_nothing_that_only_a_checkout_has() -> None:
    def only_in_checkout(name: str) -> bool:
        return name.startswith(CHECKOUT_ONLY)

    found = {
        (arrow.source, arrow.lazy)
        for arrow in arrows()
        if only_in_checkout(arrow.target) and not only_in_checkout(arrow.source)
    }
    assert found == {("pipelines.cli.bench", True)}  # `blend bench`, which is there in a checkout only


def test_only_tests_of_the_benchmarks_import_them() -> None:
    importers = {
        file.stem
        for file in (ROOT / "tests").rglob("*.py")
        if "bench" not in file.parent.name and not file.stem.startswith("test_bench_")
        for node, _ in imports(ast.parse(file.read_text(encoding="utf-8")), lazy=False)
        if any(room(target) == "pipelines.bench" for target in targets(node))
    }
    assert importers == set()


def test_every_folder_is_packaged() -> None:
    """`packages` of pyproject.toml names every folder of modules: a missing one is missing in the wheel."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    folders = {name for name, file in MODULES.items() if file.name == "__init__.py"} - {*CHECKOUT_ONLY}
    assert set(listed) == {PACKAGE if name == "package" else f"{PACKAGE}.{name}" for name in folders}
