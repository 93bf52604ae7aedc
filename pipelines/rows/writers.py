"""Rows into files: one file in input order, or a folder of parts, written as workers produce them.

In a folder, the rows of a task are a file, written by the worker; of one file, the driver joins their bytes, and
the file gets its name when it is complete.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from llm_blender_ray.actors.json_values import plain
from llm_blender_ray.configs.preferences import Preferences
from llm_blender_ray.pipelines.rows.arrow_types import to_rows
from llm_blender_ray.pipelines.rows.columns import OTHER_KEYS
from llm_blender_ray.pipelines.rows.formats import format_of
from llm_blender_ray.pipelines.rows.formats.base import Shape
from llm_blender_ray.pipelines.rows.layout import Layout
from llm_blender_ray.pipelines.rows.outputs import FileRecord, Output
from llm_blender_ray.pipelines.rows.preferences import PREFERENCE_SCHEMA, preference_table
from llm_blender_ray.pipelines.rows.schema import EXTRA, ROW_SCHEMA, to_json, write_row
from llm_blender_ray.pipelines.rows.storage import put, remove
from llm_blender_ray.pipelines.rows.uris import filesystem, replacing, translate_errors

COST_COLUMNS: dict[str, pa.DataType] = {"cost_usd": pa.float64()}
COMPARE_COLUMNS: dict[str, pa.DataType] = {"margin": pa.float64(), "preference": pa.int64()}


@dataclass(frozen=True)
class BlendShape:
    """The row's own columns, `candidates`, results, `error`."""

    layout: Layout

    def schema(self) -> pa.Schema:
        """See base class."""
        return self.layout.schema()

    def table(self, rows: pa.Table) -> pa.Table:
        """See base class."""
        return self.layout.table(rows)

    def objects(self, rows: pa.Table) -> Iterator[Mapping[str, Any]]:
        """See base class."""
        results = list(self.layout.results)
        return (write_row(row, results, tuple(self.layout.kept), self.layout.made_id) for row in to_rows(rows))

    def cells(self, rows: pa.Table) -> Iterator[Sequence[str]]:
        """Texts and numbers unchanged, other values as JSON; keys without a column together in `extra`."""
        names = self.schema().names
        for out in map(dict, self.objects(rows)):
            if self.layout.extra.get_field_index(OTHER_KEYS) >= 0:
                rest = {name: value for name, value in out.items() if name not in names or name == EXTRA}
                out[EXTRA] = rest or None
            yield [_cell(out.get(name)) for name in names]


@dataclass(frozen=True)
class PreferenceShape:
    """Pairs of a better and a worse answer; `layout` is that of the rows, of which they carry columns."""

    settings: Preferences
    layout: Layout

    def schema(self) -> pa.Schema:
        """See base class."""
        of_rows = self.layout.schema()
        fields = [of_rows.field(name) for name in self.settings.columns]
        return pa.schema([of_rows.field("id"), *list(PREFERENCE_SCHEMA)[1:], *fields])

    def table(self, rows: pa.Table) -> pa.Table:
        """See base class."""
        table, at = self._pairs(rows)
        if self.settings.columns:
            further = self.layout.table(rows).select(list(self.settings.columns)).take(at)
            table = pa.table([*table.columns, *further.columns], self.schema())
        return table

    def objects(self, rows: pa.Table) -> Iterator[Mapping[str, Any]]:
        """See base class."""
        table, at = self._pairs(rows)
        written = list(BlendShape(self.layout).objects(rows)) if self.settings.columns else []
        for pair, row in zip(table.to_pylist(), at.to_pylist(), strict=True):
            yield pair | {name: written[row].get(name) for name in self.settings.columns}

    def _pairs(self, rows: pa.Table) -> tuple[pa.Table, pa.Array]:
        """The pairs' own columns, and the number of each pair's row."""
        given = rows.select(ROW_SCHEMA.names).to_pylist()
        table = preference_table((row | {"id": str(at)} for at, row in enumerate(given)), self.settings)
        at = table.column("id").cast(pa.int64()).combine_chunks()
        return table.set_column(0, self.schema().field(0), self.layout.ids(rows).take(at)), at

    def cells(self, rows: pa.Table) -> Iterator[Sequence[str]]:
        """See base class."""
        return ([_cell(value) for value in row.values()] for row in self.objects(rows))


def _cell(value: Any) -> str:
    if isinstance(value, dict | list | bool):
        return to_json(value)
    return "" if value is None else str(plain(value))


@dataclass(frozen=True)
class WrittenRows:
    """Output of some rows: bytes for the driver, or the record of a file already written."""

    rows: int
    data: bytes
    file: FileRecord | None = None


@dataclass(frozen=True)
class Sink:
    """Writer of rows to an output. `mark` distinguishes this run's parts of a folder from another's."""

    output: Output
    shape: Shape
    mark: str

    def piece(self, number: int, rows: pa.Table) -> WrittenRows:
        """Output of a task's rows, made by a worker."""
        form = format_of(self.output.ending)
        if not self.output.is_folder:
            return WrittenRows(*form.encoded(self.shape, rows))
        count, data = form.part(self.shape, rows)
        name = f"part-{number:06}-{self.mark}{self.output.ending}"
        put(self.output.file(name), data)
        record = FileRecord(path=name, rows=count, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        return WrittenRows(count, b"", record)

    @contextlib.contextmanager
    def writing(self) -> Iterator["Written"]:
        """Take the workers' results within the block, in order; afterwards, the record of the output.

        Raises:
            BlendError: The output cannot be written.
        """
        written = Written()
        if self.output.is_folder:
            written.add = lambda piece: written.files.append(piece.file) if piece.file else None
            yield written
            return
        uri = self.output.location
        with translate_errors(uri, "write it"):
            with replacing(uri) as file, format_of(self.output.ending).joining(file, self.shape.schema()) as join:

                def add(piece: WrittenRows) -> None:
                    join(piece.data, piece.rows)
                    written.rows += piece.rows

                written.add = add
                yield written
            fs, path = filesystem(uri)
            with fs.open(path, "rb") as done:
                digest = hashlib.file_digest(done, "sha256").hexdigest()
            name, size = PurePosixPath(path).name, fs.size(path)
        written.files.append(FileRecord(path=name, rows=written.rows, bytes=size, sha256=digest))

    def clear(self) -> None:
        """Remove the parts of a folder that another run, or this one with another config, wrote."""
        for name in self.output.parts():
            if self.mark not in name:
                remove(self.output.file(name))


@dataclass
class Written:
    """A sink's input and its files."""

    add: Callable[[WrittenRows], None] = lambda piece: None
    rows: int = 0
    files: list[FileRecord] = field(default_factory=list)
