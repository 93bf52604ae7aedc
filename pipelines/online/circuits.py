"""Circuit breakers of a blend's parts, shared by all requests of a gateway: a failed part is left out at once.

A request that makes a probe waits for it only for its grace time: the probe continues by itself, and its result is
for the next requests. A late answer is a failure only if the part had all the time that the service's settings give
it, and not where a client's own deadline, a wait in the queue or the quorum cut it short: no client can open a
breaker for others.
"""

import asyncio
import contextlib
import functools
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any, TypeVar

from llm_blender_ray.actors.circuit_breaker import CALLS_OWN, MAX_CAUSE_LENGTH, Call, CircuitBreaker, CircuitStatus
from llm_blender_ray.actors.errors import PermanentError, one_line
from llm_blender_ray.configs.breaker import BreakerSettings
from llm_blender_ray.pipelines.online.clock import now

_T = TypeVar("_T")

RANKER, FUSER = "ranker", "fuser"  # names of parts; members have their own
NEARLY_ALL = 0.9  # of its time counts as all of it: some passes before a part is called


class Circuits:
    """Breakers by part. They belong to one event loop, and use its clock."""

    def __init__(self, parts: Iterable[str], settings: BreakerSettings) -> None:
        """Make a closed breaker for each part."""
        self._listener: Callable[[str, CircuitStatus], None] | None = None
        self._breakers = {
            name: CircuitBreaker(settings, clock=now, on_change=functools.partial(self._changed, name))
            for name in parts
        }
        self._apart: set[asyncio.Task[Any]] = set()

    def __getitem__(self, part: str) -> CircuitBreaker:
        return self._breakers[part]

    def listen(self, listener: Callable[[str, CircuitStatus], None]) -> None:
        """Call `listener` with a part's name and status whenever its state changes."""
        self._listener = listener

    def status(self) -> dict[str, CircuitStatus]:
        """State of every part."""
        return {name: breaker.status for name, breaker in self._breakers.items()}

    def retry_after_s(self, parts: Iterable[str]) -> float | None:
        """Seconds until one of these parts may be called; None if one may be now, or none ever."""
        waits = [self._breakers[part].status.retry_after_s for part in parts]
        return min((wait for wait in waits if wait is not None), default=None) or None

    def apart(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """Start work that continues after the end of its request."""
        task = asyncio.get_running_loop().create_task(work)
        self._apart.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._apart.discard(task)
        if not task.cancelled():
            task.exception()  # its breaker has it: keeps asyncio from logging it

    def _changed(self, part: str, status: CircuitStatus) -> None:
        if self._listener:
            self._listener(part, status)


@contextlib.contextmanager
def ending_call(call: Call, whole_s: float | None) -> Iterator[asyncio.Event]:
    """End the call if the block raises; otherwise the block ends it.

    Args:
        call: The call.
        whole_s: The time that the service's settings give the part; None: unlimited. A call that is given up or
            cancelled after that time is a failure, unless a piece has come.

    Yields:
        Event to set when a piece of the answer has come.
    """
    since, heard = now(), asyncio.Event()
    try:
        yield heard
    except CALLS_OWN:
        call.dropped()
        raise
    except BaseException as error:
        if isinstance(error, Exception) and not isinstance(error, TimeoutError):
            call.failed(one_line(error, MAX_CAUSE_LENGTH), permanent=isinstance(error, PermanentError))
        elif whole_s is not None and not heard.is_set() and now() - since >= NEARLY_ALL * whole_s:
            call.failed(f"no answer within {whole_s:.3g} s")
        else:
            call.dropped()
        raise


async def probe(call: Call, work: Coroutine[Any, Any, _T], whole_s: float | None) -> _T:
    """Do the work of a probe, and end its call.

    Raises:
        TimeoutError: It takes longer than `whole_s`.
        Exception: What the work raises.
    """
    with ending_call(call, whole_s):
        async with asyncio.timeout(whole_s):
            result = await work
        call.succeeded()
    return result
