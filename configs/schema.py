"""The schema of every config file: frozen pydantic models, unknown keys refused.

A config is data about *what* runs; it holds no secrets (an endpoint names the environment variable that holds
its key). Relative model folders are resolved against the config's own folder by `configs.loading`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from llm_blender_ray.configs import templates
from llm_blender_ray.configs.breaker import BreakerSettings
from llm_blender_ray.configs.endpoint import RequestSettings
from llm_blender_ray.configs.judging import Judging
from llm_blender_ray.configs.preferences import Preferences
from llm_blender_ray.configs.serving import Serving
from llm_blender_ray.configs.settings import Settings
from llm_blender_ray.configs.strategies import Strategy

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
MAX_ERROR_RATE = 0.5  # of rows
DeviceName = Annotated[
    str, Field(pattern=r"^(auto|(cpu|cuda|mps|xpu|npu|hpu|mlu|musa)(:\d+)?)$")
]  # auto, or torch's name


class Sampling(Settings):
    """How an LLM writes. `temperature: 0` is greedy decoding.

    `temperature: null` sends none to an endpoint, whose own default counts; a local engine draws at 1, the default
    of OpenAI's API.
    """

    max_tokens: Annotated[int, Field(ge=1)] = 512
    temperature: Annotated[float, Field(ge=0, le=2)] | None = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=1)] | None = None
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None

    @property
    def local_temperature(self) -> float:
        """The temperature at which local engines draw."""
        return 1.0 if self.temperature is None else self.temperature

    @property
    def greedy(self) -> bool:
        """Whether there is nothing to draw: the same prompt gets the same answer."""
        return self.temperature == 0 or self.top_k == 1

    def nth(self, sample: int) -> Self:
        """The settings of one of several samples: where there is a seed, its own."""
        if self.seed is None or sample == 0:
            return self
        return self.model_copy(update={"seed": (self.seed + sample) % 2**63})


class SamplingChange(Settings):
    """What one request to the service changes of a model's sampling; None leaves it as configured."""

    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stop: tuple[Annotated[str, Field(min_length=1)], ...] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None

    def of(self, sampling: Sampling) -> Sampling:
        """The changed settings."""
        return sampling.model_copy(update=self.model_dump(exclude_none=True))


class Replicas(Settings):
    """How many actors hold a model: at least `min`, and up to `max` where there is room.

    `min: 0` lets a service unload a model that nobody asks; in a bulk run it counts as 1.
    """

    min: Annotated[int, Field(ge=0)] = 1
    max: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, value: object) -> object:
        if isinstance(value, int) and not isinstance(value, bool):
            return {"min": value, "max": max(value, 1)}
        return value

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max < self.min:
            raise ValueError(f"max ({self.max}) is smaller than min ({self.min})")
        return self


class Resources(Settings):
    """What one actor takes of the cluster, in Ray's units, and how many of them there are."""

    num_cpus: Annotated[float, Field(ge=0)] | None = None  # None: 1 on CPU, 0 beside a GPU (RAY.md: the pool hangs)
    num_gpus: Annotated[float, Field(ge=0)] | None = None  # None: what the engine needs
    resources: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)  # custom Ray resources
    accelerator_type: str | None = None  # Ray's name of the GPUs it must run on, such as H100
    replicas: Replicas = Replicas()  # not set: with GPUs or custom resources as many as its wave leaves room for


class BaseLLM(Resources):
    """What every base LLM has, whichever engine runs it."""

    name: Annotated[str, Field(min_length=1)]
    model: Annotated[str, Field(min_length=1)]  # local folder, hub id, or the endpoint's name for it
    system_prompt: str | None = None
    sampling: Sampling = Sampling()
    samples: Annotated[int, Field(ge=1)] = 1  # answers to each prompt; with a seed, sample i has seed + i
    keep_reasoning: bool = False  # what answers begin with between <think> and </think>; max_tokens counts it
    max_error_rate: Annotated[float, Field(ge=0, le=1)] = MAX_ERROR_RATE  # of the rows asked; more: a run's exit 1

    @field_validator("samples")
    @classmethod
    def _different(cls, value: int, info: ValidationInfo) -> int:
        sampling = info.data.get("sampling")  # None where it is a mistake itself
        if value > 1 and sampling is not None and sampling.greedy:
            raise ValueError(
                f"all {value} would be equal; set sampling.temperature above 0, such as 0.7, and no "
                "sampling.top_k of 1"
            )
        return value


class LocalLLM(BaseLLM):
    """A base LLM whose weights this project loads."""

    revision: str | None = None
    dtype: Dtype = "auto"
    max_model_len: Annotated[int, Field(ge=1)] | None = None  # tokens of prompt and answer together
    max_prompt_tokens: Annotated[int, Field(ge=1)] | None = None  # longer prompts are refused; None: what fits
    trust_remote_code: bool = False
    chat_template: str | None = None  # a .jinja file, a template, or the name of one (configs/templates.py);
    # None: the tokenizer's own

    @field_validator("chat_template")
    @classmethod
    def _is_template(cls, value: str | None) -> str | None:
        if value is not None and not templates.is_inline(value) and value not in templates.template_names():
            raise ValueError(
                f"{value!r} is neither a readable file with a Jinja template nor a known name "
                f"({', '.join(templates.template_names())})"
            )
        return value


