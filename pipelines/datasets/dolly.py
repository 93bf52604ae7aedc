"""Dolly-15K (Databricks, 2023): `databricks-dolly-15k.jsonl`, answers written by people."""

from collections.abc import Mapping
from typing import Any, ClassVar

from llm_blender_ray.pipelines.datasets.sources import InstructionExample, field_text


class Dolly15K:
    """Rows with `instruction`, `context`, `response` and `category`; also under the hub's copies' names."""

    limit: ClassVar[int] = 15_000
    banned: ClassVar[tuple[str, ...]] = ()

    def read(self, given: Mapping[str, Any]) -> InstructionExample:
        """See Source."""
        return InstructionExample(
            id=f"dolly_15k/{field_text(given, 'category')}/",
            instruction=field_text(given, "instruction"),
            input=field_text(given, "context", "input", optional=True),
            output=field_text(given, "response", "output"),
        )
