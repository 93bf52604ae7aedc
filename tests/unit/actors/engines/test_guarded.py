"""An endpoint behind its circuit breaker: what waits, what fails at once, and how it comes back.

The engines inside are fakes where time or the number of calls matters; the last tests go over HTTP.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest
from endpoint_server import EndpointServer, respond

from llm_blender_ray.actors.circuit_breaker import CircuitBreaker, NotAskedError
from llm_blender_ray.actors.engines import Completion
from llm_blender_ray.actors.engines.guarded_engine import GuardedEngine
from llm_blender_ray.actors.errors import GenerationError, PermanentError, RejectedError, UnavailableError
from llm_blender_ray.actors.fusers import load_fuser
from llm_blender_ray.actors.records import Blend, Matchup, Message, Prompt
from llm_blender_ray.actors.scorers import ScoringError, load_scorer
from llm_blender_ray.actors.stages import Generate
from llm_blender_ray.configs.breaker import BreakerSettings
from llm_blender_ray.configs.schema import EndpointModel, Judge, LLMFuser, Sampling

CHAT = [Message(role="user", content="hi")]
DOWN = "https://host/v1: 503: overloaded"


class FakeEngine:
    """Gives `outcome`, or raises it; holds calls while `held`."""

    def __init__(self, model: EndpointModel) -> None:
        self.max_retries = model.max_retries
        self.outcome: Exception | None = None
        self.free = asyncio.Event()
        self.free.set()
        self.calls = self.at_once = self.most_at_once = 0

    async def generate(self, messages: list[Message], sampling: Sampling) -> Completion:
        self.calls += 1
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        try:
            await asyncio.sleep(0)
            await self.free.wait()
        finally:
            self.at_once -= 1
        if self.outcome:
            raise self.outcome
        return Completion("hello", "stop")

    async def stream(self, messages: list[Message], sampling: Sampling) -> AsyncGenerator[str | Completion, None]:
        yield "hel"
        yield await self.generate(messages, sampling)

    async def check_health(self) -> None: ...

    async def close(self) -> None: ...


class Guarded:
    """An engine over two fakes, and the breaker's clock."""

    def __init__(self, outcome: Exception | None = None, *, final: bool = False, **settings: Any) -> None:
        self.now = 0.0
        self.made: list[FakeEngine] = []
        model = EndpointModel(
            name="far", engine="endpoint", model="m", base_url="http://127.0.0.1:9/v1", **settings
        )
        limits = BreakerSettings(failures=3, wait_s=1, longest_wait_s=4)
        self.breaker = CircuitBreaker(limits, clock=lambda: self.now, final=final)
        self.engine = GuardedEngine(model, self.breaker, self._load)
        self.inner, self.first, self.prober = self.made
        self.inner.outcome = self.first.outcome = self.prober.outcome = outcome

    def _load(self, model: EndpointModel) -> FakeEngine:
        self.made.append(FakeEngine(model))
        return self.made[-1]

    async def ask(self, times: int) -> list[Completion | BaseException]:
        asked = (self.engine.generate(CHAT, Sampling()) for _ in range(times))
        return await asyncio.gather(*asked, return_exceptions=True)


def test_what_waits_when_it_opens_fails_at_once_with_the_cause() -> None:
    async def main() -> None:
        far = Guarded(GenerationError(DOWN), max_in_flight=4)
        results = [str(result) for result in await far.ask(1000)]
        assert far.inner.calls <= 3 + 3  # those that were under way
        assert far.inner.most_at_once == 4
        assert results.count(DOWN) == far.inner.calls
        assert set(results) == {DOWN, f"not asked: 3 failures in a row, the last: {DOWN}"}

    asyncio.run(main())


def test_an_endpoint_that_was_never_there_gets_no_backoff() -> None:
    """Of a call that finds nothing there is no second one with all retries, until something else is heard."""

    async def main() -> None:
        far = Guarded(UnavailableError(DOWN), max_retries=7, max_in_flight=2)
        assert (far.inner.max_retries, far.first.max_retries) == (7, 1)
        assert all(isinstance(one, GenerationError) for one in await far.ask(100))
        assert far.inner.calls == 0 and far.first.calls <= 4

        busy = Guarded(GenerationError("429: slow down"), max_retries=7, max_in_flight=1)
        await busy.ask(1)
        assert (busy.first.calls, busy.inner.calls) == (1, 1)  # it is there: all retries count
        busy.inner.outcome = None
        await busy.ask(1)
        assert (busy.first.calls, busy.inner.calls) == (1, 2)

        up = Guarded(None, max_in_flight=1)
        await up.ask(3)
        assert (up.first.calls, up.inner.calls) == (1, 2)
        up.inner.outcome = UnavailableError(DOWN)  # an outage in the middle of a run
        await up.ask(1)
        assert (up.first.calls, up.inner.calls) == (1, 3)

        rejecting = Guarded(RejectedError("400: no"), max_in_flight=1)
        await rejecting.ask(2)
        assert (rejecting.first.calls, rejecting.inner.calls) == (1, 1)

    asyncio.run(main())


def test_the_first_stream_falls_back_only_before_its_first_piece() -> None:
    async def main() -> None:
        far = Guarded(GenerationError("429: slow down"))
        pieces: list[str | Completion] = []
        with pytest.raises(GenerationError, match="429"):
            async for piece in far.engine.stream(CHAT, Sampling()):
                pieces.append(piece)
        assert pieces == ["hel"] and far.inner.calls == 0

    asyncio.run(main())


