"""Settings of fusers, one class per kind, and the registry of fusers."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from llm_blender_ray.configs.llms import LLMPart
from llm_blender_ray.configs.lora import Quantization
from llm_blender_ray.configs.parts import PartSettings, Stage, TorchPart
from llm_blender_ray.configs.registry import OneOf, Registry
from llm_blender_ray.configs.settings import OMIT_DEFAULT, RUNTIME_ONLY

_FUSERS = "llm_blender_ray.actors.fusers"


class BaseFuser(PartSettings):
    """Settings that every fuser has."""

    stage: ClassVar[Stage] = "fuse"

    kind: str
    top_k: Annotated[int, Field(ge=1)] = 3


class GenFuser(TorchPart, BaseFuser):
    """Settings of a seq2seq model trained on the original's input template."""

    implementation: ClassVar[str] = f"{_FUSERS}.genfuser:GenFuserModel"

    kind: Literal["genfuser"] = "genfuser"
    num_beams: Annotated[int, Field(ge=1)] = 4
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None  # None: candidate_max_length, as the original
    max_length: Annotated[int, Field(ge=8)] = 1024  # tokens of the whole input
    candidate_max_length: Annotated[int, Field(ge=1)] = 128  # tokens of one candidate
    max_batch_size: Annotated[int, Field(ge=1), RUNTIME_ONLY] = 16  # inputs decoded together
    quantization: Annotated[Quantization | None, OMIT_DEFAULT] = (
        None  # of the weights, while loading (bitsandbytes)
    )

    @property
    def label(self) -> str:
        """See `PartSettings`."""
        return f"GenFuser {self.model}"

    @property
    def width(self) -> int:
        """See `ModelPart`."""
        return self.max_batch_size


class LLMFuser(LLMPart, BaseFuser):
    """Settings of a chat LLM that is prompted to write one better answer from the best."""

    implementation: ClassVar[str] = f"{_FUSERS}.llm_fuser:ChatFuser"

    kind: Literal["chat"]
    instruction: Annotated[str, Field(min_length=1)] | None = None  # the task; None: our own words

    @property
    def label(self) -> str:
        """See `PartSettings`."""
        return f"fuser {self.llm.label}"


FUSERS: Registry[type[BaseFuser]] = Registry(
    "kind of fuser",
    "llm_blender_ray.fusers",
    {"genfuser": f"{__name__}:GenFuser", "chat": f"{__name__}:LLMFuser"},
)
FuserSettings = Annotated[BaseFuser, OneOf(FUSERS, "kind", default="genfuser")]
