"""GPT4All-LAION (Nomic, 2023): the LAION part of `gpt4all_prompt_generations`, answers of GPT-3.5."""

from collections.abc import Mapping
from typing import Any, ClassVar

from llm_blender_ray.pipelines.datasets.sources import DroppedRowError, InstructionExample, field_text

_LAION = ("unified_chip2", "laion/unified_chip2")  # values of `source`


class GPT4AllLaion:
    """Rows with `prompt`, `response` and `source`."""

    limit: ClassVar[int] = 100_000
    banned: ClassVar[tuple[str, ...]] = ()

    def read(self, given: Mapping[str, Any]) -> InstructionExample:
        """See Source."""
        source = field_text(given, "source", optional=True)
        if source not in _LAION:
            raise DroppedRowError("not of LAION")
        return InstructionExample(
            id=f"{source}/", instruction="", input=field_text(given, "prompt"), output=field_text(given, "response")
        )
