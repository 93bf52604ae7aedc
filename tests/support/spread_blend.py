"""A run whose LLMs' replicas each take GPUs of two nodes, on a Ray cluster of this machine.

`RAY_AUTH_MODE=disabled python spread_blend.py FOLDER` prints JSON: what the LLMs' engines found, and all placement
groups that there were. Ray reads that variable when it is imported.
"""

import json
import os
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import ClassVar

import ray
from ray.util import placement_group_table

from llm_blender_ray.actors.engines import Completion
from llm_blender_ray.actors.engines.vllm_executor import parallel_arguments
from llm_blender_ray.actors.records import Message
from llm_blender_ray.cluster.processes import nodes
from llm_blender_ray.configs.loading import PRESETS
from llm_blender_ray.configs.schema import BlendConfig, EchoRanker, Sampling, VLLMModel
from llm_blender_ray.pipelines.bulk.commands import run_blend


class SpreadModel(VLLMModel):
    """Settings of vLLM's engine for an engine that loads nothing."""

    implementation: ClassVar[str] = "spread_blend:SpreadEngine"


class SpreadEngine:
    """Answers with what it found when it was made, as JSON. See `llm_blender_ray.actors.engines.Engine`."""

    def __init__(self, model: SpreadModel) -> None:
        group = ray.util.get_current_placement_group()
        table = placement_group_table(group)
        self._found = json.dumps(
            {
                "group": group.id.hex(),
                "strategy": table["strategy"],
                "bundles": list(table["bundles"].values()),
                "nodes": list(table["bundles_to_node_id"].values()),
                "node": ray.get_runtime_context().get_node_id(),
                "own_gpus": ray.get_gpu_ids(),
                "visible": os.environ["CUDA_VISIBLE_DEVICES"],
                "address": os.environ.get("RAY_ADDRESS"),
                "arguments": parallel_arguments(model),
            }
        )

    async def generate(self, messages: list[Message], sampling: Sampling) -> Completion:
        return Completion(self._found, "stop")

    async def stream(self, messages: list[Message], sampling: Sampling) -> AsyncGenerator[str | Completion, None]:
        yield await self.generate(messages, sampling)

    async def check_health(self) -> None:
        pass

    async def close(self) -> None:
        pass


def config(folder: Path) -> BlendConfig:
    """Two LLMs of three GPUs a replica, on three nodes of two: two replicas of one, then two of the other."""
    local = str(PRESETS / "miniature" / "alder")
    llms = [
        SpreadModel(name=name, engine="vllm", model=local, pipeline_parallel_size=3, replicas=2)
        for name in ("first", "second")
    ]
    (folder / "in.jsonl").write_text("".join(f'{{"prompt": "question {at}"}}\n' for at in range(4)))
    return BlendConfig(
        models=tuple(llms),
        ranker=EchoRanker(kind="echo", num_cpus=0.1),
        input=str(folder / "in.jsonl"),
        output=str(folder / "out.jsonl"),
        rows_per_block=1,
    )


def main(folder: Path) -> None:
    """Run the blend, with GPUs that are only numbers."""
    with nodes((2, 0, 0), gpus=2) as cluster:
        os.environ["RAY_ADDRESS"] = cluster.address
        with ray.init(log_to_driver=False):
            run_blend(blend := config(folder))
            groups = {name: one["state"] for name, one in placement_group_table().items()}
        rows = [json.loads(line) for line in Path(str(blend.output)).read_text().splitlines()]
        print(json.dumps({"rows": rows, "groups": groups, "address": cluster.address}))


if __name__ == "__main__":
    from spread_blend import main as run  # its classes are then known by this module's name

    run(Path(sys.argv[1]))
