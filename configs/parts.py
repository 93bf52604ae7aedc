"""Base classes of the settings of a blend's parts: base LLMs, rankers, fusers.

A settings class is the descriptor of its kind of part: it carries all that the planner, the checkpoint store and
the service need to know of it. To add a kind, derive its settings class, name its implementation, and register it:
a built-in one by a line in `llms.ENGINES`, `rankers.RANKERS` or `fusers.FUSERS`, one of another package by an entry
point.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field

from llm_blender_ray.configs.adapters import Adapter
from llm_blender_ray.configs.registry import import_object
from llm_blender_ray.configs.resources import Resources
from llm_blender_ray.configs.settings import RUNTIME_ONLY, Settings
from llm_blender_ray.configs.weight_formats import ANY_FORMAT, WeightFormats

if TYPE_CHECKING:
    from llm_blender_ray.configs.llms import BaseLLM

Stage = Literal["generate", "rank", "fuse", "judge", "score"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
# auto, or torch's name
DeviceName = Annotated[str, Field(pattern=r"^(auto|(cpu|cuda|mps|xpu|npu|hpu|mlu|musa)(:\d+)?)$")]


class Weights(NamedTuple):
    """Weights that an actor loads: a local folder or hub id, its revision, the formats that it reads, adapters."""

    model: str
    revision: str | None
    formats: WeightFormats = ANY_FORMAT
    adapters: tuple[Adapter, ...] = ()

    @property
    def is_path(self) -> bool:
        """Whether they are a folder or file of this machine or, by an absolute path, of others."""
        return is_path(self.model)


def is_path(model: str) -> bool:
    """Whether a model or adapter is a folder or file of this machine or, by an absolute path, of others."""
    path = Path(model).expanduser()
    return path.is_absolute() or path.exists()


class PartSettings(Settings):
    """Settings of one part of a blend.

    Attributes:
        stage: Stage of a run that the part does.
        implementation: Import path of what runs it, `module:attribute`, called with the settings: an
            `actors.engines.Engine`, `actors.scorers.Scorer` or `actors.fusers.Fuser`.
        results_version: Version of the implementation's results. Raise it when the same settings give other
            results: after a change of a prompt template, its rendering, or the parser of replies. Stored results
            and cached comparisons of another version are not reused.
    """

    stage: ClassVar[Stage]
    implementation: ClassVar[str]
    results_version: ClassVar[int] = 1

    def load(self) -> Any:
        """Load the part: seconds to minutes.

        Returns:
            What `implementation` makes of these settings.

        Raises:
            ModelLoadError: The part cannot be used.
        """
        return import_object(self.implementation)(self)

    @property
    def label(self) -> str:
        """Name of the implementation and of its model, for people."""
        raise NotImplementedError

    @property
    def model_settings(self) -> "ModelPart":
        """Settings of the model that the part's actors load: these, or those of the LLM that it prompts."""
        raise NotImplementedError

    @property
    def prompted_llm(self) -> "BaseLLM | None":
        """The LLM that the part prompts: a base LLM itself, or the LLM of a judge or fuser."""
        return None

    def named_parts(self, name: str) -> "Mapping[str, PartSettings]":
        """Parts that the actors of these settings run: this one, or the base LLMs that share their engine.

        Args:
            name: Name of the actors' placement.

        Returns:
            Settings of each part by its name.
        """
        return {name: self}

    @property
    def deterministic(self) -> bool:
        """Whether equal rows get equal results: nothing is drawn, or everything with a seed."""
        return True

    def for_service(self, max_retries: int, max_prompt_tokens: int | None = None) -> Self:
        """The settings of the part in the online service.

        Args:
            max_retries: Upper limit of the retries of a request to an endpoint.
            max_prompt_tokens: Limit of a prompt where the settings have none of their own.

        Returns:
            Settings with the service's limits.
        """
        return self


class ModelPart(PartSettings, Resources):
    """Settings of a part that is one model in an actor.

    Attributes:
        default_cpus: CPUs of an actor without GPUs, where the settings name no number.
        pipeline_setting: Setting that splits a replica into pipeline stages, if there is one.
    """

    default_cpus: ClassVar[float] = 1.0
    pipeline_setting: ClassVar[str | None] = None

    def default_gpus(self, *, has_gpus: bool) -> float:
        """GPUs of an actor, where the settings name no number.

        Args:
            has_gpus: Whether the cluster has any.
        """
        return 0.0

    @property
    def pipeline_stages(self) -> int:
        """Parts of a replica that can be on different nodes, each with as many of its GPUs."""
        return 1

    @property
    def model_settings(self) -> "ModelPart":
        """See `PartSettings`."""
        return self

    @property
    def width(self) -> int:
        """Requests that one replica works on at once; more wait in it."""
        return 16

    @property
    def weights(self) -> Weights | None:
        """Weights that the actor loads; None: none of its own."""
        return None


class WeightsPart(ModelPart):
    """Settings of a part whose weights this project loads.

    Attributes:
        weight_formats: What its loader reads.
    """

    weight_formats: ClassVar[WeightFormats] = ANY_FORMAT

    model: Annotated[str, Field(min_length=1)]  # local folder or hub id
    revision: str | None = None
    dtype: Dtype = "auto"

    @property
    def weights(self) -> Weights | None:
        """See `ModelPart`."""
        return Weights(self.model, self.revision, self.weight_formats)


class TorchPart(WeightsPart):
    """Settings of a part that torch runs on one device of its actor."""

    device: Annotated[DeviceName, RUNTIME_ONLY] = "auto"

    def default_gpus(self, *, has_gpus: bool) -> float:
        """See `ModelPart`. Ray counts no Apple GPUs."""
        if self.device == "auto":
            return 1.0 if has_gpus else 0.0
        return 0.0 if self.device.startswith(("cpu", "mps")) else 1.0
