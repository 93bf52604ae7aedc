"""Preference pairs as they are written, with columns of their rows."""

import io
import json
from datetime import date
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.records import RESULT_COLUMNS
from llm_blender_ray.configs.preferences import PAIR_COLUMNS, Preferences
from llm_blender_ray.pipelines.rows.columns import inspect_columns
from llm_blender_ray.pipelines.rows.formats import format_of
from llm_blender_ray.pipelines.rows.layout import Layout
from llm_blender_ray.pipelines.rows.schema import ROW_SCHEMA, read_row
from llm_blender_ray.pipelines.rows.writers import PreferenceShape

DAYS = [date(2026, 1, day) for day in (1, 2, 3)]


def row(name: str, **more: Any) -> dict[str, Any]:
    texts = [f"{name} {word}" for word in ("good", "fair", "bad")]
    given = {"id": name, "prompt": f"About {name}?", "candidates": [{"model": "m", "text": one} for one in texts]}
    return read_row(given | more | {"ranking": [0, 1, 2], "scores": [3.0, 2.0, 1.0]}, "test")


@pytest.fixture
def rows() -> pa.Table:
    """Ranked rows with keys of several types, and a native column of Parquet."""
    given = [
        row("Loire", task={"name": "rivers"}, level=1, output="in France"),
        row("Po", level=2.5),
        row("Rhine", task={"name": "borders"}, level="high"),
    ]
    return pa.Table.from_pylist(given, schema=ROW_SCHEMA).append_column("day", pa.array(DAYS))


def shape(rows: pa.Table, *columns: str, pairs: str = "all") -> PreferenceShape:
    results = {name: RESULT_COLUMNS[name] for name in ("ranking", "scores")}
    settings = Preferences.model_validate({"output": "p.jsonl", "pairs": pairs, "columns": columns})
    return PreferenceShape(settings, Layout.of(inspect_columns(rows), results, ()))


def test_json_pairs_carry_values_as_they_came(rows: pa.Table) -> None:
    written = format_of(".jsonl").encoded(shape(rows, "task", "level", "output", "day"), rows)
    pairs = [json.loads(line) for line in written[1].splitlines()]
    assert [(pair["id"], pair["level"]) for pair in pairs] == [
        *[("Loire", 1)] * 3,
        *[("Po", 2.5)] * 3,
        *[("Rhine", "high")] * 3,
    ]
    assert [pair["task"] for pair in pairs[::3]] == [{"name": "rivers"}, None, {"name": "borders"}]
    assert [pair["output"] for pair in pairs[::3]] == ["in France", None, None]
    assert [pair["day"] for pair in pairs[::3]] == [str(day) for day in DAYS]
    assert list(pairs[0]) == [*PAIR_COLUMNS, "task", "level", "output", "day"]


def test_parquet_pairs_carry_columns_in_their_types(rows: pa.Table) -> None:
    made = shape(rows, "day", "task", pairs="best-worst")
    table = pq.read_table(io.BytesIO(format_of(".parquet").part(made, rows)[1]))
    assert table.schema.names == [*PAIR_COLUMNS, "day", "task"]
    assert table.schema.field("day").type == pa.date32() and table.column("day").to_pylist() == DAYS
    assert table.column("task").to_pylist() == [{"name": "rivers"}, None, {"name": "borders"}]
    assert table.column("rejected").to_pylist()[0] == [{"role": "assistant", "content": "Loire bad"}]


def test_without_columns_pairs_are_as_ever(rows: pa.Table) -> None:
    made = shape(rows)
    assert made.schema().names == made.table(rows).schema.names == list(PAIR_COLUMNS)
    assert [list(pair) for pair in made.objects(rows)] == [list(PAIR_COLUMNS)] * 9


def test_a_column_that_no_row_has_is_refused_with_those_that_are_there(rows: pa.Table) -> None:
    layout = shape(rows).layout
    layout.check_columns(["task", "scores", "day"], "preferences.columns")
    with pytest.raises(
        BlendError, match=r"^preferences\.columns: the rows have no column tsk; they have id, prompt, "
    ):
        layout.check_columns(["task", "tsk"], "preferences.columns")
