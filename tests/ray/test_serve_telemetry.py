"""What is counted and logged of a request, however it ends; and what Ray really exports of it."""

import asyncio
import functools
import json
import logging
import time
import urllib.request
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import demo_blender, demo_config, served
from virtual_time import run

from llm_blender_ray.actors.circuit_breaker import CLOSED, CircuitStatus
from llm_blender_ray.actors.engines import Completion
from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.prices import PriceList, Rates, TokenPrice
from llm_blender_ray.actors.records import Blend, Candidate, Prompt, Ranking
from llm_blender_ray.actors.usage import TokenUsage
from llm_blender_ray.cluster.session import metrics_urls
from llm_blender_ray.configs.schema import ComparisonSettings, SamplingOverrides
from llm_blender_ray.configs.serving import Serving
from llm_blender_ray.pipelines.online.blender import Blender
from llm_blender_ray.pipelines.online.events import AnswerDelta, Answered, BlendResult, Fusing, MemberDelta, Ranked
from llm_blender_ray.pipelines.online.protocols import BlendRequest
from llm_blender_ray.pipelines.serve import service_metrics, telemetry
from llm_blender_ray.pipelines.serve.access import Access, Keys
from llm_blender_ray.pipelines.serve.admission import Admission
from llm_blender_ray.pipelines.serve.app import create_app
from llm_blender_ray.pipelines.serve.metrics_page import merged
from llm_blender_ray.pipelines.serve.service import Service
from llm_blender_ray.pipelines.serve.service_metrics import SERVICE_METRICS, ServiceMetric
from llm_blender_ray.pipelines.serve.telemetry import Telemetry

PROMPT = Prompt("p", "Where is the treasure?")
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"

Values = list[tuple[str, float, dict[str, str]]]

OPEN = CircuitStatus("open", "503: no treasure", 0.0, 1.0)


class FakeMeter:
    """Keeps what it is told, and is as strict as Ray's."""

    def __init__(self) -> None:
        self.values: Values = []

    def __call__(self, metric: ServiceMetric, value: float, labels: Mapping[str, str] | None = None) -> None:
        assert metric in SERVICE_METRICS
        assert set(labels or {}) == set(metric.labels)
        assert metric.kind != "counter" or value > 0
        self.values.append((metric.name, value, dict(labels or {})))

    def of(self, metric: ServiceMetric) -> list[tuple[float, dict[str, str]]]:
        return [(value, labels) for name, value, labels in self.values if name == metric.name]


class Clock:
    now = 50.0

    def __call__(self) -> float:
        return self.now


