"""An engine, a file format and a metric of another package, installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOY = Path(__file__).parent.parent / "support" / "toy_package"
CONFIG = """
models:
  - {name: a, engine: toy, model: m, mark: "?!"}
  - {name: b, engine: echo, model: e}
ranker: {kind: echo}
ray: {num_cpus: 2}
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment in which the toy package is installed."""
    folder = tmp_path_factory.mktemp("toy")
    source = folder / "source"
    source.mkdir()
    for file in TOY.iterdir():
        if file.is_file():
            (source / file.name).write_bytes(file.read_bytes())
    options = ("--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "--target", folder / "site", source], check=True
    )
    paths = [str(folder / "site"), os.environ.get("PYTHONPATH", "")]
    own = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}  # workers need the path, too
    return {**own, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def blend(environment: dict[str, str], *args: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "llm_blender_ray", *map(str, args)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done


def test_an_engine_and_a_format_of_another_package_run(environment: dict[str, str], tmp_path: Path) -> None:
    config = tmp_path / "blend.yaml"
    config.write_text(CONFIG)
    assert "toy m" in blend(environment, "plan", config, "--gpus", 0).stdout
    rows = tmp_path / "rows.prompts"
    rows.write_text("Say it\n")
    blend(environment, "run", config, "--input", rows, "--output", tmp_path / "out.jsonl")
    row = json.loads((tmp_path / "out.jsonl").read_text())
    assert [one["text"] for one in row["candidates"]] == ["SAY IT?!", "Say it"]
    assert row["error"] is None and sorted(row["ranking"]) == [0, 1]


def test_a_metric_of_another_package_is_evaluated_and_reported(environment: dict[str, str], tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    answers = [{"model": "loud", "text": "YES"}, {"model": "quiet", "text": "yes"}]
    rows.write_text(json.dumps({"prompt": "p", "output": "yes", "candidates": answers}) + "\n")
    report = json.loads(blend(environment, "evaluate", rows, "--json").stdout)
    models = report["references"]["capitals"]["models"]
    assert {name: model["mean"] for name, model in models.items()} == {"loud": 1, "quiet": 0}
    assert "CAPITALS" in blend({**environment, "COLUMNS": "120"}, "evaluate", rows).stdout
    only = json.loads(blend(environment, "evaluate", rows, "--json", "--metric", "capitals:letters=abcY").stdout)
    assert only["references"]['capitals:letters="abcY"']["models"]["loud"]["mean"] == 1
    assert len(only["references"]) == 1
    blend(environment, "report", rows, "--output", tmp_path / "page.html")
    assert "CAPITALS" in (tmp_path / "page.html").read_text()
