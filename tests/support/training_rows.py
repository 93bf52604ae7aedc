"""What the tests of both trainings share: words to make rows of, writing them, and a run of a few steps."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llm_blender_ray.configs.training import Optimization

WORDS = ("acorn", "badge", "candle", "desert", "engine", "feather", "garden", "hammer")


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    """Write a JSONL file; gives its path as text."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_once(folder: Path, make_rows: Callable[[int, int], list[dict[str, Any]]]) -> dict[str, str]:
    """The `train` and `heldout` settings: files of 400 and 50 rows in the folder, unless they are there."""
    files = {"train": folder / "train.jsonl", "heldout": folder / "heldout.jsonl"}
    if not files["train"].exists():
        write(files["train"], make_rows(400, 1))
        write(files["heldout"], make_rows(50, 2))
    return {name: str(file) for name, file in files.items()}


def short(**changes: Any) -> Optimization:
    """Forty steps, looked at and saved half-way."""
    settings: dict[str, Any] = {
        "learning_rate": 1e-3,
        "max_steps": 40,
        "batch_size": 16,
        "log_every": 10,
        "evaluate_every": 20,
        "save_every": 20,
    }
    return Optimization(**(settings | changes))
