"""Bounded queue: a number of requests in flight, a number waiting; any further one is rejected at once.

An unbounded queue spends capacity on requests whose clients have given up. With a bound, throughput under any load
is that under the best one, and a rejected client learns when to retry.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator

from llm_blender_ray.actors.errors import BlendError

MIN_RETRY_AFTER_S, MAX_RETRY_AFTER_S = 1.0, 60.0  # Retry-After of a rejected request
WEIGHT = 0.1  # of the newest request in the mean duration: about the last ten count


class OverloadedError(BlendError):
    """No place for this request (HTTP 429).

    Attributes:
        retry_after_s: Seconds until there should be one.
    """

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message, retry_after_s)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return str(self.args[0])


class Admission:
    """Places for requests, first come, first served. It belongs to one event loop."""

    def __init__(self, max_in_flight: int, max_queued: int) -> None:
        self._max_in_flight, self._max_queued = max_in_flight, max_queued
        self._in_flight = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._mean_s: float | None = None  # duration of a request in its place

    @property
    def in_flight(self) -> int:
        """Requests with a place."""
        return self._in_flight

    @property
    def queued(self) -> int:
        """Requests waiting for a place."""
        return len(self._waiting)

    def check(self) -> None:
        """Check that there is a place, or room to wait for one.

        Raises:
            OverloadedError: There is neither.
        """
        if self._in_flight >= self._max_in_flight and self.queued >= self._max_queued:
            raise self._overloaded("all places are taken, and the queue is full")

    @contextlib.asynccontextmanager
    async def slot(self, patience_s: float | None = None) -> AsyncIterator[float]:
        """Hold a place for the time of the block.

        Args:
            patience_s: A request that waits longer is rejected instead of begun.

        Yields:
            Seconds that the request waited.

        Raises:
            OverloadedError: There is no place.
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
        if self._in_flight < self._max_in_flight:  # then none waits
            self._in_flight += 1
            return
        given = asyncio.get_running_loop().create_future()
        self._waiting.append(given)
        try:
            async with asyncio.timeout(patience_s):
                await given
        except BaseException as error:  # CancelledError, or too late
            if given.done() and not given.cancelled():
                self._leave()  # the place was assigned meanwhile: pass it on
            elif given in self._waiting:
                self._waiting.remove(given)
            if isinstance(error, TimeoutError):
                raise self._overloaded("no place came free within the request's deadline") from None
            raise

    def _leave(self) -> None:
        """Pass the place to the longest waiting request. It is not free in between, so none jumps the queue."""
        while self._waiting:
            if not (given := self._waiting.popleft()).done():  # done: its request has just been cancelled
                given.set_result(None)
                return
        self._in_flight -= 1

    def _overloaded(self, why: str) -> OverloadedError:
        """Error whose retry time is when all waiting requests should have a place, at the recent rate.

        By Little's law: waiting requests times the mean duration, over the number of places.
        """
        drained_s = (self.queued + 1) * (self._mean_s or 0.0) / self._max_in_flight
        return OverloadedError(
            f"too many requests: {why}", min(max(drained_s, MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S)
        )
