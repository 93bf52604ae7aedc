"""The service's ranker on a real Ray Serve: one request over all replicas, whoever dies, comes or goes away."""

import asyncio
import contextlib
import os
import signal
import sys
import uuid
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
from serving import event_loop

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.ranker import Ranker
from llm_blender_ray.actors.records import Candidate, Matchup, Prompt
from llm_blender_ray.actors.scorers import Score, Traits
from llm_blender_ray.actors.scorers.echo import EchoScorer
from llm_blender_ray.configs.rankers import EchoRanker
from llm_blender_ray.configs.strategies import Full

_T = TypeVar("_T")

SETTINGS = EchoRanker(kind="echo", strategy=Full())
CANDIDATES = [Candidate(None, "word " * count) for count in (3, 9, 1, 7, 5, 11)]


class Scorer:
    """The echo scorer, which behaves as the prompt's instruction says and writes down each call in a folder."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._scorer = EchoScorer(SETTINGS)

    async def traits(self, version: str) -> Traits:
        return Traits(pointwise=False, identity="echo")

    async def score(self, matchups: Sequence[Matchup], version: str) -> list[Score]:
        (self._folder / f"{os.getpid()} {len(matchups)} {uuid.uuid4()}").touch()
        wanted = {matchup.prompt.instruction for matchup in matchups} - {"hello"}
        match next(iter(wanted), "hello"):
            case "die once" if self._first("died"):
                os.kill(os.getpid(), signal.SIGKILL)
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "raise":
                raise ValueError("it can't be scored")
            case "wait":
                self._first("begun")
                try:
                    await asyncio.Event().wait()
                finally:
                    self._first("cancelled")
        return await self._scorer.score(matchups)

    def _first(self, name: str) -> bool:
        try:
            (self._folder / name).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("calls")


@pytest.fixture(scope="module")
def handle(ray_session: None, folder: Path) -> Iterator[Any]:
    from ray import cloudpickle, serve

    from llm_blender_ray.cluster.routing import least_loaded

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # replicas can't import a test
    deployment = serve.deployment(Scorer).options(
        name="ranker",
        num_replicas=2,
        ray_actor_options={"num_cpus": 0.1},
        health_check_period_s=0.5,
        request_router_config=least_loaded("ranker"),
    )
    serve.start(proxy_location="Disabled")
    yield serve.run(deployment.bind(str(folder)), name="ranking", route_prefix=None)
    serve.shutdown()


def run(main: Coroutine[Any, Any, _T]) -> _T:
    """Run it in a loop that goes on between tests: handles belong to it, and learn there which replicas are up."""
    return asyncio.run_coroutine_threadsafe(main, event_loop()).result()


@pytest.fixture
def ranker(handle: Any, folder: Path) -> Any:
    """A ranker whose two replicas are both up, with no call written down."""
    from llm_blender_ray.pipelines.serve.remote_ranker import RemoteRanker

    ranker = RemoteRanker(SETTINGS, handle)
    while len({pid for pid, _ in calls(folder)}) < 2:
        run(ranker.rank_one(Prompt("p", "hello"), CANDIDATES))
    clear(folder)
    return ranker


def clear(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def calls(folder: Path) -> list[tuple[str, int]]:
    """Process and number of comparisons of every call."""
    found = [file.name.split() for file in folder.iterdir() if " " in file.name]
    return [(pid, int(count)) for pid, count, _ in found]


async def noted(folder: Path, name: str) -> None:
    while not (folder / name).exists():
        await asyncio.sleep(0.01)


def test_a_request_is_spread_over_the_replicas_in_even_shares(ranker: Any, folder: Path) -> None:
    prompt = Prompt("p", "hello")
    ranking = run(ranker.rank_one(prompt, CANDIDATES))
    assert ranking == run(Ranker(SETTINGS).rank_one(prompt, CANDIDATES))
    made = calls(folder)
    assert len({pid for pid, _ in made}) == 2
    assert sum(count for _, count in made) == ranking.comparisons == 30
    assert min(count for _, count in made) >= 10


def test_requests_at_once_keep_apart(ranker: Any) -> None:
    prompts = [Prompt(str(i), f"hello {i}") for i in range(20)]

    async def main() -> list[Any]:
        return await asyncio.gather(*(ranker.rank_one(prompt, CANDIDATES) for prompt in prompts))

    alone = Ranker(SETTINGS)
    assert run(main()) == [run(alone.rank_one(prompt, CANDIDATES)) for prompt in prompts]


def test_a_replica_that_dies_costs_a_retry(ranker: Any, folder: Path) -> None:
    prompt = Prompt("p", "die once")
    ranking = run(ranker.rank_one(prompt, CANDIDATES))
    assert (folder / "died").exists()
    assert ranking == run(Ranker(SETTINGS).rank_one(prompt, CANDIDATES))


def test_rounds_go_on_when_a_replica_dies(ranker: Any, folder: Path) -> None:
    async def main() -> list[Any]:
        return [ranking async for ranking in ranker.rounds(Prompt("p", "die once"), CANDIDATES)]

    rounds = run(main())
    assert (folder / "died").exists()
    assert [ranking.complete for ranking in rounds][-1]


def test_what_kills_every_replica_fails_alone(ranker: Any) -> None:
    fine = Prompt("q", "hello")

    async def main() -> list[Any]:
        return await asyncio.gather(
            ranker.rank_one(Prompt("p", "die"), CANDIDATES[:2]),
            ranker.rank_one(fine, CANDIDATES),
            return_exceptions=True,
        )

    killer, ranking = run(main())
    assert isinstance(killer, BlendError) and "ranker failed" in str(killer)
    assert ranking == run(Ranker(SETTINGS).rank_one(fine, CANDIDATES))


def test_what_the_scorer_raises_is_told(ranker: Any) -> None:
    with pytest.raises(BlendError, match=r"^the ranker failed: .*it can't be scored$"):
        run(ranker.rank_one(Prompt("p", "raise"), CANDIDATES[:2]))


def test_who_goes_away_cancels_the_comparisons(ranker: Any, folder: Path) -> None:
    async def main() -> None:
        task = asyncio.ensure_future(ranker.rank_one(Prompt("p", "wait"), CANDIDATES))
        await noted(folder, "begun")
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await noted(folder, "cancelled")
        await ranker.rank_one(Prompt("p", "hello"), CANDIDATES)  # the replicas are free again

    run(main())


def test_what_the_cache_knows_is_not_asked_again(handle: Any, folder: Path, tmp_path: Path) -> None:
    from llm_blender_ray.pipelines.serve.remote_ranker import RemoteRanker

    settings = SETTINGS.model_copy(update={"cache": str(tmp_path / "cache.sqlite")})
    first, second = RemoteRanker(settings, handle), RemoteRanker(settings, handle)  # as of two gateways
    ranking = run(first.rank_one(Prompt("p", "hello"), CANDIDATES))
    clear(folder)
    again = run(second.rank_one(Prompt("p", "hello"), CANDIDATES))
    assert again.order == ranking.order and again.comparisons == 0
    assert not calls(folder)


def test_a_cache_that_cannot_be_used_is_told_before_any_request(handle: Any, tmp_path: Path) -> None:
    from llm_blender_ray.actors.cache import CacheError
    from llm_blender_ray.pipelines.serve.remote_ranker import RemoteRanker

    (tmp_path / "file").write_text("no folder")
    with pytest.raises(CacheError, match="file"):
        RemoteRanker(SETTINGS.model_copy(update={"cache": str(tmp_path / "file" / "cache.sqlite")}), handle)
