"""Workers whose base LLM ends its process, as the kernel does to one that takes too much memory."""

import os
from collections.abc import Sequence
from typing import Any, Literal

from llm_blender_ray.actors.records import Blend
from llm_blender_ray.actors.stages import Generate
from llm_blender_ray.configs.schema import ModelSettings
from llm_blender_ray.pipelines.bulk import isolation, worker

POISON = "Ω"


def dying_worker(name: str, dies: Literal["loading", "working", "on poison"]) -> type[worker.Worker]:
    """Make a worker, to be used in place of `Worker`, whose processes of one base LLM die.

    Args:
        name: Name of the base LLM.
        dies: When; on poison: when POISON is in a prompt.
    """

    class DyingGenerate(Generate):
        def __init__(self, settings: ModelSettings) -> None:
            super().__init__(settings)
            self._dies = settings.name == name and dies
            if self._dies == "loading":
                os._exit(137)

        async def __call__(self, blends: Sequence[Blend]) -> list[Blend]:
            poisoned = any(POISON in text for blend in blends for text in blend.prompt.texts())
            if self._dies == "working" or (self._dies == "on poison" and poisoned):
                os._exit(137)
            return await super().__call__(blends)

    class DyingWorker(worker.Worker):  # pickled with its stage: an actor has it in a process of its own
        def __init__(self, *args: Any) -> None:
            worker.STAGES["generate"] = DyingGenerate
            if dies == "working":
                isolation.MAX_DEATHS = 4  # sooner; unit tests count to the limit
            super().__init__(*args)

    return DyingWorker
