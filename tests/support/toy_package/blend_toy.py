"""Another package in one file: an engine that answers in capitals, its settings, a file format and a metric."""

from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import IO, Any, ClassVar, Literal

import pyarrow as pa

from llm_blender_ray.actors.engines import Completion
from llm_blender_ray.actors.records import Message
from llm_blender_ray.configs.llms import BaseLLM
from llm_blender_ray.configs.sampling import Sampling
from llm_blender_ray.pipelines.quality.metrics import Metric
from llm_blender_ray.pipelines.rows.formats.base import Origin, Shape, TextFormat
from llm_blender_ray.pipelines.rows.schema import read_row


class ToyModel(BaseLLM):
    """Settings of the engine."""

    implementation: ClassVar[str] = "blend_toy:ToyEngine"

    engine: Literal["toy"]
    mark: str = "!"


class ToyEngine:
    """See `llm_blender_ray.actors.engines.Engine`."""

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


class Prompts(TextFormat):
    """Files with one prompt a line."""

    def rows(self, source: IO[bytes], origin: Origin) -> Iterator[dict[str, Any]]:
        for number, line in enumerate(source, 1):
            yield read_row({"prompt": line.decode().strip()}, f"{origin.name} line {number}")

    def encoded(self, shape: Shape, rows: pa.Table) -> tuple[int, bytes]:
        lines = [f"{row['prompt']}\n".encode() for row in shape.objects(rows)]
        return len(lines), b"".join(lines)


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
