"""Base class of engines that change another engine's calls."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from llm_blender_ray.actors.engines import Completion, Engine, Piece
from llm_blender_ray.actors.records import Message
from llm_blender_ray.configs.schema import Sampling


class EngineWrapper:
    """An engine that passes all calls on; subclasses change some. See `actors.engines.Engine`."""

    def __init__(self, engine: Engine) -> None:
        """Wrap an engine."""
        self._engine = engine

    async def generate(self, messages: list[Message], sampling: Sampling) -> Completion:
        """See `actors.engines.Engine`."""
        return await self._engine.generate(messages, sampling)

    async def stream(self, messages: list[Message], sampling: Sampling) -> AsyncGenerator[Piece, None]:
        """See `actors.engines.Engine`."""
        async with aclosing(self._engine.stream(messages, sampling)) as pieces:
            async for piece in pieces:
                yield piece

    async def check_health(self) -> None:
        """See `actors.engines.Engine`."""
        await self._engine.check_health()

    async def close(self) -> None:
        """See `actors.engines.Engine`."""
        await self._engine.close()
