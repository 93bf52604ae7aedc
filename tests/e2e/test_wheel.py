"""The wheel that users install: what is in it, and that it works without what only a checkout has."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from paths import ROOT

PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
MANIFESTS = (
    "cluster/helm/",
    "cluster/kuberay/",
    "cluster/vm/",
    "cluster/grafana.json",
)  # for people to edit or import
NOT_IN_WHEEL = ("pipelines/bench/", "pipelines/miniature/", "configs/miniature/", "configs/demo", *MANIFESTS)
WITHOUT_CHECKOUT = """
import runpy, sys
sys.meta_path = [one for one in sys.meta_path if getattr(one, "__name__", "") != "_EditableFinder"]
runpy.run_module("llm_blender_ray", run_name="__main__")
"""
DATA = (".yaml", ".json", ".jinja", ".html", ".sql", ".typed")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheel built from a copy of the source."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("actors", "cluster", "configs", "pipelines"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run(
        [*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source],
        check=True,
    )
    (made,) = folder.glob("llm_blender_ray-*.whl")
    return made


def test_the_wheel_has_everything_but_miniature_and_benches(wheel: Path) -> None:
    wanted = {
        file.relative_to(ROOT).as_posix()
        for folder in ("actors", "cluster", "configs", "pipelines")
        for file in (ROOT / folder).rglob("*")
        if file.suffix in (".py", *DATA)
    }
    wanted = {name.removeprefix("pipelines/package/") for name in wanted if not name.startswith(NOT_IN_WHEEL)}
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.split("/")[0].endswith(".dist-info")]
    assert {name.removeprefix("llm_blender_ray/") for name in names} == wanted
    assert wheel.stat().st_size < 2**20


def test_the_wheel_works_outside_of_a_checkout(wheel: Path, tmp_path: Path) -> None:
    subprocess.run([*PIP, "install", "--no-deps", "--no-index", "--target", tmp_path / "site", wheel], check=True)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}

    def blend(*args: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", WITHOUT_CHECKOUT, *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)

    config = tmp_path / "blend.yaml"
    config.write_text("models: [{name: a, engine: echo, model: e}]\nranker: {kind: echo}\nray: {num_cpus: 2}\n")
    plan = blend("plan", config, "--gpus", 0)
    assert plan.returncode == 0, plan.stderr
    bench = blend("bench", "rank")
    assert bench.returncode == 2 and "No such command 'bench'" in bench.stderr
