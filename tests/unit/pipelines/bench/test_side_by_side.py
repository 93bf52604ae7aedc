"""Both packages in turns: our side is real on a small ranker, the original answers what it is told to."""

from pathlib import Path
from typing import Any

import pytest

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.pipelines.bench.side_by_side import (
    compare_side_by_side,
    logit_difference,
    original,
    top3_agreement,
)
from llm_blender_ray.pipelines.bench.workload import WorkloadShape, make_ranker, make_rows

SMALL = WorkloadShape(layers=1, hidden=32, heads=2, intermediate=64)


@pytest.fixture(scope="module")
def rows() -> list:
    return make_rows(4, candidates=5)


@pytest.fixture(scope="module")
def folder(rows: list, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_ranker(rows, tmp_path_factory.mktemp("ranker"), shape=SMALL)


def ask(**request: Any) -> dict[str, Any]:
    """An original of ten forwards a second."""
    match request["do"]:
        case "load":
            return {"llm_blender": "0.0.2"}
        case "calibrate":
            return {"batch_size": 2, "forwards_per_s": {"1": 9.0, "2": 10.0}}
    n = len(request["rows"])
    work = {
        "forwards": 20 * n,
        "seconds": 2.0 * n,
        "cpu_seconds": 2.0 * n,
        "tokens": 900 * n,
        "positions": 1000 * n,
    }
    return work | {"logits": [[[0.0] * 5] * 5] * n}


def test_rates_of_both_sides(rows: list, folder: Path) -> None:
    result = compare_side_by_side(ask, folder, rows, rows, rounds=5, threads=1, dtypes=["float32", "bfloat16"])
    assert result["rounds"] == 2  # parts of two rows, so that the original fills its batches
    assert result["forwards_per_s"]["original"] == pytest.approx(10)
    assert result["prompts_per_s"]["original"] == pytest.approx(0.5)
    assert result["padding_share"]["original"] == pytest.approx(0.1)
    assert set(result["forwards_per_s"]) == {"original", "float32", "bfloat16"}
    assert set(result["prompts_per_s"]) == {"original", "float32", "bfloat16", "default"}
    assert set(result["matrix_rate_share"]) == {"float32", "bfloat16"}
    assert result["prompts_per_s"]["float32"] == pytest.approx(result["forwards_per_s"]["float32"] / 20)
    assert 0 < result["forwards_per_prompt"]["default"] <= 20


def test_the_largest_difference_is_told(rows: list, folder: Path) -> None:
    assert logit_difference(ask, folder, rows[0]) > 0.01  # ours aren't zeros


def test_agreement_is_a_share(rows: list, folder: Path) -> None:
    found = top3_agreement(folder, rows, "float32")
    assert set(found) == {"default", "one_random_order"} and all(0 < share <= 1 for share in found.values())


def test_an_original_that_cant_work_is_told_in_one_line(tmp_path: Path) -> None:
    import sys

    with original(sys.executable, 1) as worker, pytest.raises(BlendError, match="the original: ") as caught:
        worker(do="rank", rows=[], batch_size=1)
    assert "\n" not in str(caught.value)
