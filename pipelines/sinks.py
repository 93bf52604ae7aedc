"""Rows into files: one file in input order, or a folder of parts, written piece by piece as workers make them.

A piece is the bytes of some rows. In a folder it is a file, which the worker writes where it is; of one file the
driver puts the pieces together, and the file gets its name when it is complete.
"""

import contextlib
import csv
import errno
import glob
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from actors.errors import BlendError
from actors.records import plain
from configs.preferences import Preferences
from pipelines.columns import JSON, Layout
from pipelines.manifest import FileRecord
from pipelines.preferences import PREFERENCE_SCHEMA, preference_table
from pipelines.rows import EXTRA, to_json, write_row
from pipelines.storage import put, remove
from pipelines.uris import filesystem, is_local, kind, replacing, row_files, told

FolderFormat = Literal["parquet", "jsonl"]
COMPARE_COLUMNS: dict[str, pa.DataType] = {"margin": pa.float64(), "preference": pa.int64()}
GROUP_ROWS, GROUP_BYTES = 8192, 64 * 2**20  # of a row group in one Parquet file, about
_PART = re.compile(r"part-\d{6}-[0-9a-f]{16}\.(parquet|jsonl)")


class Shape(Protocol):
    """What is written of a table of finished rows. It travels to workers."""

    def schema(self) -> pa.Schema:
        """The columns of Parquet and CSV."""
        ...

    def table(self, rows: pa.Table) -> pa.Table:
        """As Parquet has it."""
        ...

    def objects(self, rows: pa.Table) -> Iterator[Mapping[str, Any]]:
        """As JSON has it."""
        ...

    def cells(self, rows: pa.Table) -> Iterator[Sequence[str]]:
        """As CSV has it."""
        ...


@dataclass(frozen=True)
class BlendShape:
    """The row's own columns, `candidates`, results, `error`."""

    layout: Layout

    def schema(self) -> pa.Schema:
        return self.layout.schema()

    def table(self, rows: pa.Table) -> pa.Table:
        return self.layout.table(rows)

    def objects(self, rows: pa.Table) -> Iterator[Mapping[str, Any]]:
        results = list(self.layout.results)
        return (write_row(row, results, self.layout.kept) for row in rows.to_pylist())

    def cells(self, rows: pa.Table) -> Iterator[Sequence[str]]:
        """Texts and numbers as they are, the rest as JSON; keys without a column together in `extra`."""
        names = self.schema().names
        for out in map(dict, self.objects(rows)):
            if self.layout.extra == JSON:
                out[EXTRA] = {name: value for name, value in out.items() if name not in names} or None
            yield [_cell(out.get(name)) for name in names]


@dataclass(frozen=True)
class PreferenceShape:
    """Pairs of a better and a worse answer."""

    settings: Preferences

    def schema(self) -> pa.Schema:
        return PREFERENCE_SCHEMA

    def table(self, rows: pa.Table) -> pa.Table:
        return preference_table(rows.to_pylist(), self.settings)

    def objects(self, rows: pa.Table) -> Iterator[Mapping[str, Any]]:
        return iter(self.table(rows).to_pylist())

    def cells(self, rows: pa.Table) -> Iterator[Sequence[str]]:
        return ([_cell(value) for value in row.values()] for row in self.objects(rows))


def _cell(value: Any) -> str:
    if isinstance(value, dict | list | bool):
        return to_json(value)
    return "" if value is None else str(plain(value))


@dataclass(frozen=True)
class Piece:
    """Some rows as they are written: bytes for the driver, or the file that they are already."""

    rows: int
    data: bytes
    file: FileRecord | None = None


