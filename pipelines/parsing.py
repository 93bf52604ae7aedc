"""Files of rows as Arrow tables, streaming and without Ray; every row is checked and typed on the way.

JSONL, CSV and Parquet of any size pass through in blocks; a `.json` list is held whole. Not pyarrow's readers
of JSON and CSV: they stop at the first bad row, don't tell its line, and want one type for a key in all rows.
"""

import codecs
import contextlib
import csv
import io
import json
import re
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import PurePosixPath
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from actors.errors import BlendError
from pipelines.rows import ROW_SCHEMA, bad_row, not_json, read_json_row, read_json_value, read_row
from pipelines.uris import kind, list_files, open_binary, told

ROWS_PER_BLOCK = 256
_OPEN_AT_ONCE = 16
_CSV_JSON = ("messages", "candidates", "ranking", "scores", "comparisons", "logits", "fused_from")
_SPACE = re.compile(r"[ \t\r\n]*")


def read_rows(uri: str, limit: int | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a file, folder or glob one by one, as Python values of what `read_tables` gives."""
    files = list_files(uri)
    native = native_schema(files)
    tables = (table for file in files for table in read_tables(file, native, ROWS_PER_BLOCK))
    return islice((row for table in tables for row in table.to_pylist()), limit)


def native_schema(files: list[str]) -> pa.Schema:
    """The columns of all Parquet files that aren't ours, in one schema. Looks into every file once.

    Raises BlendError for a file that can't be opened, a broken Parquet file or CSV header, and a column whose
    types in two files can't be one.
    """
    with ThreadPoolExecutor(_OPEN_AT_ONCE) as pool:
        schemas = list(pool.map(_native_columns, files))
    merged = pa.schema([])
    for file, schema in zip(files, schemas, strict=True):
        try:
            merged = pa.unify_schemas([merged, schema], promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise BlendError(f"{file}: other column types than in the files before it: {error}") from error
    return merged


def full_schema(native: pa.Schema) -> pa.Schema:
    """What `read_tables` gives: the columns of `ROW_SCHEMA`, then the native ones."""
    return pa.schema([*ROW_SCHEMA, *native])


def read_tables(file: str, native: pa.Schema, rows_per_table: int) -> Iterator[pa.Table]:
    """One file as tables of `full_schema(native)`; one without rows for a file without rows."""
    tables = _parquet_tables if kind(file) == ".parquet" else _parsed_tables
    empty = True
    for table in tables(file, rows_per_table):
        empty = False
        for field in native:
            if field.name in table.column_names:
                at = table.column_names.index(field.name)
                table = table.set_column(at, field, table.column(at).cast(field.type))
            else:
                table = table.append_column(field, pa.nulls(len(table), field.type))
        yield table.select(full_schema(native).names)
    if empty:
        yield full_schema(native).empty_table()


def _parsed_tables(file: str, size: int) -> Iterator[pa.Table]:
    rows = _rows(file)
    while chunk := list(islice(rows, size)):
        yield pa.Table.from_pylist(chunk, schema=ROW_SCHEMA)


def _native_columns(file: str) -> pa.Schema:
    if kind(file) != ".parquet":
        with told(file, "read it"), open_binary(file) as source:
            if kind(file) == ".csv":
                _csv_header(_csv_reader(source), file)
        return pa.schema([])
    with _parquet(file) as parquet:
        schema = parquet.schema_arrow.remove_metadata()
    _refuse_twins(schema.names, file)
    return pa.schema([field for field in schema if field.name not in ROW_SCHEMA.names])


@contextlib.contextmanager
def _parquet(file: str) -> Iterator[pq.ParquetFile]:
    with told(file, "read it"), open_binary(file) as source:
        try:
            yield pq.ParquetFile(source)
        except pa.ArrowInvalid as error:
            raise BlendError(f"{file}: not a readable Parquet file: {error}") from error


def _parquet_tables(file: str, size: int) -> Iterator[pa.Table]:
    name, number = PurePosixPath(file).name, 0
    with _parquet(file) as parquet:
        columns = parquet.schema_arrow.names
        known = [column for column in columns if column in ROW_SCHEMA.names]
        for batch in parquet.iter_batches(batch_size=size):
            rows = [
                read_row(_without_nulls(given), f"{name} row {number + i}")
                for i, given in enumerate(batch.select(known).to_pylist(), 1)
            ]
            number += len(rows)
            table = pa.Table.from_pylist(rows, schema=ROW_SCHEMA)
            for column in columns:
                if column not in known:
                    table = table.append_column(column, batch.column(column))
            yield table


def _without_nulls(given: dict[str, Any]) -> dict[str, Any]:
    """Parquet has every column in every row and every field in every candidate: null means it isn't there."""
    row = {name: value for name, value in given.items() if value is not None}
    candidates = row.get("candidates")
    if isinstance(candidates, list) and all(isinstance(one, dict) for one in candidates):
        row["candidates"] = [{k: v for k, v in one.items() if v is not None} for one in candidates]
    return row


def _rows(file: str) -> Iterator[dict[str, Any]]:
    name = PurePosixPath(file).name
    with told(file, "read it"), open_binary(file) as source:
        if kind(file) == ".csv":
            yield from _csv_rows(source, file)
        elif kind(file) == ".json":
            yield from _json_rows(source.read().removeprefix(codecs.BOM_UTF8), name)
        else:
            yield from _json_lines(source, name)


def _json_lines(lines: Iterable[bytes], name: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, 1):
        text = (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).strip()
        if text:
            yield read_json_row(text, f"{name} line {number}")


def _json_rows(data: bytes, name: str) -> Iterator[dict[str, Any]]:
    """A `.json` file: a list of objects, one object, or JSON lines under the wrong name."""
    if data.lstrip()[:1] == b"[":
        yield from _json_items(data.decode("utf-8", "surrogateescape"), name)
        return
    try:
        value = json.loads(data) if data.strip() else None
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        yield read_json_value(value, name, data)
    else:
        yield from _json_lines(io.BytesIO(data), name)


def _json_items(text: str, name: str) -> Iterator[dict[str, Any]]:
    """The items of a JSON list one by one: a mistake is one bad row after those before it."""
    decode = json.JSONDecoder().raw_decode
    at, number = _after_space(text, text.index("[") + 1), 0
    while text[at : at + 1] != "]":
        number += 1
        where = f"{name} item {number}"
        try:
            value, end = decode(text, at)
        except (ValueError, RecursionError) as error:
            yield _broken_list(text, at, f"{where}: {not_json(error)}")
            return
        yield read_json_value(value, where, text[at:end])
        at = _after_space(text, end)
        if text[at : at + 1] == ",":
            at = _after_space(text, at + 1)
        elif text[at : at + 1] != "]":
            yield _broken_list(text, at, f"{where}: expected a comma or the end of the list after it")
            return
    if text[at + 1 :].strip():
        yield _broken_list(text, at + 1, f"{name}: text after the end of the list")


def _broken_list(text: str, at: int, why: str) -> dict[str, Any]:
    rest = text[at : at + 1000].encode("utf-8", "surrogateescape")
    return bad_row(rest, f"{why}; the rest of the file isn't read")


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _csv_reader(source: IO[bytes]) -> Any:
    csv.field_size_limit(sys.maxsize)  # 128 KiB by default: less than a row's candidates can be
    text = io.TextIOWrapper(source, "utf-8-sig", errors="surrogateescape", newline="")
    return csv.reader(text, strict=True)


def _csv_header(reader: Any, file: str) -> list[str]:
    try:
        header: list[str] = next(reader, [])
    except csv.Error as error:
        raise BlendError(f"{file}: no CSV header: {error}") from error
    _refuse_twins(header, file)
    return header


def _refuse_twins(names: list[str], file: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BlendError(f"{file}: two columns have the name {twice[0]!r}")


def _csv_rows(source: IO[bytes], file: str) -> Iterator[dict[str, Any]]:
    """All a CSV holds is text: unknown columns stay text, ours that aren't text are read as JSON."""
    reader, name = _csv_reader(source), PurePosixPath(file).name
    header = _csv_header(reader, file)
    while True:
        where = f"{name} line {reader.line_num + 1}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield bad_row("", f"{where}: not CSV: {error}")
            continue
        if cells is None:
            return
        if not cells:
            continue
        raw = ",".join(cells).encode("utf-8", "surrogateescape")
        if not _is_utf8(raw):
            yield bad_row(raw, f"{where}: not UTF-8")
        elif len(cells) != len(header):
            yield bad_row(raw, f"{where}: {len(cells)} cells, expected {len(header)}")
        else:
            yield read_row(_csv_values(dict(zip(header, cells, strict=True))), where)


def _csv_values(cells: dict[str, str]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for name, cell in cells.items():
        if cell or name not in ROW_SCHEMA.names:
            given[name] = cell
        if cell and name in _CSV_JSON:
            with contextlib.suppress(ValueError, RecursionError):  # stays text, which read_row refuses
                given[name] = json.loads(cell)
    return given


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
