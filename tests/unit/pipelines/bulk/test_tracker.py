"""Progress and failure tracker, as a plain object."""

import pytest

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.pipelines.bulk.tracker import Count, RunTracker, Snapshot


@pytest.fixture
def tracker() -> RunTracker:
    return RunTracker()


def test_counts_add_up_by_stage(tracker: RunTracker) -> None:
    tracker.add("a", Count(rows=2, failed=1))
    tracker.add("a", Count(rows=3, saved=3, prompt_tokens=7))
    tracker.add("b", Count(comparisons=4))
    tracker.loaded("a")
    tracker.loaded("a")
    counts = {"a": Count(rows=5, saved=3, failed=1, prompt_tokens=7), "b": Count(comparisons=4)}
    assert tracker.snapshot() == Snapshot(counts, {"a": 2})


def test_a_snapshot_does_not_change_later(tracker: RunTracker) -> None:
    before = tracker.snapshot()
    tracker.add("a", Count(rows=1))
    tracker.loaded("a")
    assert before == Snapshot()


def test_work_that_ended_was_not_survived_by_luck(tracker: RunTracker) -> None:
    assert tracker.begin("a", "block", "actor 1") == 0
    tracker.end("a", "block")
    assert tracker.begin("a", "block", "actor 2") == 0


def test_every_beginning_without_an_end_is_a_death(tracker: RunTracker) -> None:
    assert [tracker.begin("a", "block", f"actor {i}") for i in range(3)] == [0, 1, 2]
    assert tracker.deaths("a") == 2
    assert tracker.begin("b", "block", "actor 0") == 0  # another stage
    assert tracker.deaths("b") == 0


def test_an_actor_dies_once_whatever_it_had_in_hand(tracker: RunTracker) -> None:
    for block in ("x", "y", "z"):
        tracker.begin("a", block, "actor 1")
    for block in ("x", "y", "z"):
        assert tracker.begin("a", block, "actor 2") == 1
    assert tracker.deaths("a") == 1


def test_deaths_in_a_row_end_when_something_survives(tracker: RunTracker) -> None:
    tracker.begin("a", "x", "actor 1")
    tracker.begin("a", "x", "actor 2")
    tracker.end("a", "x", survived=False)  # its rows were given up
    assert tracker.deaths("a") == 1
    tracker.begin("a", "y", "actor 2")
    tracker.end("a", "y")
    assert tracker.deaths("a") == 0


def test_results_of_ended_work_are_kept_for_after_a_death(tracker: RunTracker) -> None:
    tracker.begin("a", ("block", 0, 2), "actor 1")
    tracker.end("a", ("block", 0, 2), ["one", "two"])
    assert tracker.kept("a", ("block", 0, 2)) == ["one", "two"]
    assert tracker.kept("b", ("block", 0, 2)) is tracker.kept("a", ("block", 0, 1)) is None


def test_the_first_failure_ends_the_run(tracker: RunTracker) -> None:
    assert tracker.failure() is None
    first = BlendError("first")
    tracker.fail(first)
    tracker.fail(BlendError("second"))
    assert tracker.failure() is first


def test_a_reset_forgets_everything(tracker: RunTracker) -> None:
    tracker.add("a", Count(rows=1))
    tracker.fail(BlendError("failed"))
    tracker.begin("a", "x", "actor 1")
    tracker.end("a", "x", "kept")
    tracker.reset()
    assert (tracker.snapshot(), tracker.failure(), tracker.kept("a", "x")) == (Snapshot(), None, None)
