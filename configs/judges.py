"""Settings of `blend judge`: LLM judges that compare the answers of rows."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from llm_blender_ray.configs.formats import FormatName
from llm_blender_ray.configs.llms import MAX_ERROR_RATE, LLMPart
from llm_blender_ray.configs.parts import Stage
from llm_blender_ray.configs.prices import BudgetSettings, ModelPrice
from llm_blender_ray.configs.rubrics import RubricSettings
from llm_blender_ray.configs.schema import RayCluster
from llm_blender_ray.configs.settings import RUNTIME_ONLY, Settings, at_least_one, check_distinct
from llm_blender_ray.configs.strategies import Full, Strategy

ALL_MODELS: Literal["models"] = "models"  # the contestants that are all models of a row
BLEND_CONTESTANT: Literal["blend"] = "blend"  # the contestant that is the fused answer
RANKER_CONTESTANT: Literal["ranker"] = "ranker"  # the contestant that is the ranker's first candidate


class PairDesign(Settings):
    """Which answers of a row are compared, and which pairs of them."""

    # models by name, `models` for all of them, `blend` (the fused answer), `ranker` (the ranker's first candidate)
    contestants: Annotated[tuple[str, ...], Field(min_length=1)] = (ALL_MODELS, BLEND_CONTESTANT, RANKER_CONTESTANT)
    design: Strategy = Full()  # a strategy of rankers; the default is all pairs in both orders
    baseline: str | None = None  # only pairs with this contestant, in both orders; in place of a design
    top_k: Annotated[int, Field(ge=1)] | None = None  # places that an adaptive design looks at; None: all
    comparisons_per_row: Annotated[int, Field(ge=1)] | None = None  # most comparisons; a pair in both orders is two

    @model_validator(mode="after")
    def _one_design(self) -> Self:
        if self.baseline is not None and "design" in self.model_fields_set:
            raise ValueError("baseline compares with one contestant: give it or a design")
        if self.baseline == ALL_MODELS:
            raise ValueError("baseline: expected one contestant, got models")
        return self


class PairwiseJudge(LLMPart):
    """One LLM that judges pairs of answers."""

    stage: ClassVar[Stage] = "judge"
    implementation: ClassVar[str] = "llm_blender_ray.actors.judging:JudgePairs"

    rubric: RubricSettings | None = None  # None: that of the config
    pairs: PairDesign | None = None  # None: that of the config
    # contestants of the judge's own family, for its self-preference; none: those with its name or its LLM's
    own_models: Annotated[tuple[str, ...], RUNTIME_ONLY] = ()

    @property
    def label(self) -> str:
        """See `PartSettings`."""
        return f"judge {self.llm.label}"

    @property
    def family(self) -> frozenset[str]:
        """Contestants whose answers count as the judge's own."""
        return frozenset(self.own_models or (self.llm.name, self.llm.model))


class JudgeConfig(Settings):
    """LLM judges that compare the answers of rows, and the settings of their run."""

    judges: Annotated[tuple[PairwiseJudge, ...], at_least_one("judge")]
    rubric: RubricSettings = Field(default="helpfulness", validate_default=True)
    pairs: PairDesign = PairDesign()
    input: str | None = None
    output: str | None = None
    limit: Annotated[int, Field(ge=1)] | None = None  # only the first rows
    replies: bool = False  # also write what the judges wrote, as `reply` of each judgement
    # also write MixInstruct's column `cmp_results`: of the judge with this name, or true of the only one
    cmp_results: bool | str = False
    max_error_rate: Annotated[float, Field(ge=0, le=1)] = MAX_ERROR_RATE  # of all rows; more: a run's exit 1
    rows_per_block: Annotated[int, Field(ge=1)] = 32  # most rows that are judged and stored together
    format: FormatName = "parquet"  # of the parts of an output that is a folder
    # of a judge by its LLM's name; endpoints' are known to a table, too
    prices: dict[str, ModelPrice] = Field(default_factory=dict)
    budget: BudgetSettings = BudgetSettings()
    ray: RayCluster = RayCluster()

    @property
    def parts(self) -> dict[str, PairwiseJudge]:
        """The judges by the names of their LLMs, each with its rubric and its pairs."""
        return {
            judge.llm.name: judge.model_copy(
                update={"rubric": judge.rubric or self.rubric, "pairs": judge.pairs or self.pairs}
            )
            for judge in self.judges
        }

    @property
    def cmp_results_of(self) -> str | None:
        """Name of the judge whose comparisons are `cmp_results`; None: of none."""
        if self.cmp_results is True:
            return self.judges[0].llm.name
        return self.cmp_results or None

    @model_validator(mode="after")
    def _known_names(self) -> Self:
        names = [judge.llm.name for judge in self.judges]
        check_distinct("judges", names)
        if unknown := sorted(set(self.prices) - {*names}):
            raise ValueError(f"prices.{unknown[0]} is no judge's name")
        if self.cmp_results is True and len(names) > 1:
            raise ValueError(f"cmp_results: expected the name of one of the judges: {', '.join(names)}")
        if isinstance(self.cmp_results, str) and self.cmp_results not in names:
            raise ValueError(f"cmp_results: {self.cmp_results!r} is no judge's name")
        if self.budget.bounds_requests:
            raise ValueError("budget: only usd_per_run is of a bulk run")
        return self
