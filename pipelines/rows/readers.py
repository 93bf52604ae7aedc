"""Files of rows as Arrow tables, streaming and without Ray; every row is validated and typed on the way.

Files of any size pass through in blocks; only a `.json` list is held whole. `pipelines.rows.formats` has the
formats.
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
    """One file of rows.

    Attributes:
        name: Name in errors of its rows.
        keys: Columns from its folders' names (`folders.FoundFiles`).
    """

    uri: str
    name: str
    keys: dict[str, str | None] = field(default_factory=dict)

    @property
    def format(self) -> Format:
        """Format of the file."""
        return format_of(kind(self.uri) or "")

    @property
    def origin(self) -> Origin:
        """Origin of its rows."""
        return Origin(self.uri, self.name, self.keys)


def input_files(uri: str, without: Sequence[str] = ()) -> list[InputFile]:
    """Files of a URI (see `uris.find`); other files there are reported on stderr, in one line."""
    found = find(uri, without)
    if found.left_out:
        print(f"{uri}: {found.left_out_text()}", file=sys.stderr, flush=True)
    return [InputFile(file, found.name(file), dict(found.keys.get(file, {}))) for file in found.files]


def read_rows(uri: str, limit: int | None = None) -> Iterator[dict[str, Any]]:
    """Rows of a file, folder or glob one by one, as Python values of `read_tables`."""
    files = input_files(uri)
    return read_files(files, native_schema(files), limit)


def read_files(files: Sequence[InputFile], native: pa.Schema, limit: int | None = None) -> Iterator[dict[str, Any]]:
    """Rows of some files of a URI, as `read_rows` has them; `native` is the schema of all its files."""
    tables = (table for file in files for table in read_tables(file, native, ROWS_PER_BLOCK))
    return islice((row for table in tables for row in _python_rows(table)), limit)


def _python_rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    columns = [_python(column) for column in table.columns]
    return (dict(zip(table.column_names, row, strict=True)) for row in zip(*columns, strict=True))


def _python(column: pa.ChunkedArray) -> list[Any]:
    try:
        return column.to_pylist()
    except (ValueError, OverflowError, KeyError, pa.ArrowException):  # a date or a zone unknown to Python
        return to_python(column)


def native_schema(files: Sequence[InputFile]) -> pa.Schema:
    """Columns of all Parquet and Arrow files outside the row schema, in one schema. Opens every file once.

    A column is left out if its types in two files cannot be joined without changing values, or if Parquet cannot
    hold it: it travels as JSON in `extra`, like the keys of other files.

    Raises:
        BlendError: A file cannot be opened, or is broken.
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
    """Schema of `read_tables`: the columns of `ROW_SCHEMA`, then the native ones."""
    return pa.schema([*ROW_SCHEMA, *native])


def read_tables(file: InputFile, native: pa.Schema, rows_per_table: int) -> Iterator[pa.Table]:
    """One file as tables of `full_schema(native)`; at least one, which may be empty."""
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
