"""Time of the running event loop, which is virtual in tests."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import TypeVar

_T = TypeVar("_T")


def now() -> float:
    """Seconds on the running loop's clock."""
    return asyncio.get_running_loop().time()


def least_limit(*limits: float | None) -> float | None:
    """The least of the limits; None is no limit."""
    return min((limit for limit in limits if limit is not None), default=None)


async def in_time(items: AsyncGenerator[_T, None], limit: float | None) -> AsyncGenerator[_T, None]:
    """Yield the items that come within `limit` seconds; `items` is closed in any case.

    `asyncio.timeout` must not be open while an item is with the reader: it would cancel the reader.

    Raises:
        TimeoutError: An item is late.
    """
    until = None if limit is None else asyncio.get_running_loop().time() + limit
    async with contextlib.aclosing(items):
        while True:
            async with asyncio.timeout_at(until):
                try:
                    item = await anext(items)
                except StopAsyncIteration:
                    return
            yield item
