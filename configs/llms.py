"""Settings of base LLMs, one class per engine, and the registry of engines."""

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import Field, JsonValue, ValidationInfo, field_validator, model_validator

from llm_blender_ray.configs import templates
from llm_blender_ray.configs.breaker import BreakerSettings
from llm_blender_ray.configs.endpoint import RequestSettings
from llm_blender_ray.configs.engine_args import engine_args_problem
from llm_blender_ray.configs.parts import ModelPart, PartSettings, Stage, TorchPart, WeightsPart
from llm_blender_ray.configs.reasoning import AUTO, FAMILIES
from llm_blender_ray.configs.registry import OneOf, Registry, RegistryError
from llm_blender_ray.configs.sampling import OPTIONS, Sampling
from llm_blender_ray.configs.settings import OMIT_DEFAULT, RUNTIME_ONLY
from llm_blender_ray.configs.weight_formats import TRANSFORMERS, VLLM, WeightFormats

MAX_ERROR_RATE = 0.5  # of rows
_ENGINES = "llm_blender_ray.actors.engines"


class BaseLLM(ModelPart):
    """Settings that every base LLM has, whichever engine runs it.

    Attributes:
        sampling_options: Those of `sampling.OPTIONS` that the engine makes use of. It makes use of all other fields
            of `Sampling` in any case.
    """

    stage: ClassVar[Stage] = "generate"
    sampling_options: ClassVar[frozenset[str]] = frozenset()

    name: Annotated[str, Field(min_length=1)]
    engine: str
    model: Annotated[str, Field(min_length=1)]  # local folder, hub id, or the endpoint's name for it
    system_prompt: str | None = None
    sampling: Sampling = Sampling()
    samples: Annotated[int, Field(ge=1)] = 1  # answers to each prompt; with a seed, sample i has seed + i
    # auto, or the family that marks reasoning (configs/reasoning.py); under vLLM, any of its parsers
    reasoning_parser: Annotated[str, OMIT_DEFAULT] = AUTO
    # write it into rows, as a candidate's reasoning_content
    include_reasoning: Annotated[bool, OMIT_DEFAULT] = False
    # keep <think>...</think> at the start of answers, so that rankers and fusers read it; max_tokens counts it
    keep_reasoning: bool = False
    # of the rows asked; more: a run's exit code is 1
    max_error_rate: Annotated[float, Field(ge=0, le=1), RUNTIME_ONLY] = MAX_ERROR_RATE

    @field_validator("reasoning_parser")
    @classmethod
    def _is_family(cls, value: str) -> str:
        if value not in (AUTO, *FAMILIES):
            raise ValueError(f"unknown parser {value!r}, expected {AUTO} or one of {', '.join(FAMILIES)}")
        return value

    @field_validator("sampling")
    @classmethod
    def _can_sample(cls, value: Sampling) -> Sampling:
        if problem := cls.sampling_problem(value):
            raise ValueError(f"{problem[0]}: {problem[1]}")
        return value

    @field_validator("samples")
    @classmethod
    def _different(cls, value: int, info: ValidationInfo) -> int:
        sampling = info.data.get("sampling")  # None where it is a mistake itself
        if sampling is not None and sampling.num_beams > 1:
            if value > sampling.num_beams:
                raise ValueError(
                    f"a search with {sampling.num_beams} beams (sampling.num_beams) has no more answers"
                )
        elif value > 1 and sampling is not None and sampling.greedy:
            raise ValueError(
                f"all {value} would be equal; set sampling.temperature above 0, such as 0.7, and no "
                "sampling.top_k of 1"
            )
        return value

    @classmethod
    def sampling_problem(cls, sampling: Sampling) -> tuple[str, str] | None:
        """Find what the engine can't do, so that it is refused before a prompt is sent.

        Args:
            sampling: Settings of the model, or of one request.

        Returns:
            The name of a field, and what is wrong with it.
        """
        if problem := sampling.problem():
            return problem
        for name in sampling.options:
            if name not in cls.sampling_options:
                return name, f"engine {_engine(cls)} can't; {' and '.join(_engines_with(name))} can"
        return None

    @property
    def candidate_fields(self) -> tuple[str, ...]:
        """Fields that its candidates have in rows beside those of all candidates (`records.ON_DEMAND_TYPES`)."""
        reasoning = ("reasoning_content", "reasoning_tokens") if self.include_reasoning else ()
        return (*reasoning, "logprobs") if self.sampling.logprobs is not None else reasoning

    @property
    def label(self) -> str:
        """See `PartSettings`."""
        return f"{self.engine} {self.model}"

    @property
    def prompted_llm(self) -> "BaseLLM | None":
        """See `PartSettings`."""
        return self

    @property
    def deterministic(self) -> bool:
        """See `PartSettings`."""
        return self.sampling.greedy or self.sampling.seed is not None


