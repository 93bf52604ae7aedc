"""Engine without an LLM: the prompt is the answer. For trials, and to measure what a pipeline takes by itself."""

from collections.abc import AsyncGenerator

from llm_blender_ray.actors.engines import Completion
from llm_blender_ray.actors.records import FinishReason, Message
from llm_blender_ray.configs.schema import EchoModel, Sampling


class EchoEngine:
    """Answers with the last message, and counts words as tokens. See `Engine`."""

    async def generate(self, messages: list[Message], sampling: Sampling) -> Completion:
        """At most `max_tokens` words of the last message, up to the first stop string."""
        words = messages[-1]["content"].split(" ")
        text = " ".join(words[: sampling.max_tokens])
        stops = [at for stop in sampling.stop if (at := text.find(stop)) >= 0]
        text = text[: min(stops, default=None)]
        reason: FinishReason = "stop" if stops or len(words) <= sampling.max_tokens else "length"
        return Completion(text, reason, len(words), len(text.split(" ")))

    async def stream(self, messages: list[Message], sampling: Sampling) -> AsyncGenerator[str | Completion, None]:
        """A word a piece, each but the first with the blank before it."""
        completion = await self.generate(messages, sampling)
        for number, word in enumerate(completion.text.split(" ")):
            if piece := f" {word}" if number else word:
                yield piece
        yield completion

    async def check_health(self) -> None:
        """There is nothing to break."""

    async def close(self) -> None:
        """There is nothing to free."""


def load_echo(model: EchoModel) -> EchoEngine:
    """Make the engine of these settings; there is nothing to load."""
    return EchoEngine()
