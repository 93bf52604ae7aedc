"""Progress and failure tracker: a Ray actor that the workers of a run report to and the driver polls.

It also holds what Ray does not pass on: the error that ends a run (Ray gives the text of a traceback), and the
ledger of begun work, which outlives the workers.
"""

from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, Self

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from llm_blender_ray.actors.errors import BlendError, one_line
from llm_blender_ray.pipelines.bulk.isolation import Begun, Ledger


@dataclass(frozen=True, slots=True)
class Count:
    """Work of one stage on the whole run: rows of earlier sessions count, and are also counted as `saved`.

    `failed`: rows on which the stage has an error, of all sessions. Tokens and comparisons are those of blocks that
    this session worked on.
    """

    rows: int = 0
    saved: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    comparisons: int = 0

    def __add__(self, other: Self) -> Self:
        return type(self)(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Progress at one moment, by stage.

    Attributes:
        counts: What each stage has done.
        loaded: Actors of a stage that hold their model.
    """

    counts: dict[str, Count] = field(default_factory=dict)
    loaded: dict[str, int] = field(default_factory=dict)


class RunTracker(Ledger):
    """Progress, failure and ledger of a run; runs as a Ray actor."""

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[str, Count] = {}
        self._loaded: Counter[str] = Counter()
        self._failure: BlendError | None = None

    def reset(self) -> None:
        """Forget everything, for another try of the run."""
        RunTracker.__init__(self)

    def add(self, stage: str, count: Count) -> None:
        """Add to what a stage has done."""
        self._counts[stage] = self._counts.get(stage, Count()) + count

    def loaded(self, stage: str) -> None:
        """Count one more actor of a stage that holds its model."""
        self._loaded[stage] += 1

    def snapshot(self) -> Snapshot:
        """Return the progress so far."""
        return Snapshot(dict(self._counts), dict(self._loaded))

    def fail(self, error: BlendError) -> None:
        """Record the error that ends the run; the first one counts."""
        self._failure = self._failure or error

    def failure(self) -> BlendError | None:
        """Return the error that ended the run; None while there is none."""
        return self._failure


class RemoteLedger:
    """Ledger of a `RunTracker` actor: an `isolation.AsyncLedger`."""

    def __init__(self, tracker: Any) -> None:
        """Use the tracker of this handle."""
        self._tracker = tracker

    async def begin(self, stage: str, work: Hashable, actor: str) -> Begun:
        """See `isolation.Ledger`."""
        begun: Begun = await self._tracker.begin.remote(stage, work, actor)
        return begun

    async def end(self, stage: str, work: Hashable, result: Any = None, *, survived: bool = True) -> None:
        """See `isolation.Ledger`."""
        await self._tracker.end.remote(stage, work, result, survived=survived)


@contextmanager
def reporting_failure(tracker: Any) -> Iterator[None]:
    """Report what the block raises to the driver; Ray passes on only the text of a traceback."""
    try:
        yield
    except Exception as error:
        told = error if isinstance(error, BlendError) else BlendError(f"the run failed: {one_line(error)}")
        ray.get(tracker.fail.remote(told))
        raise


def start_tracker() -> Any:
    """Start a run's tracker on the driver's node; the handle can be passed to actors.

    No run outlives its driver, so no other node is as safe.
    """
    return ray.remote(RunTracker).options(num_cpus=0, scheduling_strategy=on_this_node()).remote()


def on_this_node() -> NodeAffinitySchedulingStrategy:
    """Scheduling strategy of actors that live as long as the driver."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


@contextmanager
def run_tracker() -> Iterator[Any]:
    """Tracker for the block."""
    tracker = start_tracker()
    try:
        yield tracker
    finally:
        if ray.is_initialized():
            ray.kill(tracker)
