"""What an LLM reasons before it answers, between <think> and </think>, is told apart from the answer and left out.

Open models mark it so (DeepSeek-R1, arXiv 2501.12948; Qwen3). Where a chat template writes <think> itself, the
LLM's text begins in the midst of its reasoning. Of an endpoint's template nothing is known: its server has to part
the two, as OpenAI's API does (vLLM: --reasoning-parser), or send <think>.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from actors.engines import Completion, Engine
from actors.errors import GenerationError
from actors.records import Message
from configs.schema import Sampling

BEGIN, END = "<think>", "</think>"


class AnswerFilter:
    """The answer in a text that comes in pieces: what follows the reasoning it begins with, and the blanks then."""

    def __init__(self, reasoning: bool = False) -> None:
        """reasoning: the text begins in the midst of it."""
        self.reasoning = reasoning
        self._reasoned = reasoning
        self._begun = False
        self._held = ""  # may yet be, or end, reasoning

    def add(self, piece: str) -> str:
        """What is the answer's for sure, now that this piece is here."""
        if self._begun:
            return piece
        self._held += piece
        if self.reasoning:
            _, end, rest = self._held.partition(END)
            if not end:
                self._held = self._held[1 - len(END) :]
                return ""
            self.reasoning, self._held = False, rest
        text = self._held.lstrip()
        if text.startswith(BEGIN):
            self.reasoning = self._reasoned = True
            self._held = text.removeprefix(BEGIN)
            return self.add("")
        if BEGIN.startswith(text):
            return ""
        self._begun = True
        return self.rest()

    def rest(self) -> str:
        """What was held back and is the answer's after all, when no piece will follow."""
        held, self._held = self._held, ""
        if self.reasoning:
            return ""
        return held.lstrip() if self._reasoned else held


class AnswersOnly:
    """An engine without its reasoning. Tokens of the reasoning count, and stop strings end it, too.

    See `actors.engines.Engine`. While the LLM reasons there are no pieces.
    """

    opens_reasoning = False

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def generate(self, messages: list[Message], sampling: Sampling) -> Completion:
        """See `actors.engines.Engine`. Raises GenerationError also when the answer ends within its reasoning."""
        completion = await self._engine.generate(messages, sampling)
        answer = AnswerFilter(self._engine.opens_reasoning)
        text = answer.add(completion.text) + answer.rest()
        return _checked(completion, text, answer)

    async def stream(self, messages: list[Message], sampling: Sampling) -> AsyncGenerator[str | Completion, None]:
        """See `actors.engines.Engine`. Raises as `generate` does."""
        answer = AnswerFilter(self._engine.opens_reasoning)
        text = ""
        async with aclosing(self._engine.stream(messages, sampling)) as pieces:
            async for piece in pieces:
                new = answer.add(piece) if isinstance(piece, str) else answer.rest()
                text += new
                if new:
                    yield new
                if isinstance(piece, Completion):
                    yield _checked(piece, text, answer)

    async def check_health(self) -> None:
        """See `actors.engines.Engine`."""
        await self._engine.check_health()

    async def close(self) -> None:
        """See `actors.engines.Engine`."""
        await self._engine.close()


def _checked(completion: Completion, text: str, answer: AnswerFilter) -> Completion:
    if answer.reasoning:
        cure = "; raise sampling.max_tokens" if completion.finish_reason == "length" else ""
        raise GenerationError(f"the answer ends within its reasoning{cure}")
    return replace(completion, text=text)
