"""How many requests are worked on at once, and how many may wait for that; one more is refused at once.

A queue without a bound makes everybody wait for answers that nobody waits for any more. With one, as much is done
under any load as under the best, and who is refused knows when to come again.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator

from llm_blender_ray.actors.errors import BlendError

MIN_RETRY_AFTER_S, MAX_RETRY_AFTER_S = 1.0, 60.0  # when who was refused may come again
WEIGHT = 0.1  # of the newest request in the mean of how long they take: about the last ten count


class OverloadedError(BlendError):
    """No place for this request (HTTP 429). retry_after_s: when there should be one."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message, retry_after_s)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return str(self.args[0])


class Admission:
    """Places for requests, given in the order in which they came. It belongs to one event loop."""

    def __init__(self, max_in_flight: int, max_queued: int) -> None:
        self._max_in_flight, self._max_queued = max_in_flight, max_queued
        self._in_flight = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._mean_s: float | None = None  # that a request holds its place

    @property
    def in_flight(self) -> int:
        """Requests that have a place."""
        return self._in_flight

    @property
    def queued(self) -> int:
        """Requests that wait for one."""
        return len(self._waiting)

    def check(self) -> None:
        """Raise OverloadedError where there is neither a place nor room to wait for one."""
        if self._in_flight >= self._max_in_flight and self.queued >= self._max_queued:
            raise self._overloaded("all places are taken, and the queue is full")

    @contextlib.asynccontextmanager
    async def slot(self, patience_s: float | None = None) -> AsyncIterator[float]:
        """A place for the time of the block; gives the seconds that were waited for it.

        patience_s: a request that waits longer than so is refused rather than begun. Raises OverloadedError.
        """
        loop = asyncio.get_running_loop()
        came = loop.time()
        await self._enter(patience_s)
        began = loop.time()
        try:
            yield began - came
        finally:
            took = loop.time() - began
            self._mean_s = took if self._mean_s is None else self._mean_s + WEIGHT * (took - self._mean_s)
            self._leave()

    async def _enter(self, patience_s: float | None) -> None:
        self.check()
        if self._in_flight < self._max_in_flight:  # then nobody waits
            self._in_flight += 1
            return
        given = asyncio.get_running_loop().create_future()
        self._waiting.append(given)
        try:
            async with asyncio.timeout(patience_s):
                await given
        except BaseException as error:  # CancelledError, or too late
            if given.done() and not given.cancelled():
                self._leave()  # the place had come, and is somebody else's now
            elif given in self._waiting:
                self._waiting.remove(given)
            if isinstance(error, TimeoutError):
                raise self._overloaded("no place came free within the request's deadline") from None
            raise

    def _leave(self) -> None:
        """Hand the place on to who waits longest. It isn't free in between, so nobody jumps the queue."""
        while self._waiting:
            if not (given := self._waiting.popleft()).done():  # it is, when who waited has just been cancelled
                given.set_result(None)
                return
        self._in_flight -= 1

    def _overloaded(self, why: str) -> OverloadedError:
        """Come again when all who wait now should have had a place, at the pace of late (Little's law)."""
        drained_s = (self.queued + 1) * (self._mean_s or 0.0) / self._max_in_flight
        return OverloadedError(
            f"too many requests: {why}", min(max(drained_s, MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S)
        )
