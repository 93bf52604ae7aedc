"""Crash isolation: finds the rows on which the process of a model dies, so that all other rows finish.

Ray Data restarts a dead actor and repeats its task without limit, and the new process has no record of the death.
The `Ledger` has it: work that was begun and never ended. A block that was begun by a process that died runs alone,
then in ever smaller groups of rows, until the rows that kill stand alone; those get an error. Pure: no Ray.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from llm_blender_ray.actors.errors import BlendError

GROUPS = 16  # into which rows that killed a process are split
ROW_ATTEMPTS = 2  # of a single row
# Deaths of a stage's actors in a row that end the run: rows are not the cause. Four rows that kill, each at work in
# a block of its own, cause 11.
MAX_DEATHS = 12

RowT = TypeVar("RowT")


@dataclass(frozen=True, slots=True)
class Begun:
    """Answer of the ledger to an actor that begins a piece of work.

    Attributes:
        died: Actors that began it before and never ended it.
        deaths: Actors of the stage that died since one of them ended something.
        result: Of the work, where it has ended with one before.
    """

    died: int = 0
    deaths: int = 0
    result: Any = None


class Ledger:
    """Record of begun and ended work by stage. It outlives the processes that do the work."""

    def __init__(self) -> None:
        self._begun: dict[tuple[str, Hashable], list[str]] = {}  # actors that began it, while none has ended it
        self._results: dict[tuple[str, Hashable], Any] = {}
        self._dead: set[str] = set()  # actors
        self._deaths: Counter[str] = Counter()  # by stage, since an actor of it ended something

    def begin(self, stage: str, work: Hashable, actor: str) -> Begun:
        """Record that an actor begins a piece of work, unless that has a result.

        Args:
            stage: Name of the stage.
            work: Identifies the work within the stage, the same in every process.
            actor: Name of the process, another one after a restart.

        Returns:
            What is known of the work.
        """
        if (stage, work) in self._results:
            return Begun(result=self._results[stage, work])
        earlier = self._begun.setdefault((stage, work), [])
        died = len(earlier)
        lost = set(earlier) - self._dead  # an actor dies once, however much it had begun
        self._dead |= lost
        self._deaths[stage] += len(lost)
        earlier.append(actor)
        return Begun(died, self._deaths[stage])

    def end(self, stage: str, work: Hashable, result: Any = None, *, survived: bool = True) -> None:
        """Record that a piece of work has ended.

        Args:
            stage: As given to `begin`.
            work: As given to `begin`.
            result: Returned to a process that begins the work again.
            survived: Whether a process did the work, so that the stage's deaths count from zero.
        """
        self._begun.pop((stage, work), None)
        if survived:
            self._deaths[stage] = 0
        if result is not None:
            self._results[stage, work] = result


class AsyncLedger(Protocol):
    """A `Ledger` in another process."""

    async def begin(self, stage: str, work: Hashable, actor: str) -> Begun:
        """See `Ledger`."""
        ...

    async def end(self, stage: str, work: Hashable, result: Any = None, *, survived: bool = True) -> None:
        """See `Ledger`."""
        ...


class Isolation(Generic[RowT]):
    """Runs blocks of rows in this process, and isolates the rows on which an earlier process died."""

    def __init__(
        self, stage: str, actor: str, ledger: AsyncLedger, fail: Callable[[RowT], RowT], gate: "Gate | None" = None
    ) -> None:
        """Isolate the rows of one actor.

        Args:
            stage: Name of the stage.
            actor: Name of this process, another one after a restart.
            ledger: Shared by all actors of the stage.
            fail: Gives a row on which the process dies its error.
            gate: That of all stages of this process; None: this is the only one.
        """
        self._stage, self._actor, self._ledger, self._fail = stage, actor, ledger, fail
        self._gate = gate or Gate()

    async def run(
        self, block: str, rows: Sequence[RowT], work: Callable[[Sequence[RowT]], Awaitable[list[RowT]]]
    ) -> list[RowT]:
        """Run the rows of a block: together with other blocks, or alone where a process died on it.

        Args:
            block: Name of the block.
            rows: Its rows.
            work: Applied to some of the rows at a time; may end the process.

        Returns:
            The rows in order, those that kill as `fail` makes them.

        Raises:
            BlendError: The stage's processes die whatever they do.
        """

        async def group(low: int, high: int) -> list[RowT]:
            piece = (block, low, high)
            begun = await self._begin(piece)
            if begun.result is not None:
                return list(begun.result)
            alone = high - low == 1
            if begun.died < (ROW_ATTEMPTS if alone else 1):
                done = await work(rows[low:high])
                await self._ledger.end(self._stage, piece, done)
                return done
            if alone:
                return [self._fail(rows[low])]
            size = -(-(high - low) // GROUPS)
            parts = [await group(start, min(start + size, high)) for start in range(low, high, size)]
            return [row for part in parts for row in part]

        if not rows:
            return []
        if (await self._begin(block)).died == 0:
            async with self._gate.shared():
                done = await work(rows)
            await self._ledger.end(self._stage, block)
        else:
            async with self._gate.alone():
                done = await group(0, len(rows))
            await self._ledger.end(self._stage, block, survived=False)  # its groups recorded what they survived
        return done

    async def _begin(self, work: Hashable) -> Begun:
        begun = await self._ledger.begin(self._stage, work, self._actor)
        if begun.died and begun.deaths > MAX_DEATHS:
            raise BlendError(
                f"{self._stage}: its process died {begun.deaths} times and finished nothing in between"
            )
        return begun


class Gate:
    """Admits many at once or one alone, so that a process that dies on work alone died of it."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._inside = 0  # -1: one alone
        self._waiting_alone = 0

    @contextlib.asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        """Enter together with others, after those that wait to be alone."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._inside >= 0 and not self._waiting_alone)
            self._inside += 1
        try:
            yield
        finally:
            await self._leave(-1)

    @contextlib.asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Enter when all others have left, and keep them out."""
        async with self._changed:
            self._waiting_alone += 1
            try:
                await self._changed.wait_for(lambda: self._inside == 0)
            finally:
                self._waiting_alone -= 1
                self._changed.notify_all()
            self._inside = -1
        try:
            yield
        finally:
            await self._leave(1)

    async def _leave(self, change: int) -> None:
        async with self._changed:
            self._inside += change
            self._changed.notify_all()
