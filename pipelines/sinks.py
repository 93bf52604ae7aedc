"""A Ray Dataset of rows into files: one file in input order, or a folder of Parquet parts.

One file is written by the driver, block after block; a folder's parts from where the blocks are. What came as JSON
gets columns of its own in Parquet and CSV: their types are looked for in the source, in a pass before the run.
"""

import contextlib
import csv
import glob
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq
import ray.data
from ray.data.block import BlockAccessor
from ray.data.datasource import BlockBasedFileDatasink, FilenameProvider
from ray.exceptions import RayTaskError

from actors.errors import BlendError, one_line
from actors.records import RESULT_COLUMNS, plain
from pipelines.columns import JSON, Layout, look, unify
from pipelines.rows import EXTRA, ROW_SCHEMA, to_json, write_row
from pipelines.uris import filesystem, is_local, kind, replacing, row_files, told

COMPARE_COLUMNS: dict[str, pa.DataType] = {"margin": pa.float64(), "preference": pa.int64()}
ROWS_PER_FILE = 4096  # of a folder's parts, at least: thousands of tiny files read slowly
GROUP_ROWS, GROUP_BYTES = 8192, 64 * 2**20  # of a row group in one Parquet file, about
_PART = re.compile(r"part-\d{6}-[0-9a-f]{32}\.parquet")


@dataclass(frozen=True)
class Written:
    """How many rows were written, and how many of them have an `error`."""

    rows: int
    errors: int


def write(
    dataset: "ray.data.Dataset",
    uri: str,
    *,
    source: "ray.data.Dataset",
    results: Sequence[str],
    keep: Sequence[str] = (),
    overwrite: bool = False,
) -> Written:
    """Run `dataset` and write its rows: the row's own columns, `candidates`, `results`, `error`.

    An ending of .jsonl, .ndjson, .json, .csv (also with .gz) or .parquet makes one file, in input order, that
    gets its name when it is complete; anything else is a folder of Parquet parts. `source` is what
    `sources.read` gave for these rows. Result columns in `keep` are written where rows have them, those in
    neither aren't.

    Raises BlendError when the output exists and `overwrite` is false, and when it can't be written.
    """
    check_output(uri, overwrite)
    types = {name: (RESULT_COLUMNS | COMPARE_COLUMNS)[name] for name in results}
    ending = kind(uri)
    with told(uri, "write it"), _causes(uri):
        if ending is None:
            return _write_folder(dataset, uri, source, types, keep)
        with replacing(uri) as file:
            if ending == ".parquet":
                return _drain(dataset, _parquet(file, _layout(source, types, keep)))
            if ending == ".csv":
                return _drain(dataset, _csv(file, _layout(source, types, keep)))
            return _drain(dataset, _json(file, results, keep, as_list=ending == ".json"))


def check_output(uri: str, overwrite: bool) -> None:
    """Raise BlendError if `write` would refuse the output; for before anything expensive starts."""
    fs, path = filesystem(uri)
    if glob.has_magic(uri):
        raise BlendError(f"{uri}: an output is one file or folder, not a glob")
    with told(uri, "write it"):
        fs.invalidate_cache()
        if kind(uri) is None:
            if fs.isfile(path):
                raise BlendError(f"{uri}: a file of that name is in the way of the folder")
            found = row_files(fs, path) if fs.isdir(path) else []
            others = sorted(set(found) - set(_parts(fs, path)))
            if others and overwrite:
                raise BlendError(f"{uri}: holds {others[0]}, which no run wrote; choose another folder")
        elif fs.isdir(path):
            raise BlendError(f"{uri}: a folder of that name is in the way of the file")
        else:
            found = [path] if fs.exists(path) else []
    if found and not overwrite:
        raise BlendError(f"{uri}: exists already; --overwrite replaces it")


Write = Callable[[pa.Table], None]


def _drain(dataset: "ray.data.Dataset", opened: contextlib.AbstractContextManager[Write]) -> Written:
    rows = errors = 0
    with opened as write_table:
        for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            write_table(table)
            rows += len(table)
            errors += len(table) - table.column("error").null_count
    return Written(rows, errors)


@contextlib.contextmanager
def _json(file: IO[bytes], results: Sequence[str], keep: Sequence[str], *, as_list: bool) -> Iterator[Write]:
    before, between, after = (b"[\n", b",\n", b"\n]\n") if as_list else (b"", b"\n", b"\n")
    empty = True

    def write_table(table: pa.Table) -> None:
        nonlocal empty
        for row in table.to_pylist():
            file.write(before if empty else between)
            file.write(to_json(write_row(row, results, keep)).encode())
            empty = False

    yield write_table
    if empty:
        file.write(before)
    if as_list or not empty:
        file.write(after)


