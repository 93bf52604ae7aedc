"""Sources of instruction data: what a row of their published files means, and their registry.

A source is a class as those beside this module, and one line of the registry (or an entry point
`llm_blender_ray.dataset_sources`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from llm_blender_ray.configs.registry import Registry


@dataclass(frozen=True, slots=True)
class InstructionExample:
    """A prompt with its reference.

    Attributes:
        id: Id in the data set. Ending in "/", it is completed by a running number of the rows with this beginning.
    """

    id: str
    instruction: str
    input: str
    output: str

    @property
    def prompt(self) -> str:
        """The prompt as a ranker reads it."""
        return self.instruction + self.input


class DroppedRowError(ValueError):
    """A row is no example of the data set; the message is the reason, the same for all rows of its kind."""


class Source(Protocol):
    """A published data set. Its instances hold nothing.

    Attributes:
        limit: Rows drawn of it at most, before lengths are checked.
        banned: An output with one of these phrases is dropped; in lower case.
    """

    limit: ClassVar[int]
    banned: ClassVar[tuple[str, ...]]

    def read(self, given: Mapping[str, Any]) -> InstructionExample:
        """Read a row of its files.

        Raises:
            DroppedRowError: The row is malformed, or of no use here.
        """
        ...


def field_text(given: Mapping[str, Any], *names: str, optional: bool = False) -> str:
    """Text of the first of these fields that a row has.

    Args:
        given: The row.
        names: Names of one field in several publications of a source.
        optional: Whether a row may lack it; it is then empty.

    Raises:
        DroppedRowError: There is none, or it is not text.
    """
    value = next((given[name] for name in names if given.get(name) is not None), "" if optional else None)
    if value is None:
        raise DroppedRowError(f"no {names[0]}")
    if not isinstance(value, str):
        raise DroppedRowError(f"{names[0]} is not text")
    return value


_HERE = "llm_blender_ray.pipelines.datasets"
SOURCES: Registry[type[Source]] = Registry(
    "source of a data set",
    "llm_blender_ray.dataset_sources",
    {
        "gpt4all": f"{_HERE}.gpt4all:GPT4AllLaion",
        "dolly": f"{_HERE}.dolly:Dolly15K",
        "alpaca_gpt4": f"{_HERE}.alpaca_gpt4:AlpacaGPT4",
        "sharegpt": f"{_HERE}.sharegpt:ShareGPT",
    },
)
