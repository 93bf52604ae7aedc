"""What runs in a replica of each part: the bulk path's plain classes, behind methods that Ray Serve can call."""

import contextlib
from collections.abc import AsyncGenerator, Sequence

from ray.util.metrics import Counter

from llm_blender_ray.actors.engines import Completion
from llm_blender_ray.actors.fusers import load_fuser
from llm_blender_ray.actors.generator import Generator
from llm_blender_ray.actors.pool import Pool
from llm_blender_ray.actors.ranker import Ranker
from llm_blender_ray.actors.records import Candidate, Matchup, Prompt, Ranking
from llm_blender_ray.actors.scorers import Score, Scorer, load_scorer
from llm_blender_ray.cluster.session import keep_to_own_gpus
from llm_blender_ray.configs.schema import ComparisonSettings, ModelSettings, SamplingOverrides
from llm_blender_ray.configs.schema import FuserSettings as FuserSettings
from llm_blender_ray.configs.schema import RankerSettings as RankerSettings
from llm_blender_ray.pipelines.serve.telemetry import CACHE_HITS


class MemberReplica:
    """One base LLM; see `pipelines.online.protocols.Member`."""

    def __init__(self, settings: ModelSettings) -> None:
        """Raises ModelLoadError when the LLM can't be used."""
        keep_to_own_gpus()
        self._generator = Generator(settings)

    async def answer(self, prompt: Prompt, sample: int, change: SamplingOverrides | None) -> Candidate:
        return await self._generator.answer(prompt, sample, change)

    async def stream(
        self, prompt: Prompt, sample: int, change: SamplingOverrides | None
    ) -> AsyncGenerator[str | Candidate, None]:
        async with contextlib.aclosing(self._generator.stream(prompt, sample, change)) as pieces:
            async for piece in pieces:
                yield piece

    async def check_health(self) -> None:
        """Called by Ray Serve, which replaces a replica that raises."""
        await self._generator.check_health()


class RankerReplica:
    """A ranker whose requests share batches: what comes while a forward runs is scored together in the next."""

    def __init__(self, settings: RankerSettings) -> None:
        """Raises ModelLoadError when the model can't be used, CacheError when its cache can't."""
        keep_to_own_gpus()
        scorer = load_scorer(settings)
        self._ranker = Ranker(settings, Pool([_Here(scorer)], scorer.traits))
        self._hits = Counter(CACHE_HITS.name, CACHE_HITS.description)
        self._counted = 0

    async def rank_one(
        self,
        prompt: Prompt,
        candidates: Sequence[Candidate],
        budget_s: float | None,
        comparing: ComparisonSettings | None,
    ) -> Ranking:
        try:
            return await self._ranker.rank_one(prompt, candidates, budget_s, comparing)
        finally:
            self._count()

    async def rounds(
        self, prompt: Prompt, candidates: Sequence[Candidate], budget_s: float | None
    ) -> AsyncGenerator[Ranking, None]:
        async with contextlib.aclosing(self._ranker.rounds(prompt, candidates, budget_s)) as rounds:
            async for ranking in rounds:
                yield ranking
                self._count()

    async def check_health(self) -> None:
        """Called by Ray Serve, which replaces a replica that raises."""
        await self._ranker.check_health()

    def _count(self) -> None:
        if new := self._ranker.cache_hits - self._counted:
            self._counted += new
            self._hits.inc(new)


class _Here:
    """The scorer of this process, as the one replica of a pool."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    async def score(self, matchups: Sequence[Matchup]) -> list[Score]:
        return await self._scorer.score(matchups)

    async def ready(self) -> None:
        await self._scorer.check_health()


class FuserReplica:
    """A fuser; see `actors.fusers.Fuser`."""

    def __init__(self, settings: FuserSettings) -> None:
        """Raises ModelLoadError when the model can't be used."""
        keep_to_own_gpus()
        self._fuser = load_fuser(settings)

    async def fuse(self, prompt: Prompt, candidates: Sequence[str], change: SamplingOverrides | None) -> Completion:
        return await self._fuser.fuse(prompt, candidates, change)

    async def stream(
        self, prompt: Prompt, candidates: Sequence[str], change: SamplingOverrides | None
    ) -> AsyncGenerator[str | Completion, None]:
        async with contextlib.aclosing(self._fuser.stream(prompt, candidates, change)) as pieces:
            async for piece in pieces:
                yield piece

    async def check_health(self) -> None:
        """Called by Ray Serve, which replaces a replica that raises."""
        await self._fuser.check_health()