def test_a_probe_is_one_attempt_and_its_success_brings_the_endpoint_back() -> None:
    async def main() -> None:
        far = Guarded(GenerationError(DOWN), max_retries=7)
        assert (far.inner.max_retries, far.prober.max_retries) == (7, 0)
        await far.ask(3)
        far.now += 1
        await far.ask(50)
        assert (far.inner.calls, far.prober.calls) == (3, 1)
        far.now += 2
        far.inner.outcome = far.prober.outcome = None
        first, *others = await far.ask(10)  # begun side by side: one is the probe
        assert isinstance(first, Completion) and all(isinstance(one, NotAskedError) for one in others)
        assert all(isinstance(one, Completion) for one in await far.ask(10))

    asyncio.run(main())


def test_nobody_waits_for_a_probe_that_hangs() -> None:
    async def main() -> None:
        far = Guarded(GenerationError(DOWN), max_in_flight=1)
        await far.ask(3)
        far.now += 1
        far.prober.free.clear()
        probe = asyncio.create_task(far.ask(1))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert all(isinstance(one, NotAskedError) for one in await far.ask(20))
        assert far.prober.calls == 1 and not probe.done()
        probe.cancel()
        await asyncio.gather(probe, return_exceptions=True)
        far.prober.free.set()
        await far.ask(1)
        assert far.prober.calls == 2  # the next one after a probe that was cancelled

    asyncio.run(main())


def test_a_permanent_failure_ends_the_asking() -> None:
    async def main() -> None:
        far = Guarded(PermanentError("https://host/v1: 401: no such key"), final=True, max_in_flight=1)
        results = await far.ask(100)
        far.now += 10**6
        results += await far.ask(100)
        assert far.inner.calls + far.first.calls == 1 and far.prober.calls == 0
        assert all(isinstance(one, PermanentError) for one in results)
        assert str(results[-1]) == "not asked: https://host/v1: 401: no such key"

    asyncio.run(main())


def test_prompts_that_are_rejected_are_all_asked() -> None:
    async def main() -> None:
        far = Guarded(RejectedError("https://host/v1: 400: a filter"))
        await far.ask(100)
        assert far.inner.calls + far.first.calls == 100

    asyncio.run(main())


def test_streams_are_guarded_too_and_one_that_is_closed_counts_for_nothing() -> None:
    async def main() -> None:
        far = Guarded(GenerationError(DOWN))
        for _ in range(20):
            async with aclosing(far.engine.stream(CHAT, Sampling())) as pieces:
                assert await anext(pieces) == "hel"
        assert far.breaker.closed
        for _ in range(3):
            with pytest.raises(GenerationError):
                [piece async for piece in far.engine.stream(CHAT, Sampling())]
        with pytest.raises(NotAskedError):
            [piece async for piece in far.engine.stream(CHAT, Sampling())]
        far.now += 1
        far.prober.outcome = None
        pieces = [piece async for piece in far.engine.stream(CHAT, Sampling())]
        assert pieces == ["hel", Completion("hello", "stop")] and far.breaker.closed

    asyncio.run(main())


ROWS = 200


def unavailable(url: str, **settings: Any) -> EndpointModel:
    return EndpointModel(
        name="far", engine="endpoint", model="m", base_url=url, max_retries=0, max_in_flight=2, **settings
    )


def faults() -> list[Any]:
    return [respond(503, {"error": {"message": "overloaded"}})] * 10 * ROWS


def test_a_stage_asks_a_dead_endpoint_a_few_times_only() -> None:
    async def main() -> None:
        async with EndpointServer(faults()) as server:
            blends = [Blend(Prompt(str(i), f"row {i}"), ()) for i in range(ROWS)]
            done = await Generate(unavailable(server.url))(blends)
            assert len(server.requests) <= 6
            errors = [blend.candidates[0].error or "" for blend in done]
            assert all("503" in error and "overloaded" in error for error in errors)
            assert (
                sum(error.startswith("not asked: 5 failures in a row, the last: http") for error in errors) >= 194
            )

    asyncio.run(main())


def test_without_a_breaker_every_prompt_is_asked() -> None:
    async def main() -> None:
        async with EndpointServer(faults()) as server:
            blends = [Blend(Prompt(str(i), f"row {i}"), ()) for i in range(20)]
            await Generate(unavailable(server.url, breaker=None))(blends)
            assert len(server.requests) == 20

    asyncio.run(main())


def test_a_dead_judge_and_a_dead_fuser_are_asked_a_few_times_only() -> None:
    async def main() -> None:
        async with EndpointServer(faults()) as server:
            judge = load_scorer(Judge(kind="judge", llm=unavailable(server.url)))
            scores = await judge.score([Matchup(Prompt(str(i), "q"), "a", "b") for i in range(ROWS)])
            assert len(server.requests) <= 2 * 6
            assert all(isinstance(score, ScoringError) and "503" in str(score) for score in scores)
            server.requests.clear()
            fuser = load_fuser(LLMFuser(kind="chat", llm=unavailable(server.url)))
            asked = (fuser.fuse(Prompt(str(i), "q"), ["a", "b"]) for i in range(ROWS))
            errors = await asyncio.gather(*asked, return_exceptions=True)
            assert len(server.requests) <= 6
            assert all(isinstance(error, GenerationError) and "503" in str(error) for error in errors)

    asyncio.run(main())
