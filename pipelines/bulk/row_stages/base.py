"""Base class of the stages that give a row one result: what the bulk path needs to know of such a stage.

A stage's class in `actors` maps blends to blends and knows nothing of storage. Its `RowStage` says which columns
store its result, which of them rows get, what a failure is, and what is counted. To add a stage, derive a
`RowStage` in a module of this folder, and register it in `ROW_STAGES`.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa

from llm_blender_ray.actors.records import Blend
from llm_blender_ray.actors.stages import no_candidate
from llm_blender_ray.actors.usage import TokenUsage

# Columns of a stored result that rows do not get:
ANSWERS = "answers"  # digests of the candidates' texts, to look up logits
INPUTS = "inputs"
FAILED = "failed"
LEFT_OUT = "left_out"  # comparisons without a score
UNPAID_CALLS = "unpaid"  # those of them that a budget had no room for
ROWS = "rows"  # marks of the rows, to find their results in another block
USAGE = "usage"  # of all calls that the stage made for the row, or for each candidate; null: unknown


class RowStage(ABC):
    """Stage with one result for each row.

    Attributes:
        stage: Its class.
        columns: Columns of its result with their types.
        result: The column that is not null if there is a result.
        independent: Whether it reads the input alone, and no other stage's result.
        error_prefixes: Beginnings of the errors that it gives rows; a later run of the stage tries them again.
        journaled: Whether its replies are stored one by one until a block is done (`Journal`).
        pair_settings: Settings that choose pairs and leave the result of a pair as it is. None: it compares none.
        failure_verb: What it did not do, for a line about failures.
        made: Its result in a sentence.
    """

    stage: ClassVar[Any]
    columns: ClassVar[Mapping[str, pa.DataType]]
    result: ClassVar[str]
    independent: ClassVar[bool] = False
    journaled: ClassVar[bool] = False
    error_prefixes: ClassVar[tuple[str, ...]] = ()
    pair_settings: ClassVar[frozenset[str]] = frozenset()
    failure_verb: ClassVar[str]
    made: ClassVar[str]

    @property
    def row_columns(self) -> tuple[str, ...]:
        """Columns of rows that its result replaces."""
        return tuple(self.columns)

    @abstractmethod
    def values(self, blend: Blend) -> dict[str, Any]:
        """Values of `columns` for a blend after the stage."""

    @abstractmethod
    def restored(self, blend: Blend, row: Mapping[str, Any], usage: TokenUsage | None) -> Blend:
        """The blend with a stored result and its usage."""

    @abstractmethod
    def usage(self, blend: Blend) -> TokenUsage | None:
        """Usage of the calls that the stage made for a blend; None: unknown."""

    def asks(self, blend: Blend) -> bool:
        """Whether the stage has to run a blend."""
        return blend.error is None and no_candidate(blend) is None

    def error(self, blend: Blend) -> str | None:
        """Error of the stage on a blend that it has run."""
        return blend.error

    def left_out(self, blend: Blend) -> int:
        """Number of comparisons of a blend without an answer."""
        return 0

    def unpaid(self, blend: Blend) -> int:
        """Number of comparisons that a blend with a result lacks because a budget had no room for their calls."""
        return 0

    def inputs(self, blend: Blend) -> list[Any]:
        """What the result of a blend depends on, but for settings and prompt."""
        texts = [candidate.text for candidate in blend.candidates]
        return [texts, blend.ranking.order if blend.ranking else None, blend.error or no_candidate(blend)]

    def moved(self, blend: Blend, was: Mapping[str, Any]) -> dict[str, Any] | None:
        """An earlier result with indexes of the current candidates; None if it does not hold for them."""
        return None

    def joined(self, table: pa.Table, name: str, result: pa.Table) -> pa.Table:
        """Rows with the result of the stage of this name."""
        for column in self.row_columns:
            at = table.schema.get_field_index(column)
            table = table.set_column(at, column, result.column(column))
        return table

    def known(self, blends: Sequence[Blend], results: Sequence[pa.Table], journal: "Journal") -> Any:
        """Results of pairs that the stage need not make again, which it gets with the blends; empty for none.

        Args:
            blends: The rows.
            results: Stored results of the same rows, of the same scorer.
            journal: Replies of an unfinished attempt.
        """
        return {}

    def numbers(self, after: Sequence[Blend]) -> dict[str, Any]:
        """Further fields of a block's account; they replace others of the same name."""
        return {}


class Journal(ABC):
    """Replies of an LLM in a block that is not finished: a killed session's are found by the next one."""

    @abstractmethod
    def replies(self) -> dict[str, dict[str, Any]]:
        """All replies, as JSON objects, by their keys."""

    @abstractmethod
    def keep(self, key: str, reply: Mapping[str, Any]) -> None:
        """Store one reply durably."""


def mark_of(text: str | None) -> str | None:
    """Digest of a text; None for none."""
    return None if text is None else hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def inputs_of(stage: RowStage, blend: Blend) -> str:
    """Mark of the inputs of a stage's result of a blend."""
    return mark_of(json.dumps(stage.inputs(blend))) or ""


def current_places(blend: Blend, answers: Sequence[str | None]) -> list[int | None]:
    """Present indexes of an earlier result's candidates, by the marks of their texts; None for a missing one."""
    places: dict[str, list[int]] = {}
    for i, candidate in enumerate(blend.candidates):
        if (mark := mark_of(candidate.text)) is not None:
            places.setdefault(mark, []).append(i)
    return [places[mark].pop(0) if mark is not None and places.get(mark) else None for mark in answers]
