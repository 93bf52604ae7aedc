"""What the bundle holds runs without Ray: on a GPU machine nothing can be installed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llm_blender_ray.pipelines.bench import gpu_bundle

BLOCKED = """
import importlib.abc, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ray", "vllm", "fastapi", "openai", "typer", "s3fs", "rapidfuzz", "nltk"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    gpu_bundle.pack_bundle(folder)
    package = folder / "package" / "llm_blender_ray"
    package.mkdir(parents=True)
    for part in [
        *(folder / name for name in gpu_bundle.PACKED_FOLDERS),
        *(folder / "pipelines" / "package").glob("*.py"),
    ]:
        (package / part.name).symlink_to(part)
    (folder / "package" / "sitecustomize.py").write_text(BLOCKED)
    return folder


def run(bundle: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(bundle / "package"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=bundle, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_measurement_runs(bundle: Path) -> None:
    results = json.loads(run(bundle, "-m", "llm_blender_ray.pipelines.bench.gpu", "--small", "--device", "cpu"))
    for pairs in results["sizes"]["pairs"]:
        for which in ("ours", "transformers"):
            measured = results["ranker float32"][pairs][which]
            assert measured["forwards_per_s"] > 0
            assert measured["largest_difference"] < 1e-5
    assert results["fuser"]["beam_tokens_per_s"] > 0
    assert results["engine"]["tokens"] > 0


def test_the_script_finds_what_it_calls(bundle: Path) -> None:
    assert os.access(bundle / "run.sh", os.X_OK)
    script = (bundle / "run.sh").read_text()
    called = re.findall(r"tests/\S+\.py", script) + [
        f"{module.replace('.', '/')}.py" for module in re.findall(r"-m llm_blender_ray\.(\S+)", script)
    ]
    assert len(called) == 2
    assert [path for path in called if not (bundle / path).is_file()] == []
    for path in (bundle / "tests").rglob("*.py"):
        for name in re.findall(r"^from (paths|deberta_\w+) import", path.read_text(), re.M):
            assert (bundle / "tests" / "support" / f"{name}.py").is_file(), name
