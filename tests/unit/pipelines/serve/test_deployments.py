"""What the gateway waits for before the service is up, and where replicas are placed."""

import asyncio
from typing import Any

from virtual_time import run

from llm_blender_ray.cluster.placement import Capacity, Node
from llm_blender_ray.configs.schema import BlendConfig
from llm_blender_ray.pipelines.serve.deployments import _Gateway, build


class Loading:
    """Handle of a deployment that is not up."""

    @property
    def check_health(self) -> "Loading":
        return self

    async def remote(self) -> None:
        await asyncio.Event().wait()


def test_parts_without_replicas_are_not_waited_for() -> None:
    def missing(replicas: int) -> list[str]:
        echo = {"engine": "echo", "model": "echo", "replicas": {"min": replicas, "max": 1}}
        parts: dict[str, Any] = {
            "models": [{"name": "a", **echo}, {"name": "b", **echo}],
            "ranker": {"kind": "echo", "replicas": {"min": replicas, "max": 1}},
            "fuser": {"kind": "chat", "llm": {"name": "writer", **echo}},
        }
        handles: list[Any] = [Loading() for _ in range(4)]

        async def work() -> list[str]:
            gateway = _Gateway(BlendConfig.model_validate(parts), handles[:2], *handles[2:], None)
            return await gateway._starting()

        return run(work())

    assert missing(1) == ["a", "b", "ranker", "fuser"]
    assert missing(0) == []


def test_a_replica_on_several_nodes_has_a_placement_group() -> None:
    large = {"engine": "vllm", "model": "org/m", "tensor_parallel_size": 2, "pipeline_parallel_size": 2}
    parts: dict[str, Any] = {
        "models": [{"name": "large", **large}, {"name": "small", "engine": "vllm", "model": "org/s"}],
        "ranker": {"kind": "judge", "llm": {"name": "judge", **large, "num_cpus": 1, "accelerator_type": "H100"}},
    }
    nodes = [Node(8, 2, accelerator="H100")] * 5
    gateway = build(BlendConfig.model_validate(parts), Capacity(tuple(nodes)))
    _, members, ranker, *_ = gateway._bound_deployment.init_args
    replicas = [one._bound_deployment._replica_config for one in (*members, ranker)]
    gpu, typed = {"GPU": 1}, {"GPU": 1, "accelerator_type:H100": 0.001}
    assert [one.placement_group_bundles for one in replicas] == [
        [gpu] * 4,
        None,
        [typed | {"CPU": 1}, *[typed] * 3],
    ]
    assert [one.ray_actor_options.get("num_gpus") for one in replicas] == [0, 1, 0]
