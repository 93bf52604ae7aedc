"""Settings of the online service: deadlines, limits, access."""

import re
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from llm_blender_ray.configs.breaker import BreakerSettings
from llm_blender_ray.configs.settings import Settings

Seconds = Annotated[float, Field(gt=0)]
_ORIGIN = re.compile(r"https?://[^/\s@]+", re.IGNORECASE)
Share = Annotated[float, Field(gt=0, lt=1)]


class Scaling(Settings):
    """Autoscaling by Ray Serve, between a part's `replicas.min` and `replicas.max`."""

    load: Annotated[float, Field(gt=0, le=1)] = 0.7  # average share of a replica's width in use
    upscale_delay_s: Annotated[float, Field(ge=0)] = 10.0
    downscale_delay_s: Annotated[float, Field(ge=0)] = 600.0


class GatewaySettings(Settings):
    """Actors that serve HTTP and run each request's blend; they hold no model."""

    num_cpus: Annotated[float, Field(ge=0)] = 1.0
    replicas: Annotated[int, Field(ge=1)] = 1
    max_in_flight: Annotated[int, Field(ge=1)] = 64  # requests worked on at once, per gateway
    max_queued: Annotated[int, Field(ge=0)] = 64  # waiting for that; one more is refused (429)


class Limits(Settings):
    """Limits of a request, per gateway; requests beyond them are rejected, except that `max_tokens` is lowered.

    Those of connections (`connections`, `header_s`, `send_s`, `keep_alive_s`) hold where gateways listen
    themselves, with `blend serve` on one machine; on a cluster a reverse proxy before Ray Serve's has to have them.
    """

    body_bytes: Annotated[int, Field(ge=1)] = 1 << 20
    header_bytes: Annotated[int, Field(ge=1024)] = 32 << 10  # of a request's URL and headers together
    headers: Annotated[int, Field(ge=8)] = 100
    connections: Annotated[int, Field(ge=1)] = 1024  # open at once
    header_s: Seconds = 10.0  # until a request's headers are there
    body_s: Seconds = 30.0  # then until its body is
    send_s: Seconds = 30.0  # that the client may leave sent bytes unread
    keep_alive_s: Seconds = 5.0  # until a connection without a request is closed
    vote_bytes: Annotated[int, Field(ge=1)] = 64 << 20  # of answers that may still be voted on; the oldest go first
    prompt_tokens: Annotated[int, Field(ge=1)] | None = (
        None  # by each model's own tokenizer; None: what it can read
    )
    max_tokens: Annotated[int, Field(ge=1)] = 4096  # a request that wants more gets this
    candidates: Annotated[int, Field(ge=1)] = 64  # answers of all models to one request; documents to rerank


class Serving(Settings):
    """Settings of the service.

    A request has `deadline_s` in all, sending included. When `generation_share` of it is over, or `quorum` models
    have answered and the others have had their grace, the answers that are there are ranked; when `ranking_share`
    more is over, they are taken in the order known by then.
    """

    deadline_s: Seconds = 120.0
    generation_share: Share = 0.6
    ranking_share: Share = 0.2
    quorum: Annotated[int, Field(ge=1)] | None = None  # models that are enough; None: wait for all
    quorum_grace: Annotated[float, Field(ge=0)] = 0.5  # how much longer others get then: a share of the time so far
    breaker: BreakerSettings = BreakerSettings()  # when a part that fails is left out for a while
    max_retries: Annotated[int, Field(ge=0)] = (
        1  # of an endpoint, for a request; fewer where its own setting says so
    )
    timeouts_s: dict[str, Seconds] = Field(default_factory=dict)  # of a model by its name, of `ranker`, of `fuser`
    gateway: GatewaySettings = GatewaySettings()
    scaling: Scaling = Scaling()
    limits: Limits = Limits()
    allowed_origins: tuple[str, ...] = ()  # of browser applications, such as https://app.example; "*": any
    keys_file: str | None = None  # API keys, a line each (`blend key`); those in BLEND_API_KEYS count too
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None  # of one key, at each gateway
    votes: str | None = (
        None  # JSONL file of people's votes, on the disk of the node that keeps them; None: no voting
    )
    spending: str | None = None  # file of what each API key has spent today, for `budget.usd_per_key_per_day`
    log: str = "stderr"  # of requests, a JSON line each: stderr, stdout, or a file on each gateway's node
    tracing: bool = False  # OpenTelemetry spans over OTLP/HTTP, set up by the OTEL_* variables; extra `otel`
    log_prompts: bool = False  # also write what was asked into the log

    @model_validator(mode="after")
    def _leaves_time(self) -> Self:
        if self.generation_share + self.ranking_share >= 1:
            raise ValueError("generation_share and ranking_share leave no time for fusing; together less than 1")
        return self

    @field_validator("allowed_origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(f"expected an origin such as https://app.example, or *, got {origin!r}")
        return tuple(origin.lower() for origin in value)

    @field_validator("log")
    @classmethod
    def _target(cls, value: str) -> str | None:
        return value if value in ("stderr", "stdout") or value.startswith("unix:/") else cls._absolute(value)

    @field_validator("keys_file", "votes", "spending")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        if value and "://" in value:
            raise ValueError("expected a file on a local disk")
        return str(Path(value).absolute()) if value else None  # actors run in folders of their own