class LocalLLM(WeightsPart, BaseLLM):
    """Settings of a base LLM whose weights this project loads."""

    results_version: ClassVar[int] = 2  # the template `koala` has no space before earlier answers

    max_model_len: Annotated[int, Field(ge=1)] | None = None  # tokens of prompt and answer together
    max_prompt_tokens: Annotated[int, Field(ge=1)] | None = None  # longer prompts are refused; None: what fits
    trust_remote_code: bool = False
    # a .jinja file, a template, or the name of one (configs/templates.py); None: the tokenizer's own
    chat_template: str | None = None

    @field_validator("chat_template")
    @classmethod
    def _is_template(cls, value: str | None) -> str | None:
        if value is not None and not templates.is_inline(value) and value not in templates.template_names():
            raise ValueError(
                f"{value!r} is neither a readable file with a Jinja template nor a known name "
                f"({', '.join(templates.template_names())})"
            )
        return value

    def for_service(self, max_retries: int, max_prompt_tokens: int | None = None) -> Self:
        """See `PartSettings`."""
        if max_prompt_tokens is None or self.max_prompt_tokens is not None:
            return self
        return self.model_copy(update={"max_prompt_tokens": max_prompt_tokens})


class VLLMModel(LocalLLM):
    """Settings of a base LLM under vLLM's AsyncLLM."""

    implementation: ClassVar[str] = f"{_ENGINES}.vllm_engine:VLLMEngine"
    weight_formats: ClassVar[WeightFormats] = VLLM
    sampling_options: ClassVar[frozenset[str]] = frozenset(OPTIONS)
    pipeline_setting: ClassVar[str | None] = "pipeline_parallel_size"

    engine: Literal["vllm"]
    tensor_parallel_size: Annotated[int, Field(ge=1), RUNTIME_ONLY] = 1
    pipeline_parallel_size: Annotated[int, Field(ge=1), RUNTIME_ONLY] = 1
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1), RUNTIME_ONLY] = 0.9
    max_num_seqs: Annotated[Annotated[int, Field(ge=1)] | None, RUNTIME_ONLY] = None
    quantization: str | None = None
    enforce_eager: Annotated[bool, RUNTIME_ONLY] = False
    # further arguments of vLLM's AsyncEngineArgs, by its names, except those that another setting sets
    engine_args: Annotated[dict[str, JsonValue], OMIT_DEFAULT] = Field(default_factory=dict)

    @field_validator("engine_args")
    @classmethod
    def _are_arguments(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        if problem := engine_args_problem(value):
            raise ValueError(problem)
        return value

    @field_validator("reasoning_parser")
    @classmethod
    def _is_family(cls, value: str) -> str:
        return value  # the engine knows vLLM's parsers

    def default_gpus(self, *, has_gpus: bool) -> float:
        """See `ModelPart`."""
        return float(self.world_size)

    @property
    def pipeline_stages(self) -> int:
        """See `ModelPart`."""
        return self.pipeline_parallel_size

    @property
    def world_size(self) -> int:
        """GPUs of one engine."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @model_validator(mode="after")
    def _enough_gpus(self) -> Self:
        if self.world_size > 1 and 0 < (self.num_gpus or 0) < self.world_size:  # 0: on CPUs
            raise ValueError(
                f"num_gpus: {self.num_gpus:g} is less than tensor_parallel_size x pipeline_parallel_size "
                f"({self.world_size})"
            )
        return self

    @classmethod
    def sampling_problem(cls, sampling: Sampling) -> tuple[str, str] | None:
        """See `BaseLLM`. vLLM's beam search scores with the plain log-probabilities."""
        plain = ("num_beams", "chat_template_kwargs")
        if sampling.num_beams > 1 and (beside := [name for name in sampling.options if name not in plain]):
            return "num_beams", f"vLLM's beam search takes no {beside[0]}"
        return super().sampling_problem(sampling)

    @property
    def width(self) -> int:
        """See `ModelPart`."""
        return self.max_num_seqs or 256


class TransformersModel(TorchPart, LocalLLM):
    """Settings of a base LLM under transformers' `generate`: causal or seq2seq, by the model's config."""

    implementation: ClassVar[str] = f"{_ENGINES}.transformers_engine:TransformersEngine"
    weight_formats: ClassVar[WeightFormats] = TRANSFORMERS
    sampling_options: ClassVar[frozenset[str]] = frozenset(OPTIONS)

    engine: Literal["transformers"]
    max_batch_size: Annotated[int, Field(ge=1), RUNTIME_ONLY] = 32  # prompts decoded together

    @property
    def width(self) -> int:
        """See `ModelPart`."""
        return self.max_batch_size


class EndpointModel(BaseLLM, RequestSettings):
    """Settings of an OpenAI-compatible HTTP endpoint."""

    implementation: ClassVar[str] = f"{_ENGINES}.guarded_engine:load_endpoint"
    sampling_options: ClassVar[frozenset[str]] = frozenset(OPTIONS) - {"num_beams"}
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


class EchoModel(BaseLLM):
    """Settings of an engine without an LLM: the answer is the prompt. For trials of a config or a pipeline."""

    implementation: ClassVar[str] = f"{_ENGINES}.echo_engine:load_echo"
    default_cpus: ClassVar[float] = 0.0

    engine: Literal["echo"]

    @property
    def width(self) -> int:
        """See `ModelPart`."""
        return 64

    @property
    def deterministic(self) -> bool:
        """See `PartSettings`."""
        return True


def _engine(settings: type[BaseLLM]) -> str:
    """Name of the engine that settings of this class are for."""
    return ", ".join(map(str, get_args(settings.model_fields["engine"].annotation)))


def _engines_with(option: str) -> Iterator[str]:
    """Names of the engines that make use of a sampling option."""
    for name in ENGINES.names():
        with suppress(RegistryError):  # of a package that can't be imported
            if option in ENGINES.get(name).sampling_options:
                yield name


ENGINES: Registry[type[BaseLLM]] = Registry(
    "engine",
    "llm_blender_ray.engines",
    {
        "vllm": f"{__name__}:VLLMModel",
        "transformers": f"{__name__}:TransformersModel",
        "endpoint": f"{__name__}:EndpointModel",
        "echo": f"{__name__}:EchoModel",
    },
)
ModelSettings = Annotated[BaseLLM, OneOf(ENGINES, "engine")]


class LLMPart(PartSettings):
    """Settings of a part that prompts an LLM of its own, which is placed as a base LLM is."""

    llm: ModelSettings

    @field_validator("llm")
    @classmethod
    def _one_sample(cls, value: BaseLLM) -> BaseLLM:
        if value.samples > 1:
            raise ValueError("one answer is used; samples is for base LLMs")
        return value

    @property
    def model_settings(self) -> ModelPart:
        """See `PartSettings`."""
        return self.llm

    @property
    def prompted_llm(self) -> BaseLLM | None:
        """See `PartSettings`."""
        return self.llm

    @property
    def deterministic(self) -> bool:
        """See `PartSettings`."""
        return self.llm.deterministic

    def for_service(self, max_retries: int, max_prompt_tokens: int | None = None) -> Self:
        """See `PartSettings`. Prompts of the part's own are not limited."""
        changed: dict[str, Any] = {"llm": self.llm.for_service(max_retries)}
        return self.model_copy(update=changed)
