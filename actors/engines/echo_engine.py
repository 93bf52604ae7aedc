"""No LLM at all: the prompt is the answer. What a pipeline takes by itself can be measured with it."""

from actors.engines import Completion
from actors.records import FinishReason, Message
from configs.schema import Sampling


class EchoEngine:
    """Answers with the last message, and counts words as tokens. See `Engine`."""

    async def generate(self, messages: list[Message], sampling: Sampling) -> Completion:
        """At most `max_tokens` words of the last message."""
        words = messages[-1]["content"].split(" ")
        text = " ".join(words[: sampling.max_tokens])
        reason: FinishReason = "stop" if len(words) <= sampling.max_tokens else "length"
        return Completion(text, reason, len(words), min(len(words), sampling.max_tokens))

    async def check_health(self) -> None:
        """There is nothing to break."""

    async def close(self) -> None:
        """There is nothing to free."""
