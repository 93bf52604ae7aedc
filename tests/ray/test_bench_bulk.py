"""The bulk benchmark counts what a whole run really did."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from llm_blender_ray.pipelines.bench import bulk
from llm_blender_ray.pipelines.bulk.checkpoints import CheckpointStore, Result
from llm_blender_ray.pipelines.rows.readers import read_rows


@pytest.mark.usefixtures("ray_session")
def test_a_whole_run_without_an_llm() -> None:
    result = bulk.bench_noop(300)
    assert result["rows"] == 300
    assert all(seconds > 0 for seconds in result["phases_s"].values())
    assert sum(result["phases_s"].values()) <= result["wall_s"]
    assert 0 < result["rows_per_s"]["whole"] < result["rows_per_s"]["steady"]
    memory = result["driver_mib"]
    assert 0 < memory["first"] <= memory["most"] and 0 < memory["last"] <= memory["most"]
    assert result["stages_cpu_us_per_row"] > 0


def test_made_rows_are_all_different(tmp_path: Path) -> None:
    """Equal blocks are made once, and wouldn't be measured."""
    bulk.make_bulk_rows(2500, tmp_path / "in.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "in.jsonl").read_text().splitlines()]
    assert len({row["instruction"] for row in rows}) == len({row["id"] for row in rows}) == 2500


def test_prompts_are_repeated_under_ids_of_their_own(tmp_path: Path) -> None:
    bulk.repeat_prompts(bulk.PROMPTS, 100, tmp_path / "in.jsonl")
    rows = list(read_rows(str(tmp_path / "in.jsonl")))
    assert [row["error"] for row in rows] == [None] * 100
    assert len({row["id"] for row in rows}) == 100
    assert len({(row["instruction"], row["input"]) for row in rows}) == 40


def test_work_is_timed_from_what_stages_kept(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    for block, span in (("a", (1.0, 2.5)), ("b", (2.0, 4.0))):
        account = {"started": span[0], "ended": span[1]}
        store.save_result("generate-x-1", block, Result(pa.table({"n": [1]}), account))
    assert {name: sorted(found) for name, found in bulk.spans(store).items()} == {
        "generate-x-1": [(1.0, 2.5), (2.0, 4.0)]
    }
