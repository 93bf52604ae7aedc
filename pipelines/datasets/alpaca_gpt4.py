"""Alpaca-GPT4 (Peng et al., 2023): `alpaca_gpt4_data.json`, answers of GPT-4 to Alpaca's instructions."""

from collections.abc import Mapping
from typing import Any, ClassVar

from llm_blender_ray.pipelines.datasets.sources import InstructionExample, field_text


class AlpacaGPT4:
    """Rows with `instruction`, `input` and `output`."""

    limit: ClassVar[int] = 52_000
    banned: ClassVar[tuple[str, ...]] = ()

    def read(self, given: Mapping[str, Any]) -> InstructionExample:
        """See Source."""
        return InstructionExample(
            id="itwgpt4/",
            instruction=field_text(given, "instruction"),
            input=field_text(given, "input", optional=True),
            output=field_text(given, "output"),
        )
