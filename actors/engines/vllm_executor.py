"""Executor of vLLM engines: processes on their actor's node, or Ray actors on the nodes of its placement group."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from llm_blender_ray.configs.schema import VLLMModel

# Of the engines that are made now; see `metered_client`.
_in_group: ContextVar[bool] = ContextVar("in_group", default=False)


@contextmanager
def placement_group_gpus(there: bool) -> Iterator[None]:
    """Engines that are made in the block use the GPUs of their actor's placement group, if it is there."""
    token = _in_group.set(there)
    try:
        yield
    finally:
        _in_group.reset(token)


def over_nodes(model: VLLMModel) -> bool:
    """Whether an engine that is made now runs on the nodes of a placement group."""
    return model.world_size > 1 and _in_group.get()


def parallel_arguments(model: VLLMModel) -> dict[str, Any]:
    """Arguments of an engine that is made now: its parallelism and executor."""
    # By itself vLLM takes Ray's executor in any actor of a placement group.
    several = "ray" if over_nodes(model) else "mp"
    return {
        "tensor_parallel_size": model.tensor_parallel_size,
        "pipeline_parallel_size": model.pipeline_parallel_size,
        "distributed_executor_backend": several if model.world_size > 1 else None,
    }


def weights_arguments(model: VLLMModel, folder: Path) -> dict[str, Any]:
    """Arguments of an engine that is made now: its weights.

    Args:
        model: Its settings.
        folder: Where this node has them.

    Returns:
        The folder; for several nodes the hub id, if it is one: each has a cache of its own.
    """
    if over_nodes(model) and folder != Path(model.model).expanduser():
        return {"model": model.model, "revision": model.revision}
    return {"model": str(folder)}
