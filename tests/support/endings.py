"""How answers end, as values that tests can compare: a completion, or why there is none."""

from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

from llm_blender_ray.actors.engines import Completion, Piece
from llm_blender_ray.actors.errors import GenerationError

T = TypeVar("T")


async def told_or(answer: Awaitable[T]) -> T | GenerationError:
    """The answer, or its error."""
    try:
        return await answer
    except GenerationError as error:
        return error


async def followed(stream: AsyncIterator[Piece]) -> tuple[list[Any], Completion | GenerationError]:
    """A stream's pieces of reasoning and text, and how it ended."""
    pieces: list[Any] = []
    try:
        async for piece in stream:
            if isinstance(piece, Completion):
                return pieces, piece
            pieces.append(piece)
    except GenerationError as error:
        return pieces, error
    raise AssertionError("no completion")
