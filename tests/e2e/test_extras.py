"""Commands without the optional dependencies: what works, and the line that names the extra."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from paths import ROOT

from llm_blender_ray.configs.extras import EXTRAS

Run = Callable[..., subprocess.CompletedProcess[str]]

BLOCKER = f"""
from importlib.machinery import PathFinder

find = PathFinder.find_spec

def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in {sorted(EXTRAS)} else find(name, path, target)

PathFinder.find_spec = staticmethod(find_spec)
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """The `blend` command in processes (Ray's too) that can't import what extras install."""
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "llm_blender_ray", *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": path},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


def test_ranking_needs_no_extra(run: Run, tmp_path: Path) -> None:
    row = {"instruction": "a", "candidates": [{"model": m, "text": m} for m in ("x", "y")]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    done = run(
        *("rank", "--ranker", ROOT / "configs/miniature/ranker"),
        *("--input", tmp_path / "rows.jsonl", "--output", tmp_path / "ranked.jsonl"),
    )
    assert done.returncode == 0, done.stderr
    assert sorted(json.loads((tmp_path / "ranked.jsonl").read_text())["ranking"]) == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (("serve", "configs/demo.yaml"), "serve"),
        (("report", "configs/miniature/heldout.jsonl"), "report"),
        (("evaluate", "s3://bucket/rows.jsonl"), "s3"),
        (("train", "ranker", "configs/train-ranker.yaml"), "train"),
        (("leaderboard", "configs/miniature/heldout.jsonl"), "evaluation"),
    ],
)
def test_a_missing_extra_is_one_line(run: Run, arguments: tuple[str, ...], extra: str) -> None:
    done = run(*arguments)
    lines = done.stderr.splitlines()
    assert done.returncode == 1
    assert len(lines) == 1 and lines[0].endswith(f"pip install 'llm-blender-ray[{extra}]'"), done.stderr
