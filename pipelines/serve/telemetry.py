"""Prometheus metrics through Ray, one JSON log line per request, and spans where they are set up.

A `RequestRecord` receives the events of a request's blend and is written when the request ends, whatever the end.
Prompts, and error texts that may quote them, are logged only with `log_prompts`; no metric has a label that clients
could choose freely.
"""

import asyncio
import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from llm_blender_ray.actors.circuit_breaker import CircuitStatus
from llm_blender_ray.actors.prices import PriceList, total_usd
from llm_blender_ray.actors.records import Prompt, Ranking
from llm_blender_ray.actors.usage import TokenUsage
from llm_blender_ray.configs.serving import Serving
from llm_blender_ray.pipelines.online.circuits import RANKER
from llm_blender_ray.pipelines.online.events import AnswerDelta, Answered, BlendResult, Event, usage_by_part
from llm_blender_ray.pipelines.serve.request_log import log, open_log
from llm_blender_ray.pipelines.serve.service_metrics import (
    CIRCUIT_OPEN,
    COMPARISONS,
    COST,
    DEGRADATIONS,
    ERRORS,
    FIRST_TOKEN_SECONDS,
    IN_FLIGHT,
    LLM_CALLS,
    MEMBER_SECONDS,
    QUEUED,
    REQUEST_SECONDS,
    REQUESTS,
    STAGE_SECONDS,
    TOKEN_DETAILS,
    TOKENS,
    VOTES,
    Meter,
    RayMeter,
    ServiceMetric,
)

if TYPE_CHECKING:
    from llm_blender_ray.pipelines.serve.tracing import RequestSpan, Tracing

CANCELLED = 499  # nginx's status of a request whose client disconnected
INTERNAL_ERROR_STATUS, INTERNAL_ERROR = 500, "internal_error"
REFRESH_S = 5.0


class Telemetry:
    """Metrics and log of one gateway. It belongs to one event loop."""

    def __init__(
        self,
        log_prompts: bool = False,
        meter: Meter | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        log_to: str = "stderr",
        tracing: "Tracing | None" = None,
    ) -> None:
        """Open the log.

        Args:
            log_prompts: Also log prompts, and errors that may quote them.
            meter: Receiver of the metrics; None: Ray's.
            clock: Seconds, never going back.
            log_to: Target of the log; see `open_log`.
            tracing: Makes spans; None: there are none.

        Raises:
            BlendError: The log cannot be opened.
        """
        self._log_prompts, self._meter, self._clock = log_prompts, meter or RayMeter(), clock
        self._gauges, self._tracing = _Gauges(self._meter), tracing
        open_log(log_to, private=log_prompts)

    @staticmethod
    def of(serving: Serving) -> "Telemetry":
        """Telemetry of a service's settings, with Ray's meter.

        Raises:
            BlendError: The log cannot be opened, or OpenTelemetry is not installed.
        """
        tracing = None
        if serving.tracing:
            from llm_blender_ray.pipelines.serve.tracing import Tracing

            tracing = Tracing.over_http()
        return Telemetry(serving.log_prompts, log_to=serving.log, tracing=tracing)

    @contextlib.contextmanager
    def request(
        self,
        request_id: str,
        route: str,
        traceparent: str | None = None,
        prices: PriceList = PriceList(),  # noqa: B008 (frozen)
    ) -> Iterator["RequestRecord"]:
        """Record a request for the length of the block: from its first byte to the response's last.

        Metrics and a line of the log are written in any case; with status 499 if the client disconnected.

        Args:
            request_id: The request's id.
            route: The endpoint's label, never the client's path.
            traceparent: W3C's header, unchanged.
            prices: Of the parts' tokens.
        """
        span = self._tracing.request(request_id, route, traceparent) if self._tracing else None
        record = RequestRecord(request_id, route, self._meter, self._clock, self._gauges, span, prices)
        record.trace_id = (span and span.trace_id) or _trace_id(traceparent)
        try:
            yield record
        except asyncio.CancelledError:
            record.status = CANCELLED
            raise
        except Exception:
            record.broke()
            raise
        finally:
            record.count()
            log.info(json.dumps(record.line(self._log_prompts)))

    def close(self) -> None:
        """Export the last spans."""
        if self._tracing is not None:
            self._tracing.close()

    def circuit(self, part: str, status: CircuitStatus) -> None:
        """Record that a part's circuit breaker has opened or closed."""
        self._gauges.set(CIRCUIT_OPEN, status.state != "closed", model=part)
        line = {"part": part, "circuit": status.state, "cause": status.cause if self._log_prompts else None}
        log.info(json.dumps({"time": _time()} | {name: value for name, value in line.items() if value}))

    def vote(self, preferred: Literal["fused", "member", "tie"]) -> None:
        """Record a user's vote."""
        self._meter(VOTES, 1, {"preferred": preferred})