class VLLMModel(LocalLLM):
    """Runs in the actor under vLLM's AsyncLLM."""

    engine: Literal["vllm"]
    tensor_parallel_size: Annotated[int, Field(ge=1)] = 1
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    max_num_seqs: Annotated[int, Field(ge=1)] | None = None
    quantization: str | None = None
    enforce_eager: bool = False


class TransformersModel(LocalLLM):
    """Runs in the actor under transformers' generate; causal or seq2seq is read from the model's config."""

    engine: Literal["transformers"]
    device: DeviceName = "auto"
    max_batch_size: Annotated[int, Field(ge=1)] = 32  # prompts decoded together


class EndpointModel(BaseLLM, RequestSettings):
    """Asks an OpenAI-compatible HTTP endpoint."""

    engine: Literal["endpoint"]
    base_url: Annotated[str, Field(pattern=r"^https?://[^/@]+(/.*)?$")]  # no user:password in it
    api_key_env: str | None = None  # name of the environment variable that holds the key
    timeout_s: Annotated[float, Field(gt=0)] = 120.0  # one attempt, connect to last byte
    max_retries: Annotated[int, Field(ge=0)] = 5
    max_in_flight: Annotated[int, Field(ge=1)] = 16  # requests at a time, per actor
    stream_usage: bool = True  # ask for token counts of streams (`stream_options`), which a few servers refuse
    breaker: BreakerSettings | None = BreakerSettings()  # in bulk; None: every prompt is asked, however many fail


class EchoModel(BaseLLM):
    """Answers with the prompt itself, at once: to try a config, or measure a pipeline, without any LLM."""

    engine: Literal["echo"]


ModelSettings = Annotated[VLLMModel | TransformersModel | EndpointModel | EchoModel, Field(discriminator="engine")]


class ComparisonSettings(Settings):
    """What every ranker has, whatever scores the pairs: which are compared, and how many places must be right."""

    strategy: Strategy | None = None  # None: focus, where top_k is known; else full
    top_k: Annotated[int, Field(ge=1)] | None = None  # None: what the fuser takes, or without a blend every place
    cache: str | None = None  # SQLite file of comparisons made, one on each node; a later run makes them no more

    @field_validator("cache")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        if value and "://" in value:
            raise ValueError("expected a file on a local disk")
        return str(Path(value).absolute()) if value else None  # actors run in folders of their own


class PairRanker(Resources, ComparisonSettings):
    """A cross-encoder that reads both candidates at once: any published layout, a local folder or a hub id."""

    kind: Literal["pairranker"] = "pairranker"
    model: Annotated[str, Field(min_length=1)]
    revision: str | None = None
    dtype: Dtype = "auto"  # auto: float32 on CPU, float16 on GPU
    device: DeviceName = "auto"
    source_max_length: Annotated[int, Field(ge=4)] | None = None  # tokens; None: the checkpoint's own
    candidate_max_length: Annotated[int, Field(ge=4)] | None = None  # tokens; None: the checkpoint's own
    batch_tokens: Annotated[int, Field(ge=1)] | None = None  # in one forward, padding included; None: as measured


class RewardModel(Resources, ComparisonSettings):
    """A pointwise scorer: any sequence-classification checkpoint with one label. Its margins are differences."""

    kind: Literal["reward"]
    model: Annotated[str, Field(min_length=1)]
    revision: str | None = None
    dtype: Dtype = "auto"  # auto: float32 on CPU, the checkpoint's own on GPU
    device: DeviceName = "auto"
    max_length: Annotated[int, Field(ge=8)] | None = None  # tokens of prompt and answer; None: the checkpoint's own
    batch_tokens: Annotated[int, Field(ge=1)] | None = None  # in one forward, padding included
    trust_remote_code: bool = False


class Judge(ComparisonSettings, Judging):
    """An LLM that says which of two answers is better; `llm` is placed as a base LLM is."""

    kind: Literal["judge"]
    llm: ModelSettings

    @field_validator("llm")
    @classmethod
    def _asked_once(cls, value: ModelSettings) -> ModelSettings:
        if value.samples > 1:
            raise ValueError("a judge is asked once; samples is for base LLMs")
        return value


def _kind_or(default: str) -> Callable[[object], str]:
    """Reads `kind`, which may be left out of the settings of the usual one."""

    def kind(value: object) -> str:
        given = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
        return given if isinstance(given, str) else default

    return kind


RankerSettings = Annotated[
    Annotated[PairRanker, Tag("pairranker")]
    | Annotated[RewardModel, Tag("reward")]
    | Annotated[Judge, Tag("judge")],
    Discriminator(
        _kind_or("pairranker"),
        custom_error_type="unknown_kind",
        custom_error_message="unknown kind of ranker, expected pairranker, reward or judge",
    ),
]