@dataclass(frozen=True)
class Sink:
    """Where rows go. mark: tells this run's parts of a folder from another's.

    An ending of .jsonl, .ndjson, .json, .csv (also with .gz) or .parquet makes one file; anything else is a folder
    of parts in `folder_format`.
    """

    uri: str
    shape: Shape
    mark: str
    folder_format: FolderFormat = "parquet"

    @property
    def ending(self) -> str:
        """The format, as the ending of its files."""
        return kind(self.uri) or f".{self.folder_format}"

    def piece(self, number: int, rows: pa.Table) -> Piece:
        """The piece of this number, made by a worker."""
        if kind(self.uri) is not None:
            count, data = self._encoded(rows)
            return Piece(count, data)
        if self.ending == ".parquet":
            table = self.shape.table(rows)
            count, data = len(table), _parquet_bytes(table)
        else:
            count, data = self._encoded(rows)
        name = f"part-{number:06}-{self.mark}{self.ending}"
        put(f"{self.uri.rstrip('/')}/{name}", data)
        record = FileRecord(path=name, rows=count, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        return Piece(count, b"", record)

    def _encoded(self, rows: pa.Table) -> tuple[int, bytes]:
        """How many rows there are to write, and their bytes without what stands before and after all of them."""
        if self.ending == ".parquet":
            table = self.shape.table(rows)
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
            return len(table), sink.getvalue().to_pybytes()
        if self.ending == ".csv":
            text = io.StringIO()
            cells = list(self.shape.cells(rows))
            csv.writer(text, lineterminator="\n").writerows(cells)
            return len(cells), text.getvalue().encode(errors="replace")
        lines = [to_json(row).encode() for row in self.shape.objects(rows)]
        if self.ending == ".json":
            return len(lines), b",\n".join(lines)
        return len(lines), b"".join(line + b"\n" for line in lines)

    @contextlib.contextmanager
    def writing(self) -> Iterator["Written"]:
        """Takes the pieces within the block, in order; after it, tells what was written. Raises BlendError."""
        written = Written()
        if kind(self.uri) is None:
            written.add = lambda piece: written.files.append(piece.file) if piece.file else None
            yield written
            return
        with told(self.uri, "write it"):
            with replacing(self.uri) as file, self._joining(file) as join:

                def add(piece: Piece) -> None:
                    join(piece)
                    written.rows += piece.rows

                written.add = add
                yield written
            fs, path = filesystem(self.uri)
            with fs.open(path, "rb") as done:
                digest = hashlib.file_digest(done, "sha256").hexdigest()
            name, size = PurePosixPath(path).name, fs.size(path)
        written.files.append(FileRecord(path=name, rows=written.rows, bytes=size, sha256=digest))

    @contextlib.contextmanager
    def _joining(self, file: IO[bytes]) -> Iterator[Callable[[Piece], None]]:
        """Puts pieces together in one file, with what stands before, between and after them."""
        if self.ending == ".parquet":
            with pq.ParquetWriter(file, self.shape.schema()) as writer:
                groups = _RowGroups(writer)
                yield groups.add
                groups.flush()
            return
        is_list, begun = self.ending == ".json", False

        def join(piece: Piece) -> None:
            nonlocal begun
            if is_list and begun and piece.rows:
                file.write(b",\n")
            file.write(piece.data)
            begun = begun or piece.rows > 0

        if self.ending == ".csv":
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerow(self.shape.schema().names)
            file.write(text.getvalue().encode())
        file.write(b"[\n" if is_list else b"")
        yield join
        file.write(b"\n]\n" if is_list else b"")

    def clear(self) -> None:
        """Remove the parts of a folder that another run, or this one with another config, wrote."""
        if kind(self.uri) is None:
            fs, folder = filesystem(self.uri)
            with told(self.uri, "list it"):
                found = parts(fs, folder)
            for path in found:
                name = PurePosixPath(path).name
                if self.mark not in name:
                    remove(f"{self.uri.rstrip('/')}/{name}")


@dataclass
class Written:
    """What a sink is given, and has written."""

    add: Callable[[Piece], None] = lambda piece: None
    rows: int = 0
    files: list[FileRecord] = field(default_factory=list)


class _RowGroups:
    """Pieces gathered to row groups of a size that reads well."""

    def __init__(self, writer: pq.ParquetWriter) -> None:
        self._writer = writer
        self._held: list[pa.Table] = []

    def add(self, piece: Piece) -> None:
        self._held.append(pa.ipc.open_stream(piece.data).read_all())
        if sum(map(len, self._held)) >= GROUP_ROWS or sum(one.nbytes for one in self._held) >= GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        if self._held:
            self._writer.write_table(pa.concat_tables(self._held))
            self._held.clear()


def _parquet_bytes(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def parts(fs: Any, folder: str) -> list[str]:
    """The files in a folder that a run wrote there."""
    if not fs.isdir(folder):
        return []
    return [
        path
        for path in row_files(fs, folder)
        if PurePosixPath(path).parent == PurePosixPath(folder) and _PART.fullmatch(PurePosixPath(path).name)
    ]


def check_output(uri: str, overwrite: bool) -> bool:
    """Whether something is at the output. Raises BlendError when a run can't write there even if it may replace it.

    overwrite: it may, but no file that no run wrote.
    """
    fs, path = filesystem(uri)
    if glob.has_magic(uri):
        raise BlendError(f"{uri}: an output is one file or folder, not a glob")
    with told(uri, "write it"):
        fs.invalidate_cache()
        if is_local(fs):
            _check_place(Path(path))
        if kind(uri) is not None:
            if fs.isdir(path):
                raise BlendError(f"{uri}: a folder of that name is in the way of the file")
            return bool(fs.exists(path))
        if fs.isfile(path):
            raise BlendError(f"{uri}: a file of that name is in the way of the folder")
        found = row_files(fs, path) if fs.isdir(path) else []
        others = sorted(set(found) - set(parts(fs, path)))
        if others and overwrite:
            raise BlendError(f"{uri}: holds {others[0]}, which no run wrote; choose another folder")
        return bool(found)


def _check_place(path: Path) -> None:
    """Raise OSError when nothing can be made at a local path."""
    there = next(parent for parent in path.parents if parent.exists())
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    if not os.access(there, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
