"""The board: a small Ray actor on which the actors of a run tell how far they are, and the driver reads.

It also carries what Ray doesn't pass on well: the error that ends a run (what an actor raises arrives as the text
of a traceback), and which work an actor was at when it died.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, Self

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from llm_blender_ray.actors.errors import BlendError, one_line


@dataclass(frozen=True, slots=True)
class Count:
    """What one stage has done. Rows that were saved by an earlier session count, and are told apart as `saved`.

    failed: rows on which the stage has an error. Tokens are those made in this session.
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
    """The board at one moment. loaded: actors of a stage that hold their model."""

    counts: dict[str, Count] = field(default_factory=dict)
    loaded: dict[str, int] = field(default_factory=dict)


class RunTracker:
    """The actor itself. Work is anything hashable that tells one piece of work from others."""

    def __init__(self) -> None:
        self._counts: dict[str, Count] = {}
        self._loaded: Counter[str] = Counter()
        self._failure: BlendError | None = None
        self._begun: dict[Any, list[str]] = {}  # the actors that began a piece of work, while none has ended it
        self._kept: dict[Any, Any] = {}
        self._dead: set[str] = set()  # actors known to have died
        self._deaths: Counter[str] = Counter()  # of a stage's actors since one finished something

    def reset(self) -> None:
        """Forget everything: the run tries again."""
        RunTracker.__init__(self)

    def add(self, stage: str, count: Count) -> None:
        """A stage has done more."""
        self._counts[stage] = self._counts.get(stage, Count()) + count

    def loaded(self, stage: str) -> None:
        """One more actor of a stage holds its model."""
        self._loaded[stage] += 1

    def snapshot(self) -> Snapshot:
        """Everything there is to show."""
        return Snapshot(dict(self._counts), dict(self._loaded))

    def begin(self, stage: str, work: Any, actor: str) -> int:
        """An actor begins a piece of work; gives how often one began it and never came to its end."""
        earlier = self._begun.setdefault((stage, work), [])
        died = len(earlier)
        lost = set(earlier) - self._dead  # an actor dies once, whatever it had in hand
        self._dead |= lost
        self._deaths[stage] += len(lost)
        earlier.append(actor)
        return died

    def end(self, stage: str, work: Any, result: Any = None, *, survived: bool = True) -> None:
        """The work is done; survived: by a process, not by giving its rows up.

        A result is kept for whoever has to go on from it after a later death.
        """
        self._begun.pop((stage, work), None)
        if survived:
            self._deaths[stage] = 0
        if result is not None:
            self._kept[stage, work] = result

    def kept(self, stage: str, work: Any) -> Any:
        """The result of work that has ended, if it was kept."""
        return self._kept.get((stage, work))

    def deaths(self, stage: str) -> int:
        """Of actors of this stage, one after the other, none of which finished anything."""
        return self._deaths[stage]

    def fail(self, error: BlendError) -> None:
        """What ends the run; the first counts."""
        self._failure = self._failure or error

    def failure(self) -> BlendError | None:
        """What ended the run, None while nothing has."""
        return self._failure


@contextmanager
def telling(board: Any) -> Iterator[None]:
    """Let the driver know of what is raised in the block, which Ray passes on as the text of a traceback."""
    try:
        yield
    except Exception as error:
        told = error if isinstance(error, BlendError) else BlendError(f"the run failed: {one_line(error)}")
        ray.get(board.fail.remote(told))
        raise


def start_board() -> Any:
    """A board's handle, which can be handed to actors; on the driver's node, without which there is no run."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(RunTracker).options(num_cpus=0, scheduling_strategy=here).remote()


@contextmanager
def a_board() -> Iterator[Any]:
    """A board for the block."""
    board = start_board()
    try:
        yield board
    finally:
        if ray.is_initialized():
            ray.kill(board)