class RequestRecord:
    """Record of one request. Fields are set as they become known; `event` takes a blend's events.

    Attributes:
        caller: Name of its key.
        status: Of HTTP.
    """

    def __init__(
        self,
        request_id: str,
        route: str,
        meter: Meter,
        clock: Callable[[], float],
        gauges: "_Gauges",
        span: "RequestSpan | None" = None,
        prices: PriceList = PriceList(),  # noqa: B008 (frozen)
    ) -> None:
        """Start the record; `gauges` count the request, `span` traces it, and `prices` are those of its calls."""
        self.caller: str | None = None
        self.status: int | None = None
        self.trace_id: str | None = None
        self._id, self._route, self._meter, self._clock, self._gauges = request_id, route, meter, clock, gauges
        self._span, self._prices = span, prices
        self._part_of: ServiceMetric | None = None  # queued, in flight, or neither
        self._began = clock()
        self._model: str | None = None
        self._stream = False
        self._prompt: Prompt | None = None
        self._seconds: dict[str, float] = {}
        self._first_token_s: float | None = None
        self._usage = TokenUsage()
        self._costs: list[float | None] = []  # USD of the calls of a part and choice; None: unknown
        self._candidates = self._texts = self._comparisons = 0
        self._lacks: list[str] = []
        self._degraded: list[str] = []
        self._error: str | None = None

    def asks(self, model: str, *, stream: bool = False, prompt: Prompt | None = None) -> None:
        """Set the request's model, a known name since it becomes a label; the request is now queued."""
        self._model, self._stream, self._prompt = model, stream, prompt
        if self._span:
            self._span.asks(model, prompt)
        self._becomes(QUEUED)

    def waited(self, seconds: float) -> None:
        """Set the seconds in the queue; the request is now in flight."""
        self._stage("queue", seconds)
        if self._span:
            self._span.stage("queue", seconds)
        self._becomes(IN_FLIGHT)

    def event(self, event: Event) -> None:
        """Add an event of the blend, of any choice."""
        if self._span:
            self._span.event(event)
        match event:
            case Answered(_, candidate, seconds) if candidate.text is not None:
                self._meter(MEMBER_SECONDS, seconds, {"model": candidate.model or ""})
            case AnswerDelta() if self._stream and self._first_token_s is None:
                self._first_token_s = self._clock() - self._began
                self._meter(FIRST_TOKEN_SECONDS, self._first_token_s, {"model": self._model or ""})
            case BlendResult():
                self._ended(event)

    def ranked(self, ranking: Ranking, seconds: float) -> None:
        """Set the ranking of a request for a ranking alone."""
        self._candidates += len(ranking.scores)
        self._texts += len(ranking.order)
        self._compared(ranking)
        self.used({RANKER: ranking.usage})
        self._stage("rank", seconds)
        if self._span:
            self._span.stage("rank", seconds)

    def used(self, usages: Mapping[str, TokenUsage]) -> None:
        """Add calls of LLMs, by model, ranker and fuser."""
        for model, usage in usages.items():
            self._usage += usage
            for metric, kind, count in (
                (TOKENS, "prompt", usage.prompt_tokens),
                (TOKENS, "completion", usage.completion_tokens),
                (TOKEN_DETAILS, "cached_prompt", usage.cached_prompt_tokens),
                (TOKEN_DETAILS, "reasoning", usage.reasoning_tokens),
                (LLM_CALLS, "reported", usage.calls - usage.unreported_calls),
                (LLM_CALLS, "unreported", usage.unreported_calls),
            ):
                if count:
                    self._meter(metric, count, {"model": model, "kind": kind})
        for model, usd in self._prices.usd_by_part(usages).items():
            self._costs.append(usd)
            if usd:
                self._meter(COST, usd, {"model": model})

    def error(self, kind: str) -> None:
        """Set the code of the error that the client gets, one of a few words."""
        self._error = kind

    def broke(self) -> None:
        """An exception ended the request, maybe after the response began, whose status had been sent."""
        self.status = self.status or INTERNAL_ERROR_STATUS
        self._error = self._error or INTERNAL_ERROR

    def count(self) -> None:
        """Write the metrics of the ended request."""
        self.status = status = self.status or INTERNAL_ERROR_STATUS
        model = self._model or ""
        self._seconds["total"] = self._clock() - self._began
        self._becomes(None)
        self._meter(REQUESTS, 1, {"route": self._route, "model": model, "status": str(status)})
        if self._error is not None:
            self._meter(ERRORS, 1, {"kind": self._error})
        elif status < 400:
            self._meter(REQUEST_SECONDS, self._seconds["total"], {"route": self._route, "model": model})
        if self._span:
            self._span.end(status, self._error, self.caller)

    def line(self, with_prompt: bool) -> dict[str, object]:
        """Log line of the ended request; fields that do not apply are left out."""
        line: dict[str, object] = {
            "time": _time(),
            "id": self._id,
            "trace_id": self.trace_id,
            "caller": self.caller,
            "route": self._route,
            "model": self._model,
            "stream": self._stream,
            "status": self.status,
            "error": self._error,
            "seconds": {stage: round(seconds, 4) for stage, seconds in self._seconds.items()},
            "first_token_s": None if self._first_token_s is None else round(self._first_token_s, 4),
        }
        if self._candidates or self._usage.calls:
            line |= {
                "prompt_tokens": self._usage.prompt_tokens,
                "completion_tokens": self._usage.completion_tokens,
            }
            some = ("unreported_calls", "cached_prompt_tokens", "reasoning_tokens")
            line |= {"llm_calls": self._usage.calls} | {name: getattr(self._usage, name) or None for name in some}
            line["cost_usd"] = total_usd(self._costs) if self._prices.known else None
        if self._candidates:
            line |= {
                "candidates": self._candidates,
                "answered": self._texts,
                "comparisons": self._comparisons,
                "degraded": self._degraded if with_prompt else self._lacks,
            }
        if with_prompt and self._prompt is not None:
            line["prompt"] = self._prompt.chat()
        return {name: value for name, value in line.items() if value is not None}

    def _ended(self, outcome: BlendResult) -> None:
        blend = outcome.blend
        for stage, seconds in outcome.seconds.items():
            self._stage(stage, seconds)
        if blend.ranking is None and blend.candidates:  # a member alone: its answer is the request's
            self._meter(MEMBER_SECONDS, outcome.seconds["generate"], {"model": blend.candidates[0].model or ""})
        self.used(usage_by_part(blend))
        self._candidates += len(blend.candidates)
        self._texts += sum(candidate.text is not None for candidate in blend.candidates)
        if blend.ranking is not None:
            self._compared(blend.ranking)
        self._degraded += outcome.degraded
        for step, model in _lacks(outcome):
            self._lacks.append(model or step)
            self._meter(DEGRADATIONS, 1, {"step": step, "model": model})

    def _becomes(self, gauge: ServiceMetric | None) -> None:
        for metric, change in ((self._part_of, -1), (gauge, 1)):
            if metric is not None:
                self._gauges.change(metric, change)
        self._part_of = gauge

    def _stage(self, stage: str, seconds: float) -> None:
        self._meter(STAGE_SECONDS, seconds, {"stage": stage})
        self._seconds[stage] = max(seconds, self._seconds.get(stage, 0.0))  # choices run concurrently

    def _compared(self, ranking: Ranking) -> None:
        self._comparisons += ranking.comparisons
        if ranking.comparisons:
            self._meter(COMPARISONS, ranking.comparisons)


