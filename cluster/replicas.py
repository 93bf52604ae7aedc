"""Models on a cluster: a check for their weights, and a pool of rankers as actors that share one long request."""

import asyncio
import contextlib
import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from llm_blender_ray.actors.errors import ModelLoadError
from llm_blender_ray.actors.pool import Pool
from llm_blender_ray.actors.records import Matchup
from llm_blender_ray.actors.scorers import Score, Scorer, Traits, load_scorer
from llm_blender_ray.cluster.placement import Placement
from llm_blender_ray.cluster.placement_groups import own_gpus, placement_groups
from llm_blender_ray.configs.parts import Weights
from llm_blender_ray.configs.schema import RankerSettings

START_S = 600.0  # to download and load a model


def check_all_weights(placements: Iterable[Placement]) -> None:
    """Check that the weights of all models can be found, before any is loaded.

    A task of the cluster checks, since the cluster loads them.

    Args:
        placements: The pools of a run.

    Raises:
        ModelLoadError: The weights of a model are missing.
    """
    weights = [found for placement in placements if (found := placement.model.weights)]
    if weights:
        _check([ray.remote(num_cpus=0)(_check_there).remote(weights)])


def check_node_weights(placements: Iterable[Placement]) -> None:
    """Check that local weights of replicas on several nodes are on each node that Ray may choose for them.

    Args:
        placements: The pools of a run.

    Raises:
        ModelLoadError: A node lacks some; the message names it.
    """
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    checks = []
    for pool in placements:
        weights, kind = pool.model.weights, pool.model.accelerator_type
        if not pool.node_gpus or weights is None or not weights.is_path:
            continue
        for node in nodes:
            if kind is None or f"accelerator_type:{kind}" in node["Resources"]:
                there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                task = ray.remote(num_cpus=0, scheduling_strategy=there)(_check_there)
                checks.append(task.remote([weights], f" (on node {node['NodeManagerAddress']})"))
    _check(checks)


def _check(tasks: Sequence[Any]) -> None:
    try:
        ray.get(list(tasks))
    except RayTaskError as error:
        raise error.cause from error


def _check_there(weights: Sequence[Weights], where: str = "") -> None:
    from llm_blender_ray.actors.weight_checks import check_weights  # the hub's client, which the driver needs not

    for one in weights:
        try:
            check_weights(one.model, one.revision)
            if one.adapters:
                from llm_blender_ray.actors.adapters import locate_adapter  # torch and transformers
            for adapter in one.adapters:
                locate_adapter(adapter, one.formats, Path(one.model).expanduser())
        except ModelLoadError as error:
            raise ModelLoadError(f"{error}{where}") from error


class ScorerActor:
    """A scorer in a Ray actor, to be called through a `Pool`.

    It loads at the first call: of what a constructor raises, Ray passes on only the text of a traceback.
    """

    def __init__(self, settings: RankerSettings) -> None:
        self._settings = settings

    @functools.cached_property
    def _scorer(self) -> Scorer:
        with own_gpus():
            return load_scorer(self._settings)

    def load(self) -> None:
        """Load the scorer: seconds to minutes.

        Raises:
            ModelLoadError: The scorer cannot be used.
        """
        self._scorer  # noqa: B018 (loads)

    async def traits(self) -> Traits:
        """Traits of the scorer.

        Raises:
            ModelLoadError: The scorer cannot be used.
        """
        return self._scorer.traits

    async def score(self, matchups: Sequence[Matchup]) -> list[Score]:
        """See `actors.scorers.Scorer`."""
        return await self._scorer.score(matchups)

    async def check_health(self) -> None:
        """See `actors.scorers.Scorer`. Ray Serve replaces a replica that raises."""
        await self._scorer.check_health()


class RayReplica:
    """Replica of a `Pool`: one such actor. Ray restarts it when it dies."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    async def score(self, matchups: Sequence[Matchup]) -> list[Score]:
        """See `actors.pool.Replica`."""
        call = self.actor.score.remote(matchups)
        try:
            return await call
        except asyncio.CancelledError:
            ray.cancel(call)  # otherwise the actor would finish it
            raise

    async def ready(self) -> None:
        """See `actors.pool.Replica`."""
        # with retries the call waits for a restart; a plain one fails at once
        await self.actor.traits.options(max_task_retries=-1).remote()


@contextlib.contextmanager
def ranker_pool(placement: Placement) -> Iterator[Pool]:
    """Pool of the placement's fewest replicas, loaded, within the block; Ray has to be running.

    Raises:
        ModelLoadError: The model cannot be used.
    """
    count, remote = placement.replicas, ray.remote(ScorerActor)
    with placement_groups() as options_of:
        fixed, own = placement.ray_options(), options_of(placement, count) or dict
        actors = [
            remote.options(max_restarts=-1, **fixed, **own()).remote(placement.settings) for _ in range(count)
        ]
        try:
            try:
                traits = ray.get([actor.traits.remote() for actor in actors], timeout=START_S)
            except RayTaskError as error:
                raise error.cause from error
            yield Pool([RayReplica(actor) for actor in actors], traits[0])
        finally:
            for actor in actors:
                ray.kill(actor)
