"""Settings of rankers, one class per kind of scorer, and the registry of rankers."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from llm_blender_ray.configs.judging import Judging
from llm_blender_ray.configs.llms import LLMPart
from llm_blender_ray.configs.parts import ModelPart, PartSettings, Stage, TorchPart
from llm_blender_ray.configs.registry import OneOf, Registry
from llm_blender_ray.configs.settings import RUNTIME_ONLY, Settings
from llm_blender_ray.configs.strategies import Strategy

_SCORERS = "llm_blender_ray.actors.scorers"
RankerLayout = Literal["pairrm", "pairrm-hf"]  # published layouts of a PairRanker that `blend export` writes


class ComparisonSettings(Settings):
    """Settings of the comparisons of a ranker: which pairs, and how many places of the order must be right."""

    strategy: Strategy | None = None  # None: focus, where top_k is known; else full
    top_k: Annotated[int, Field(ge=1)] | None = None  # None: what the fuser takes, or without a blend every place
    # SQLite file of comparisons, one on each node; a later run reuses them
    cache: Annotated[str | None, RUNTIME_ONLY] = None

    @field_validator("cache")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        if value and "://" in value:
            raise ValueError("expected a file on a local disk")
        return str(Path(value).absolute()) if value else None  # actors run in folders of their own


class BaseRanker(PartSettings, ComparisonSettings):
    """Settings that every ranker has, whatever scores the pairs."""

    stage: ClassVar[Stage] = "rank"

    kind: str


class PairRanker(TorchPart, BaseRanker):
    """Settings of a cross-encoder that reads both candidates at once, in any published layout."""

    implementation: ClassVar[str] = f"{_SCORERS}.pairwise:PairwiseScorer"
    results_version: ClassVar[int] = 2

    # dtype auto: float32 on CPU; on GPU float16, bfloat16 for a causal LM
    kind: Literal["pairranker"] = "pairranker"
    source_max_length: Annotated[int, Field(ge=4)] | None = None  # tokens; None: the checkpoint's own
    candidate_max_length: Annotated[int, Field(ge=4)] | None = None  # tokens; None: the checkpoint's own
    # tokens of one forward, padding included; None: as measured
    batch_tokens: Annotated[Annotated[int, Field(ge=1)] | None, RUNTIME_ONLY] = None

    @property
    def label(self) -> str:
        """See `PartSettings`."""
        return f"PairRanker {self.model}"


class RewardModel(TorchPart, BaseRanker):
    """Settings of a pointwise scorer: a sequence-classification checkpoint with one label."""

    implementation: ClassVar[str] = f"{_SCORERS}.reward:RewardScorer"

    kind: Literal["reward"]  # dtype auto: float32 on CPU, the checkpoint's own on GPU
    max_length: Annotated[int, Field(ge=8)] | None = None  # tokens of prompt and answer; None: the checkpoint's own
    # tokens of one forward, padding included
    batch_tokens: Annotated[Annotated[int, Field(ge=1)] | None, RUNTIME_ONLY] = None
    trust_remote_code: bool = False

    @property
    def label(self) -> str:
        """See `PartSettings`."""
        return f"reward model {self.model}"


class Judge(LLMPart, BaseRanker, Judging):
    """Settings of an LLM that decides which of two answers is better."""

    implementation: ClassVar[str] = f"{_SCORERS}.judge:JudgeScorer"

    kind: Literal["judge"]

    @property
    def label(self) -> str:
        """See `PartSettings`."""
        return f"judge {self.llm.label}"


class EchoRanker(ModelPart, BaseRanker):
    """Settings of a scorer without a model: the longer answer wins. For trials, tests and benchmarks."""

    implementation: ClassVar[str] = f"{_SCORERS}.echo:EchoScorer"
    default_cpus: ClassVar[float] = 0.0

    kind: Literal["echo"]
    comparison_s: Annotated[float, Field(ge=0), RUNTIME_ONLY] = 0.0  # simulated time of one comparison

    @property
    def label(self) -> str:
        """See `PartSettings`."""
        return "echo ranker"


RANKERS: Registry[type[BaseRanker]] = Registry(
    "kind of ranker",
    "llm_blender_ray.rankers",
    {
        "pairranker": f"{__name__}:PairRanker",
        "reward": f"{__name__}:RewardModel",
        "judge": f"{__name__}:Judge",
        "echo": f"{__name__}:EchoRanker",
    },
)
RankerSettings = Annotated[BaseRanker, OneOf(RANKERS, "kind", default="pairranker")]
