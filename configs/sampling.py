"""Sampling settings of LLMs."""

from typing import Annotated, Any, Self

from pydantic import Field

from llm_blender_ray.configs.reasoning import ReasoningEffort
from llm_blender_ray.configs.settings import OMIT_DEFAULT, Settings


class Sampling(Settings):
    """Sampling of an LLM. `temperature: 0` is greedy decoding.

    `temperature: null` sends none to an endpoint, whose own default counts; a local engine draws at 1, the default
    of OpenAI's API.
    """

    max_tokens: Annotated[int, Field(ge=1)] = 512
    temperature: Annotated[float, Field(ge=0, le=2)] | None = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=1)] | None = None
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    # sent to endpoints, and a variable of chat templates; None: the model's own
    reasoning_effort: Annotated[ReasoningEffort | None, OMIT_DEFAULT] = None

    @property
    def template_variables(self) -> dict[str, Any]:
        """Variables for chat templates, by the names that templates and vLLM have for them."""
        if self.reasoning_effort is None:
            return {}
        thinks = self.reasoning_effort != "none"
        return {"reasoning_effort": self.reasoning_effort, "enable_thinking": thinks, "thinking": thinks}

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


class SamplingOverrides(Settings):
    """Sampling fields of one request to the service; None leaves the model's own."""

    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stop: tuple[Annotated[str, Field(min_length=1)], ...] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    reasoning_effort: ReasoningEffort | None = None

    def of(self, sampling: Sampling) -> Sampling:
        """The changed settings."""
        return sampling.model_copy(update=self.model_dump(exclude_none=True))
