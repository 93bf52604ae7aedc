"""The documentation names what exists: files, options, settings, modules and words of the source."""

import functools
import importlib
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from documentation import docs_hooks
from paths import ROOT
from pydantic import BaseModel

from llm_blender_ray.configs.formats import FORMATS
from llm_blender_ray.configs.fusers import FUSERS
from llm_blender_ray.configs.llms import ENGINES
from llm_blender_ray.configs.losses import LOSSES
from llm_blender_ray.configs.metrics import MetricModel
from llm_blender_ray.configs.rankers import RANKERS
from llm_blender_ray.configs.schema import BlendConfig
from llm_blender_ray.pipelines.cli.commands import app
from llm_blender_ray.pipelines.datasets.sources import SOURCES
from llm_blender_ray.pipelines.quality.metrics import METRICS, metric_class

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "cluster/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
FOLDERS = ("actors", "cluster", "configs", "docs", "pipelines", "tests")
OTHER_TOOLS = {  # options of docker, kubectl, ray, pip and base64, and of modules that are run with python -m
    *(
        "--build-arg",
        "--config",
        "--decode",
        "--dry-run",
        "--follow",
        "--from-file",
        "--from-literal",
        "--generate",
        "--head",
        "--help",
        "--template",
        "--values",
    ),
}
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


hooks = docs_hooks()


def _code(page: Path) -> list[str]:
    """Inline code of a page."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", prose)


@functools.cache
def _schemas() -> list[tuple[str, type[BaseModel]]]:
    return [found for roots in hooks.ROOTS.values() for root in roots for found in hooks._walk(root)]


@pages
def test_files_exist(page: Path) -> None:
    named = [
        word
        for code in _code(page)
        for word in re.findall(rf"(?<![\w/.])(?:{'|'.join(FOLDERS)})/[\w./-]*", code)
        if "..." not in word
    ]
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


@pages
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert not [link for link in links if link and not (page.parent / link).exists()]


@pages
def test_options_exist(page: Path) -> None:
    command = typer.main.get_command(app)
    known = set(OTHER_TOOLS)
    waiting: list[Any] = [command]
    while waiting:
        one = waiting.pop()
        known |= {name for parameter in one.params for name in parameter.opts}
        waiting += getattr(one, "commands", {}).values()
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", page.read_text(encoding="utf-8")))
    assert named <= known


@pages
def test_settings_exist(page: Path) -> None:
    """`serve.limits.body_bytes` and the like, through every kind of model, ranker and fuser."""
    paths = {
        f"{'' if path == 'top level' else path + '.'}{name}".replace("[]", "")
        for path, schema in _schemas()
        for name in schema.model_fields
    }
    named = [
        code.partition(":")[0]
        for code in _code(page)
        if re.match(r"(serve|ray|ranker|fuser|preferences|models)\.[a-z_.]+(:|$)", code)
    ]
    assert not [name for name in named if name not in paths]


@pages
def test_names_occur_in_the_source(page: Path) -> None:
    words = _words_of_the_source()
    named = {
        code
        for code in _code(page)
        if re.fullmatch(r"[a-z]+(_[a-z0-9]+)+|([A-Z][a-z]+){2,}|[A-Z]+(_[A-Z]+)+", code)
    }
    assert not {name for name in named if name not in words}


@pages
def test_modules_exist(page: Path) -> None:
    """Modules, names in them, and entry point groups of registries."""
    groups = {registry._group for registry in (ENGINES, RANKERS, FUSERS, FORMATS, METRICS, LOSSES, SOURCES)}
    for module, name in re.findall(r"\b(llm_blender_ray(?:\.\w+)*)(?::(\w+))?", page.read_text(encoding="utf-8")):
        if module in groups:
            continue
        try:
            found: Any = importlib.import_module(module)
        except ModuleNotFoundError:
            parent, _, last = module.rpartition(".")
            found = getattr(importlib.import_module(parent), last)
        assert not name or hasattr(found, name)


@pages
def test_configs_are_valid(page: Path) -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for data in map(yaml.safe_load, blocks):
        if not data.keys() <= BlendConfig.model_fields.keys():
            continue  # of Kubernetes
        base = {"models": [{"name": "one", "engine": "echo", "model": "echo"}], "ranker": {"model": "r"}}
        BlendConfig.model_validate(base | data)


def test_every_setting_has_a_meaning() -> None:
    missing = {
        f"{schema.__name__}.{name}"
        for schema in {schema for _, schema in _schemas()}
        for name in {*hooks._own_fields(schema)} - hooks.meanings_of(schema).keys()
    }
    assert not missing


def test_every_written_meaning_is_of_a_setting() -> None:
    fields = {name for _, schema in _schemas() for name in hooks._own_fields(schema)}
    fields |= {f"{schema.__name__}.{name}" for _, schema in _schemas() for name in hooks._own_fields(schema)}
    assert yaml.safe_load((ROOT / "docs/meanings.yaml").read_text()).keys() <= fields


def test_reference_has_a_section_for_every_kind() -> None:
    text = hooks.settings_reference()
    for kind in ("engine: vllm", "engine: echo", "kind: judge", "kind: chat", "kind: focus"):
        assert f"`{kind}`" in text
    assert "| `num_beams` | integer, >= 1 | `4` |" in text


def test_every_metric_and_its_options_are_on_the_page_of_evaluation() -> None:
    code = set(_code(ROOT / "docs/evaluation.md"))
    for name in METRICS.names():
        options = metric_class(name).model_fields.keys() - MetricModel.model_fields.keys() - {"kind"}
        assert {name, *options} <= code


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1200


@functools.cache
def _words_of_the_source() -> set[str]:
    files = [
        path for folder in FOLDERS for ending in ("py", "yaml") for path in (ROOT / folder).rglob(f"*.{ending}")
    ]
    words: set[str] = set()
    for path in files:
        if path.name != "test_docs.py":
            words.update(re.findall(r"\w+", path.read_text(encoding="utf-8")))
    return words
