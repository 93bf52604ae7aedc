"""Pure parts of the executor: numbers of actors and concurrent blocks, and the error behind Ray's wrappings."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from ray.exceptions import RayActorError, RayError

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.cluster.placement import Capacity, place
from llm_blender_ray.configs.schema import EchoModel, PairRanker, TransformersModel
from llm_blender_ray.pipelines.bulk.checkpoints import Block, CheckpointStore, Index, Result
from llm_blender_ray.pipelines.bulk.executor import actor_count, calls_at_once, reason, run_wave
from llm_blender_ray.pipelines.bulk.stages import StageGraph, StageSpec, pools
from llm_blender_ray.pipelines.bulk.tracker import Count

RANKER = StageSpec(place("ranker", PairRanker(model="r"), Capacity.machine(8)), "rank-ranker")


def llm(**more: Any) -> StageSpec:
    settings = {"engine": "transformers", "name": "m", "model": "m", "sampling": {"temperature": 1}} | more
    return StageSpec(place("m", TransformersModel.model_validate(settings), Capacity.machine(8)), "generate-m")


@pytest.mark.parametrize(("blocks", "expected"), [(0, 1), (1, 1), (3, 3), (9, 4)])
def test_no_actor_is_started_that_would_find_no_block(blocks: int, expected: int) -> None:
    settings = EchoModel.model_validate({"engine": "echo", "name": "m", "model": "m", "num_cpus": 1, "replicas": 4})
    step = StageSpec(place("m", settings, Capacity.machine(8)), "generate-m")
    assert actor_count([step], {"m": {str(i) for i in range(blocks)}}) == expected


@pytest.mark.parametrize(
    ("step", "rows_per_block", "expected"),
    [
        (RANKER, 1, 2),
        (llm(max_batch_size=32), 32, 8),
        (llm(max_batch_size=32, samples=4), 32, 2),
        (llm(max_batch_size=32), 1024, 2),  # the next block is there when one is done
        (llm(max_batch_size=32), 0.5, 64),
    ],
)
def test_an_llm_has_blocks_enough_to_fill_its_batches(
    step: StageSpec, rows_per_block: float, expected: int
) -> None:
    assert calls_at_once([step], rows_per_block) == expected


def test_llms_of_one_engine_have_one_pool() -> None:
    settings = {
        "engine": "transformers",
        "name": "m",
        "model": "m",
        "adapters": {"a": "p", "b": "q"},
        "replicas": 3,
    }
    placement = place("m", TransformersModel.model_validate(settings), Capacity.machine(8))
    steps = [StageSpec(part, part.name, shared=placement) for part in placement.parts]
    assert [step.name for step in steps] == ["m", "a", "b"]
    assert pools([*steps, RANKER]) == [steps, [RANKER]]
    assert actor_count(steps, {"m": set(), "a": {"1"}, "b": {"1", "2"}}) == 2  # by all their blocks
    assert calls_at_once(steps, 8) == 11  # a third of what one LLM has


@dataclass
class Reports:
    """Handle of a tracker that keeps what it gets."""

    counts: list[tuple[str, Count]] = field(default_factory=list)

    @property
    def add(self) -> "Reports":
        return self

    def remote(self, stage: str, count: Count) -> None:
        self.counts.append((stage, count))


def test_rows_of_earlier_sessions_count_with_their_failures(tmp_path: Path) -> None:
    store, step = CheckpointStore(str(tmp_path)), llm()
    blocks = tuple(Block(f"f{i}", 4, 0, f"d{i}", "c") for i in range(3))
    index = Index(blocks, "fingerprint", pa.null())
    for name, failed in zip(index.names, (0, 1, 2), strict=True):
        store.save_result(step.key, name, Result(pa.table({"x": [1] * 4}), {"rows": 4, "failed": failed}))
    reports = Reports()
    run_wave(store, index, StageGraph((step,), ("m",)), [step], {"m": set()}, reports)
    total = sum((count for _, count in reports.counts), Count())
    assert {stage for stage, _ in reports.counts} == {"m"} and total == Count(rows=12, saved=12, failed=3)


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray is not running, whatever other tests of the process started."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (BlendError("out: no space left\n\nTraceback of Ray"), "out: no space left"),
        (caused(RayError("wrapped"), BlendError("the model is missing")), "the model is missing"),
        (caused(RuntimeError("outer"), ZeroDivisionError("a bug\nof two lines")), "a bug of two lines"),
        (RayError("the object store is full"), "the run failed: Ray: "),
        (RayActorError(), "the run failed: Ray: "),
    ],
)
def test_the_reason_is_at_the_bottom_in_one_line(error: Exception, expected: str) -> None:
    found = str(reason(error, tracker=None))
    assert expected in found
    assert "\n" not in found


@pytest.mark.usefixtures("no_ray")
def test_causes_that_go_round_come_to_an_end() -> None:
    inner = ValueError("inner")
    outer = caused(RuntimeError("outer"), inner)
    inner.__cause__ = outer
    assert str(reason(outer, tracker=None)).startswith("the run failed: ")
