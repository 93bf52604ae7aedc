"""What a gateway makes of parts that an update removes or replaces."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.exceptions import RequestCancelledError
from virtual_time import run

from llm_blender_ray.actors.pool import NoReplicaError
from llm_blender_ray.actors.records import Matchup, Prompt
from llm_blender_ray.cluster.versions import version_of
from llm_blender_ray.configs.rankers import EchoRanker
from llm_blender_ray.configs.strategies import Full
from llm_blender_ray.pipelines.serve.handles import PartError, call
from llm_blender_ray.pipelines.serve.remote_ranker import _Slot
from llm_blender_ray.pipelines.serve.replicas import OtherScorerError, ScorerReplica


class Held:
    """Method of a deployment without replicas: Ray Serve holds each call until it is cancelled."""

    def __init__(self) -> None:
        self._router = SimpleNamespace(_asyncio_router=SimpleNamespace(_deployment_available=True))

    def remove(self) -> None:
        self._router._asyncio_router._deployment_available = False

    def remote(self) -> "Held":
        self._cancelled = asyncio.Event()
        return self

    def cancel(self) -> None:
        self._cancelled.set()

    def __await__(self) -> Any:
        return self._wait().__await__()

    async def _wait(self) -> None:
        await self._cancelled.wait()
        raise RequestCancelledError("a request")


def test_a_call_that_is_held_ends_when_its_deployment_is_removed() -> None:
    async def work() -> float:
        method, loop = Held(), asyncio.get_running_loop()
        loop.call_later(100, method.remove)
        with pytest.raises(PartError, match="no part of the service any more"):
            await call(method)
        return loop.time()

    assert 100 <= run(work()) < 101


def test_a_client_that_goes_away_is_no_removed_part() -> None:
    async def work() -> None:
        calling = asyncio.create_task(call(Held()))
        await asyncio.sleep(10)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling

    run(work())


def test_comparisons_of_another_ranker_are_not_taken() -> None:
    """They would be cached as those of this one, and are on another scale."""
    settings = EchoRanker(kind="echo", strategy=Full())
    replica = ScorerReplica(settings)
    matchups = [Matchup(Prompt("", "hello"), "a", "b")]

    async def work() -> None:
        assert len(await replica.score(matchups, version_of(settings))) == 1
        with pytest.raises(OtherScorerError, match="being updated"):
            await replica.score(matchups, "another")
        with pytest.raises(OtherScorerError, match="being updated"):
            await replica.traits("another")
        handle: Any = SimpleNamespace(score=SimpleNamespace(remote=lambda *given: replica.score(*given)))
        with pytest.raises(NoReplicaError, match="being updated"):
            await _Slot(handle, "another").score(matchups)

    run(work())
