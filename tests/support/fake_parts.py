"""Parts of a blend that do as a test wants: at the seam of `pipelines.online.protocols`, in place of models."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Sequence

from llm_blender_ray.actors.engines import Completion, ReasoningDelta
from llm_blender_ray.actors.records import Candidate, Prompt, Ranking, Refusal
from llm_blender_ray.actors.usage import TokenUsage
from llm_blender_ray.configs.schema import ComparisonSettings, SamplingOverrides
from llm_blender_ray.pipelines.online.blender import Blender
from llm_blender_ray.pipelines.online.protocols import Timeouts

NO_USAGE = TokenUsage()


class FakeMember:
    """Says `text` word by word, after `reasoning`, or fails with `error`; waits before the last word while `held`.

    asked: what it was asked, in order. began, cancelled: set when it is asked, and when it is made to stop.
    """

    def __init__(
        self,
        name: str,
        text: str = "",
        *,
        error: str | None = None,
        refused: Refusal | None = None,
        reasoning: str | None = None,
    ) -> None:
        self.name, self.samples = name, 1
        self.asked: list[tuple[Prompt, int, SamplingOverrides | None]] = []
        self.began, self.cancelled = threading.Event(), threading.Event()
        self._text, self._error, self._refused, self._reasoning = text, error, refused, reasoning
        self._free = asyncio.Event()
        self._free.set()

    def hold(self) -> None:
        """From now on answers are not finished. To be called before it is asked, or in the server's event loop."""
        self._free.clear()

    def let_go(self) -> None:
        """Answers are finished again. To be called in the server's event loop."""
        self._free.set()

    async def answer(self, prompt: Prompt, sample: int = 0, change: SamplingOverrides | None = None) -> Candidate:
        async for piece in self.stream(prompt, sample, change):
            if isinstance(piece, Candidate):
                return piece
        raise AssertionError("no candidate")

    async def stream(
        self, prompt: Prompt, sample: int = 0, change: SamplingOverrides | None = None
    ) -> AsyncGenerator[str | ReasoningDelta | Candidate, None]:
        self.asked.append((prompt, sample, change))
        self.began.set()
        *first, last = self._text.split(" ")
        try:
            if self._reasoning is not None:
                yield ReasoningDelta(self._reasoning)
            for word in first:
                yield f"{word} "
            await self._free.wait()
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise
        if self._error is not None:
            yield Candidate(self.name, error=self._error, refused=self._refused)
        else:
            yield last
            thought = {"reasoning": self._reasoning, "reasoning_tokens": self._reasoning and 1}
            yield Candidate(self.name, self._text, None, "stop", 10, len(self._text.split(" ")), **thought)


class FakeRanker:
    """Finds longer texts better, by their length, for `usage`; or raises `error`."""

    def __init__(self, error: Exception | None = None, usage: TokenUsage = NO_USAGE) -> None:
        self._error, self._usage = error, usage

    async def rank_one(
        self,
        prompt: Prompt,
        candidates: Sequence[Candidate],
        budget_s: float | None = None,
        comparing: ComparisonSettings | None = None,
    ) -> Ranking:
        if self._error is not None:
            raise self._error
        scores = tuple(None if one.text is None else float(len(one.text)) for one in candidates)
        order = sorted(
            (at for at, score in enumerate(scores) if score is not None), key=lambda at: -(scores[at] or 0)
        )
        logits = tuple(
            tuple(None if i == j or a is None or b is None else a - b for j, b in enumerate(scores))
            for i, a in enumerate(scores)
        )
        return Ranking(tuple(order), scores, logits, 2 * len(order), usage=self._usage)

    async def rounds(
        self, prompt: Prompt, candidates: Sequence[Candidate], budget_s: float | None = None
    ) -> AsyncGenerator[Ranking, None]:
        yield await self.rank_one(prompt, candidates, budget_s)


class FakeFuser:
    """Joins what it is given; or raises `error`, after `words` words."""

    def __init__(self, error: Exception | None = None, words: int = 0) -> None:
        self._error, self._words = error, words

    async def fuse(
        self, prompt: Prompt, candidates: Sequence[str], change: SamplingOverrides | None = None
    ) -> Completion:
        async for piece in self.stream(prompt, candidates, change):
            if isinstance(piece, Completion):
                return piece
        raise AssertionError("no completion")

    async def stream(
        self, prompt: Prompt, candidates: Sequence[str], change: SamplingOverrides | None = None
    ) -> AsyncGenerator[str | Completion, None]:
        text = "+".join(candidates)
        for at, piece in enumerate(text):
            if self._error is not None and at == self._words:
                raise self._error
            yield piece
        yield Completion(text, "stop", 100, len(text))


def fake_blender(
    *members: FakeMember,
    ranker: FakeRanker | None = None,
    fuser: FakeFuser | None = None,
    timeouts: Timeouts = Timeouts(),  # noqa: B008 (frozen)
) -> Blender:
    """A blend of these; of two LLMs that answer at once when none are given. The fuser reads the best two."""
    parts = members or (FakeMember("short", "one"), FakeMember("long", "one two three"))
    return Blender(parts, ranker or FakeRanker(), fuser or FakeFuser(), top_k=2, timeouts=timeouts)
