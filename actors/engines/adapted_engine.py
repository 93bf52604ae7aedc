"""One adapter of an engine, as an engine of its own."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from llm_blender_ray.actors.engines import AdaptingEngine, Completion, Piece
from llm_blender_ray.actors.records import Message
from llm_blender_ray.configs.adapters import Adapter
from llm_blender_ray.configs.schema import Sampling


class AdaptedEngine:
    """Answers with one adapter of an engine that others share. See `actors.engines.Engine`."""

    def __init__(self, engine: AdaptingEngine, adapter: Adapter) -> None:
        """Use an engine that has the adapter."""
        self._engine, self._adapter = engine, adapter

    async def generate(self, messages: list[Message], sampling: Sampling) -> Completion:
        """See `actors.engines.Engine`."""
        return await self._engine.generate(messages, sampling, self._adapter)

    async def stream(self, messages: list[Message], sampling: Sampling) -> AsyncGenerator[Piece, None]:
        """See `actors.engines.Engine`."""
        async with aclosing(self._engine.stream(messages, sampling, self._adapter)) as pieces:
            async for piece in pieces:
                yield piece

    async def check_health(self) -> None:
        """See `actors.engines.Engine`."""
        await self._engine.check_health()

    async def close(self) -> None:
        """See `actors.engines.Engine`. It closes the engine for all that share it."""
        await self._engine.close()