class _Gauges:
    """Numbers of requests queued and in flight, and of open circuit breakers.

    Ray forgets a gauge that is not set again within two of its reports (10 s each), so gauges are set again while
    one is above 0.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._numbers: dict[tuple[ServiceMetric, str | None], int] = {(QUEUED, None): 0, (IN_FLIGHT, None): 0}
        self._timer: asyncio.TimerHandle | None = None

    def change(self, gauge: ServiceMetric, by: int) -> None:
        """Change a gauge."""
        self.set(gauge, self._numbers[gauge, None] + by)

    def set(self, gauge: ServiceMetric, number: int, model: str | None = None) -> None:
        """Set a gauge, that of the model if it has one of each."""
        self._numbers[gauge, model] = number
        self._tell(gauge, model)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(REFRESH_S, self._refresh)

    def _tell(self, gauge: ServiceMetric, model: str | None) -> None:
        self._meter(gauge, self._numbers[gauge, model], None if model is None else {"model": model})

    def _refresh(self) -> None:
        for gauge, model in self._numbers:
            self._tell(gauge, model)
        self._timer = None
        if any(self._numbers.values()):
            self._timer = asyncio.get_running_loop().call_later(REFRESH_S, self._refresh)


def _lacks(outcome: BlendResult) -> Iterator[tuple[str, str]]:
    """What the answer lacks, by step and model: a line of `degraded` each; a line beyond those is the fuser's."""
    told = 0
    for candidate in outcome.blend.candidates:
        if candidate.text is None:
            told += 1
            yield "member", candidate.model or ""
    if outcome.blend.ranking is not None and not outcome.blend.ranking.complete:
        told += 1
        yield "ranker", ""
    if len(outcome.degraded) > told:
        yield "fuser", ""


_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


def _time() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _trace_id(traceparent: str | None) -> str | None:
    """Trace of the request (https://www.w3.org/TR/trace-context/), or None."""
    match = _TRACEPARENT.fullmatch(traceparent or "")
    if match is None or (match[1] == "00" and match[3]):  # version 00 has nothing after its flags
        return None
    return match[2]
