"""An endpoint behind a circuit breaker: while it is down, prompts fail at once in place of waiting for its retries.

Until an endpoint has answered once, a call has one retry where nothing is there: an address without a listener
would cost a run 15 s of retries before the breaker opens. What an outage in the middle of a run gets, and a service
that answers 429 from the start, are all of `max_retries`.

Calls beyond `max_in_flight` wait here and not in the engine, so that those that wait when the breaker opens fail
too. A probe is one attempt without retries: the prompt that it is made for, and so its block, waits for no backoff.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable

from llm_blender_ray.actors.circuit_breaker import CircuitBreaker
from llm_blender_ray.actors.engines import Completion, Engine, Piece
from llm_blender_ray.actors.engines.endpoint_engine import EndpointEngine
from llm_blender_ray.actors.engines.wrapper import EngineWrapper
from llm_blender_ray.actors.errors import GenerationError, PermanentError, RejectedError, UnavailableError
from llm_blender_ray.actors.records import Message
from llm_blender_ray.actors.usage import TokenUsage
from llm_blender_ray.configs.schema import EndpointModel, Sampling

FIRST_RETRIES = 1  # of a call, until the endpoint has been heard of


class GuardedEngine(EngineWrapper):
    """See `actors.engines.Engine`.

    Raises:
        NotAskedError: The endpoint's circuit breaker is open.
    """

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
        super().__init__(_FirstAttempts(load(model), load(_with_retries(model, FIRST_RETRIES))))
        self._prober = load(_with_retries(model, 0))
        self._breaker = breaker
        self._in_flight = asyncio.Semaphore(model.max_in_flight)

    async def generate(self, messages: list[Message], sampling: Sampling) -> Completion:
        """See `actors.engines.Engine`."""
        async with self._turn() as engine:
            return await engine.generate(messages, sampling)

    async def stream(self, messages: list[Message], sampling: Sampling) -> AsyncGenerator[Piece, None]:
        """See `actors.engines.Engine`."""
        async with self._turn() as engine, contextlib.aclosing(engine.stream(messages, sampling)) as pieces:
            async for piece in pieces:
                yield piece

    async def close(self) -> None:
        """See `actors.engines.Engine`."""
        await super().close()
        await self._prober.close()

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[Engine]:
        """The engine for one call.

        Raises:
            NotAskedError: The endpoint's circuit breaker is open.
        """
        if self._breaker.closed:
            async with self._in_flight:
                if self._breaker.closed:  # still, after the wait
                    with self._breaker.guard():
                        yield self._engine
                    return
        with self._breaker.guard() as call:  # without a place: others must not wait for a probe to fail
            yield self._prober if call.probe else self._engine


class _FirstAttempts(EngineWrapper):
    """An engine, and one with fewer retries in its place until an answer has come or something else went wrong."""

    def __init__(self, engine: Engine, hasty: Engine) -> None:
        super().__init__(engine)
        self._hasty = hasty
        self._there = False  # whether anything has ever been heard of the endpoint

    async def generate(self, messages: list[Message], sampling: Sampling) -> Completion:
        before = TokenUsage()
        if not self._there:
            try:
                completion = await self._hasty.generate(messages, sampling)
            except GenerationError as error:
                if self._ends(error):
                    raise
                before = error.usage
            else:
                self._there = True
                return completion
        try:
            return (await super().generate(messages, sampling)).after(before)
        except GenerationError as error:
            error.with_usage(before)
            raise

    async def stream(self, messages: list[Message], sampling: Sampling) -> AsyncGenerator[Piece, None]:
        before = TokenUsage()
        if not self._there:
            begun = False
            try:
                async with contextlib.aclosing(self._hasty.stream(messages, sampling)) as pieces:
                    async for piece in pieces:
                        begun = self._there = True
                        yield piece
                return
            except GenerationError as error:
                if begun or self._ends(error):
                    raise
                before = error.usage
        try:
            async with contextlib.aclosing(super().stream(messages, sampling)) as pieces:
                async for piece in pieces:
                    yield piece.after(before) if isinstance(piece, Completion) else piece
        except GenerationError as error:
            error.with_usage(before)
            raise

    def _ends(self, error: GenerationError) -> bool:
        """Whether the call ends with this error; if not, the endpoint is there, and its retries may mend it."""
        if isinstance(error, UnavailableError):
            return True
        self._there = True
        return isinstance(error, RejectedError | PermanentError)

    async def close(self) -> None:
        await super().close()
        await self._hasty.close()


def _with_retries(model: EndpointModel, most: int) -> EndpointModel:
    return model.model_copy(update={"max_retries": min(model.max_retries, most)})


def load_endpoint(model: EndpointModel) -> Engine:
    """Make the engine of an endpoint, behind a circuit breaker where the settings have one.

    Raises:
        ModelLoadError: The endpoint cannot be used.
    """
    if model.breaker is None:
        return EndpointEngine(model)
    return GuardedEngine(model, CircuitBreaker(model.breaker, final=True), EndpointEngine)
