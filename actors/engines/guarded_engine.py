"""An endpoint behind a circuit breaker: while it is down, prompts fail at once in place of waiting for its retries.

Calls beyond `max_in_flight` wait here and not in the engine, so that those that wait when the breaker opens fail
too. A probe is one attempt without retries: the prompt that it is made for, and so its block, waits for no backoff.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable

from actors.circuit_breaker import CircuitBreaker
from actors.engines import Completion, Engine
from actors.records import Message
from configs.schema import EndpointModel, Sampling


class GuardedEngine:
    """See `actors.engines.Engine`. Raises NotAskedError while the endpoint is left alone."""

    def __init__(
        self, model: EndpointModel, breaker: CircuitBreaker, load: Callable[[EndpointModel], Engine]
    ) -> None:
        """Load the engine, and another one for probes.

        Args:
            model: The endpoint.
            breaker: Its circuit breaker.
            load: Makes the engine of an endpoint.

        Raises:
            ModelLoadError: The engine can't be used.
        """
        self._engine = load(model)
        self._prober = load(model.model_copy(update={"max_retries": 0}))
        self._breaker = breaker
        self._in_flight = asyncio.Semaphore(model.max_in_flight)
        self.opens_reasoning = self._engine.opens_reasoning

    async def generate(self, messages: list[Message], sampling: Sampling) -> Completion:
        """See `actors.engines.Engine`."""
        async with self._turn() as engine:
            return await engine.generate(messages, sampling)

    async def stream(self, messages: list[Message], sampling: Sampling) -> AsyncGenerator[str | Completion, None]:
        """See `actors.engines.Engine`."""
        async with self._turn() as engine, contextlib.aclosing(engine.stream(messages, sampling)) as pieces:
            async for piece in pieces:
                yield piece

    async def check_health(self) -> None:
        """See `actors.engines.Engine`."""
        await self._engine.check_health()

    async def close(self) -> None:
        """See `actors.engines.Engine`."""
        await self._engine.close()
        await self._prober.close()

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[Engine]:
        """The engine for one call. Raises NotAskedError."""
        if self._breaker.closed:
            async with self._in_flight:
                if self._breaker.closed:  # still, after the wait
                    with self._breaker.guard():
                        yield self._engine
                    return
        with self._breaker.guard() as call:  # without a place: others must not wait for a probe to fail
            yield self._prober if call.probe else self._engine
