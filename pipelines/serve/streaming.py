"""Execution of requests: as long as the client is connected, several choices concurrently."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine, Sequence
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

_T = TypeVar("_T")


async def while_connected(receive: Receive, work: Coroutine[Any, Any, _T]) -> _T:
    """Result of `work`, which is cancelled when the client disconnects or the caller is cancelled.

    Args:
        receive: The request's, whose body has been read. Servers do not do this for responses in one piece.
        work: The work.

    Raises:
        ClientDisconnect: The client has disconnected.
        Exception: What `work` raises.
    """
    task, gone = asyncio.create_task(work), asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        await _end(task, gone)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def run_concurrently(works: Sequence[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Results of all works; the first exception ends the others, and is raised."""
    if len(works) == 1:
        return [await works[0]]
    tasks = [asyncio.create_task(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await _end(*tasks)


async def merge_streams(
    streams: Sequence[AsyncGenerator[_T, None]], silence_s: float | None = None
) -> AsyncGenerator[tuple[int, _T] | None, None]:
    """Merge streams.

    The first stream that raises ends the others, and is raised. Closing this closes them.

    Yields:
        Items as they come, with their stream's index; None after each `silence_s` without one, if given.
    """
    items: asyncio.Queue[tuple[int, _T] | Exception | None] = asyncio.Queue()

    async def pour(at: int, stream: AsyncGenerator[_T, None]) -> None:
        try:
            async with contextlib.aclosing(stream):
                async for item in stream:
                    items.put_nowait((at, item))
            items.put_nowait(None)
        except Exception as error:
            items.put_nowait(error)

    tasks = [asyncio.create_task(pour(at, stream)) for at, stream in enumerate(streams)]
    running = len(tasks)
    try:
        while running:
            try:
                async with asyncio.timeout(silence_s):
                    item = await items.get()
            except TimeoutError:
                yield None
                continue
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        await _end(*tasks)


async def _end(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class EventStream(StreamingResponse):
    """Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html) of ready-made lines."""

    media_type = "text/event-stream"

    def __init__(self, first: str, rest: AsyncGenerator[str, None]) -> None:
        """Set the lines.

        Args:
            first: The first line, made already.
            rest: The other lines; closed in any case.
        """
        super().__init__(self._all(first), headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        self._rest, self._ended = rest, False

    async def _all(self, first: str) -> AsyncGenerator[str, None]:
        yield first
        async for line in self._rest:
            yield line
        self._ended = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the lines.

        Raises:
            ClientDisconnect: The client has disconnected.
        """
        async with contextlib.aclosing(self._rest):
            await super().__call__(scope, receive, send)
        if not self._ended:
            raise ClientDisconnect
