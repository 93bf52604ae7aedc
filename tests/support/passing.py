"""Rows through a run without any stage and without Ray: read, kept as blocks, laid out, written."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from llm_blender_ray.pipelines.bulk.checkpoints import _read, _written
from llm_blender_ray.pipelines.bulk.input import _entry
from llm_blender_ray.pipelines.rows.columns import inspect_columns, seen_of
from llm_blender_ray.pipelines.rows.formats import format_of, kind
from llm_blender_ray.pipelines.rows.layout import Layout
from llm_blender_ray.pipelines.rows.readers import input_files, native_schema, read_tables
from llm_blender_ray.pipelines.rows.uris import replacing
from llm_blender_ray.pipelines.rows.writers import BlendShape


def passed(source: Path, output: Path, results: dict[str, pa.DataType] | None = None, size: int = 2) -> Path:
    """Write all rows of a URI to one file of any format, in blocks of `size`; its path."""
    files = input_files(str(source))
    native = native_schema(files)
    tables = [_read(_written(table, {}))[0] for file in files for table in read_tables(file, native, size)]
    seen: pa.DataType = pa.null()
    for table in tables:
        assert _entry("block", table)["rows"] == len(table)
        seen = seen_of(seen, inspect_columns(table))
    shape = BlendShape(Layout.of(seen, results or {}, ()))
    written = format_of(kind(str(output)) or "")
    pieces = [written.encoded(shape, table) for table in [*tables, pa.concat_tables(tables)[:0]]]
    with replacing(str(output)) as file, written.joining(file, shape.schema()) as join:
        for rows, data in pieces:
            join(data, rows)
    return output


def objects(source: Path, folder: Path) -> list[dict[str, Any]]:
    """The rows as a run writes them to a JSONL file."""
    return [json.loads(line) for line in passed(source, folder / "passed.jsonl").read_text().splitlines()]
