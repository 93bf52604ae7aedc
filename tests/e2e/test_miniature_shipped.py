"""What the shipped miniature can do, on its real models: every margin here is one that users are told of."""

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from llm_blender_ray.actors.records import read_prompt
from llm_blender_ray.configs.loading import PRESETS
from llm_blender_ray.pipelines.miniature.base_llm import answer
from llm_blender_ray.pipelines.miniature.data import candidate_rows, read_data
from llm_blender_ray.pipelines.miniature.evaluation import (
    FUSE_BOTTOM,
    FUSE_ONE,
    FUSE_RANDOM,
    FUSE_TOP,
    ORACLE,
    RANDOM,
    RANKED,
    evaluate_miniature,
)
from llm_blender_ray.pipelines.miniature.recipe import Miniature
from llm_blender_ray.pipelines.miniature.world import LLM_NAMES, Beliefs
from llm_blender_ray.pipelines.quality.metrics import parts_right

SHIPPED = PRESETS / "miniature"
PROMPTS = 200


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """Held-out prompts with every base LLM's greedy answer."""
    asked = read_data(SHIPPED / "heldout.jsonl")[:PROMPTS]
    prompts = [read_prompt(row) for row in asked]
    return candidate_rows(asked, {name: list(answer(SHIPPED / name, prompts)) for name in LLM_NAMES})


@pytest.fixture(scope="module")
def results(rows: list[dict[str, Any]]) -> Mapping[str, Any]:
    return evaluate_miniature(rows, SHIPPED / "ranker", SHIPPED / "fuser", seed=0)


@pytest.fixture(scope="module")
def parts(results: Mapping[str, Any]) -> dict[str, float]:
    return {label: line["parts"] for label, line in results["lines"].items()}


def test_it_is_small_and_held_out() -> None:
    assert sum(file.stat().st_size for file in SHIPPED.rglob("*") if file.is_file()) <= 12 * 2**20
    tasks = Miniature(0, Path("unused")).tasks("heldout")
    assert [task.to_row() for task in tasks] == read_data(SHIPPED / "heldout.jsonl")
    assert len(tasks) >= 600
    assert all(task.heldout for task in tasks)


def test_base_llms_say_what_they_believe(rows: list[dict[str, Any]]) -> None:
    tasks = list(islice(Miniature(0, Path("unused")).tasks("heldout"), PROMPTS))
    for i, name in enumerate(LLM_NAMES):
        beliefs = Beliefs(name, 0)
        agreed = [
            parts_right(beliefs.answers(task), row["candidates"][i]["text"])
            for row, task in zip(rows, tasks, strict=True)
        ]
        assert sum(agreed) / len(agreed) > 0.95, name


def test_no_llm_dominates(results: Mapping[str, Any]) -> None:
    assert max(results["best_share"].values()) < 0.4
    assert sum(results["best_share"].values()) == pytest.approx(1)


def test_the_rankers_choice_beats_the_best_single_llm(parts: Mapping[str, float]) -> None:
    assert parts[RANKED] > max(parts[name] for name in LLM_NAMES) + 0.1
    assert parts[RANKED] > parts[RANDOM] + 0.2
    assert parts[RANKED] > parts[ORACLE] - 0.03


def test_the_blend_beats_the_best_candidate(parts: Mapping[str, float]) -> None:
    assert parts[FUSE_TOP] > parts[ORACLE] + 0.1


def test_the_fuser_reads_its_candidates(parts: Mapping[str, float]) -> None:
    """Worse candidates give a worse answer, and one candidate three times hardly more than that candidate."""
    assert parts[FUSE_TOP] > parts[FUSE_RANDOM] + 0.1
    assert parts[FUSE_RANDOM] > parts[FUSE_BOTTOM] + 0.1
    assert parts[FUSE_ONE] < parts[RANKED] + 0.08 < parts[FUSE_TOP]
