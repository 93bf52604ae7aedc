"""Blend of one prompt, step by step, in asyncio: run by the service, and the reference of the bulk path.

Failures degrade an answer step by step, and the answer reports them: a member that fails or is late is a candidate
less; without the ranker, candidates are ordered by the members' rankings so far; without the fuser, the best
candidate is the answer. There is no answer only if no member answers.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Self

from llm_blender_ray.actors.fusers import Fuser, load_fuser
from llm_blender_ray.actors.generator import load_generators
from llm_blender_ray.actors.ranker import Ranker, blanks_last
from llm_blender_ray.actors.records import Blend, Candidate, Prompt, Ranking
from llm_blender_ray.configs.online import online
from llm_blender_ray.configs.schema import BlendConfig, ComparisonSettings
from llm_blender_ray.configs.strategies import Focus, Full, Sparse, Strategy
from llm_blender_ray.pipelines.online.circuits import RANKER, ending_call
from llm_blender_ray.pipelines.online.events import BlendResult, Event, usage_by_part
from llm_blender_ray.pipelines.online.parts import Parts
from llm_blender_ray.pipelines.online.protocols import BlendRequest, NoAnswerError
from llm_blender_ray.pipelines.online.request import BlendRun

ALL_PAIRS = 8  # most candidates whose whole order comes from all pairs; of more, a part of the pairs is compared


class Blender(Parts):
    """Members, a ranker and a fuser, local or remote."""

    @classmethod
    def local(cls, config: BlendConfig) -> Self:
        """Blender whose parts are in this process.

        Raises:
            ModelLoadError: A model can't be used.
        """
        config = online(config)
        members = [one for model in config.models for one in load_generators(model).values()]
        ranker = Ranker(config.placing_ranker)
        fuser: Fuser | None = load_fuser(config.fuser) if config.fuser else None
        return cls(members, ranker, fuser, top_k=config.fuser.top_k if config.fuser else 1)

    async def blend(self, prompt: Prompt, given: Sequence[Candidate] = ()) -> Blend:
        """Blend one prompt; an LLM that has a candidate in `given` is not called again."""
        try:
            return (await self.outcome(BlendRequest(prompt, given=tuple(given)))).blend
        except NoAnswerError as error:
            return Blend(prompt, tuple(given), error=str(error))

    async def compare(self, prompt: Prompt, candidates: Sequence[Candidate]) -> Ranking:
        """Compare every pair in both orders, like `blend compare`.

        Raises:
            NotAskedError: The ranker's circuit breaker is open.
            TimeoutError: The ranker is late.
            Exception: What the ranker raises.
        """
        return await self._ranked(prompt, candidates, ComparisonSettings(strategy=Full()))

    async def rerank(self, prompt: Prompt, candidates: Sequence[Candidate], top_n: int | None = None) -> Ranking:
        """Rank for the first `top_n` places, or all.

        Raises:
            Exception: See `compare`.
        """
        strategy: Strategy
        if top_n is not None and top_n < len(candidates):
            strategy = Focus()
        else:
            strategy = Full() if len(candidates) <= ALL_PAIRS else Sparse()
        return await self._ranked(prompt, candidates, ComparisonSettings(strategy=strategy, top_k=top_n))

    async def _ranked(
        self, prompt: Prompt, candidates: Sequence[Candidate], comparing: ComparisonSettings
    ) -> Ranking:
        limits = (self.timeouts.deadline_s, self.timeouts.timeouts_s.get(RANKER))
        limit = min((limit for limit in limits if limit is not None), default=None)
        call = self.circuits[RANKER].begin()
        with ending_call(call, limit):
            async with asyncio.timeout(limit):
                ranking = await self.ranker.rank_one(prompt, candidates, None, comparing)
            call.succeeded()
        return blanks_last(ranking, candidates)

    async def outcome(self, ask: BlendRequest) -> BlendResult:
        """Final event.

        Raises:
            NoAnswerError: No member answers.
        """
        async with contextlib.aclosing(self.events(ask)) as events:
            async for event in events:
                if isinstance(event, BlendResult):
                    return event
        raise AssertionError("no outcome")

    async def events(self, ask: BlendRequest) -> AsyncGenerator[Event, None]:
        """Run a blend. Closing the iterator, or cancelling its reader, cancels all work that was begun for it.

        Yields:
            Events; the last is the `BlendResult`.

        Raises:
            NoAnswerError: No member answers.
        """
        run = BlendRun(self, ask)
        try:
            for step in run.steps():
                async with contextlib.aclosing(step) as events:
                    async for event in events:
                        yield event
        except NoAnswerError as error:
            error.usages = usage_by_part(run.blend)
            raise
        yield run.outcome()
