"""GPUs of actors: their own, or those of their placement groups on several nodes.

An actor of such a replica has no GPU itself. It is in the first bundle of its group, so that it is on a node with a
GPU, and vLLM's Ray executor starts a worker in every bundle.
"""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from llm_blender_ray.actors.engines.vllm_executor import placement_group_gpus
from llm_blender_ray.cluster.placement import Placement

Options = Callable[[], dict[str, Any]]  # of Ray, for an actor that is about to start
STRATEGY = "PACK"  # on as few nodes as have room


@contextlib.contextmanager
def own_gpus() -> Iterator[None]:
    """Models that are loaded in the block use this actor's GPUs and no others.

    Ray does not hide GPUs in an actor without any, and `device: auto` would take one.
    """
    group = None
    if ray.is_initialized() and not ray.get_gpu_ids():  # outside of an actor, asking would start a Ray
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        group = get_current_placement_group()
    if group is not None:  # vLLM's engine process connects by itself, and else to any Ray of the machine
        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    with placement_group_gpus(group is not None):
        yield


@contextlib.contextmanager
def placement_groups() -> Iterator[Callable[[Placement, int], Options | None]]:
    """Placement groups of actors, which are removed with all that runs in them after the block.

    Yields:
        A function of a placement and its number of actors. For a placement on several nodes it makes their groups,
        and returns a function that returns Ray's options of the next actor; else None.
    """
    made: list[PlacementGroup] = []

    def options_of(placement: Placement, actors: int) -> Options | None:
        if not placement.node_gpus:
            return None
        groups = [ray.util.placement_group(placement.bundles(), strategy=STRATEGY) for _ in range(actors)]
        made.extend(groups)
        # Ray Data calls it more often than it starts actors: a group made in it might be nobody's, and hold GPUs
        turn = itertools.cycle(groups)
        return lambda: {"scheduling_strategy": PlacementGroupSchedulingStrategy(next(turn), 0)}

    try:
        yield options_of
    finally:
        for group in made:
            ray.util.remove_placement_group(group)
