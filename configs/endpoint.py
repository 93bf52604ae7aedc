"""Settings of endpoints: OpenAI-compatible HTTP services, and what differs between their requests."""

import re
from datetime import date
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, JsonValue, field_validator, model_validator

from llm_blender_ray.configs.breaker import BreakerSettings
from llm_blender_ray.configs.llms import BaseLLM
from llm_blender_ray.configs.sampling import OPTIONS
from llm_blender_ray.configs.settings import OMIT_DEFAULT, RUNTIME_ONLY, Settings

# Fields of a request that are written of the sampling field of the same name.
SAMPLING_FIELDS = (
    *("temperature", "top_p", "top_k", "stop", "seed", "min_p", "min_tokens", "logit_bias", "logprobs"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
)
# Fields of a request that other settings write.
WRITTEN = {
    "model": "model",
    "messages": "system_prompt",
    "max_tokens": "sampling.max_tokens",
    "max_completion_tokens": "sampling.max_tokens and max_tokens_field",
    **{name: f"sampling.{name}" for name in SAMPLING_FIELDS},
    "top_logprobs": "sampling.logprobs",
    "stream_options": "stream_usage",
    "n": "samples",
    "stream": "stream",
}
SECRET = re.compile(r"authorization|cookie|(^|[-_])(key|token|secret|password)$", re.IGNORECASE)
NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class RequestSettings(Settings):
    """Fields of a request to an endpoint other than the chat and `sampling`, and limits of its response."""

    # auto: max_tokens; max_completion_tokens once the endpoint has refused that, as OpenAI's reasoning models do
    max_tokens_field: Literal["auto", "max_tokens", "max_completion_tokens"] = "auto"
    # Leave out temperature, top_p or another sampling parameter once the endpoint has refused it, though it is set.
    # (A temperature of 0, the default, is left out in any case.)
    drop_params: bool = False
    # the request field of sampling.thinking_token_budget, with dots for fields within others: thinking_token_budget
    # (vLLM), thinking_budget (Qwen), reasoning.max_tokens (OpenRouter), ...
    thinking_budget_field: Annotated[str, Field(pattern=r"^\w+(\.\w+)*$"), OMIT_DEFAULT] = "thinking_token_budget"
    # of Azure: `base_url` is then that of the resource, and `model` its deployment
    api_version: Annotated[str | None, Field(pattern=r"^[\w.-]+$"), OMIT_DEFAULT] = None
    # take answers as streams also where whole ones would do, for servers that do nothing else
    stream: Annotated[bool, RUNTIME_ONLY] = False
    extra_body: dict[str, JsonValue] = Field(default_factory=dict)  # further fields of the request
    headers: dict[str, str] = Field(default_factory=dict)  # further headers; no secrets, they are kept with results
    # headers, with the environment variable of each value
    headers_env: Annotated[dict[str, str], RUNTIME_ONLY] = Field(default_factory=dict)
    # limits of all its actors together; retries count
    requests_per_minute: Annotated[Annotated[int, Field(ge=1)] | None, RUNTIME_ONLY] = None
    tokens_per_minute: Annotated[Annotated[int, Field(ge=1)] | None, RUNTIME_ONLY] = None  # of prompts and answers
    max_answer_mib: Annotated[int, Field(ge=1), RUNTIME_ONLY] = 32  # of one response; a larger one is an error

    @field_validator("api_version", mode="before")
    @classmethod
    def _from_date(cls, value: object) -> object:
        return value.isoformat() if isinstance(value, date) else value  # YAML's type of 2024-10-21

    @field_validator("extra_body")
    @classmethod
    def _not_written(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        for name in value:
            if name in WRITTEN:
                raise ValueError(f"{name} is written by {WRITTEN[name]}")
        return value

    @field_validator("headers", "headers_env")
    @classmethod
    def _are_headers(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not NAME.fullmatch(name):
                raise ValueError(f"{name!r} isn't the name of a header")
        return value

    @field_validator("headers")
    @classmethod
    def _no_secrets(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if SECRET.search(name):
                raise ValueError(
                    f"{name} is a secret; put its value into an environment variable, and that variable's name "
                    "under headers_env"
                )
            if problem := header_problem(text):
                raise ValueError(f"{name}: {problem}")
        return value


class EndpointModel(BaseLLM, RequestSettings):
    """Settings of an OpenAI-compatible HTTP endpoint."""

    implementation: ClassVar[str] = "llm_blender_ray.actors.engines.guarded_engine:load_endpoint"
    sampling_options: ClassVar[frozenset[str]] = frozenset(OPTIONS) - {"num_beams"}
    without_adapters: ClassVar[str] = "its server has them; name each as the `model` of a model of its own"
    default_cpus: ClassVar[float] = 0.0

    engine: Literal["endpoint"]
    base_url: str
    api_key_env: Annotated[str | None, RUNTIME_ONLY] = None  # environment variable that holds the key
    timeout_s: Annotated[float, Field(gt=0), RUNTIME_ONLY] = 120.0  # one attempt, connect to last byte
    max_retries: Annotated[int, Field(ge=0), RUNTIME_ONLY] = 5
    max_in_flight: Annotated[int, Field(ge=1), RUNTIME_ONLY] = 16  # requests at a time, per actor
    # request token counts of streams (`stream_options`), which a few servers refuse
    stream_usage: Annotated[bool, RUNTIME_ONLY] = True
    # in bulk runs; None: every prompt is sent, however many fail
    breaker: Annotated[BreakerSettings | None, RUNTIME_ONLY] = BreakerSettings()

    @property
    def width(self) -> int:
        """See `ModelPart`."""
        return self.max_in_flight

    @field_validator("base_url")
    @classmethod
    def _is_url(cls, value: str) -> str:
        if not re.fullmatch(r"https?://[^/@]+(/.*)?", value):  # not shown: it may have a password in it
            raise ValueError("expected http://HOST/PATH or https://HOST/PATH, without user and password")
        return value

    @model_validator(mode="after")
    def _limits_can_be_divided(self) -> Self:
        for name in ("requests_per_minute", "tokens_per_minute"):
            limit = getattr(self, name)
            if limit is None:
                continue
            if "replicas" not in self.model_fields_set and (self.num_gpus or self.resources):
                raise ValueError(f"{name}: set replicas, the number of actors that the limit is divided among")
            if limit < self.replicas.max:
                raise ValueError(f"{name}: {limit} is less than one for each of the {self.replicas.max} replicas")
        return self

    def per_actor(self, limit: int | None) -> int | None:
        """One actor's share of a limit of all actors, also of those that an autoscaler may add; None: no limit."""
        return None if limit is None else limit // self.replicas.max

    def for_service(self, max_retries: int, max_prompt_tokens: int | None = None) -> Self:
        """See `PartSettings`. The gateway has a circuit breaker for each part, so the endpoint needs none."""
        return self.model_copy(update={"max_retries": min(self.max_retries, max_retries), "breaker": None})


def header_problem(value: str) -> str | None:
    """Problem of a text as a header's value; None where it is valid."""
    return None if value.isascii() and value.isprintable() else "expected printable ASCII characters"