@contextlib.contextmanager
def _csv(file: IO[bytes], layout: Layout) -> Iterator[Write]:
    """Texts and numbers as they are, the rest as JSON; keys without a column together in `extra`."""
    names = layout.schema().names
    text = io.TextIOWrapper(file, "utf-8", errors="replace", newline="", write_through=True)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)

    def write_table(table: pa.Table) -> None:
        for row in table.to_pylist():
            out = write_row(row, list(layout.results), layout.kept)
            if layout.extra == JSON:
                out[EXTRA] = {name: value for name, value in out.items() if name not in names} or None
            writer.writerow([_cell(out.get(name)) for name in names])

    yield write_table
    text.flush()
    text.detach()


def _cell(value: Any) -> str:
    if isinstance(value, dict | list | bool):
        return to_json(value)
    return "" if value is None else str(plain(value))


@contextlib.contextmanager
def _parquet(file: IO[bytes], layout: Layout) -> Iterator[Write]:
    """Blocks are gathered to row groups of a size that reads well."""
    held: list[pa.Table] = []
    with pq.ParquetWriter(file, layout.schema()) as writer:

        def flush() -> None:
            if held:
                writer.write_table(pa.concat_tables(held))
                held.clear()

        def write_table(table: pa.Table) -> None:
            held.append(layout.table(table))
            if sum(map(len, held)) >= GROUP_ROWS or sum(one.nbytes for one in held) >= GROUP_BYTES:
                flush()

        yield write_table
        flush()


class _PartNames(FilenameProvider):
    """Names that sort in input order, and that `_parts` knows again."""

    def get_filename_for_task(self, write_uuid: str, task_index: int) -> str:
        return f"part-{task_index:06}-{write_uuid}.parquet"


class _PartsDatasink(BlockBasedFileDatasink):
    """Parquet parts. Ray's own `write_parquet` writes a part with several threads, which mixes up its rows."""

    def __init__(self, folder: str, layout: Layout, filesystem: Any) -> None:
        super().__init__(
            folder, min_rows_per_file=ROWS_PER_FILE, filesystem=filesystem, filename_provider=_PartNames()
        )
        self._layout = layout

    def write_block_to_file(self, block: BlockAccessor, file: "pa.NativeFile") -> None:
        pq.write_table(self._layout.table(block.to_arrow()), file)


def _parts(fs: Any, folder: str) -> list[str]:
    """The files in a folder that a run wrote there."""
    return [path for path in row_files(fs, folder) if _is_part(path, folder)]


def _is_part(path: str, folder: str) -> bool:
    at = PurePosixPath(path)
    return at.parent == PurePosixPath(folder) and _PART.fullmatch(at.name) is not None


def _write_folder(
    dataset: "ray.data.Dataset",
    uri: str,
    source: "ray.data.Dataset",
    results: dict[str, pa.DataType],
    keep: Sequence[str],
) -> Written:
    fs, folder = filesystem(uri)
    fs.makedirs(folder, exist_ok=True)
    old = _parts(fs, folder)
    if set(old) & {filesystem(file)[1] for file in source.input_files()}:
        raise BlendError(f"{uri}: is read by this run too; choose another output")
    layout = _layout(source, results, keep)
    if old:
        fs.rm(old)
    dataset.write_datasink(_PartsDatasink(folder, layout, None if is_local(fs) else fs))
    fs.invalidate_cache()
    if not _parts(fs, folder):  # no rows: Ray wrote nothing, yet the folder has columns
        name = _PartNames().get_filename_for_task("0" * 32, 0)
        with replacing(f"{uri.rstrip('/')}/{name}") as file:
            pq.write_table(layout.schema().empty_table(), file)
        fs.invalidate_cache()
    written = pa.dataset.dataset(_parts(fs, folder), filesystem=fs, format="parquet")
    return Written(written.count_rows(), written.count_rows(filter=~pc.field("error").is_null()))


def _layout(source: "ray.data.Dataset", results: dict[str, pa.DataType], keep: Sequence[str]) -> Layout:
    """One pass over the source, whose blocks tell their types where they are."""
    seen: pa.DataType = pa.null()
    looked = source.map_batches(_look, batch_format="pyarrow", batch_size=None)
    for table in looked.iter_batches(batch_size=None, batch_format="pyarrow"):
        for schema in table.column("schema").to_pylist():
            seen = unify(seen, pa.ipc.read_schema(pa.py_buffer(schema)).field("seen").type)
    return Layout.of(seen if pa.types.is_struct(seen) else look(ROW_SCHEMA.empty_table()), results, keep)


def _look(table: pa.Table) -> pa.Table:
    return pa.table({"schema": [pa.schema([("seen", look(table))]).serialize().to_pybytes()]})


@contextlib.contextmanager
def _causes(uri: str) -> Iterator[None]:
    """What went wrong on a worker, without Ray's frames around it."""
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, BlendError):
            raise BlendError(str(error.cause).splitlines()[0]) from error  # Ray appends lines to it
        if isinstance(error.cause, OSError):  # of the read and write tasks: what stages raise isn't passed on
            raise BlendError(f"{uri}: {one_line(error.cause)}") from error
        raise
