"""Input types of our own columns: an `id` that is a number, a `prompt` that is a chat.

Rows travel with ids as text, prompts as text or messages, one reference (`schema.read_row`); other input forms are
in `extra`, and are restored here for Parquet and CSV.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from llm_blender_ray.actors.records import PROMPT_COLUMNS, RESULT_COLUMNS
from llm_blender_ray.pipelines.rows.schema import EXTRA, INTERNAL, MADE, OWN_COLUMNS

OWN_TYPES = {name: PROMPT_COLUMNS[name] for name in OWN_COLUMNS} | RESULT_COLUMNS
GIVEN_ID = f"{INTERNAL}id"  # a native column: ids of Parquet files in which they are not text
_NAMES = (*OWN_TYPES, "error")
_MADE_DIGITS = 13  # of a generated id as a number: below 2^53, so that floats hold it too


@dataclass(frozen=True, slots=True)
class GivenColumns:
    """Input values of a row.

    Attributes:
        own: Values under our names; without generated ids.
        others: The row's other keys.
        made: Whether the id was generated.
    """

    own: Mapping[str, Any]
    others: dict[str, Any]
    made: bool

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "GivenColumns":
        """Input values of a row in the stages' schema; result columns only if they came in another form."""
        others = json.loads(row[EXTRA]) if row[EXTRA] else {}
        made = others.pop(MADE, ())
        own = {name: row[name] for name in OWN_COLUMNS if row[name] is not None and name not in made}
        own |= {name: others.pop(name) for name in _NAMES if name in others}
        return cls(own, others, "id" in made)


def number_of(made_id: str) -> int:
    """A generated id in a column of numbers."""
    return int(made_id[:_MADE_DIGITS], 16)


def readable(name: str, kind: pa.DataType, json_type: pa.DataType) -> bool:
    """Whether a column of this type is read back with its meaning: no text in it is JSON text."""
    if name not in PROMPT_COLUMNS or name == "id":
        return True
    return _plain(kind, json_type)


def _plain(kind: pa.DataType, json_type: pa.DataType) -> bool:
    if pa.types.is_list(kind):
        return _plain(kind.value_type, json_type)
    if pa.types.is_struct(kind):
        return all(_plain(field.type, json_type) for field in kind if field.name in ("role", "content", "text"))
    return kind != json_type
