"""Parquet and Arrow: columns outside the row schema keep their types.

Values that do not fit a column's type (files of one input may differ) go to `extra` as JSON.
"""

import contextlib
import io
from collections.abc import Iterator
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from llm_blender_ray.actors.answer_pairs import ANSWER_PAIR_COLUMNS
from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.records import RAW
from llm_blender_ray.pipelines.rows.arrow_types import cast, to_rows
from llm_blender_ray.pipelines.rows.formats.base import Format, Join, Origin, Shape, reject_duplicate_columns
from llm_blender_ray.pipelines.rows.schema import ROW_SCHEMA, read_row
from llm_blender_ray.pipelines.rows.source_types import GIVEN_ID

GROUP_ROWS, GROUP_BYTES = 8192, 64 * 2**20  # of a row group in one Parquet file, about
_ARROW_MAGIC = b"ARROW1"
_NOT_NATIVE = (*ROW_SCHEMA.names, RAW)  # a malformed row's text may be added to `raw`


class _Columnar(Format):
    compressible = False  # compressed internally

    def native(self, source: IO[bytes], origin: Origin) -> pa.Schema:
        """See base class."""
        with self._opened(source, origin) as (schema, _):
            reject_duplicate_columns(schema.names, origin.file)
            fields = [field for field in schema if field.name not in _NOT_NATIVE]
            at = schema.get_field_index("id")
            if at >= 0 and not (
                pa.types.is_string(schema.field(at).type) or pa.types.is_null(schema.field(at).type)
            ):
                fields.append(pa.field(GIVEN_ID, schema.field(at).type))
            return pa.schema(fields)

    def tables(self, source: IO[bytes], origin: Origin, native: pa.Schema, size: int) -> Iterator[pa.Table]:
        """See base class."""
        number = 0
        with self._opened(source, origin) as (schema, batches):
            keys = {name: value for name, value in origin.keys.items() if name not in schema.names}
            for batch in batches(size):
                known, passed, beside = [], [], []
                for field in batch.schema:
                    column = batch.column(field.name)
                    if field.name in native.names:
                        held = _cast(column, native.field(field.name).type)
                        if held is not None:
                            passed.append((field.name, held))
                            beside += [(field.name, column)] if field.name in ANSWER_PAIR_COLUMNS else []
                            continue
                    known.append((field.name, column))
                    if field.name == "id" and GIVEN_ID in native.names:
                        held = _cast(column, native.field(GIVEN_ID).type)
                        passed += [] if held is None else [(GIVEN_ID, held)]
                given = to_rows(pa.table(dict(known))) if known else [{} for _ in range(len(batch))]
                more = to_rows(pa.table(dict(beside))) if beside else [{}] * len(batch)
                rows = [
                    read_row(keys | _without_nulls(one), f"{origin.name} row {number + i}", other)
                    for i, (one, other) in enumerate(zip(given, more, strict=True), 1)
                ]
                number += len(rows)
                table = pa.Table.from_pylist(rows, schema=ROW_SCHEMA)
                for name, column in passed:
                    table = table.append_column(name, column)
                yield table

    def _opened(self, source: IO[bytes], origin: Origin) -> Any:
        """Context of the schema, and of a function that gives record batches of at most so many rows."""
        raise NotImplementedError

    def encoded(self, shape: Shape, rows: pa.Table) -> tuple[int, bytes]:
        """See base class."""
        table = shape.table(rows)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return len(table), sink.getvalue().to_pybytes()


def _cast(column: pa.Array, kind: pa.DataType) -> pa.Array | None:
    """The column as this type; None when some value would change."""
    try:
        return cast(column, kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
        return None


def _without_nulls(given: dict[str, Any]) -> dict[str, Any]:
    """The row without nulls, which stand for absent columns and absent fields of candidates."""
    row = {name: value for name, value in given.items() if value is not None}
    candidates = row.get("candidates")
    if isinstance(candidates, list) and all(isinstance(one, dict) for one in candidates):
        row["candidates"] = [{k: v for k, v in one.items() if v is not None} for one in candidates]
    return row


class Parquet(_Columnar):
    """Apache Parquet."""

    @contextlib.contextmanager
    def _opened(self, source: IO[bytes], origin: Origin) -> Iterator[Any]:
        try:
            file = pq.ParquetFile(source)
            yield file.schema_arrow.remove_metadata(), lambda size: file.iter_batches(batch_size=size)
        except pa.ArrowInvalid as error:
            raise BlendError(f"{origin.file}: not a readable Parquet file: {error}") from error

    def part(self, shape: Shape, rows: pa.Table) -> tuple[int, bytes]:
        """See base class."""
        table = shape.table(rows)
        sink = io.BytesIO()
        pq.write_table(table, sink)
        return len(table), sink.getvalue()

    @contextlib.contextmanager
    def joining(self, file: IO[bytes], schema: pa.Schema) -> Iterator[Join]:
        """See base class."""
        with pq.ParquetWriter(file, schema) as writer:
            groups = _RowGroups(writer)
            yield groups.add
            groups.flush()


class _RowGroups:
    """Collects tables to row groups of a size that is efficient to read."""

    def __init__(self, writer: pq.ParquetWriter) -> None:
        self._writer = writer
        self._held: list[pa.Table] = []

    def add(self, data: bytes, rows: int) -> None:
        self._held.append(pa.ipc.open_stream(data).read_all())
        if sum(map(len, self._held)) >= GROUP_ROWS or sum(one.nbytes for one in self._held) >= GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        if self._held:
            self._writer.write_table(pa.concat_tables(self._held))
            self._held.clear()


class Arrow(_Columnar):
    """Arrow's IPC format: the stream, as `save_to_disk` of Hugging Face datasets writes it, or the file."""

    @contextlib.contextmanager
    def _opened(self, source: IO[bytes], origin: Origin) -> Iterator[Any]:
        try:
            magic = source.read(len(_ARROW_MAGIC))
            source.seek(0)
            if magic == _ARROW_MAGIC:
                file = pa.ipc.open_file(source)
                held: Any = (file.get_batch(i) for i in range(file.num_record_batches))
            else:
                file = held = pa.ipc.open_stream(source)

            def batches(size: int) -> Iterator[pa.RecordBatch]:
                return (batch.slice(at, size) for batch in held for at in range(0, len(batch), size))

            yield file.schema.remove_metadata(), batches
        except pa.ArrowInvalid as error:
            raise BlendError(f"{origin.file}: not a readable Arrow file: {error}") from error

    @contextlib.contextmanager
    def joining(self, file: IO[bytes], schema: pa.Schema) -> Iterator[Join]:
        """See base class."""
        with pa.ipc.new_stream(file, schema) as writer:
            yield lambda data, rows: writer.write_table(pa.ipc.open_stream(data).read_all())
