"""The service's benchmarks: what is counted, how load is made, and what is understood of real HTTP answers."""

import asyncio
import itertools
import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st
from virtual_time import VirtualTimeLoop, run

from llm_blender_ray.configs.schema import BlendConfig
from llm_blender_ray.pipelines.bench.online import failures
from llm_blender_ray.pipelines.bench.online_change import CHANGES, account, changed_service, restarted
from llm_blender_ray.pipelines.bench.online_kill import Client, Deaths
from llm_blender_ray.pipelines.bench.online_load import (
    ANSWERED,
    DEGRADED,
    REFUSED,
    ChatClient,
    Load,
    OpenLoop,
    Reply,
    Shot,
    arrivals,
    closed_loop,
    connections,
    describe_load,
    milliseconds,
    overlapping,
)
from llm_blender_ray.pipelines.bench.online_service import miniature, waiting_models, without_models

ANSWER = {"choices": [{"message": {"role": "assistant", "content": "Yes."}}]}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

seconds = st.floats(0, 100)


def shot(sent: float, ended: float, outcome: str = ANSWERED, due: float | None = None, retries: int = 0) -> Shot:
    return Shot(sent if due is None else due, sent, ended, Reply(outcome, retries=retries))


# What is counted


def test_goodput_is_of_whole_answers_in_the_time_that_counts() -> None:
    shots = [shot(0, 4.9), shot(4, 5), shot(8, 9.9), shot(6, 7, DEGRADED), shot(6, 6.1, REFUSED), shot(9, 10)]
    load = Load((*shots, shot(6, 6.2, "HTTP 500")), 5, 10, 0.1)
    assert load.goodput == 2 / 5
    assert load.outcomes == {ANSWERED: 4, DEGRADED: 1, REFUSED: 1, "HTTP 500": 1}
    account = load.account()
    assert account["sent"] == 7 and account["goodput_per_s"] == 0.4
    assert account["latency_ms"][REFUSED]["max"] == 100


def test_latency_counts_from_when_a_request_was_due() -> None:
    load = Load((shot(3.0, 3.5, due=1.0),), 0, 5, 0.1)
    assert load.latencies(ANSWERED) == [2.5]
    assert load.account()["generator"]["lag_ms"]["max"] == 2000


@given(st.lists(seconds, min_size=1))
def test_percentiles_are_measured_values_with_enough_at_or_below(values: list[float]) -> None:
    found = milliseconds(values)
    rounded = [round(1000 * value, 2) for value in values]
    for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
        assert found[name] in rounded
        assert sum(value <= found[name] for value in rounded) >= share * len(values)
        assert sum(value < found[name] for value in rounded) < share * len(values)
    assert found["max"] == max(rounded)


def test_percentiles_of_nothing() -> None:
    assert milliseconds([]) == {}


@given(st.lists(st.tuples(seconds, seconds)), seconds, seconds)
def test_overlapping_is_what_was_under_way(spans: list[tuple[float, float]], one: float, other: float) -> None:
    shots = [shot(min(span), max(span)) for span in spans]
    begin, end = sorted((one, other))
    found = overlapping(shots, begin, end)
    for each in shots:
        before, behind = each.ended < begin, each.sent > end
        assert (each in found) != (before or behind)


def test_what_a_death_did() -> None:
    replies = [(ANSWERED, 0), (DEGRADED, 1), ("HTTP 503", 0), ("APIConnectionError", 0)]
    deaths = Deaths([2.04], [shot(1, 2.5, outcome, retries=retries) for outcome, retries in replies])
    account = deaths.account()
    assert (account["killed"], account["recovery_s"], account["slowest_s"]) == (1, [2.0], 1.5)
    assert (account["requests"], account["failed"], account["retried"]) == (4, 2, 1)


def test_failures_are_what_must_not_be() -> None:
    outcomes = {ANSWERED: 5, REFUSED: 3, "HTTP 500": 1}
    assert failures(outcomes) == 4 and failures(outcomes, (ANSWERED, REFUSED)) == 1


# How load is made


@given(st.floats(0.1, 50), st.floats(0.1, 20), st.integers(0, 5))
def test_arrivals_are_in_order_and_the_same_each_time(per_s: float, length: float, seed: int) -> None:
    due = list(arrivals(per_s, length, seed))
    assert due == sorted(due) == list(arrivals(per_s, length, seed))
    assert all(0 < at < length for at in due)


