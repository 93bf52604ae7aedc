"""What a worker does with a stage that breaks: its process is replaced, and what it can't mend ends the run."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
from ray.data import ActorPoolStrategy

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.records import Blend, Candidate
from llm_blender_ray.cluster.placement import Capacity, place
from llm_blender_ray.configs.schema import EchoModel
from llm_blender_ray.pipelines.bulk import worker
from llm_blender_ray.pipelines.bulk.checkpoints import CheckpointStore
from llm_blender_ray.pipelines.bulk.executor import translated_errors
from llm_blender_ray.pipelines.bulk.stages import StageGraph, StageSpec
from llm_blender_ray.pipelines.bulk.tracker import Count, start_tracker
from llm_blender_ray.pipelines.bulk.worker import Worker
from llm_blender_ray.pipelines.rows.schema import ROW_SCHEMA, read_row

FILE, NAME = "00000-000000", "0123456789abcdef-0123456789abcdef"


def through(stage: type, store: CheckpointStore, tracker: Any) -> list[dict[str, Any]]:
    """A block of five rows through a worker of this stage in a real actor."""

    class Of(Worker):
        def __init__(self, *args: Any) -> None:
            worker.STAGES["generate"] = stage
            super().__init__(*args)

    placement = place("stage", EchoModel(engine="echo", name="stage", model="m"), Capacity.machine(2))
    step = StageSpec(placement, "generate-stage-0")
    work = StageGraph((step,), ("stage",))
    rows = [read_row({"id": str(i), "prompt": "x"}, "") for i in range(5)]
    store.save_rows("input", FILE, pa.Table.from_pylist(rows, schema=ROW_SCHEMA))
    dataset = ray.data.from_items([{"file": FILE, "name": NAME, "steps": ["stage"]}]).map_batches(
        Of,
        fn_constructor_args=([step], work, store, "input", tracker),
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=1),
        num_cpus=0.1,
    )
    with translated_errors(tracker):
        return dataset.take_all()


@pytest.mark.usefixtures("ray_session")
def test_a_broken_process_is_replaced_and_its_block_done_again(tmp_path: Path) -> None:
    class BreaksOnce:
        """Its process breaks in its first block: its answers are worth nothing."""

        def __init__(self, settings: Any) -> None:
            self._marker = tmp_path / "broken"
            self._broken = not self._marker.exists()

        async def __call__(self, blends: Sequence[Blend]) -> list[Blend]:
            answer = Candidate("stage", text="lost" if self._broken else "kept")
            return [replace(blend, candidates=(*blend.candidates, answer)) for blend in blends]

        async def check_health(self) -> None:
            if self._broken:
                self._marker.touch()
                raise BlendError("broken for good")

    tracker = start_tracker()
    store = CheckpointStore(str(tmp_path / "work"))
    assert through(BreaksOnce, store, tracker) == [{"file": FILE, "name": NAME, "steps": ["stage"]}]
    assert (tmp_path / "broken").exists()
    result = store.result("generate-stage-0", NAME)
    assert result is not None
    assert [[one["text"] for one in row] for row in result.table.column("candidates").to_pylist()] == [["kept"]] * 5
    assert ray.get(tracker.snapshot.remote()).counts == {"stage": Count(rows=5)}
    assert store.done("generate-stage-0") == {NAME}


@pytest.mark.usefixtures("ray_session")
def test_a_stage_that_loses_a_row_ends_the_run(tmp_path: Path) -> None:
    class Loses:
        def __init__(self, settings: Any) -> None: ...

        async def __call__(self, blends: Sequence[Blend]) -> list[Blend]:
            return list(blends[1:])

        async def check_health(self) -> None: ...

    store = CheckpointStore(str(tmp_path / "work"))
    with pytest.raises(BlendError, match=r"^stage returned 4 rows for 5$"):
        through(Loses, store, start_tracker())
    assert store.done("generate-stage-0") == set()


@pytest.mark.usefixtures("ray_session")
def test_a_bug_in_a_stage_ends_the_run_in_one_line(tmp_path: Path) -> None:
    class Buggy:
        def __init__(self, settings: Any) -> None: ...

        async def __call__(self, blends: Sequence[Blend]) -> list[Blend]:
            raise ZeroDivisionError("a bug\nof two lines")

    with pytest.raises(BlendError, match=r"^the run failed: ZeroDivisionError: a bug of two lines$"):
        through(Buggy, CheckpointStore(str(tmp_path / "work")), start_tracker())
