"""Progress and failure tracker, as a plain object."""

import pytest

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.pipelines.bulk.isolation import Begun
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
    assert (tracker.snapshot(), tracker.failure()) == (Snapshot(), None)
    assert tracker.begin("a", "x", "actor 2") == Begun()