def test_arrivals_come_at_their_rate() -> None:
    due = list(itertools.islice(arrivals(40.0, math.inf), 10_000))
    assert due[-1] == pytest.approx(10_000 / 40, rel=0.05)
    gaps = [after - before for before, after in itertools.pairwise(due)]
    assert sum(gap > 1 / 40 for gap in gaps) / len(gaps) == pytest.approx(math.exp(-1), abs=0.02)  # exponential


def test_a_closed_loop_keeps_so_many_under_way() -> None:
    under_way, most, asked = 0, 0, []

    async def ask(number: int) -> Reply:
        nonlocal under_way, most
        asked.append(number)
        under_way += 1
        most = max(most, under_way)
        for _ in range(number % 3 + 1):
            await asyncio.sleep(0)
        under_way -= 1
        return Reply(ANSWERED)

    load = asyncio.run(closed_loop(ask, 4, requests=50))
    assert most == 4 and sorted(asked) == list(range(50)) and len(load.shots) == 50
    assert load.goodput * (load.end - load.begin) == pytest.approx(49, abs=1.01)  # the last ends when the time does


def test_a_closed_loop_ends_after_its_time() -> None:
    async def ask(_: int) -> Reply:
        await asyncio.sleep(1)
        return Reply(ANSWERED)

    load = run(closed_loop(ask, 3, seconds=10, settling_s=5))
    assert load.end - load.begin == 10
    assert len(load.shots) == 45
    assert load.goodput == 3


def test_an_open_loop_asks_when_due_however_slow_the_answers_are() -> None:
    async def ask(_: int) -> Reply:
        await asyncio.sleep(7)
        return Reply(ANSWERED)

    load = run(OpenLoop(ask, [0.5, 1.0, 1.0, 3.0]).run())
    assert [one.sent for one in load.shots] == [one.due for one in load.shots] == [0.5, 1.0, 1.0, 3.0]
    assert load.end == 3.0 and load.latencies(ANSWERED) == [7.0] * 4
    assert load.goodput == 0  # none came while requests were sent


def test_an_open_loop_that_is_late_says_so() -> None:
    async def ask(_: int) -> Reply:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        loop.hold_up(2)
        return Reply(ANSWERED)

    load = run(OpenLoop(ask, [0.0, 1.0]).run())
    assert [one.sent - one.due for one in load.shots] == [0.0, 1.0]
    assert load.latencies(ANSWERED) == [2.0, 3.0]


def test_an_open_loop_that_is_stopped_waits_for_what_is_under_way() -> None:
    async def ask(_: int) -> Reply:
        await asyncio.sleep(10)
        return Reply(ANSWERED)

    async def main() -> tuple[int, Load]:
        loop = OpenLoop(ask, itertools.count(1.0))
        running = asyncio.create_task(loop.run())
        await asyncio.sleep(3.5)
        loop.stop()
        under_way = len(loop.under_way)
        return under_way, await running

    under_way, load = run(main())
    assert under_way == 3 and len(load.shots) == 3


# What is understood of answers


@asynccontextmanager
async def service(handler: Handler, path: str = "/v1/chat/completions") -> AsyncGenerator[str, None]:
    """A real HTTP server that answers so; gives its URL."""
    app = web.Application()
    app.router.add_post(path, handler)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


async def asked(handler: Handler, stream: bool = False) -> Reply:
    async with service(handler) as url, connections(url) as session:
        return await ChatClient(session, ["What?"], stream=stream)(0)