class GenFuser(Resources):
    """Any seq2seq model trained on the original's input template."""

    kind: Literal["genfuser"] = "genfuser"
    model: Annotated[str, Field(min_length=1)]
    revision: str | None = None
    top_k: Annotated[int, Field(ge=1)] = 3
    num_beams: Annotated[int, Field(ge=1)] = 4
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None  # None: candidate_max_length, as the original
    max_length: Annotated[int, Field(ge=8)] = 1024  # tokens of the whole input
    candidate_max_length: Annotated[int, Field(ge=1)] = 128  # tokens of one candidate
    dtype: Dtype = "auto"
    device: DeviceName = "auto"
    max_batch_size: Annotated[int, Field(ge=1)] = 16  # inputs decoded together


class LLMFuser(Settings):
    """Any chat LLM, told to write one better answer from the best; `llm` is placed as a base LLM is."""

    kind: Literal["chat"]
    llm: ModelSettings
    top_k: Annotated[int, Field(ge=1)] = 3
    instruction: Annotated[str, Field(min_length=1)] | None = None  # what it is told to do; None: our own words

    @field_validator("llm")
    @classmethod
    def _asked_once(cls, value: ModelSettings) -> ModelSettings:
        if value.samples > 1:
            raise ValueError("a fuser is asked once; samples is for base LLMs")
        return value


FuserSettings = Annotated[
    Annotated[GenFuser, Tag("genfuser")] | Annotated[LLMFuser, Tag("chat")],
    Discriminator(
        _kind_or("genfuser"),
        custom_error_type="unknown_kind",
        custom_error_message="unknown kind of fuser, expected genfuser or chat",
    ),
]


class RankerSection(BaseModel):
    """The `ranker` of any config file; the rest of the file is of no interest."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    ranker: RankerSettings


class NodeGroup(Settings):
    """Machines of one kind that an autoscaling cluster can have, for the plan."""

    count: Annotated[int, Field(ge=1)] = 1
    num_cpus: Annotated[float, Field(ge=0)]
    num_gpus: Annotated[float, Field(ge=0)] = 0.0
    resources: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    accelerator_type: str | None = None


class RayCluster(Settings):
    """Which Ray runs it. `local` starts one on this machine that listens on 127.0.0.1 only."""

    address: str | None = None  # None: the RAY_ADDRESS of the environment (in a Ray job it is set), else local
    num_cpus: Annotated[int, Field(ge=1)] | None = None  # local only; None: what the machine has
    num_gpus: Annotated[int, Field(ge=0)] | None = None  # local only
    resources: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)  # local only
    nodes: tuple[NodeGroup, ...] = ()  # what a cluster that grows can grow to; none: what it has at the start
    stall_timeout_s: Annotated[float, Field(gt=0)] = 21600.0  # without a block done anywhere, and the run ends


RESERVED_NAMES = frozenset(
    {"ranker", "fuser", "gateway", "ballots", "blend", "blend-best"}
)  # names that aren't models'


class BlendConfig(Settings):
    """One blend: which LLMs answer, who ranks, who fuses, and how a bulk run is cut."""

    models: tuple[ModelSettings, ...]
    ranker: RankerSettings
    fuser: FuserSettings | None = None  # None: the best candidate is the answer
    input: str | None = None
    output: str | None = None
    limit: Annotated[int, Field(ge=1)] | None = None  # only the first rows
    matrix: bool = False  # also write every row's logits
    max_error_rate: Annotated[float, Field(ge=0, le=1)] = MAX_ERROR_RATE  # of all rows; more: a run's exit 1
    rows_per_block: Annotated[int, Field(ge=1)] = 1024  # rows that are worked on and kept together, at most
    format: Literal["parquet", "jsonl"] = "parquet"  # of the parts of an output that is a folder
    preferences: Preferences | None = None  # also write chosen and rejected answers
    serve: Serving = Serving()
    ray: RayCluster = RayCluster()

    @property
    def placing_ranker(self) -> RankerSettings:
        """The ranker with `top_k` filled in: as many places must be right as the fuser takes."""
        taken = self.fuser.top_k if self.fuser else 1
        return self.ranker.model_copy(update={"top_k": self.ranker.top_k or taken})

    @field_validator("models", mode="before")
    @classmethod
    def _at_least_one(cls, value: object) -> object:
        # Field(min_length=1) counts only items that are valid, and so reports a second mistake that is none
        if isinstance(value, list | tuple) and not value:
            raise ValueError("expected at least one model")
        return value

    @model_validator(mode="after")
    def _unique_names(self) -> Self:
        names = [model.name for model in self.models]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"models: two have the same name: {', '.join(twice)}")
        if taken := sorted(RESERVED_NAMES & set(names)):
            raise ValueError(f"models: a base LLM can't be called {taken[0]}; that is another part of the blend")
        if unknown := sorted(set(self.serve.timeouts_s) - {"ranker", "fuser", *names}):
            raise ValueError(f"serve.timeouts_s: {unknown[0]} is neither a model's name nor ranker nor fuser")
        return self
