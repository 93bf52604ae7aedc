"""The ranker of the service: tournaments in the gateway, comparisons on all replicas of the scorer's deployment."""

import contextlib
from collections.abc import AsyncGenerator, Sequence

from ray.serve.handle import DeploymentHandle
from ray.util.metrics import Counter

from llm_blender_ray.actors.cache import ComparisonCache
from llm_blender_ray.actors.pool import NoReplicaError, Pool
from llm_blender_ray.actors.ranker import Ranker
from llm_blender_ray.actors.records import Candidate, Matchup, Prompt, Ranking
from llm_blender_ray.actors.scorers import Score, Traits
from llm_blender_ray.cluster.routing import running_replicas
from llm_blender_ray.cluster.versions import version_of
from llm_blender_ray.configs.schema import ComparisonSettings, RankerSettings
from llm_blender_ray.pipelines.serve.handles import PartError, call, call_once
from llm_blender_ray.pipelines.serve.replicas import OtherScorerError
from llm_blender_ray.pipelines.serve.service_metrics import CACHE_HITS


class RemoteRanker:
    """A `Ranker` over the replicas of a deployment; see `pipelines.online.protocols.RankerPart`.

    The comparisons of a round are split into a share for each running replica, and requests share calls (`Pool`).
    Replicas added or lost by autoscaling or death count from the next request on.
    """

    def __init__(self, settings: RankerSettings, handle: DeploymentHandle) -> None:
        """Check everything that can be checked before a replica is up.

        Args:
            settings: The ranker's.
            handle: Of the scorer's deployment.

        Raises:
            CacheError: The cache file can't be used.
        """
        if settings.cache:
            ComparisonCache(settings.cache, identity="")
        self._settings = settings
        self._handle = handle
        self._version = version_of(settings)
        self._slots = [_Slot(handle, self._version)]
        self._connection: tuple[Pool, Ranker] | None = None
        self._hits = Counter(CACHE_HITS.name, CACHE_HITS.description)
        self._counted = 0

    async def rank_one(
        self,
        prompt: Prompt,
        candidates: Sequence[Candidate],
        budget_s: float | None = None,
        comparing: ComparisonSettings | None = None,
    ) -> Ranking:
        """See `RankerPart`."""
        ranker = await self._connected()
        try:
            return await ranker.rank_one(prompt, candidates, budget_s, comparing)
        finally:
            self._count(ranker)

    async def rounds(
        self, prompt: Prompt, candidates: Sequence[Candidate], budget_s: float | None = None
    ) -> AsyncGenerator[Ranking, None]:
        """See `RankerPart`."""
        ranker = await self._connected()
        async with contextlib.aclosing(ranker.rounds(prompt, candidates, budget_s)) as rounds:
            async for ranking in rounds:
                yield ranking
                self._count(ranker)

    async def _connected(self) -> Ranker:
        """The ranker, with a slot in its pool for each running replica. The first call waits until one is up."""
        if self._connection is None:
            traits: Traits = await call(self._handle.traits, self._version)
            if self._connection is None:  # another request has not been faster
                pool = Pool(self._slots, traits)
                self._connection = pool, Ranker(self._settings, pool)
        pool, ranker = self._connection
        running = max(running_replicas(self._handle), 1)  # a call to none waits until one is up
        self._slots += [_Slot(self._handle, self._version) for _ in range(running - len(self._slots))]
        pool.use(self._slots[:running])
        return ranker

    def _count(self, ranker: Ranker) -> None:
        if new := ranker.cache_hits - self._counted:
            self._counted += new
            self._hits.inc(new)


class _Slot:
    """One call at a time, to the least loaded replica; as many slots as replicas keep all of them busy."""

    def __init__(self, handle: DeploymentHandle, version: str) -> None:
        self._handle, self._version = handle, version

    async def score(self, matchups: Sequence[Matchup]) -> list[Score]:
        """See `actors.pool.Replica`."""
        try:
            scores: list[Score] = await call_once(self._handle.score, matchups, self._version)
        except (PartError, OtherScorerError) as error:
            raise NoReplicaError(str(error)) from error
        return scores

    async def ready(self) -> None:
        """Ray Serve sends no call to a replica that died, and holds calls until one is up."""