def answering(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Handler:
    async def handler(_: web.Request) -> web.Response:
        return web.json_response(body, status=status, headers=headers)

    return handler


@pytest.mark.parametrize(
    ("handler", "outcome"),
    [
        (answering(ANSWER), ANSWERED),
        (answering({**ANSWER, "blend": {"degraded": []}}), ANSWERED),
        (answering({**ANSWER, "blend": {"degraded": ["ranker: gone"]}}), DEGRADED),
        (answering({"error": {"message": "full"}}, 429, {"Retry-After": "1"}), REFUSED),
        (answering({"error": {"message": "full"}}, 429), "HTTP 429"),
        (answering({"error": {"message": "no member answered"}}, 503), "HTTP 503"),
        (answering({"choices": []}), "not a chat completion"),
    ],
)
def test_how_a_request_ended(handler: Handler, outcome: str) -> None:
    assert asyncio.run(asked(handler)).outcome == outcome


def test_a_broken_connection_is_an_outcome() -> None:
    async def drop(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    assert asyncio.run(asked(drop)).outcome == "ServerDisconnectedError"


def test_requests_are_chats_and_no_two_the_same() -> None:
    bodies: list[dict[str, Any]] = []

    async def handler(request: web.Request) -> web.Response:
        bodies.append(await request.json())
        return web.json_response(ANSWER)

    async def ask_twice() -> None:
        async with service(handler) as url, connections(url) as session:
            chat = ChatClient(session, ["What?"], "alder")
            await asyncio.gather(chat(0), chat(1))

    asyncio.run(ask_twice())
    assert {body["model"] for body in bodies} == {"alder"}
    assert sorted(body["messages"][0]["content"] for body in bodies) == ["0. What?", "1. What?"]


ROLE = 'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\n\n'
TEXT = 'data: {"choices": [{"delta": {"content": "Y"}}]}\n\n'
DONE = "data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("events", "outcome", "told_anything"),
    [
        ([ROLE, ": keep-alive\n\n", TEXT, TEXT, DONE], ANSWERED, True),
        ([ROLE, TEXT, 'data: {"choices": [], "blend": {"degraded": ["fuser: gone"]}}\n\n', DONE], DEGRADED, True),
        ([ROLE, DONE], ANSWERED, False),
        ([ROLE, TEXT], "cut off", True),
        ([ROLE, 'data: {"error": {"message": "gone"}}\n\n'], "error while streaming", False),
    ],
)
def test_how_a_stream_ended(events: list[str], outcome: str, told_anything: bool) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for event in events:
            await response.write(event.encode())
        return response

    reply = asyncio.run(asked(handler, stream=True))
    assert (reply.outcome, reply.first is not None) == (outcome, told_anything)


def test_openais_client_tries_again() -> None:
    statuses = iter([503, 200, 400])

    async def handler(_: web.Request) -> web.Response:
        return web.json_response(ANSWER, status=next(statuses), headers={"Retry-After-Ms": "1"})

    async def main() -> tuple[Reply, Reply]:
        async with service(handler) as url:
            client = Client(url, ["What?"])
            try:
                return await client(0), await client(1)
            finally:
                await client.aclose()

    again, refused = asyncio.run(main())
    assert again == Reply(ANSWERED, retries=1)
    assert refused.outcome == "HTTP 400"


@pytest.mark.parametrize("body", [None, [], "text", {}, {"choices": [{}]}, {"choices": [{"message": {}}]}])
def test_what_is_no_answer(body: Any) -> None:
    assert describe_load(body) == "not a chat completion"


# What is run


@pytest.mark.parametrize(
    "config",
    [
        without_models(),
        waiting_models("http://127.0.0.1:1/v1", 2, gateway={"max_in_flight": 1}),
        miniature(quorum=5),
    ],
)
def test_configs_are_valid(config: dict[str, Any]) -> None:
    BlendConfig.model_validate(config)


# Changes of the config


def test_a_part_that_lost_a_replica_restarted() -> None:
    before = {"a": frozenset("12"), "b": frozenset("3"), "gone": frozenset("4")}
    after = {"a": frozenset("15"), "b": frozenset("36"), "new": frozenset("7")}
    assert restarted(before, after) == {"a"}


def test_failures_and_restarts_of_an_update_are_counted() -> None:
    shots = [shot(0, 1), shot(1, 4, DEGRADED), shot(2, 2.5, "HTTP 500"), shot(3, 3.5, REFUSED)]
    found = account(shots, 2.04, {"echo0", "ranker", "gateway"}, CHANGES["a model's sampling"])
    assert (found["sent"], found["failed"], found["slowest_s"], found["update_s"]) == (4, 2, 3.0, 2.0)
    assert found["restarted"] == ["echo0", "gateway", "ranker"] and found["restarted_unchanged"] == ["ranker"]


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_gives_another_valid_config(name: str) -> None:
    config = changed_service()
    CHANGES[name].apply(config)
    assert BlendConfig.model_validate(config) != BlendConfig.model_validate(changed_service())
    assert CHANGES[name].restarted <= {"ranker", "fuser", *(model["name"] for model in config["models"])}
