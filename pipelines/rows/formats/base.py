"""What a file format is to the rest: how its files become tables of rows, and rows its bytes."""

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
class Origin:
    """Where rows come from.

    Attributes:
        file: URI, for messages about the file.
        name: Name of the file, for messages about a row.
        keys: What its folders say of all its rows (`lang=en/`); a row's own value goes first.
    """

    file: str
    name: str
    keys: Mapping[str, str | None] = field(default_factory=dict)


class Format(ABC):
    """A file format. It is given opened, unpacked files, and knows nothing of where they are."""

    compressible = True  # whether a whole file of it may be compressed

    def native(self, source: IO[bytes], origin: Origin) -> pa.Schema:
        """The columns with a type of their own that aren't ours. Raises BlendError when the file can't be read."""
        return pa.schema([])

    @abstractmethod
    def tables(self, source: IO[bytes], origin: Origin, native: pa.Schema, size: int) -> Iterator[pa.Table]:
        """The rows as tables of `ROW_SCHEMA`, and of those columns of `native` that the file has."""

    @abstractmethod
    def encoded(self, shape: Shape, rows: pa.Table) -> tuple[int, bytes]:
        """How many rows there are to write, and their bytes without what stands before and after all of them."""

    def part(self, shape: Shape, rows: pa.Table) -> tuple[int, bytes]:
        """How many rows there are to write, and the bytes of a whole file of them: a part of a folder."""
        count, data = self.encoded(shape, rows)
        file = io.BytesIO()
        with self.joining(file, shape.schema()) as join:
            join(data, count)
        return count, file.getvalue()

    @contextlib.contextmanager
    def joining(self, file: IO[bytes], schema: pa.Schema) -> Iterator[Join]:
        """Put what `encoded` gave together in one file."""
        yield lambda data, rows: _write(file, data)


class TextFormat(Format):
    """A format whose rows are read one by one, and have no types but JSON's."""

    @abstractmethod
    def rows(self, source: IO[bytes], origin: Origin) -> Iterator[dict[str, Any]]:
        """The rows as values of `ROW_SCHEMA`."""

    def tables(self, source: IO[bytes], origin: Origin, native: pa.Schema, size: int) -> Iterator[pa.Table]:
        rows = self.rows(source, origin)
        while chunk := list(islice(rows, size)):
            yield pa.Table.from_pylist(chunk, schema=ROW_SCHEMA)


def _write(file: IO[bytes], data: bytes) -> None:
    file.write(data)


def refuse_twins(names: Sequence[str], file: str) -> None:
    """Raise BlendError when two columns have one name."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BlendError(f"{file}: two columns have the name {twice[0]!r}; rename one")
