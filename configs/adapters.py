"""Adapters: LoRA weights in peft's layout, which make further LLMs of the weights of one."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from llm_blender_ray.configs.sampling import Sampling, SamplingOverrides
from llm_blender_ray.configs.settings import Settings


class Adapter(Settings):
    """LoRA weights beside those of a model: a path alone, or with a revision."""

    path: Annotated[str, Field(min_length=1)]  # local folder or hub id
    revision: str | None = None  # of the hub's repository

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: object) -> object:
        return {"path": value} if isinstance(value, str) else value


class AdapterMember(Adapter):
    """An adapter that is a member of the blend: a path alone, or with settings; those left out are the model's."""

    system_prompt: str | None = None
    sampling: SamplingOverrides | None = None
    samples: Annotated[int, Field(ge=1)] | None = None

    def changes(self, sampling: Sampling) -> dict[str, Any]:
        """Settings of the model that this adapter changes.

        Args:
            sampling: The model's own.
        """
        own = {
            "system_prompt": self.system_prompt,
            "sampling": self.sampling.of(sampling) if self.sampling else None,
            "samples": self.samples,
            "adapter": Adapter(path=self.path, revision=self.revision),
        }
        return {name: value for name, value in own.items() if value is not None}
