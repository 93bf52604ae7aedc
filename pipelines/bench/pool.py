"""`blend bench pool`: latency of one request whose comparisons are spread over replicas.

Every pair in both orders, one request at a time, on one replica and on several in turns. More replicas than this
machine has room for are simulated: their comparisons take a fixed time, like an LLM judge's, while queueing,
sharing and Ray's calls are real.
"""

import asyncio
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import ray
from rich.console import Console
from rich.table import Table

from llm_blender_ray.actors.pool import Pool
from llm_blender_ray.actors.ranker import CandidateRow
from llm_blender_ray.actors.ranker import Ranker as RowRanker
from llm_blender_ray.actors.records import Matchup
from llm_blender_ray.actors.scorers import Score, Traits
from llm_blender_ray.cluster.placement import Placement, place
from llm_blender_ray.cluster.replicas import RayReplica, ranker_pool
from llm_blender_ray.cluster.session import capacity, running
from llm_blender_ray.configs.schema import RankerSettings, RayCluster, Replicas
from llm_blender_ray.configs.strategies import Full
from llm_blender_ray.pipelines.bench.rank import read_workload

SIMULATED = (1, 2, 4, 8, 16, 32, 64)
PROCESSES = 2  # that simulate replicas, which only wait
TURNS = 3


class SimulatedScorer:
    """Scorer without a model: every comparison takes the same time, one after the other in a call."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def traits(self) -> Traits:
        """See `ScorerActor.traits`."""
        return Traits(pointwise=False)

    async def score(self, matchups: Sequence[Matchup]) -> list[Score]:
        """See `actors.scorers.Scorer`."""
        await asyncio.sleep(self._seconds * len(matchups))
        return [0.0] * len(matchups)


@contextmanager
def simulated_replicas(seconds: float) -> Iterator[list[RayReplica]]:
    """Replicas that take `seconds` for a comparison, as many as the largest pool has, in a few actors."""
    count = max(SIMULATED)
    remote = ray.remote(SimulatedScorer).options(num_cpus=0, max_concurrency=count)
    actors = [remote.remote(seconds) for _ in range(PROCESSES)]
    try:
        ray.get([actor.traits.remote() for actor in actors])  # wait for their start
        yield [RayReplica(actors[i % PROCESSES]) for i in range(count)]
    finally:
        for actor in actors:
            ray.kill(actor)


def _latency(settings: RankerSettings, pool: Pool, rows: Sequence[CandidateRow]) -> float:
    """Seconds from a request to its ranking, the median over rows, one at a time.

    Raises:
        Exception: A row cannot be ranked.
    """
    ranker = RowRanker(settings.model_copy(update={"strategy": Full(), "cache": None}), pool)

    async def each_alone() -> list[float]:
        seconds = []
        for row in rows:
            begin = time.perf_counter()
            (ranking,) = await ranker.rank([row])
            seconds.append(time.perf_counter() - begin)
            if isinstance(ranking, Exception):
                raise ranking
        return seconds

    return statistics.median(asyncio.run(each_alone()))


def measure_pool(settings: RankerSettings, rows: Sequence[CandidateRow], *, replicas: int) -> dict[str, float]:
    """Median latencies (seconds) on one replica and on `replicas`, measured in turns, and their ratio."""

    def placed(count: int) -> Placement:
        wanted = settings.model_copy(update={"replicas": Replicas(min=count, max=count)})
        return place("ranker", wanted, capacity(RayCluster()))

    with ranker_pool(placed(1)) as one, ranker_pool(placed(replicas)) as many:
        pools = {"one": one, "many": many}
        for pool in pools.values():
            _latency(settings, pool, rows[:1])  # warm up: chooses kernels
        turns = [{name: _latency(settings, pool, rows) for name, pool in pools.items()} for _ in range(TURNS)]
    seconds = {name: statistics.median(turn[name] for turn in turns) for name in pools}
    ratio = statistics.median(turn["one"] / turn["many"] for turn in turns)
    return {"replicas": replicas, "one_s": seconds["one"], "many_s": seconds["many"], "times_faster": ratio}


def bench_simulated(settings: RankerSettings, row: CandidateRow, seconds: float) -> list[dict[str, float]]:
    """Latency of one request by the number of replicas, when a comparison takes `seconds`."""
    lines: list[dict[str, float]] = []
    with simulated_replicas(seconds) as replicas:
        for count in SIMULATED:
            took = _latency(settings, Pool(replicas[:count], Traits(pointwise=False)), [row])
            first = lines[0]["latency_s"] if lines else took
            lines.append({"replicas": count, "latency_s": took, "share_of_ideal": first / took / count})
    return lines


def main(settings: RankerSettings, uri: str, *, replicas: int, limit: int, simulated_s: float) -> None:
    """Measure; print tables, and everything as JSON in the last line."""
    rows = read_workload(uri, limit).rows
    with running(RayCluster(num_cpus=replicas + 1)):  # Ray's count; each is an actor of one thread
        real = measure_pool(settings, rows, replicas=replicas)
        simulated = bench_simulated(settings, rows[0], simulated_s)
    table = Table("replicas", "latency, s", "times faster", "share of ideal")
    for line in simulated:
        share = line["share_of_ideal"]
        faster = share * line["replicas"]
        table.add_row(f"{line['replicas']} simulated", f"{line['latency_s']:.3f}", f"{faster:.2f}", f"{share:.2f}")
    console = Console()
    console.print(f"{replicas} real replicas: {real['many_s']:.3f} s, one: {real['one_s']:.3f} s")
    console.print(table)
    print(json.dumps({"rows": len(rows), "real": real, "simulated": simulated}))
