"""Rows into files: one file in input order, or a folder of parts, written as workers produce them.

In a folder, the rows of a task are a file, written by the worker; of one file, the driver joins their bytes, and
the file gets its name when it is complete.
"""

import contextlib
import errno
import glob
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.records import plain
from llm_blender_ray.configs.preferences import Preferences
from llm_blender_ray.pipelines.rows.arrow_types import to_rows
from llm_blender_ray.pipelines.rows.columns import OTHER_KEYS, Layout
from llm_blender_ray.pipelines.rows.formats import format_endings, format_of
from llm_blender_ray.pipelines.rows.formats.base import Shape
from llm_blender_ray.pipelines.rows.preferences import PREFERENCE_SCHEMA, preference_table
from llm_blender_ray.pipelines.rows.schema import EXTRA, ROW_SCHEMA, to_json, write_row
from llm_blender_ray.pipelines.rows.storage import put, remove
from llm_blender_ray.pipelines.rows.uris import filesystem, is_local, kind, replacing, row_files, translate_errors

COMPARE_COLUMNS: dict[str, pa.DataType] = {"margin": pa.float64(), "preference": pa.int64()}
_PART = re.compile(r"part-\d{6}-[0-9a-f]{16}(\.\w+)")


class FileRecord(BaseModel):
    """One output file of a run in the manifest; `path` is relative to the output's folder."""

    model_config = ConfigDict(extra="ignore", frozen=True)  # later versions' manifests may have more fields

    path: str
    rows: int
    bytes: int
    sha256: str


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
    """Pairs of a better and a worse answer; `layout` is that of the rows, whose ids they have."""

    settings: Preferences
    layout: Layout

    def schema(self) -> pa.Schema:
        """See base class."""
        return PREFERENCE_SCHEMA.set(0, self.layout.schema().field("id"))

    def table(self, rows: pa.Table) -> pa.Table:
        """See base class."""
        given = rows.select(ROW_SCHEMA.names).to_pylist()
        table = preference_table((row | {"id": str(at)} for at, row in enumerate(given)), self.settings)
        at = table.column("id").cast(pa.int64()).combine_chunks()
        return table.set_column(0, self.schema().field(0), self.layout.ids(rows).take(at))

    def objects(self, rows: pa.Table) -> Iterator[Mapping[str, Any]]:
        """See base class."""
        return iter(self.table(rows).to_pylist())

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
    """Output of rows: one file, or a folder of parts in `folder_format`.

    A registered ending (text also compressed: .gz, .zst, .bz2, .xz) makes one file. `mark` distinguishes this run's
    parts of a folder from another's.
    """

    uri: str
    shape: Shape
    mark: str
    folder_format: str = "parquet"

    @property
    def ending(self) -> str:
        """Ending of its files, which is their format."""
        return kind(self.uri) or f".{self.folder_format}"

    def piece(self, number: int, rows: pa.Table) -> WrittenRows:
        """Output of a task's rows, made by a worker."""
        if kind(self.uri) is not None:
            return WrittenRows(*format_of(self.ending).encoded(self.shape, rows))
        count, data = format_of(self.ending).part(self.shape, rows)
        name = f"part-{number:06}-{self.mark}{self.ending}"
        put(f"{self.uri.rstrip('/')}/{name}", data)
        record = FileRecord(path=name, rows=count, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        return WrittenRows(count, b"", record)

    @contextlib.contextmanager
    def writing(self) -> Iterator["Written"]:
        """Take the workers' results within the block, in order; afterwards, the record of the output.

        Raises:
            BlendError: The output cannot be written.
        """
        written = Written()
        if kind(self.uri) is None:
            written.add = lambda piece: written.files.append(piece.file) if piece.file else None
            yield written
            return
        with translate_errors(self.uri, "write it"):
            with replacing(self.uri) as file, format_of(self.ending).joining(file, self.shape.schema()) as join:

                def add(piece: WrittenRows) -> None:
                    join(piece.data, piece.rows)
                    written.rows += piece.rows

                written.add = add
                yield written
            fs, path = filesystem(self.uri)
            with fs.open(path, "rb") as done:
                digest = hashlib.file_digest(done, "sha256").hexdigest()
            name, size = PurePosixPath(path).name, fs.size(path)
        written.files.append(FileRecord(path=name, rows=written.rows, bytes=size, sha256=digest))

    def clear(self) -> None:
        """Remove the parts of a folder that another run, or this one with another config, wrote."""
        if kind(self.uri) is None:
            fs, folder = filesystem(self.uri)
            with translate_errors(self.uri, "list it"):
                found = part_files(fs, folder)
            for path in found:
                name = PurePosixPath(path).name
                if self.mark not in name:
                    remove(f"{self.uri.rstrip('/')}/{name}")


@dataclass
class Written:
    """A sink's input and its files."""

    add: Callable[[WrittenRows], None] = lambda piece: None
    rows: int = 0
    files: list[FileRecord] = field(default_factory=list)


def is_part(name: str) -> bool:
    """Whether a file of this name is a part that a run wrote into a folder."""
    match = _PART.fullmatch(name)
    return match is not None and match[1] in format_endings()


def part_files(fs: Any, folder: str) -> list[str]:
    """Files in a folder that a run wrote there."""
    if not fs.isdir(folder):
        return []
    return [
        path
        for path in row_files(fs, folder)
        if PurePosixPath(path).parent == PurePosixPath(folder) and is_part(PurePosixPath(path).name)
    ]


def check_output(uri: str, overwrite: bool) -> bool:
    """Check that a run can write its output.

    Args:
        uri: The output.
        overwrite: Whether the run may replace it; a file that no run wrote is never replaced.

    Returns:
        Whether it exists.

    Raises:
        BlendError: It cannot be written.
    """
    fs, path = filesystem(uri)
    if glob.has_magic(uri):
        raise BlendError(f"{uri}: an output is one file or folder, not a glob")
    with translate_errors(uri, "write it"):
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
        others = sorted(set(found) - set(part_files(fs, path)))
        if others and overwrite:
            raise BlendError(f"{uri}: holds {others[0]}, which no run wrote; choose another folder")
        return bool(found)


def _check_place(path: Path) -> None:
    """Check that a local path can be made.

    Raises:
        OSError: It cannot.
    """
    there = next(parent for parent in path.parents if parent.exists())
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    if not os.access(there, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
