"""A pool of rankers in real Ray actors gives what one ranker in this process gives, whoever dies."""

import asyncio
import json

import pytest
import ray

from llm_blender_ray.actors.errors import ModelLoadError
from llm_blender_ray.actors.pool import Pool
from llm_blender_ray.actors.ranker import Ranker
from llm_blender_ray.actors.records import Candidate, Matchup, Prompt, Ranking
from llm_blender_ray.actors.scorers import load_scorer
from llm_blender_ray.cluster.placement import Capacity, place
from llm_blender_ray.cluster.replicas import RayReplica, ScorerActor, ranker_pool
from llm_blender_ray.configs.loading import PRESETS
from llm_blender_ray.configs.schema import EchoRanker, PairRanker

SETTINGS = PairRanker(model=str(PRESETS / "miniature" / "ranker"), device="cpu", num_cpus=0.5, replicas=2)

ECHO = EchoRanker(kind="echo", comparison_s=0.01)  # without torch: a restarted actor is there at once

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def rows() -> list[tuple[Prompt, list[Candidate]]]:
    lines = (PRESETS / "miniature" / "heldout.jsonl").read_text().splitlines()[:4]
    given = [json.loads(line) for line in lines]
    return [
        (Prompt(row["id"], row["instruction"], row["input"]), [Candidate(None, f"1) {i}") for i in range(4)])
        for row in given
    ]


def matchups(rows: list[tuple[Prompt, list[Candidate]]]) -> list[Matchup]:
    return [
        Matchup(prompt, a.text or "", b.text or "")
        for prompt, candidates in rows
        for a in candidates
        for b in candidates
        if a is not b
    ]


def test_many_requests_at_once_get_what_one_ranker_gives(rows: list) -> None:
    async def through(pool: Pool) -> list:
        ranker = Ranker(SETTINGS, pool)
        await pool.check_health()
        return [result[0] for result in await asyncio.gather(*(ranker.rank([row]) for row in rows))]

    with ranker_pool(place("ranker", SETTINGS, Capacity.machine(2))) as pool:
        given = asyncio.run(through(pool))
    alone = asyncio.run(Ranker(SETTINGS).rank(rows))
    for ours, theirs in zip(given, alone, strict=True):
        assert isinstance(ours, Ranking) and isinstance(theirs, Ranking)
        assert ours.order == theirs.order
        assert ours.scores == pytest.approx(theirs.scores, abs=1e-5)


def test_a_replica_that_is_killed_costs_no_request(rows: list) -> None:
    asked = matchups(rows)
    placement = place("ranker", ECHO, Capacity.machine(2))
    remote = ray.remote(ScorerActor).options(max_restarts=-1, **placement.ray_options())
    actors = [remote.remote(ECHO) for _ in range(2)]
    traits = ray.get([actor.traits.remote() for actor in actors])

    async def killed_twice() -> list:
        pool = Pool([RayReplica(actor) for actor in actors], traits[0], share_characters=2_000)
        ray.kill(actors[0], no_restart=False)  # before the first call
        first = asyncio.ensure_future(pool.score(asked))
        second = asyncio.ensure_future(pool.score(asked))
        await first
        ray.kill(actors[1], no_restart=False)  # in the middle of what others wait for
        return [first.result(), await second, await pool.score(asked)]

    results = asyncio.run(killed_twice())
    for actor in actors:
        ray.kill(actor)
    expected = asyncio.run(load_scorer(ECHO).score(asked))
    for scores in results:
        assert scores == pytest.approx(expected, abs=1e-5)


def test_a_ranker_that_does_not_load_is_told_when_the_pool_starts() -> None:
    settings = PairRanker(model=str(PRESETS / "miniature" / "fuser"), device="cpu", num_cpus=0.5)
    with (
        pytest.raises(ModelLoadError, match="not a PairRanker checkpoint"),
        ranker_pool(place("ranker", settings, Capacity.machine(2))),
    ):
        pass
