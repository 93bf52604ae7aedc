"""Interface of file formats: files to tables of rows, and rows to bytes."""

import contextlib
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import IO, Any, Protocol

import pyarrow as pa

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.pipelines.rows.schema import ROW_SCHEMA

Join = Callable[[bytes, int], None]  # puts the bytes of some rows, and their number, into a file


class Shape(Protocol):
    """Columns and values to write of a table of finished rows. It travels to workers."""

    def schema(self) -> pa.Schema:
        """Columns of Parquet and CSV."""
        ...

    def table(self, rows: pa.Table) -> pa.Table:
        """The rows for Parquet."""
        ...

    def objects(self, rows: pa.Table) -> Iterator[Mapping[str, Any]]:
        """The rows for JSON."""
        ...

    def cells(self, rows: pa.Table) -> Iterator[Sequence[str]]:
        """The rows for CSV."""
        ...


@dataclass(frozen=True)
class Origin:
    """Origin of rows.

    Attributes:
        file: URI, for messages about the file.
        name: Name of the file, for messages about a row.
        keys: Columns of all its rows, from its folders (`lang=en/`); a row's own value takes precedence.
    """

    file: str
    name: str
    keys: Mapping[str, str | None] = field(default_factory=dict)


class Format(ABC):
    """A file format. It gets opened, decompressed files, and does not know their places."""

    compressible = True  # whether a whole file of it may be compressed

    def native(self, source: IO[bytes], origin: Origin) -> pa.Schema:
        """Columns outside the row schema, with types of their own.

        Raises:
            BlendError: The file cannot be read.
        """
        return pa.schema([])

    @abstractmethod
    def tables(self, source: IO[bytes], origin: Origin, native: pa.Schema, size: int) -> Iterator[pa.Table]:
        """The rows as tables of `ROW_SCHEMA`, and of those columns of `native` that the file has."""

    @abstractmethod
    def encoded(self, shape: Shape, rows: pa.Table) -> tuple[int, bytes]:
        """Number of rows to write, and their bytes without a file's beginning and end."""

    def part(self, shape: Shape, rows: pa.Table) -> tuple[int, bytes]:
        """Number of rows to write, and the bytes of a whole file of them: a part of a folder."""
        count, data = self.encoded(shape, rows)
        file = io.BytesIO()
        with self.joining(file, shape.schema()) as join:
            join(data, count)
        return count, file.getvalue()

    @contextlib.contextmanager
    def joining(self, file: IO[bytes], schema: pa.Schema) -> Iterator[Join]:
        """Join results of `encoded` into one file."""
        yield lambda data, rows: _write(file, data)


class TextFormat(Format):
    """Format whose rows are read one by one, and have only JSON's types."""

    @abstractmethod
    def rows(self, source: IO[bytes], origin: Origin) -> Iterator[dict[str, Any]]:
        """The rows as values of `ROW_SCHEMA`."""

    def tables(self, source: IO[bytes], origin: Origin, native: pa.Schema, size: int) -> Iterator[pa.Table]:
        """See base class."""
        rows = self.rows(source, origin)
        while chunk := list(islice(rows, size)):
            yield pa.Table.from_pylist(chunk, schema=ROW_SCHEMA)


def _write(file: IO[bytes], data: bytes) -> None:
    file.write(data)


def reject_duplicate_columns(names: Sequence[str], file: str) -> None:
    """Check that no two columns have one name.

    Raises:
        BlendError: Two have.
    """
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BlendError(f"{file}: two columns have the name {twice[0]!r}; rename one")
