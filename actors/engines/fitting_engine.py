"""An engine for requests that allow longer answers than a model has room for.

Clients send `max_tokens` of 8,192 and more to models of any size. Where prompt and answer do not fit, the
model's own `sampling.max_tokens` counts: a generous bound must not cost the answer.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from llm_blender_ray.actors.engines import Completion, Engine, Piece
from llm_blender_ray.actors.engines.wrapper import EngineWrapper
from llm_blender_ray.actors.errors import TooLongError
from llm_blender_ray.actors.records import Message
from llm_blender_ray.configs.schema import Sampling


class FittingEngine(EngineWrapper):
    """Retries a request that is too long with the model's own `max_tokens`. See `actors.engines.Engine`."""

    def __init__(self, engine: Engine, max_tokens: int) -> None:
        """Wrap an engine.

        Args:
            engine: The engine.
            max_tokens: The model's own `sampling.max_tokens`.
        """
        super().__init__(engine)
        self._max_tokens = max_tokens

    async def generate(self, messages: list[Message], sampling: Sampling) -> Completion:
        """See `actors.engines.Engine`."""
        shorter = self._shorter(sampling)
        try:
            return await self._engine.generate(messages, sampling)
        except TooLongError:
            if shorter is None:
                raise
        return await self._engine.generate(messages, shorter)

    async def stream(self, messages: list[Message], sampling: Sampling) -> AsyncGenerator[Piece, None]:
        """See `actors.engines.Engine`."""
        shorter = self._shorter(sampling)
        begun = False
        try:
            async with aclosing(super().stream(messages, sampling)) as pieces:
                async for piece in pieces:
                    begun = True
                    yield piece
            return
        except TooLongError:
            if shorter is None or begun:
                raise
        async with aclosing(super().stream(messages, shorter)) as pieces:
            async for piece in pieces:
                yield piece

    def _shorter(self, sampling: Sampling) -> Sampling | None:
        """The settings with the model's own bound; None where they allow no more than that."""
        if sampling.max_tokens <= self._max_tokens:
            return None
        return sampling.model_copy(update={"max_tokens": self._max_tokens})
