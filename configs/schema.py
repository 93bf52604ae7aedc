"""The schema of every config file: frozen pydantic models, unknown keys rejected.

A config is data about *what* runs; it holds no secrets (an endpoint names the environment variable that holds
its key). Relative model folders are resolved against the config's own folder by `configs.loading`.
"""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from llm_blender_ray.configs.endpoint import EndpointModel
from llm_blender_ray.configs.formats import FormatName
from llm_blender_ray.configs.fusers import FuserSettings, GenFuser, LLMFuser
from llm_blender_ray.configs.llms import (
    MAX_ERROR_RATE,
    BaseLLM,
    EchoModel,
    LocalLLM,
    ModelSettings,
    TransformersModel,
    VLLMModel,
)
from llm_blender_ray.configs.parts import DeviceName, Dtype, PartSettings
from llm_blender_ray.configs.preferences import Preferences
from llm_blender_ray.configs.prices import BudgetSettings, ModelPrice
from llm_blender_ray.configs.rankers import (
    ComparisonSettings,
    EchoRanker,
    Judge,
    PairRanker,
    RankerSettings,
    RewardModel,
)
from llm_blender_ray.configs.resources import Replicas, Resources
from llm_blender_ray.configs.sampling import Sampling, SamplingOverrides
from llm_blender_ray.configs.serving import Serving
from llm_blender_ray.configs.settings import Settings, at_least_one, check_distinct

__all__ = [
    "MAX_ERROR_RATE",
    "BaseLLM",
    "BlendConfig",
    "ComparisonSettings",
    "DeviceName",
    "Dtype",
    "EchoModel",
    "EchoRanker",
    "EndpointModel",
    "FuserSettings",
    "GenFuser",
    "Judge",
    "LLMFuser",
    "LocalLLM",
    "ModelSettings",
    "NodeGroup",
    "PairRanker",
    "RankerSection",
    "RankerSettings",
    "RayCluster",
    "Replicas",
    "Resources",
    "RewardModel",
    "Sampling",
    "SamplingOverrides",
    "TransformersModel",
    "VLLMModel",
]


class RankerSection(BaseModel):
    """The `ranker` section of any config file, with `prices` and `budget`; the rest of the file is ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    ranker: RankerSettings
    prices: dict[str, ModelPrice] = Field(default_factory=dict)
    budget: BudgetSettings = BudgetSettings()


class NodeGroup(Settings):
    """Machines of one kind that an autoscaling cluster can have, for the plan."""

    count: Annotated[int, Field(ge=1)] = 1
    num_cpus: Annotated[float, Field(ge=0)]
    num_gpus: Annotated[float, Field(ge=0)] = 0.0
    resources: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    accelerator_type: str | None = None


class RayCluster(Settings):
    """The Ray cluster of a run. `local` starts one on this machine that listens on 127.0.0.1 only."""

    address: str | None = None  # None: the RAY_ADDRESS of the environment (in a Ray job it is set), else local
    num_cpus: Annotated[int, Field(ge=1)] | None = None  # local only; None: what the machine has
    num_gpus: Annotated[int, Field(ge=0)] | None = None  # local only
    resources: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)  # local only
    nodes: tuple[NodeGroup, ...] = ()  # what a cluster that grows can grow to; none: what it has at the start
    stall_timeout_s: Annotated[float, Field(gt=0)] = 21600.0  # a run ends when no block was finished for so long


RESERVED_NAMES = frozenset(
    {"ranker", "fuser", "gateway", "ballots", "blend", "blend-best"}
)  # names that aren't models'


class BlendConfig(Settings):
    """A blend: its base LLMs, ranker and fuser, and the settings of a bulk run and of the service."""

    models: Annotated[tuple[ModelSettings, ...], at_least_one("model")]
    ranker: RankerSettings
    fuser: FuserSettings | None = None  # None: the best candidate is the answer
    input: str | None = None
    output: str | None = None
    limit: Annotated[int, Field(ge=1)] | None = None  # only the first rows
    matrix: bool = False  # also write every row's logits
    max_error_rate: Annotated[float, Field(ge=0, le=1)] = MAX_ERROR_RATE  # of all rows; more: a run's exit 1
    rows_per_block: Annotated[int, Field(ge=1)] = 1024  # most rows that are run and stored together
    format: FormatName = "parquet"  # of the parts of an output that is a folder
    preferences: Preferences | None = None  # also write chosen and rejected answers
    # of a model by its name, of the LLM of `ranker` and of `fuser`; endpoints' are known to a table, too
    prices: dict[str, ModelPrice] = Field(default_factory=dict)
    budget: BudgetSettings = BudgetSettings()
    row_costs: bool = False  # also write what each row cost, as cost_usd
    serve: Serving = Serving()
    ray: RayCluster = RayCluster()

    @property
    def members(self) -> tuple[BaseLLM, ...]:
        """Settings of all base LLMs, in the order of their candidates: each model, and those of its adapters."""
        return tuple(member for model in self.models for member in model.members)

    @property
    def placing_ranker(self) -> RankerSettings:
        """The ranker with `top_k` filled in: as many places must be right as the fuser takes."""
        taken = self.fuser.top_k if self.fuser else 1
        return self.ranker.model_copy(update={"top_k": self.ranker.top_k or taken})

    @property
    def parts(self) -> dict[str, PartSettings]:
        """All parts of the blend by the names of their placements, in the order of their stages."""
        parts: dict[str, PartSettings] = {member.name: member for member in self.members}
        parts["ranker"] = self.placing_ranker
        return parts | ({"fuser": self.fuser} if self.fuser else {})

    @model_validator(mode="after")
    def _known_names(self) -> Self:
        names = [member.name for member in self.members]
        left_out = [model.name for model in self.models if not model.named_parts("").get(model.name)]
        check_distinct("models", [*names, *left_out])  # an engine has its model's name, be that a member or not
        if taken := sorted(RESERVED_NAMES & {*names, *left_out}):
            raise ValueError(f"models: a base LLM can't be called {taken[0]}; that is another part of the blend")
        if unknown := sorted(set(self.prices) - {"ranker", "fuser", *names}):
            raise ValueError(f"prices.{unknown[0]} is neither a model's name nor ranker nor fuser")
        if unknown := sorted(set(self.serve.timeouts_s) - {"ranker", "fuser", *names}):
            raise ValueError(f"serve.timeouts_s: {unknown[0]} is neither a model's name nor ranker nor fuser")
        return self
