"""How answers end, as values that tests can compare: a completion, or why there is none."""

from collections.abc import AsyncIterator, Awaitable
from typing import TypeVar

from llm_blender_ray.actors.engines import Completion
from llm_blender_ray.actors.errors import GenerationError

T = TypeVar("T")


async def told_or(answer: Awaitable[T]) -> T | GenerationError:
    """The answer, or its error."""
    try:
        return await answer
    except GenerationError as error:
        return error


async def followed(stream: AsyncIterator[str | Completion]) -> tuple[list[str], Completion | GenerationError]:
    """A stream's pieces, and how it ended."""
    pieces: list[str] = []
    try:
        async for piece in stream:
            if isinstance(piece, Completion):
                return pieces, piece
            pieces.append(piece)
    except GenerationError as error:
        return pieces, error
    raise AssertionError("no completion")
