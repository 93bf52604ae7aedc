"""What stages see of a block, and what their results make of it."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from llm_blender_ray.actors.errors import BLANK
from llm_blender_ray.actors.records import Candidate
from llm_blender_ray.actors.stages import FUSING_FAILED, RANKING_FAILED
from llm_blender_ray.actors.tables import to_blends
from llm_blender_ray.cluster.placement import Capacity, place
from llm_blender_ray.configs.parts import PartSettings
from llm_blender_ray.configs.schema import EchoModel, GenFuser, PairRanker, TransformersModel
from llm_blender_ray.pipelines.bulk.checkpoints import CheckpointStore, Result
from llm_blender_ray.pipelines.bulk.checksums import DamagedError
from llm_blender_ray.pipelines.bulk.results import columns_of
from llm_blender_ray.pipelines.bulk.stages import StageGraph, StageSpec
from llm_blender_ray.pipelines.rows.schema import ROW_SCHEMA, read_row

CAPACITY = Capacity.machine(8)
BLOCK = "0123456789abcdef-0123456789abcdef"


def step(name: str, settings: PartSettings) -> StageSpec:
    return StageSpec(place(name, settings, CAPACITY), f"{settings.stage}-{name}")


ONE, TWO = (step(name, EchoModel(engine="echo", name=name, model="m")) for name in ("one", "two"))
DRAWN = step(
    "drawn",
    TransformersModel.model_validate(
        {"engine": "transformers", "name": "drawn", "model": "m", "sampling": {"temperature": 1}}
    ),
)
RANKER, FUSER = step("ranker", PairRanker(model="r")), step("fuser", GenFuser(model="f"))


def rows(*given: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist([read_row({"prompt": "p"} | row, "") for row in given], schema=ROW_SCHEMA)


def generated(table: pa.Table, *answers: Candidate) -> pa.Table:
    """Result of a base LLM that gives each row these answers."""
    before = to_blends(table)
    after = [type(one)(one.prompt, (*one.candidates, *answers)) for one in before]
    return columns_of("generate", before, after)


def texts(table: pa.Table) -> list[list[str | None]]:
    return [[one["text"] for one in row or ()] for row in table.column("candidates").to_pylist()]


def test_a_step_is_what_its_settings_say() -> None:
    assert (ONE.name, ONE.kind, ONE.llm) == ("one", "generate", ONE.placement.settings)
    assert (RANKER.kind, RANKER.llm, FUSER.kind) == ("rank", None, "fuse")


@pytest.mark.parametrize(
    ("steps", "of", "expected"),
    [
        ((ONE, DRAWN, RANKER), ONE, True),
        ((ONE, DRAWN, RANKER), DRAWN, False),
        ((ONE, DRAWN, RANKER), RANKER, False),
        ((DRAWN, ONE), ONE, True),
        ((ONE, TWO, RANKER, FUSER), FUSER, True),
    ],
)
def test_equal_blocks_share_results_where_nothing_before_is_drawn(
    steps: tuple[StageSpec, ...], of: StageSpec, expected: bool
) -> None:
    assert StageGraph(steps).shared(of) is expected


def test_results_that_rows_came_with_are_dropped_where_they_are_made_anew() -> None:
    given = rows({"candidates": [{"model": "m", "text": "t"}], "ranking": [0]})
    assert StageGraph((ONE,)).fresh(given).column("ranking").to_pylist() == [[0]]
    assert StageGraph((RANKER,)).fresh(given).column("ranking").to_pylist() == [None]


@pytest.mark.parametrize(
    ("steps", "kept"),
    [
        ((), {BLANK, RANKING_FAILED, FUSING_FAILED}),
        ((ONE,), {FUSING_FAILED}),
        ((RANKER,), {FUSING_FAILED}),
        ((FUSER,), {BLANK, RANKING_FAILED}),
    ],
)
def test_errors_of_stages_that_run_again_are_dropped(steps: tuple[StageSpec, ...], kept: set[str]) -> None:
    given = rows(*({"error": f"{begin}x"} for begin in (BLANK, RANKING_FAILED, FUSING_FAILED)))
    errors = pa.array([f"{begin}x" for begin in (BLANK, RANKING_FAILED, FUSING_FAILED)])
    given = given.set_column(given.schema.get_field_index("error"), "error", errors)
    left = {
        error.removesuffix("x") for error in StageGraph(steps).fresh(given).column("error").to_pylist() if error
    }
    assert left == kept


def test_errors_of_the_rows_themselves_stay() -> None:
    given = rows({"prompt": 5})
    (error,) = given.column("error").to_pylist()
    assert error
    assert StageGraph((ONE, RANKER, FUSER)).fresh(given).column("error").to_pylist() == [error]


def test_candidates_are_in_the_order_of_the_config_after_given_ones() -> None:
    work = StageGraph((TWO, ONE), llms=("one", "two"))
    table = rows({"candidates": [{"model": "given", "text": "0"}]}, {})
    for made, text in ((TWO, "2"), (ONE, "1")):
        table = work.joined(table, made, generated(table, Candidate(made.name, text=text)))
    assert texts(work.gathered(table)) == [["0", "1", "2"], ["1", "2"]]


def test_a_new_candidate_takes_the_place_of_an_error_of_its_model() -> None:
    work = StageGraph((ONE,), llms=("one",))
    table = rows({"candidates": [{"model": "one", "error": "timeout"}, {"model": "given", "text": "0"}]})
    table = work.joined(table, ONE, generated(table, Candidate("one", text="1")))
    assert texts(work.gathered(table)) == [["1", "0"]]


def test_a_ranker_sees_what_the_llms_made_and_llms_do_not(tmp_path: Path) -> None:
    work, store, table = (
        StageGraph((ONE, TWO, RANKER), llms=("one", "two")),
        CheckpointStore(str(tmp_path)),
        rows({}, {}),
    )
    store.save_rows("mark", "0", table)
    store.save_result(ONE.key, BLOCK, Result(generated(table, Candidate("one", text="1")), {}))
    assert texts(work.seen_by(TWO, store, "mark", "0", BLOCK)) == [[], []]
    with pytest.raises(DamagedError, match=r"what two made of block .* is gone or damaged"):
        work.seen_by(RANKER, store, "mark", "0", BLOCK)
    store.save_result(TWO.key, BLOCK, Result(generated(table, Candidate("two", text="2")), {}))
    assert texts(work.seen_by(RANKER, store, "mark", "0", BLOCK)) == [["1", "2"], ["1", "2"]]


def test_a_result_of_another_number_of_rows_is_removed(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    store.save_result(ONE.key, BLOCK, Result(generated(rows({}), Candidate("one", text="1")), {}))
    with pytest.raises(DamagedError):
        StageGraph((ONE,)).result(ONE, store, BLOCK, 2)
    assert store.done(ONE.key) == set()
