"""Conversion between Arrow tables, which pass between stages, and `Blend` records, on which stages work.

A table's other columns are not looked at: they are the user's.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from llm_blender_ray.actors.errors import RowError
from llm_blender_ray.actors.records import (
    PROMPT_COLUMNS,
    REFERENCE_COLUMN,
    RESULT_COLUMNS,
    Blend,
    Candidate,
    Prompt,
    Ranking,
    read_prompt,
)

# Columns that stages change.
_CHANGED = {name: PROMPT_COLUMNS[name] for name in ("candidates", "error")} | RESULT_COLUMNS


def to_blends(table: pa.Table) -> list[Blend]:
    """One blend per row. A row whose `error` is set, or whose content is bad, comes as a blend with that error."""
    known = [name for name in table.column_names if name in {*PROMPT_COLUMNS, *RESULT_COLUMNS, REFERENCE_COLUMN}]
    return [to_blend(row) for row in table.select(known).to_pylist()]


def to_blend(row: Mapping[str, Any]) -> Blend:
    """The blend of one row, as `to_blends` makes it."""
    error = row.get("error")
    candidates = tuple(Candidate(**value) for value in row.get("candidates") or ())
    try:
        return Blend(
            prompt=read_prompt(row) if error is None else Prompt(row["id"] or ""),
            candidates=candidates,
            ranking=_ranking(row, len(candidates)),
            fused=row.get("fused"),
            fused_from=tuple(row.get("fused_from") or ()),
            error=error,
            references=tuple(row.get(REFERENCE_COLUMN) or ()),
        )
    except RowError as bad:
        return Blend(Prompt(row.get("id") or ""), candidates, error=error or str(bad))


def _ranking(row: Mapping[str, Any], size: int) -> Ranking | None:
    order = row.get("ranking")
    if order is None:
        return None
    if len(set(order)) != len(order) or not all(i is not None and 0 <= i < size for i in order):
        raise RowError(f"ranking: {order} is not an order of {size} candidates")
    return Ranking(
        order=tuple(order),
        scores=tuple(row.get("scores") or [None] * size),
        logits=tuple(map(tuple, row.get("logits") or [[None] * size] * size)),
        comparisons=row.get("comparisons") or 0,
    )


def with_blends(table: pa.Table, blends: Sequence[Blend]) -> pa.Table:
    """The table with what stages change taken from `blends`, one per row in the same order."""
    rows = [_changed(blend) for blend in blends]
    for name, kind in _CHANGED.items():
        values = pa.array([row[name] for row in rows], type=kind)
        at = table.schema.get_field_index(name)
        table = table.append_column(name, values) if at < 0 else table.set_column(at, name, values)
    return table


def _changed(blend: Blend) -> dict[str, Any]:
    ranking = blend.ranking
    return {
        "candidates": [candidate.to_row() for candidate in blend.candidates],
        "error": blend.error,
        "ranking": ranking.order if ranking else None,
        "scores": ranking.scores if ranking else None,
        "comparisons": ranking.comparisons if ranking else None,
        "logits": ranking.logits if ranking else None,
        "fused": blend.fused,
        "fused_from": blend.fused_from if blend.fused is not None else None,
    }