def in_event_loop(test: Callable[..., None]) -> Callable[..., None]:
    """Where the service's code runs."""

    @functools.wraps(test)
    def inside(*arguments: object, **named: object) -> None:
        async def main() -> None:
            test(*arguments, **named)

        asyncio.run(main())

    return inside


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What the log gets."""
    told: list[str] = []

    class Keeping(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(self.format(record))

    handler = Keeping()
    telemetry.log.addHandler(handler)
    yield told
    telemetry.log.removeHandler(handler)


def outcome() -> BlendResult:
    """Of two members."""
    candidates = (
        Candidate("alder", "gold", finish_reason="stop", prompt_tokens=7, completion_tokens=3),
        Candidate("birch", "iron", prompt_tokens=8),  # an endpoint that doesn't tell
    )
    ranking = Ranking((0, 1), (1.0, -1.0), ((None, 2.0), (-2.0, None)), 2)
    judge, fuser = TokenUsage(2, 0, 40, 30, 6, 4), TokenUsage(1, 0, 20, 0, 5, 0)
    blend = Blend(PROMPT, candidates, ranking, "old gold", (0, 1), ranking_usage=judge, fusing_usage=fuser)
    answer = Completion("old gold", "stop", 20, 5)
    return BlendResult(blend, answer, {"generate": 0.5, "rank": 0.25, "fuse": 1.0})


@in_event_loop
def test_a_blend_is_counted_by_stage_member_and_token(lines: list[str]) -> None:
    meter, clock = FakeMeter(), Clock()
    with Telemetry(meter=meter, clock=clock).request("r-1", "chat", f"00-{TRACE}-00f067aa0ba902b7-01") as record:
        record.caller = "alice"
        record.asks("blend", stream=True, prompt=PROMPT)
        record.waited(0.125)
        ended = outcome()
        for at, candidate in enumerate(ended.blend.candidates):
            record.event(MemberDelta(at, candidate.model or "", "go"))
            record.event(Answered(at, candidate, 0.5 + at))
        assert ended.blend.ranking is not None
        record.event(Ranked(ended.blend.ranking, ended.blend.candidates))
        record.event(Fusing((0, 1)))
        clock.now += 2.0
        record.event(AnswerDelta("old "))
        clock.now += 1.0
        record.event(AnswerDelta("gold"))
        record.event(ended)
        record.status = 200
    assert meter.values == [
        ("blend_requests_queued", 1, {}),
        ("blend_stage_duration_seconds", 0.125, {"stage": "queue"}),
        ("blend_requests_queued", 0, {}),
        ("blend_requests_in_flight", 1, {}),
        ("blend_member_duration_seconds", 0.5, {"model": "alder"}),
        ("blend_member_duration_seconds", 1.5, {"model": "birch"}),
        ("blend_first_token_seconds", 2.0, {"model": "blend"}),
        ("blend_stage_duration_seconds", 0.5, {"stage": "generate"}),
        ("blend_stage_duration_seconds", 0.25, {"stage": "rank"}),
        ("blend_stage_duration_seconds", 1.0, {"stage": "fuse"}),
        ("blend_tokens_total", 7, {"model": "alder", "kind": "prompt"}),
        ("blend_tokens_total", 3, {"model": "alder", "kind": "completion"}),
        ("blend_llm_calls_total", 1, {"model": "alder", "kind": "reported"}),
        ("blend_tokens_total", 8, {"model": "birch", "kind": "prompt"}),
        ("blend_llm_calls_total", 1, {"model": "birch", "kind": "unreported"}),
        ("blend_tokens_total", 40, {"model": "ranker", "kind": "prompt"}),
        ("blend_tokens_total", 6, {"model": "ranker", "kind": "completion"}),
        ("blend_token_details_total", 30, {"model": "ranker", "kind": "cached_prompt"}),
        ("blend_token_details_total", 4, {"model": "ranker", "kind": "reasoning"}),
        ("blend_llm_calls_total", 2, {"model": "ranker", "kind": "reported"}),
        ("blend_tokens_total", 20, {"model": "fuser", "kind": "prompt"}),
        ("blend_tokens_total", 5, {"model": "fuser", "kind": "completion"}),
        ("blend_llm_calls_total", 1, {"model": "fuser", "kind": "reported"}),
        ("blend_comparisons_total", 2, {}),
        ("blend_requests_in_flight", 0, {}),
        ("blend_requests_total", 1, {"route": "chat", "model": "blend", "status": "200"}),
        ("blend_request_duration_seconds", 3.0, {"route": "chat", "model": "blend"}),
    ]
    (line,) = map(json.loads, lines)
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "id": "r-1",
        "trace_id": TRACE,
        "caller": "alice",
        "route": "chat",
        "model": "blend",
        "stream": True,
        "status": 200,
        "seconds": {"queue": 0.125, "generate": 0.5, "rank": 0.25, "fuse": 1.0, "total": 3.0},
        "first_token_s": 2.0,
        "prompt_tokens": 7 + 8 + 40 + 20,
        "completion_tokens": 3 + 6 + 5,
        "llm_calls": 5,
        "unreported_calls": 1,
        "cached_prompt_tokens": 30,
        "reasoning_tokens": 4,
        "candidates": 2,
        "answered": 2,
        "comparisons": 2,
        "degraded": [],
    }


@in_event_loop
def test_an_answer_in_one_piece_has_no_first_token() -> None:
    meter = FakeMeter()
    with Telemetry(meter=meter).request("r", "chat") as record:
        record.asks("blend")
        record.event(AnswerDelta("old gold"))
        record.status = 200
    assert not meter.of(service_metrics.FIRST_TOKEN_SECONDS)


@in_event_loop
def test_a_member_asked_alone_counts_as_a_member() -> None:
    meter = FakeMeter()
    with Telemetry(meter=meter).request("r", "chat") as record:
        record.asks("alder")
        alone = Candidate("alder", "gold", prompt_tokens=7, completion_tokens=3)
        record.event(BlendResult(Blend(PROMPT, (alone,)), Completion("gold", "stop"), {"generate": 0.5}))
        record.status = 200
    assert meter.of(service_metrics.MEMBER_SECONDS) == [(0.5, {"model": "alder"})]
    assert [labels["model"] for _, labels in meter.of(service_metrics.TOKENS)] == ["alder", "alder"]
    assert not meter.of(service_metrics.COMPARISONS)


@in_event_loop
def test_choices_are_counted_each_and_told_together(lines: list[str]) -> None:
    meter = FakeMeter()
    with Telemetry(meter=meter).request("r", "chat") as record:
        record.asks("blend")
        record.event(outcome())
        record.event(outcome())
        record.status = 200
    assert len(meter.of(service_metrics.STAGE_SECONDS)) == 6
    (line,) = map(json.loads, lines)
    assert (line["candidates"], line["comparisons"], line["completion_tokens"]) == (4, 4, 28)
    assert line["seconds"]["fuse"] == 1.0  # side by side, not one after the other


class Member:
    def __init__(self, name: str, fails: bool) -> None:
        self.name, self.samples, self._fails = name, 1, fails

    async def answer(self, prompt: Prompt, sample: int = 0, change: SamplingOverrides | None = None) -> Candidate:
        return (
            Candidate(self.name, error="the treasure is too long") if self._fails else Candidate(self.name, "gold")
        )

    async def stream(
        self, prompt: Prompt, sample: int = 0, change: SamplingOverrides | None = None
    ) -> AsyncGenerator[str | Candidate, None]:
        yield await self.answer(prompt)


class RankerPart:
    def __init__(self, fails: bool) -> None:
        self._fails = fails

    async def rank_one(
        self,
        prompt: Prompt,
        candidates: Sequence[Candidate],
        budget_s: float | None = None,
        comparing: ComparisonSettings | None = None,
    ) -> Ranking:
        if self._fails:
            raise BlendError("no ranker that likes a treasure")
        order = tuple(at for at, candidate in enumerate(candidates) if candidate.text is not None)
        return Ranking(order, (0.0,) * len(candidates), ((None,) * len(candidates),) * len(candidates), 0)

    async def rounds(
        self, prompt: Prompt, candidates: Sequence[Candidate], budget_s: float | None = None
    ) -> AsyncGenerator[Ranking, None]:
        yield await self.rank_one(prompt, candidates)


class FuserPart:
    """Writes a word before it fails."""

    def __init__(self, fails: bool) -> None:
        self._fails = fails

    async def fuse(
        self, prompt: Prompt, candidates: Sequence[str], change: SamplingOverrides | None = None
    ) -> Completion:
        if self._fails:
            raise BlendError("no fuser that likes a treasure")
        return Completion("old gold", "stop")

    async def stream(
        self, prompt: Prompt, candidates: Sequence[str], change: SamplingOverrides | None = None
    ) -> AsyncGenerator[str | Completion, None]:
        yield "old"
        yield await self.fuse(prompt, candidates)


@pytest.mark.parametrize("log_prompts", [False, True])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("failing", ["", "member", "ranker", "fuser", "member ranker fuser"])
def test_what_an_answer_lacks_is_counted_by_step(
    lines: list[str], failing: str, stream: bool, log_prompts: bool
) -> None:
    members = [Member("alder", False), Member("birch", "member" in failing)]
    blender = Blender(members, RankerPart("ranker" in failing), FuserPart("fuser" in failing), top_k=2)
    meter = FakeMeter()

    async def main() -> BlendResult:
        with Telemetry(log_prompts, meter).request("r", "chat") as record:
            record.asks("blend", prompt=PROMPT)
            async for event in blender.events(BlendRequest(PROMPT, follow=stream, follow_members=stream)):
                record.event(event)
            record.status = 200
        assert isinstance(event, BlendResult)
        return event

    ended = asyncio.run(main())
    steps = [(step, "birch" if step == "member" else "") for step in failing.split()]
    assert meter.of(service_metrics.DEGRADATIONS) == [(1, {"step": step, "model": model}) for step, model in steps]
    (line,) = map(json.loads, lines)
    names = [model or step for step, model in steps]
    assert line["degraded"] == (list(ended.degraded) if log_prompts else names)
    assert ("treasure" in lines[0]) == log_prompts  # nor in an error that repeats it
    assert line.get("prompt") == ([{"role": "user", "content": PROMPT.instruction}] if log_prompts else None)


def test_calls_of_a_request_that_failed_are_counted(lines: list[str]) -> None:
    meter = FakeMeter()
    with Telemetry(meter=meter).request("r", "chat") as record:
        record.used({"birch": TokenUsage(1, 0, 7, 0, 3, 0)})
        record.status = 503
    (line,) = map(json.loads, lines)
    assert (line["prompt_tokens"], line["completion_tokens"], line["llm_calls"]) == (7, 3, 1)
    assert (7, {"model": "birch", "kind": "prompt"}) in meter.of(service_metrics.TOKENS)


@pytest.mark.parametrize("birch", [TokenPrice(Rates(1e6, 1e6, 1e6)), None])
@in_event_loop
def test_costs_are_counted_by_model_where_prices_are_known(lines: list[str], birch: TokenPrice | None) -> None:
    meter, price = FakeMeter(), TokenPrice(Rates(1e6, 0.0, 2e6))
    prices = PriceList({"alder": price, "ranker": price, "birch": birch})  # the fuser bills nothing
    with Telemetry(meter=meter).request("r", "chat", None, prices) as record:
        record.event(outcome())
        record.event(outcome())  # another choice
        record.status = 200
    alder, ranker = (13.0, {"model": "alder"}), (22.0, {"model": "ranker"})
    each = [alder, *([(8.0, {"model": "birch"})] if birch else []), ranker]
    assert meter.of(service_metrics.COST) == each * 2
    (line,) = map(json.loads, lines)
    assert line.get("cost_usd") == (2 * (13 + 8 + 22) if birch else None)


def test_a_failed_member_has_no_time_of_its_own() -> None:
    meter = FakeMeter()
    with Telemetry(meter=meter).request("r", "chat") as record:
        record.event(Answered(0, Candidate("birch", error="too long"), 0.1))
        record.status = 503
    assert not meter.of(service_metrics.MEMBER_SECONDS)


@in_event_loop
def test_a_ranking_by_itself_is_counted(lines: list[str]) -> None:
    meter = FakeMeter()
    with Telemetry(meter=meter).request("r", "rerank") as record:
        record.asks("blend")
        record.ranked(Ranking((1, 0), (0.0, 1.0, None), ((None,) * 3,) * 3, 2), 0.25)
        record.status = 200
    assert meter.of(service_metrics.STAGE_SECONDS) == [(0.25, {"stage": "rank"})]
    assert meter.of(service_metrics.COMPARISONS) == [(2, {})]
    (line,) = map(json.loads, lines)
    assert (line["candidates"], line["answered"], line["comparisons"]) == (3, 2, 2)


def test_a_refused_request_counts_as_such_and_not_among_the_answered(lines: list[str]) -> None:
    meter = FakeMeter()
    with Telemetry(meter=meter).request("r", "chat") as record:
        record.error("rate_limit_exceeded")
        record.status = 429
    assert meter.values == [
        ("blend_requests_total", 1, {"route": "chat", "model": "", "status": "429"}),
        ("blend_errors_total", 1, {"kind": "rate_limit_exceeded"}),
    ]
    (line,) = map(json.loads, lines)
    assert line.keys() == {"time", "id", "route", "stream", "status", "error", "seconds"}
    assert (line["status"], line["error"]) == (429, "rate_limit_exceeded")


@pytest.mark.parametrize("sent", [None, 200])
def test_a_client_that_went_away_is_told_whatever_was_sent(lines: list[str], sent: int | None) -> None:
    meter = FakeMeter()
    with pytest.raises(asyncio.CancelledError), Telemetry(meter=meter).request("r", "chat") as record:
        record.status = sent
        raise asyncio.CancelledError
    assert [labels["status"] for _, labels in meter.of(service_metrics.REQUESTS)] == ["499"]
    assert not meter.of(service_metrics.REQUEST_SECONDS)
    assert json.loads(lines[0])["status"] == 499


@pytest.mark.parametrize(("sent", "told"), [(None, 500), (200, 200)])
def test_an_answer_that_breaks_is_an_error_whatever_was_sent(lines: list[str], sent: int | None, told: int) -> None:
    meter = FakeMeter()
    with pytest.raises(ZeroDivisionError), Telemetry(meter=meter).request("r", "chat") as record:
        record.status = sent
        raise ZeroDivisionError
    assert meter.of(service_metrics.ERRORS) == [(1, {"kind": "internal_error"})]
    assert not meter.of(service_metrics.REQUEST_SECONDS)
    line = json.loads(lines[0])
    assert (line["status"], line["error"]) == (told, "internal_error")


@in_event_loop
def test_one_line_is_one_line_whatever_was_asked(lines: list[str]) -> None:
    with Telemetry(log_prompts=True, meter=FakeMeter()).request("r", "chat") as record:
        record.asks("blend", prompt=Prompt("p", 'a\n"b"\r\u2028\ud800'))
        record.status = 200
    assert len(lines[0].splitlines()) == 1
    assert lines[0].isascii()
    assert json.loads(lines[0])["prompt"][0]["content"] == 'a\n"b"\r\u2028\ud800'


@pytest.mark.parametrize(
    ("traceparent", "trace_id"),
    [
        (f"00-{TRACE}-00f067aa0ba902b7-00", TRACE),
        (f"cc-{TRACE}-00f067aa0ba902b7-01-what-the-future-brings", TRACE),
        (f"00-{TRACE}-00f067aa0ba902b7-01-what-the-future-brings", None),
        (f"ff-{TRACE}-00f067aa0ba902b7-01", None),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-00f067aa0ba902b7-01", None),
        (f"00-{TRACE}-00f067aa0ba902b7-01\n", None),
        ("", None),
        (None, None),
    ],
)
def test_a_valid_traceparent_goes_along(lines: list[str], traceparent: str | None, trace_id: str | None) -> None:
    with Telemetry(meter=FakeMeter()).request("r", "chat", traceparent) as record:
        record.status = 200
    assert json.loads(lines[0]).get("trace_id") == trace_id


@given(st.text())
def test_no_header_breaks_a_request(traceparent: str) -> None:
    with Telemetry(meter=FakeMeter()).request("r", "chat", traceparent) as record:
        record.status = 200


@in_event_loop
def test_requests_are_queued_then_in_flight_then_gone() -> None:
    meter = FakeMeter()
    told = Telemetry(meter=meter)

    def load() -> tuple[float, float]:
        return meter.of(service_metrics.QUEUED)[-1][0], meter.of(service_metrics.IN_FLIGHT)[-1][0]

    with told.request("first", "chat") as first:
        first.asks("blend")
        first.waited(0.0)
        with told.request("second", "chat") as second:
            second.asks("blend")
            assert load() == (1, 1)
            second.waited(1.0)
            assert load() == (0, 2)
        assert load() == (0, 1)
        with pytest.raises(ZeroDivisionError), told.request("third", "chat") as third:
            third.asks("blend")
            raise ZeroDivisionError
        assert load() == (0, 1)
    assert load() == (0, 0)


def test_load_is_told_again_while_there_is_any() -> None:
    async def main() -> Values:
        meter = FakeMeter()
        with Telemetry(meter=meter).request("r", "chat") as record:
            record.asks("blend")
            record.waited(0.0)
            await asyncio.sleep(2.5 * telemetry.REFRESH_S)
        del meter.values[:4]  # of its coming
        await asyncio.sleep(10 * telemetry.REFRESH_S)
        return [value for value in meter.values if not value[2]]

    told = [("blend_requests_queued", 0, {}), ("blend_requests_in_flight", 1, {})]
    gone = [("blend_requests_queued", 0, {}), ("blend_requests_in_flight", 0, {})]
    assert run(main()) == [*told, *told, gone[1], *gone]


def test_an_open_circuit_is_told_again_until_it_closes(lines: list[str]) -> None:
    async def main() -> Values:
        meter = FakeMeter()
        told = Telemetry(meter=meter)
        told.circuit("alder", OPEN)
        await asyncio.sleep(2.5 * telemetry.REFRESH_S)
        told.circuit("alder", CLOSED)
        await asyncio.sleep(10 * telemetry.REFRESH_S)
        return [value for value in meter.values if value[2]]

    values = [("blend_circuit_open", number, {"model": "alder"}) for number in (1, 1, 1, 0, 0)]
    assert run(main()) == values
    assert [(line["part"], line["circuit"]) for line in map(json.loads, lines)] == [
        ("alder", "open"),
        ("alder", "closed"),
    ]


@pytest.mark.parametrize("log_prompts", [False, True])
def test_the_cause_of_an_open_circuit_may_repeat_a_prompt(lines: list[str], log_prompts: bool) -> None:
    async def main() -> None:
        Telemetry(log_prompts, FakeMeter()).circuit("alder", OPEN)

    run(main())
    assert ("treasure" in lines[0]) == log_prompts


def test_votes_are_counted_by_what_was_preferred() -> None:
    meter = FakeMeter()
    Telemetry(meter=meter).vote("fused")
    assert meter.values == [("blend_votes_total", 1, {"preferred": "fused"})]


def test_metrics_are_named_by_prometheus_conventions() -> None:
    assert len({metric.name for metric in SERVICE_METRICS}) == len(SERVICE_METRICS)
    for metric in SERVICE_METRICS:
        assert metric.name.startswith("blend_")
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.name.endswith("_seconds") == (metric.kind == "histogram")
        assert list(metric.boundaries) == sorted(set(metric.boundaries))


@in_event_loop
def test_ray_exports_all_of_it(ray_session: None) -> None:
    told = Telemetry()
    told.vote("tie")
    told.circuit("alder", OPEN)
    prices = PriceList({"alder": TokenPrice(Rates(1.0, 1.0, 2.0))})
    with told.request("r", "chat", None, prices) as record:
        record.asks("blend", stream=True)
        record.waited(0.125)
        record.event(Answered(0, Candidate("alder", "gold"), 0.5))
        record.event(AnswerDelta("gold"))
        record.event(replace(outcome(), degraded=("fuser: died; the best candidate instead",)))
        record.status = 200
    with told.request("r", "test-of-export") as record:  # other tests' requests are in the same Ray
        record.error("no_answer")
        record.status = 503
    (url,) = metrics_urls()
    names = {
        f"ray_{metric.name}" for metric in SERVICE_METRICS if metric is not service_metrics.CACHE_HITS
    }  # the ranker's own
    until = time.monotonic() + 60
    while True:  # processes tell the node's exporter every few seconds
        with urllib.request.urlopen(url, timeout=10) as answer:
            exported = answer.read().decode()
        types = dict(line.split()[2:4] for line in exported.splitlines() if line.startswith("# TYPE "))
        told_too = 'route="test-of-export"' in exported
        if (told_too and names <= types.keys()) or time.monotonic() > until:
            break
        time.sleep(0.1)
    for metric in SERVICE_METRICS:
        if metric is not service_metrics.CACHE_HITS:
            assert types.get(f"ray_{metric.name}") == metric.kind
    (requests,) = [line for line in exported.splitlines() if 'route="test-of-export"' in line]
    assert requests.startswith("ray_blend_requests_total{")
    assert 'status="503"' in requests
    assert requests.endswith(" 1.0")
    page = merged([exported]).decode().splitlines()  # of `/metrics`
    assert requests in page and names <= {line.split()[2] for line in page if line.startswith("# TYPE ")}


def test_a_request_to_the_service_is_told_without_its_key_and_prompt(lines: list[str]) -> None:
    meter, key = FakeMeter(), "alices-long-secret-0001"
    access = Access(Keys.load(None, {"BLEND_API_KEYS": f"alice={key}"}))
    prices = PriceList({"fuser": TokenPrice(Rates(1e6, 1e6, 1e6))})
    app = create_app(
        Service(demo_blender(), Serving(), access, Admission(1, 1), Telemetry(meter=meter), prices=prices)
    )
    body = {"model": "blend", "messages": [{"role": "user", "content": PROMPT.instruction}]}
    with served(app) as url, httpx2.Client(base_url=url) as client:
        traced = {"authorization": f"Bearer {key}", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
        answer = client.post("/v1/chat/completions", json=body, headers=traced, timeout=60)
        assert answer.status_code == 200
        refused = client.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}x"})
        assert refused.status_code == 401
    good, bad = map(json.loads, lines)
    usage = answer.json()["usage"]
    assert (good["id"], good["trace_id"], good["caller"]) == (answer.headers["x-request-id"], TRACE, "alice")
    assert (good["model"], good["status"], good["candidates"]) == ("blend", 200, len(demo_config().models))
    assert (good["prompt_tokens"], good["completion_tokens"]) == (
        usage["prompt_tokens"],
        usage["completion_tokens"],
    )
    fused = [count for count, labels in meter.of(service_metrics.TOKENS) if labels["model"] == "fuser"]
    assert good["cost_usd"] == sum(fused) > 0
    assert meter.of(service_metrics.COST) == [(sum(fused), {"model": "fuser"})]
    assert good["seconds"].keys() == {"queue", "generate", "rank", "fuse", "total"}
    assert (bad["id"], bad["status"]) == (refused.headers["x-request-id"], 401)
    assert bad["error"] == refused.json()["error"]["code"]
    assert "caller" not in bad
    assert not any(secret in line for line in lines for secret in (key, "treasure"))
    assert [labels["status"] for _, labels in meter.of(service_metrics.REQUESTS)] == ["200", "401"]
    assert {labels["model"] for _, labels in meter.of(service_metrics.MEMBER_SECONDS)} == set(
        demo_blender().members
    )
    assert [gauge for gauge, _ in meter.of(service_metrics.IN_FLIGHT)] == [1, 0]


@pytest.mark.parametrize("log_prompts", [False, True])
def test_a_log_with_prompts_is_its_owners(
    log_prompts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "worker.err"
    with file.open("w") as stream:
        file.chmod(0o644)
        monkeypatch.setattr("sys.stderr", stream)
        Telemetry(log_prompts, FakeMeter())
    assert file.stat().st_mode & 0o777 == (0o600 if log_prompts else 0o644)
