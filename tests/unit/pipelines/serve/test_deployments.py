"""What the gateway waits for before the service is up."""

import asyncio
from typing import Any

from virtual_time import run

from llm_blender_ray.configs.schema import BlendConfig
from llm_blender_ray.pipelines.serve.deployments import _Gateway


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
