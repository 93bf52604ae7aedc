"""Metrics of the service, declared to Ray, whose exporter serves them to Prometheus."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

_FINE = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)  # seconds


@dataclass(frozen=True, slots=True)
class ServiceMetric:
    """One metric, declared to Ray; Ray's exporter puts `ray_` before its name.

    `boundaries` are upper bounds of a histogram's buckets, in the metric's unit.
    """

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    description: str
    labels: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = _FINE


REQUESTS = ServiceMetric(
    "counter", "blend_requests_total", "Requests by their result.", ("route", "model", "status")
)
ERRORS = ServiceMetric("counter", "blend_errors_total", "Failed requests, by kind of error.", ("kind",))
IN_FLIGHT = ServiceMetric("gauge", "blend_requests_in_flight", "Requests in flight.")
QUEUED = ServiceMetric("gauge", "blend_requests_queued", "Requests in the queue.")
REQUEST_SECONDS = ServiceMetric(
    "histogram", "blend_request_duration_seconds", "Answered requests, from first to last byte.", ("route", "model")
)
FIRST_TOKEN_SECONDS = ServiceMetric(
    "histogram", "blend_first_token_seconds", "Until a streamed answer's first text.", ("model",)
)
STAGE_SECONDS = ServiceMetric(
    "histogram", "blend_stage_duration_seconds", "By stage: queue, generate, rank, fuse.", ("stage",)
)
MEMBER_SECONDS = ServiceMetric(
    "histogram", "blend_member_duration_seconds", "Duration of a member's whole answer.", ("model",)
)
TOKENS = ServiceMetric(
    "counter", "blend_tokens_total", "Tokens by model and kind (prompt or completion).", ("model", "kind")
)
TOKEN_DETAILS = ServiceMetric(
    "counter",
    "blend_token_details_total",
    "Tokens among those of blend_tokens_total, by kind (cached_prompt or reasoning).",
    ("model", "kind"),
)
LLM_CALLS = ServiceMetric(
    "counter",
    "blend_llm_calls_total",
    "Calls of LLMs, the judge's and the fuser's too, by whether their tokens are known (reported or unreported).",
    ("model", "kind"),
)
COST = ServiceMetric(
    "counter", "blend_cost_usd_total", "Cost of LLM calls by their tokens, where the price is known.", ("model",)
)
COMPARISONS = ServiceMetric("counter", "blend_comparisons_total", "Forwards of the ranker.")
CACHE_HITS = ServiceMetric("counter", "blend_cache_hits_total", "Comparisons found in the ranker's cache.")
DEGRADATIONS = ServiceMetric(
    "counter",
    "blend_degradations_total",
    "What answers lacked: a member, the ranker or the fuser.",
    ("step", "model"),
)
CIRCUIT_OPEN = ServiceMetric(
    "gauge",
    "blend_circuit_open",
    "1 while the circuit breaker of a model, the ranker or the fuser is open.",
    ("model",),
)
VOTES = ServiceMetric("counter", "blend_votes_total", "Users' votes, by preferred answer.", ("preferred",))
SERVICE_METRICS = (
    REQUESTS, ERRORS, IN_FLIGHT, QUEUED, REQUEST_SECONDS, FIRST_TOKEN_SECONDS, STAGE_SECONDS, MEMBER_SECONDS,
    TOKENS, TOKEN_DETAILS, LLM_CALLS, COST, COMPARISONS, CACHE_HITS, DEGRADATIONS, CIRCUIT_OPEN, VOTES,
)  # fmt: skip


class Meter(Protocol):
    """Receiver of metric values."""

    def __call__(self, metric: ServiceMetric, value: float, labels: Mapping[str, str] | None = None) -> None:
        """Add to a counter (only more than 0), set a gauge, or observe a histogram's value."""
        ...


class RayMeter:
    """Ray's exporter, which Prometheus scrapes on every node. In a process without Ray values are dropped."""

    def __init__(self) -> None:
        from ray.util import metrics  # a second to import

        self._record: dict[str, Callable[[float, Mapping[str, str] | None], None]] = {}
        for metric in SERVICE_METRICS:
            about = (metric.name, metric.description)
            if metric.kind == "counter":
                self._record[metric.name] = metrics.Counter(*about, tag_keys=metric.labels).inc
            elif metric.kind == "gauge":
                self._record[metric.name] = metrics.Gauge(*about, tag_keys=metric.labels).set
            else:
                bounds = list(metric.boundaries)
                self._record[metric.name] = metrics.Histogram(*about, bounds, tag_keys=metric.labels).observe

    def __call__(self, metric: ServiceMetric, value: float, labels: Mapping[str, str] | None = None) -> None:
        """See `Meter`."""
        self._record[metric.name](value, labels)
