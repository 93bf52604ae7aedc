"""Another package in one file: an engine that answers in capitals, with its settings, and a metric."""

from collections.abc import AsyncGenerator, Sequence
from typing import ClassVar, Literal

from llm_blender_ray.actors.engines import Completion
from llm_blender_ray.actors.records import Message
from llm_blender_ray.configs.llms import BaseLLM
from llm_blender_ray.configs.sampling import Sampling
from llm_blender_ray.pipelines.quality.metrics import Metric


class ToyModel(BaseLLM):
    """Settings of the engine."""

    implementation: ClassVar[str] = "blend_toy:ToyEngine"

    engine: Literal["toy"]
    mark: str = "!"


class ToyEngine:
    """See `llm_blender_ray.actors.engines.Engine`."""

    opens_reasoning = ""

    def __init__(self, model: ToyModel) -> None:
        self._mark = model.mark

    async def generate(self, messages: list[Message], sampling: Sampling) -> Completion:
        return Completion(messages[-1]["content"].upper() + self._mark, "stop")

    async def stream(self, messages: list[Message], sampling: Sampling) -> AsyncGenerator[str | Completion, None]:
        completion = await self.generate(messages, sampling)
        yield completion.text
        yield completion

    async def check_health(self) -> None:
        pass

    async def close(self) -> None:
        pass


class CapitalsMetric(Metric):
    """Share of capital letters, whatever the references."""

    name = "capitals"
    label = "CAPITALS"

    letters: str = ""  # those that count; all without

    def score(self, references: Sequence[Sequence[str]], texts: Sequence[str]) -> list[float]:
        counted = [
            "".join(one for one in text if one.isalpha() and one in (self.letters or text)) for text in texts
        ]
        return [sum(map(str.isupper, text)) / max(len(text), 1) for text in counted]
