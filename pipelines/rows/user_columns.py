"""Columns of the user's in rows of `read_rows`: columns of their own, or fields of the row's `extra`."""

import functools
import json
from collections.abc import Mapping
from typing import Any

from llm_blender_ray.pipelines.rows.schema import EXTRA, references_in


def column(row: Mapping[str, Any], name: str) -> Any:
    """Value of a column of the user's in a row of `read_rows`; None if it has none. It is not to be changed."""
    value = row.get(name)
    return value if value is not None else _fields(row.get(EXTRA)).get(name)


def references_of(row: Mapping[str, Any], column: str = "output") -> list[str]:
    """Reference texts of a row: the text of a column, or each of the list that it has."""
    given = _fields(row.get(EXTRA)).get(column)
    return references_in(row.get(column) if given is None else given)


# A row's columns are read one after another: without the cache a row of judgements was parsed ten times.
@functools.lru_cache(maxsize=1)
def _fields(extra: str | None) -> Mapping[str, Any]:
    return json.loads(extra) if extra else {}
