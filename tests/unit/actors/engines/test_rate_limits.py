"""Limits per minute in virtual time: never exceeded, no slower than they allow, learnt from responses."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise
from typing import Any

import pytest
import virtual_time
from endpoint_server import EndpointServer, respond
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from llm_blender_ray.actors.engines import endpoint_engine
from llm_blender_ray.actors.engines.rate_limits import (
    LONGEST_HOLD_S,
    MINUTE_S,
    RateLimits,
    Reservation,
    duration_s,
    estimated_tokens,
    retry_after_s,
)
from llm_blender_ray.actors.records import Message
from llm_blender_ray.configs.identity import deciding
from llm_blender_ray.configs.schema import EndpointModel, Sampling


async def begin(limits: RateLimits, tokens: int = 1) -> Reservation:
    """An attempt that has its response at once."""
    async with limits.attempt(tokens) as reservation:
        return reservation


def starts(limits: RateLimits, amounts: list[int], answer_s: float = 0.0, used: float = 1.0) -> list[Reservation]:
    """Reservations of requests that are all there at the start, and use this share of their tokens."""

    async def one(tokens: int) -> Reservation:
        async with limits.attempt(tokens) as reservation:
            await asyncio.sleep(answer_s)
        limits.settle(reservation, int(tokens * used))
        return reservation

    async def main() -> list[Reservation]:
        return await asyncio.gather(*map(one, amounts))

    return virtual_time.run(main())


def most_within_a_minute(reservations: list[Reservation], amount: str) -> int:
    """The most requests or tokens that began within any minute."""
    ends = [one.began for one in reservations]
    return max(
        sum(
            1 if amount == "requests" else one.tokens
            for one in reservations
            if end - MINUTE_S + 1e-3 < one.began <= end
        )
        for end in ends
    )


@given(
    requests=st.one_of(st.none(), st.integers(1, 20)),
    tokens=st.one_of(st.none(), st.integers(100, 1000)),
    amounts=st.lists(st.integers(1, 100), min_size=1, max_size=60),
    answer_s=st.sampled_from([0.0, 1.5, 90.0]),
    used=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_no_minute_has_more_than_the_limits(
    requests: int | None, tokens: int | None, amounts: list[int], answer_s: float, used: float
) -> None:
    begun = starts(RateLimits(requests, tokens), amounts, answer_s, used)
    assert requests is None or most_within_a_minute(begun, "requests") <= requests
    assert tokens is None or most_within_a_minute(begun, "tokens") <= tokens
    assert all(one.began <= other.began for one, other in pairwise(begun))  # first come, first served


def test_without_limits_nothing_waits() -> None:
    assert {one.began for one in starts(RateLimits(), [10_000] * 100)} == {0.0}


def test_requests_per_minute_are_used_up() -> None:
    begun = [one.began for one in starts(RateLimits(requests=3), [1] * 7)]
    assert begun == pytest.approx([0, 0, 0, *[MINUTE_S] * 3, 2 * MINUTE_S])


def test_tokens_that_were_not_used_are_free_again() -> None:
    """Two requests reserve 100 tokens and use 10: the third begins when they have ended, not after a minute."""
    begun = [one.began for one in starts(RateLimits(tokens=200), [100] * 3, answer_s=5, used=0.1)]
    assert begun == pytest.approx([0, 0, 5])


def test_request_with_more_tokens_than_a_minute_has_one_for_itself() -> None:
    begun = [one.began for one in starts(RateLimits(tokens=100), [50, 1000, 50])]
    assert begun == pytest.approx([0, MINUTE_S, 2 * MINUTE_S])


def test_a_request_that_is_given_up_while_it_waits_takes_nothing() -> None:
    async def main() -> float:
        limits = RateLimits(requests=1)
        await begin(limits)
        waiting = asyncio.create_task(begin(limits))
        await asyncio.sleep(10)
        waiting.cancel()
        return (await begin(limits)).began

    assert virtual_time.run(main()) == pytest.approx(MINUTE_S)


def after(headers: Mapping[str, str], status: int = 200, *, in_flight: int = 0, tokens: int = 100) -> float:
    """When a request begins, after a response with these headers to an earlier one."""

    async def main() -> float:
        limits = RateLimits()
        first = await begin(limits, tokens)
        for _ in range(in_flight):
            await begin(limits, tokens)
        limits.learn(first, status, headers)
        return (await begin(limits, tokens)).began

    return virtual_time.run(main())


def reported(kind: str, left: object, reset: str) -> dict[str, str]:
    return {f"x-ratelimit-remaining-{kind}": str(left), f"x-ratelimit-reset-{kind}": reset}


@pytest.mark.parametrize(
    ("headers", "in_flight", "began"),
    [
        (reported("requests", 1, "30s"), 0, 0),
        (reported("requests", 0, "30s"), 0, 30),
        (reported("requests", 2, "30s"), 2, 30),  # begun since, so not in the endpoint's figure
        (reported("requests", 3, "30s"), 2, 0),
        (reported("tokens", 100, "6.5s"), 0, 0),
        (reported("tokens", 99, "6.5s"), 0, 6.5),
        (reported("tokens", 250, "1m1s"), 2, 61),
        (reported("requests", 0, "1s") | reported("tokens", 0, "120ms"), 0, 1),
        (reported("requests", 0, "23h59m"), 0, 0),  # the endpoint says why
        (reported("requests", "many", "30s"), 0, 0),
        (reported("requests", 0, "soon"), 0, 0),
        ({"x-ratelimit-remaining-requests": "0"}, 0, 0),
    ],
)
def test_reported_limits(headers: dict[str, str], in_flight: int, began: float) -> None:
    assert after(headers, in_flight=in_flight) == pytest.approx(began)


def test_whole_limit_is_left_after_its_reset() -> None:
    """Three more requests begin at the reset; what is more waits for the next one, as long as for the last."""

    async def main() -> list[float]:
        limits = RateLimits()
        first = await begin(limits)
        limits.learn(first, 200, reported("requests", 0, "20s") | {"x-ratelimit-limit-requests": "3"})
        return [(await begin(limits)).began for _ in range(5)]

    assert virtual_time.run(main()) == pytest.approx([20, 20, 20, 40, 40])


def test_request_with_more_tokens_than_the_whole_limit_is_sent_when_that_is_left() -> None:
    headers = reported("tokens", 10, "20s") | {"x-ratelimit-limit-tokens": "50"}
    assert after(headers, tokens=100) == pytest.approx(20)


def test_refusals_bound_the_attempts_without_a_response() -> None:
    """16 at a time are refused: then 8, and 9 after 9 good responses."""

    async def main() -> list[int]:
        limits, pending, most = RateLimits(), 0, 0
        statuses = iter([429] * 16 + [200] * 18)

        async def one() -> None:
            nonlocal pending, most
            async with limits.attempt(1) as reservation:
                pending += 1
                most = max(most, pending)
                await asyncio.sleep(1)
                limits.learn(reservation, next(statuses), {})
                pending -= 1

        found = []
        for number in (16, 9, 9):
            most = 0
            await asyncio.gather(*(one() for _ in range(number)))
            found.append(most)
        return found

    assert virtual_time.run(main()) == [16, 8, 9]


def test_newer_report_counts() -> None:
    async def main() -> float:
        limits = RateLimits()
        first, second = await begin(limits), await begin(limits)
        limits.learn(second, 200, reported("requests", 5, "60s"))
        limits.learn(first, 200, reported("requests", 0, "60s"))  # it came later, and is older
        return (await begin(limits)).began

    assert virtual_time.run(main()) == 0


def test_waiting_ends_with_a_better_report() -> None:
    async def main() -> float:
        limits = RateLimits()
        first, second = await begin(limits), await begin(limits)
        limits.learn(first, 200, reported("requests", 1, "60s"))
        waiting = asyncio.create_task(begin(limits))
        await asyncio.sleep(10)
        limits.learn(second, 200, reported("requests", 8, "50s"))
        return (await waiting).began

    assert virtual_time.run(main()) == pytest.approx(10)


@pytest.mark.parametrize(
    ("headers", "status", "began"),
    [
        ({"retry-after": "7"}, 429, 7),
        ({"retry-after": "7"}, 503, 7),
        ({"retry-after-ms": "250", "retry-after": "1"}, 429, 0.25),
        ({"retry-after": "7"}, 200, 0),
        ({"retry-after": str(int(LONGEST_HOLD_S) + 1)}, 429, 0),
        ({"retry-after": "later"}, 429, 0),
    ],
)
def test_all_wait_when_one_is_told_to(headers: dict[str, str], status: int, began: float) -> None:
    assert after(headers, status) == pytest.approx(began)


def test_retry_after_may_be_a_date() -> None:
    at = datetime.now(UTC) + timedelta(hours=1)
    wait = retry_after_s({"retry-after": format_datetime(at, usegmt=True)})
    assert wait is not None and 3500 < wait <= 3600
    assert retry_after_s({"retry-after": "Fri, 31 Dec 1999 23:59:59"}) is None  # no zone
    assert retry_after_s({}) is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1), ("6m0s", 360), ("120ms", 0.12), ("2m59.56s", 179.56), ("1d2h", 93600), ("17", 17), ("0.5", 0.5),
     ("", None), ("-1s", None), ("s", None), ("2026-11-28T09:00:00Z", None), (None, None)],
)  # fmt: skip
def test_durations(text: str | None, seconds: float | None) -> None:
    assert duration_s(text) == (None if seconds is None else pytest.approx(seconds))


def test_estimated_tokens_of_a_request() -> None:
    assert estimated_tokens(b'{"max_tokens": 100}') == 100 + 7
    assert estimated_tokens(b'{"max_completion_tokens":100}') == 100 + 10


def model(**settings: Any) -> EndpointModel:
    given = {"name": "far", "engine": "endpoint", "model": "m", "base_url": "http://127.0.0.1:9/v1", **settings}
    return EndpointModel.model_validate(given)


def test_limits_are_divided_among_actors() -> None:
    assert model().per_actor(None) is None
    assert model(replicas={"min": 1, "max": 4}).per_actor(10) == 2
    with pytest.raises(ValidationError, match="requests_per_minute: 3 is less than one for each of the 4 replicas"):
        model(replicas=4, requests_per_minute=3)
    with pytest.raises(ValidationError, match="tokens_per_minute: set replicas"):
        model(resources={"gateway": 1}, tokens_per_minute=3)


def test_limits_leave_results_as_they_are() -> None:
    assert deciding(model(requests_per_minute=5, tokens_per_minute=500, stream=True)) == deciding(model())
    assert deciding(model(api_version="2024-10-21")) != deciding(model())


def test_an_attempt_is_not_sent_before_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    turn = asyncio.Event()

    class Closed(RateLimits):
        @asynccontextmanager
        async def attempt(self, tokens: int) -> AsyncIterator[Reservation]:
            await turn.wait()
            async with super().attempt(tokens) as reservation:
                yield reservation

    monkeypatch.setattr(endpoint_engine, "RateLimits", Closed)

    async def main() -> None:
        async with EndpointServer() as server:
            engine = endpoint_engine.EndpointEngine(model(base_url=server.url, max_retries=0, timeout_s=5))
            asking = asyncio.create_task(engine.generate([Message(role="user", content="hi")], Sampling()))
            for _ in range(200):  # turns of the loop in which it could be sent
                await asyncio.sleep(0)
            assert server.connections == 0
            turn.set()
            assert (await asking).text == "hello"
            await engine.close()

    asyncio.run(main())


class Recorded(RateLimits):
    """Limits that list what an engine does with them."""

    def __init__(self, *limits: int | None) -> None:
        super().__init__(*limits)
        self.limits, self.begun, self.statuses, self.used = limits, 0, list[int](), list[int]()

    @asynccontextmanager
    async def attempt(self, tokens: int) -> AsyncIterator[Reservation]:
        self.begun += 1
        assert 50 < tokens < 150  # max_tokens, and a third of the request's bytes
        async with super().attempt(tokens) as reservation:
            yield reservation

    def learn(self, reservation: Reservation, status: int, headers: Mapping[str, str]) -> None:
        self.statuses.append(status)
        assert "content-type" in headers
        super().learn(reservation, status, headers)

    def settle(self, reservation: Reservation, tokens: int) -> None:
        self.used.append(tokens)
        super().settle(reservation, tokens)


@pytest.mark.parametrize("streams", [False, True])
def test_an_engine_s_attempts_count(streams: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A retry is a request, an answer's tokens replace what was reserved, and failures within a 200 report, too."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(endpoint_engine, "RateLimits", Recorded)
    refusals = [
        respond(429, {}, retry_after_ms="5"),
        respond(200, {"error": {"message": "busy", "code": 503}}, retry_after_ms="5"),
    ]

    async def main() -> Any:
        async with EndpointServer(refusals) as server:
            given = {"base_url": server.url, "requests_per_minute": 100, "tokens_per_minute": 10_000}
            engine = endpoint_engine.EndpointEngine(model(**given, stream=streams, replicas=2))
            chat, sampling = [Message(role="user", content="hi")], Sampling(max_tokens=50)
            await asyncio.gather(*(engine.generate(chat, sampling) for _ in range(3)))
            [_ async for _ in engine.stream(chat, sampling)]
            await engine.close()
            assert len(server.requests) == 6
        return engine._limits

    limits = asyncio.run(main())
    assert (limits.limits, limits.begun, limits.used) == ((50, 5_000), 6, [5] * 4)  # 3 and 2 tokens of each answer
    assert sorted(limits.statuses) == [200] * 4 + [429, 503]
