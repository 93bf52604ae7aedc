"""Rows of a block that a stage still has to run, and the result of all of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from llm_blender_ray.actors.records import Blend, Candidate, Ranking, digest
from llm_blender_ray.cluster.placement import Capacity, place
from llm_blender_ray.configs.schema import EchoModel, EchoRanker
from llm_blender_ray.pipelines.bulk.checkpoints import CheckpointStore, Result
from llm_blender_ray.pipelines.bulk.results import candidates_of
from llm_blender_ray.pipelines.bulk.reuse import Reuse
from llm_blender_ray.pipelines.bulk.stages import StageSpec
from llm_blender_ray.pipelines.rows.schema import ROW_SCHEMA, read_row

CAPACITY = Capacity.machine(2)
LLM = StageSpec(place("m", EchoModel(engine="echo", name="m", model="m"), CAPACITY), "generate-m-new")
RANKER = StageSpec(place("ranker", EchoRanker(kind="echo"), CAPACITY), "rank-ranker-new", scorer="s")
SESSION = {"attempt": 0, "actor": "a", "started": 1.0, "ended": 2.0}


def rows(*prompts: str, **columns: Any) -> pa.Table:
    given = [read_row({"id": prompt, "prompt": prompt} | columns, "") for prompt in prompts]
    return pa.Table.from_pylist(given, schema=ROW_SCHEMA)


def answered(blends: list[Blend], *texts: str | None) -> list[Blend]:
    """The blends with an answer of the LLM each; None is a failure."""
    answers = [Candidate("m", text=text, error=None if text else "timeout") for text in texts]
    return [replace(blend, candidates=(*blend.candidates, one)) for blend, one in zip(blends, answers, strict=True)]


def texts(result: Result) -> list[str | None]:
    return [row[0].text for row in candidates_of(result.table)]


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(str(tmp_path))


def test_without_earlier_results_all_rows_run(store: CheckpointStore) -> None:
    reuse = Reuse(LLM, store)
    pending = reuse.pending("block", rows("x", "y"), None)
    assert (pending.rows, pending.asked, pending.known) == ([0, 1], pending.blends, {})
    result = reuse.result("block", pending, answered(pending.asked, "1", None), SESSION)
    assert texts(result) == ["1", None]
    account = result.account
    assert (account["rows"], account["failed"], account["actor"]) == (2, 1, "a")
    assert "earlier" not in account


def test_a_new_attempt_runs_what_failed_and_keeps_the_rest(store: CheckpointStore) -> None:
    reuse = Reuse(LLM, store)
    pending = reuse.pending("block", rows("x", "y", "z"), None)
    first = reuse.result("block", pending, answered(pending.asked, "1", None, "3"), SESSION)
    pending = reuse.pending("block", rows("x", "y", "z"), first)
    assert ([blend.prompt.id for blend in pending.asked], pending.rows) == (["y"], [1])
    result = reuse.result("block", pending, answered(pending.asked, "2"), SESSION | {"attempt": 1, "actor": "b"})
    assert texts(result) == ["1", "2", "3"]
    account = result.account
    assert (account["attempt"], account["earlier"], account["again"]) == (1, [["a", 1.0, 2.0]], 1)


def test_a_result_of_another_number_of_rows_is_not_reused(store: CheckpointStore) -> None:
    reuse = Reuse(LLM, store)
    pending = reuse.pending("block", rows("x"), None)
    first = reuse.result("block", pending, answered(pending.asked, "1"), SESSION)
    assert reuse.pending("block", rows("x", "y"), first).rows == [0, 1]


def test_rows_keep_their_results_in_other_blocks_of_a_changed_input(store: CheckpointStore) -> None:
    before = Reuse(LLM, store).pending("old", rows("x", "y"), None)
    store.save_result(
        LLM.key, "old", Reuse(LLM, store).result("old", before, answered(before.asked, "1", "2"), SESSION)
    )
    reuse = Reuse(LLM, store, ["old", "gone"])
    pending = reuse.pending("new", rows("w", "y"), None)
    assert [blend.prompt.id for blend in pending.asked] == ["w"]
    result = reuse.result("new", pending, answered(pending.asked, "0"), SESSION | {"actor": "b"})
    assert texts(result) == ["0", "2"]
    assert result.account["earlier"] == [["a", 1.0, 2.0]]  # the seconds of the rows that it keeps
    assert reuse.pending("newer", rows("v"), None).rows == [0]


def test_a_block_that_runs_while_another_looks_for_its_rows_finds_its_own(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Reuse(LLM, store).pending("old", rows("x"), None)
    store.save_result(LLM.key, "old", Reuse(LLM, store).result("old", before, answered(before.asked, "1"), SESSION))
    reuse, read, inner = Reuse(LLM, store, ["old"]), CheckpointStore.result, []

    def read_slowly(self: CheckpointStore, stage: str, name: str) -> Result | None:
        monkeypatch.setattr(CheckpointStore, "result", read)
        inner.append(reuse.pending("second", rows("x"), None).rows)
        return self.result(stage, name)

    monkeypatch.setattr(CheckpointStore, "result", read_slowly)
    assert [reuse.pending("first", rows("x"), None).rows, *inner] == [[], []]


@pytest.mark.parametrize(("scorer", "known"), [("s", True), ("other", False)])
def test_scores_of_the_same_scorer_in_other_rankings_are_known(
    store: CheckpointStore, scorer: str, known: bool
) -> None:
    table = rows("x", candidates=[{"model": "a", "text": "1"}, {"model": "b", "text": "2"}])
    before = replace(RANKER, key="rank-ranker-old", scorer=scorer)
    pending = Reuse(before, store).pending("block", table, None)
    (blend,) = pending.asked
    ranking = Ranking((0, 1), (0.5, -0.5), ((None, 0.5), (-0.5, None)), 2)
    done = [replace(blend, ranking=ranking)]
    store.save_result(before.key, "block", Reuse(before, store).result("block", pending, done, SESSION))
    found = Reuse(replace(RANKER, older=(before.key,)), store).pending("block", table, None)
    scores = {digest(blend.prompt, "1", "2"): 0.5, digest(blend.prompt, "2", "1"): -0.5}
    assert found.known == (scores if known else {})


def test_a_row_that_fails_keeps_its_ranking_from_before_the_config_changed(store: CheckpointStore) -> None:
    table = rows("x", candidates=[{"model": "a", "text": "1"}, {"model": "b", "text": "2"}])
    before = replace(RANKER, key="rank-ranker-old")
    pending = Reuse(before, store).pending("block", table, None)
    ranking = Ranking((1, 0), (-0.5, 0.5), ((None, -0.5), (0.5, None)), 2)
    done = [replace(pending.asked[0], ranking=ranking)]
    store.save_result(before.key, "block", Reuse(before, store).result("block", pending, done, SESSION))
    failed = [replace(pending.asked[0], error="ranking failed: timeout")]
    for previous, expected in ((None, None), (before.key, [1, 0])):
        reuse = Reuse(replace(RANKER, previous=previous), store)
        result = reuse.result("block", reuse.pending("block", table, None), failed, SESSION)
        assert result.table.column("ranking").to_pylist() == [expected]
