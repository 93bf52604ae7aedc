"""Answers side by side, in one process and without a server."""

import asyncio
from collections.abc import AsyncGenerator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect
from starlette.types import Message

from llm_blender_ray.pipelines.serve.errors import path
from llm_blender_ray.pipelines.serve.streaming import merge_streams, run_concurrently, while_connected


async def stays() -> Message:
    """The `receive` of a client that stays."""
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


async def leaves() -> Message:
    return {"type": "http.disconnect"}


async def for_ever(stopped: list[str]) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        stopped.append("stopped")


@given(st.lists(st.lists(st.integers(), max_size=5), max_size=5))
def test_merged_streams_lose_nothing_and_keep_their_order(lists: list[list[int]]) -> None:
    async def stream(items: list[int]) -> AsyncGenerator[int, None]:
        for item in items:
            yield item
            await asyncio.sleep(0)

    async def collect() -> list[tuple[int, int] | None]:
        return [item async for item in merge_streams([stream(items) for items in lists], 60)]

    got = asyncio.run(collect())
    assert [[item[1] for item in got if item and item[0] == at] for at in range(len(lists))] == lists


def test_the_first_stream_that_fails_ends_the_others() -> None:
    stopped: list[str] = []

    async def failing() -> AsyncGenerator[int, None]:
        yield 1
        raise ValueError("broken")

    async def endless() -> AsyncGenerator[int, None]:
        await for_ever(stopped)
        yield 2

    async def collect() -> list[tuple[int, int] | None]:
        got = []
        with pytest.raises(ValueError, match="broken"):
            async for item in merge_streams([endless(), failing()], 60):
                got.append(item)
        return got

    assert asyncio.run(collect()) == [(1, 1)]
    assert stopped == ["stopped"]


def test_closing_a_merged_stream_ends_the_work() -> None:
    stopped: list[str] = []

    async def endless() -> AsyncGenerator[int, None]:
        yield 1
        await for_ever(stopped)

    async def begin() -> None:
        items = merge_streams([endless(), endless()], 60)
        assert await anext(items) == (0, 1)
        assert await anext(items) == (1, 1)
        await items.aclose()

    asyncio.run(begin())
    assert stopped == ["stopped"] * 2


def test_of_works_side_by_side_the_first_error_counts() -> None:
    stopped: list[str] = []

    async def number(value: int) -> int:
        return value

    async def fails() -> int:
        await asyncio.sleep(0)
        raise ValueError("broken")

    async def endless() -> int:
        await for_ever(stopped)
        return 0

    assert asyncio.run(run_concurrently([number(2), number(1)])) == [2, 1]
    with pytest.raises(ValueError, match="broken"):
        asyncio.run(run_concurrently([endless(), fails(), endless()]))
    assert stopped == ["stopped"] * 2


def test_work_lasts_as_long_as_the_client_stays() -> None:
    stopped: list[str] = []

    async def fails() -> None:
        raise ValueError("broken")

    async def quick() -> str:
        return "done"

    async def cancelled() -> None:
        task = asyncio.create_task(while_connected(stays, for_ever(stopped)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    assert asyncio.run(while_connected(stays, quick())) == "done"
    with pytest.raises(ValueError, match="broken"):
        asyncio.run(while_connected(stays, fails()))
    with pytest.raises(ClientDisconnect):
        asyncio.run(while_connected(leaves, for_ever(stopped)))
    assert stopped == ["stopped"]
    asyncio.run(cancelled())
    assert stopped == ["stopped"] * 2


@pytest.mark.parametrize(
    ("loc", "shown"),
    [
        (("body",), None),
        (("body", "messages", 0, "content", "(list)", 2, "text"), "messages[0].content[2].text"),
        (("body", "stop", "(text)"), "stop"),
        (("body", "a\nb"), '"a\\nb"'),
        (("body", "x" * 1000), "x" * 99 + "…"),
    ],
)
def test_paths_are_those_of_the_request(loc: tuple[str | int, ...], shown: str | None) -> None:
    assert path(loc) == shown
