"""Resources of an actor, in Ray's units, and the number of its replicas."""

from typing import Annotated, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from llm_blender_ray.configs.settings import RUNTIME_ONLY, Settings

Amount = Annotated[float, Field(ge=0)]


class Replicas(Settings):
    """Number of actors that hold a model: at least `min`, and up to `max` where there is room.

    `min: 0` lets a service unload a model without requests; in a bulk run it counts as 1.
    """

    min: Annotated[int, Field(ge=0)] = 1
    max: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, value: object) -> object:
        if isinstance(value, int) and not isinstance(value, bool):
            return {"min": value, "max": max(value, 1)}
        if not isinstance(value, dict | Replicas):
            raise PydanticCustomError("replicas", "Input should be an integer, or a mapping of min and max")
        return value

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max < self.min:
            raise ValueError(f"max ({self.max}) is smaller than min ({self.min})")
        return self


class Resources(Settings):
    """Resources of one actor, and the number of actors."""

    num_cpus: Annotated[Amount | None, RUNTIME_ONLY] = None  # None: 1 on CPU, 0 with a GPU (or pools wait for CPUs)
    num_gpus: Annotated[Amount | None, RUNTIME_ONLY] = None  # None: what the engine needs
    resources: Annotated[dict[str, Amount], RUNTIME_ONLY] = Field(default_factory=dict)  # custom Ray resources
    accelerator_type: Annotated[str | None, RUNTIME_ONLY] = None  # Ray's name of the GPU type, such as H100
    replicas: Annotated[Replicas, RUNTIME_ONLY] = (
        Replicas()
    )  # not set: with GPUs or custom resources as many as its wave leaves room for
