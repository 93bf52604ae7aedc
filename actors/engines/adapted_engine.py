"""One adapter of an engine, as an engine of its own."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from llm_blender_ray.actors.engines import AdaptingEngine, Completion, Piece
from llm_blender_ray.actors.engines.wrapper import EngineWrapper
from llm_blender_ray.actors.records import Message
from llm_blender_ray.configs.adapters import Adapter
from llm_blender_ray.configs.schema import Sampling


class AdaptedEngine(EngineWrapper):
    """Answers with one adapter of an engine that others share; `close` closes it for all of them."""

    def __init__(self, engine: AdaptingEngine, adapter: Adapter) -> None:
        """Use an engine that has the adapter."""
        super().__init__(engine)
        self._adapting, self._adapter = engine, adapter

    async def generate(self, messages: list[Message], sampling: Sampling) -> Completion:
        """See `actors.engines.Engine`."""
        return await self._adapting.generate(messages, sampling, self._adapter)

    async def stream(self, messages: list[Message], sampling: Sampling) -> AsyncGenerator[Piece, None]:
        """See `actors.engines.Engine`."""
        async with aclosing(self._adapting.stream(messages, sampling, self._adapter)) as pieces:
            async for piece in pieces:
                yield piece
