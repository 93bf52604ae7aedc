"""Files of rows as Arrow tables, streaming and without Ray; every row is checked and typed on the way.

Any size passes through in blocks; a `.json` list is held whole. What a format is: `pipelines.rows.formats`.
"""

import functools
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pyarrow as pa

from llm_blender_ray.pipelines.rows.arrow_types import joined, storable, to_python
from llm_blender_ray.pipelines.rows.formats import format_of, kind
from llm_blender_ray.pipelines.rows.formats.base import Format, Origin
from llm_blender_ray.pipelines.rows.schema import ROW_SCHEMA
from llm_blender_ray.pipelines.rows.uris import find, open_binary, translate_errors

ROWS_PER_BLOCK = 256
_OPEN_AT_ONCE = 16


@dataclass(frozen=True)
class InputFile:
    """One file of rows. name: in errors of its rows; keys: what its folders say of them (`folders.Found`)."""

    uri: str
    name: str
    keys: dict[str, str | None] = field(default_factory=dict)

    @property
    def format(self) -> Format:
        """How it is read."""
        return format_of(kind(self.uri) or "")

    @property
    def origin(self) -> Origin:
        """Where its rows say that they come from."""
        return Origin(self.uri, self.name, self.keys)


def input_files(uri: str, without: Sequence[str] = ()) -> list[InputFile]:
    """The files of a URI (see `uris.find`); what else is there is named on stderr, in one line."""
    found = find(uri, without)
    if found.left_out:
        print(f"{uri}: {found.left_out_text()}", file=sys.stderr, flush=True)
    return [InputFile(file, found.name(file), dict(found.keys.get(file, {}))) for file in found.files]


def read_rows(uri: str, limit: int | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a file, folder or glob one by one, as Python values of what `read_tables` gives."""
    files = input_files(uri)
    native = native_schema(files)
    tables = (table for file in files for table in read_tables(file, native, ROWS_PER_BLOCK))
    return islice((row for table in tables for row in _python_rows(table)), limit)


def _python_rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    columns = [_python(column) for column in table.columns]
    return (dict(zip(table.column_names, row, strict=True)) for row in zip(*columns, strict=True))


def _python(column: pa.ChunkedArray) -> list[Any]:
    try:
        return column.to_pylist()
    except (ValueError, OverflowError, KeyError, pa.ArrowException):  # a date or a zone that Python doesn't know
        return to_python(column)


def native_schema(files: Sequence[InputFile]) -> pa.Schema:
    """The columns of all Parquet and Arrow files that aren't ours, in one schema. Looks into every file once.

    A column whose types in two files can't be one without changing values isn't in it, nor one that Parquet can't
    hold: it travels as JSON in `extra`, as do the keys of other files.

    Raises BlendError for a file that can't be opened, or is broken.
    """
    with ThreadPoolExecutor(_OPEN_AT_ONCE) as pool:
        schemas = list(pool.map(_native_columns, files))
    kinds: dict[str, list[pa.DataType]] = {}
    for schema in schemas:
        for one in schema:
            kinds.setdefault(one.name, []).append(one.type)
    fields = []
    for name, found in kinds.items():
        whole = functools.reduce(lambda a, b: a and joined(a, b), found)
        if whole is not None and (held := storable(whole)) is not None:
            fields.append(pa.field(name, held))
    return pa.schema(fields)


def _native_columns(file: InputFile) -> pa.Schema:
    with translate_errors(file.uri, "read it"), open_binary(file.uri) as source:
        return file.format.native(source, file.origin)


def full_schema(native: pa.Schema) -> pa.Schema:
    """What `read_tables` gives: the columns of `ROW_SCHEMA`, then the native ones."""
    return pa.schema([*ROW_SCHEMA, *native])


def read_tables(file: InputFile, native: pa.Schema, rows_per_table: int) -> Iterator[pa.Table]:
    """One file as tables of `full_schema(native)`; one without rows for a file without rows."""
    empty = True
    with translate_errors(file.uri, "read it"), open_binary(file.uri) as source:
        for table in file.format.tables(source, file.origin, native, rows_per_table):
            empty = False
            for one in native:
                if one.name not in table.column_names:
                    table = table.append_column(one, pa.nulls(len(table), one.type))
            whole = full_schema(native)
            yield pa.table([table.column(name) for name in whole.names], schema=whole)
    if empty:
        yield full_schema(native).empty_table()
