"""Settings of base LLMs, one class per engine, and the registry of engines."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import Field, JsonValue, ValidationError, ValidationInfo, field_validator, model_validator

from llm_blender_ray.configs import templates
from llm_blender_ray.configs.adapters import Adapter, AdapterMember
from llm_blender_ray.configs.engine_args import engine_args_problem
from llm_blender_ray.configs.parts import ModelPart, PartSettings, Stage, TorchPart, Weights, WeightsPart
from llm_blender_ray.configs.reasoning import AUTO, FAMILIES
from llm_blender_ray.configs.registry import OneOf, Registry, RegistryError
from llm_blender_ray.configs.sampling import OPTIONS, Sampling
from llm_blender_ray.configs.settings import OMIT_DEFAULT, RUNTIME_ONLY
from llm_blender_ray.configs.weight_formats import ANY_FORMAT, TRANSFORMERS, VLLM, WeightFormats

MAX_ERROR_RATE = 0.5  # of rows
_ENGINES = "llm_blender_ray.actors.engines"


class BaseLLM(ModelPart):
    """Settings that every base LLM has, whichever engine runs it.

    Attributes:
        sampling_options: Those of `sampling.OPTIONS` that the engine makes use of. It makes use of all other fields
            of `Sampling` in any case.
        without_adapters: Why the engine has no adapters, where its `weight_formats` name none.
    """

    stage: ClassVar[Stage] = "generate"
    sampling_options: ClassVar[frozenset[str]] = frozenset()
    without_adapters: ClassVar[str] = "it loads no adapters"

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

    @model_validator(mode="before")
    @classmethod
    def _can_adapt(cls, value: Any) -> Any:
        given = [name for name in ("adapter", "adapters") if isinstance(value, Mapping) and value.get(name)]
        if given and getattr(cls, "weight_formats", ANY_FORMAT).adapters is None:
            raise ValueError(f"engine {_engine(cls)} has no {given[0]}: {cls.without_adapters}")
        return value

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
    def members(self) -> "tuple[BaseLLM, ...]":
        """Base LLMs that an engine of these settings answers as: this one, or those of its adapters."""
        return (self,)

    def named_parts(self, name: str) -> Mapping[str, PartSettings]:
        """See `PartSettings`."""
        return {member.name: member for member in self.members}

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
    # LoRA weights of this LLM: a path, or {path, revision}
    adapter: Annotated[Adapter | None, OMIT_DEFAULT] = None
    # further members of the blend that share this engine and its weights, by name
    adapters: Annotated[dict[Annotated[str, Field(min_length=1)], AdapterMember], OMIT_DEFAULT] = Field(
        default_factory=dict
    )
    include_base: Annotated[bool, OMIT_DEFAULT] = True  # whether the model without adapters is a member, too

    @model_validator(mode="after")
    def _members_are_valid(self) -> Self:
        if self.adapters and self.adapter is not None:
            raise ValueError("adapter: the model has adapters; name it among them")
        if not self.adapters and not self.include_base:
            raise ValueError("include_base: without adapters the model is the only member")
        for name, adapter in self.adapters.items():
            try:
                self._member(name, adapter)
            except ValidationError as error:
                mistake = error.errors()[0]
                why = mistake["ctx"]["error"] if mistake["type"] == "value_error" else mistake["msg"]
                path = ".".join(["adapters", name, *map(str, mistake["loc"])])
                raise ValueError(f"{path}: {why}") from error
        return self

    @property
    def members(self) -> tuple[Self, ...]:
        """See `BaseLLM`."""
        if not self.adapters:
            return (self,)
        own = [self._member(self.name)] if self.include_base else []
        return (*own, *(self._member(name, adapter) for name, adapter in self.adapters.items()))

    def _member(self, name: str, adapter: AdapterMember | None = None) -> Self:
        """Settings of one member, as if it had an engine of its own."""
        given = {name: getattr(self, name) for name in self.model_fields_set - {"adapters", "include_base"}}
        changes = adapter.changes(self.sampling) if adapter else {}
        return type(self).model_validate({**given, **changes, "name": name})

    @property
    def loaded_adapters(self) -> tuple[Adapter, ...]:
        """Adapters that an engine of these settings loads, each once."""
        return tuple(dict.fromkeys(one.adapter for one in self.members if one.adapter is not None))

    @property
    def weights(self) -> Weights:
        """See `ModelPart`."""
        return Weights(self.model, self.revision, self.weight_formats, self.loaded_adapters)

    @property
    def label(self) -> str:
        """See `PartSettings`."""
        if self.adapters:
            return f"{super().label} as {', '.join(member.name for member in self.members)}"
        return super().label if self.adapter is None else f"{super().label} with {self.adapter.path}"

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

    @property
    def weights(self) -> Weights:
        """See `ModelPart`. A `max_lora_rank` of the engine bounds its adapters."""
        found, rank = super().weights, self.engine_args.get("max_lora_rank")
        if not isinstance(rank, int) or VLLM.adapters is None:
            return found
        return found._replace(formats=replace(VLLM, adapters=replace(VLLM.adapters, max_rank=rank)))

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


class EchoModel(BaseLLM):
    """Settings of an engine without an LLM: the answer is the prompt. For trials of a config or a pipeline."""

    implementation: ClassVar[str] = f"{_ENGINES}.echo_engine:load_echo"
    without_adapters: ClassVar[str] = "it has no weights"
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
        "endpoint": "llm_blender_ray.configs.endpoint:EndpointModel",
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
        if value.members != (value,):
            raise ValueError("one LLM is used; adapters is for base LLMs, and adapter names the LLM's own")
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
