"""The account of a run and the grouping of blocks into pieces of the output."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_blender_ray.cluster.placement import Capacity, place
from llm_blender_ray.configs.schema import EchoModel, PairRanker, VLLMModel
from llm_blender_ray.pipelines.bulk.checkpoints import Block
from llm_blender_ray.pipelines.bulk.output import ROWS_PER_PIECE, Account, covered_seconds, grouped
from llm_blender_ray.pipelines.bulk.stages import StageGraph, StageSpec


def named(*sizes: int) -> list[tuple[Block, str]]:
    return [(Block(str(i), size, 0, "d", "c"), str(i)) for i, size in enumerate(sizes)]


@given(st.lists(st.integers(1, 2 * ROWS_PER_PIECE)))
def test_groups_are_all_blocks_in_order_with_enough_rows_each(sizes: list[int]) -> None:
    blocks = named(*sizes)
    groups = list(grouped(blocks))
    assert [one for group in groups for one in group] == blocks
    for group in groups[:-1]:
        rows = [block.rows for block, _ in group]
        assert sum(rows) >= ROWS_PER_PIECE > sum(rows[:-1])


def test_no_rows_are_one_empty_group() -> None:
    assert list(grouped([])) == [[]]


@pytest.mark.parametrize(
    ("spans", "expected"),
    [([], 0), ([(1, 3)], 2), ([(5, 6), (1, 3), (2, 4)], 4), ([(0, 9), (1, 2), (3, 4)], 9), ([(1, 1)], 0)],
)
def test_time_that_spans_cover_together(spans: list[tuple[float, float]], expected: float) -> None:
    assert covered_seconds(spans) == expected


def piece(**stage: Any) -> dict[str, Any]:
    account = {"rows": 4, "actor": "x", "started": 0.0, "ended": 2.0} | stage
    return {"rows": 4, "errors": 1, "kinds": {"timeout": 1}, "bad": {"bad row": 2}, "stages": [["one", account]]}


def test_pieces_add_up_to_the_records_of_stages() -> None:
    account = Account()
    account.add(piece(asked=3, failed=1, errors={"timeout": 1}))
    account.add(piece(asked=4, failed=2, errors={"timeout": 1, "HTTP 500": 2}, started=1.0, ended=3.0))
    account.add(piece(actor="y", earlier=[["x", 10.0, 11.0]]))
    assert (account.rows, account.errors, account.kinds["timeout"], account.bad["bad row"]) == (12, 3, 3, 6)
    capacity = Capacity.machine(4)
    steps = (
        StageSpec(place("one", EchoModel(engine="echo", name="one", model="m"), capacity), "generate-one"),
        StageSpec(place("ranker", PairRanker(model="r"), capacity), "rank-ranker"),
    )
    one, ranker = account.stages(StageGraph(steps), {"one": 1, "ranker": 2})
    assert (one.rows, one.asked, one.failed, one.errors) == (12, 7, 3, {"timeout": 2, "HTTP 500": 2})
    assert one.seconds == 3 + 1 + 2  # actor x from 0 to 3 and from 10 to 11, actor y from 0 to 2
    assert (one.wave, one.scorer, ranker.wave, ranker.scorer) == (1, None, 2, "pairranker")
    assert (ranker.rows, ranker.failed, ranker.seconds) == (0, 0, 0)


def test_llms_with_the_same_actors_divide_their_time() -> None:
    """An actor runs a block by all of them at once: together they took the time that it was at work."""
    settings = {"name": "base", "engine": "vllm", "model": "m", "adapters": {"legal": "p"}, "num_gpus": 1}
    pool = place("base", VLLMModel.model_validate(settings), Capacity.machine(4, 1))
    steps = tuple(StageSpec(part, part.name, shared=pool) for part in pool.parts)
    account = Account()
    for name, ended in (("base", 9.0), ("legal", 3.0)):
        one = {"rows": 4, "actor": "x", "started": 0.0, "ended": ended}
        account.add({"rows": 4, "errors": 0, "kinds": {}, "bad": {}, "stages": [[name, one]]})
    base, legal = account.stages(StageGraph(steps), {"base": 1, "legal": 1})
    assert (base.seconds, legal.seconds) == (9 * 9 / 12, 9 * 3 / 12)
    assert (base.runs, legal.runs) == ("vllm m", "vllm m with p")
