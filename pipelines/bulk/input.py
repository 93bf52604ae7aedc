"""Input of a run into its work folder: blocks of validated rows, cut deterministically.

Afterwards a run depends only on its work folder: its input cannot change, every block can be read anywhere, and the
number of rows is known before the first model loads.
"""

import hashlib
import itertools
import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.data

from llm_blender_ray.actors.json_values import plain
from llm_blender_ray.pipelines.bulk.checkpoints import Block, CheckpointStore, Index
from llm_blender_ray.pipelines.bulk.tracker import Count, reporting_failure
from llm_blender_ray.pipelines.rows.arrow_types import to_rows
from llm_blender_ray.pipelines.rows.columns import deserialize_type, inspect_columns, seen_of, serialize_type
from llm_blender_ray.pipelines.rows.fingerprint import fingerprint
from llm_blender_ray.pipelines.rows.readers import InputFile, input_files, native_schema, read_tables
from llm_blender_ray.pipelines.rows.schema import ROW_SCHEMA

READ = "read"
SEEN_BY_STAGES = ("instruction", "input", "prompt", "messages", "candidates", "ranking", "error")
_FIRST_ROWS = 32  # of a file's first block
_GROWTH = 64  # a block has at most this share of the rows before it


def rows_of_block(before: int, most: int) -> int:
    """Number of rows of the block that begins after `before` rows of a file.

    Small at first, so that few rows fill all stages and replicas; larger later, so that many rows make few files.
    """
    grown = _FIRST_ROWS * 2 ** max(0, (before // _GROWTH // _FIRST_ROWS).bit_length() - 1)
    return min(most, grown)


def read_input(
    store: CheckpointStore,
    uri: str,
    limit: int | None,
    rows_per_block: int,
    tracker: Any,
    without: Sequence[str] = (),
    also_seen: tuple[str, ...] = (),
) -> Index:
    """Read the rows of a file, folder or glob into the store.

    One task a file; with a limit one for all, which alone can count. `also_seen` are columns that stages read in
    addition to `SEEN_BY_STAGES`.

    Returns:
        The index, not stored yet.

    Raises:
        BlendError: A file cannot be read.
    """
    files, mark = input_files(uri, without), fingerprint(uri, limit, without)
    work = _Reader(native_schema(files), rows_per_block, limit, store, mark, tracker, also_seen)
    groups = [files] if limit is not None else [[file] for file in files]
    tasks = ray.data.from_items(
        [{"number": number, "files": pickle.dumps(group)} for number, group in enumerate(groups)],
        override_num_blocks=len(groups),
    )
    found = []
    seen: pa.DataType = pa.null()
    for row in tasks.flat_map(work).iter_rows():
        seen = seen_of(seen, deserialize_type(row.pop("seen")))
        found.append(Block(**row))
    if not pa.types.is_struct(seen):
        seen = inspect_columns(ROW_SCHEMA.empty_table())
    return Index(tuple(sorted(found, key=lambda block: block.file)), mark, seen)


def begins_with(store: CheckpointStore, index: Index, first: Index) -> bool:
    """Whether the rows of one input are the first ones of another; a limit may have cut its last block.

    Args:
        store: Where the rows of both are.
        index: Of the longer input.
        first: Of the shorter one.

    Raises:
        DamagedError: Rows that have to be compared are missing or damaged.
    """
    pairs = zip(index.blocks, first.blocks, strict=False)
    same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0].content == pair[1].content, pairs))
    rows, expected = _rows_after(store, index, same), _rows_after(store, first, same)
    return all(next(rows, None) == row for row in expected)


def _rows_after(store: CheckpointStore, index: Index, blocks: int) -> Iterator[bytes]:
    """The content of each row after the first `blocks` blocks."""
    for block in index.blocks[blocks:]:
        yield from map(_content, to_rows(store.rows(index.fingerprint, block.file)))


def _content(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, default=plain).encode()


@dataclass(frozen=True)
class _Reader:
    """Task that stores the rows of some files as blocks, and yields each block's entry in the index."""

    native: pa.Schema
    rows_per_block: int
    limit: int | None
    store: CheckpointStore
    mark: str
    tracker: Any
    also_seen: tuple[str, ...]

    def __call__(self, task: dict[str, Any]) -> Iterator[dict[str, Any]]:
        with reporting_failure(self.tracker):
            left = self.limit
            for number, file in enumerate(pickle.loads(task["files"]), task["number"]):
                for name, table in self._named(number, file):
                    table = table if left is None else table.slice(0, left)
                    self.store.save_rows(self.mark, name, table)
                    ray.get(self.tracker.add.remote(READ, Count(rows=len(table))))
                    yield _entry(name, table, self.also_seen)
                    left = None if left is None else left - len(table)
                    if left == 0:
                        return

    def _named(self, number: int, file: InputFile) -> Iterator[tuple[str, pa.Table]]:
        """Non-empty blocks of a file, under names that sort in input order."""
        for block, table in enumerate(_blocks(file, self.native, self.rows_per_block)):
            if len(table):
                yield f"{number:05}-{block:06}", table


def _blocks(file: InputFile, native: pa.Schema, most: int) -> Iterator[pa.Table]:
    """Rows of a file in blocks of about `rows_of_block` rows."""
    unit = min(_FIRST_ROWS, most)
    tables = read_tables(file, native, unit)
    before = 0
    while held := list(itertools.islice(tables, max(1, rows_of_block(before, most) // unit))):
        table = pa.concat_tables(held).combine_chunks()
        before += len(table)
        yield table


def _entry(name: str, table: pa.Table, also_seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """A block's entry in the index, and the types of its content."""
    stages, content, ids = (hashlib.blake2b(digest_size=8) for _ in range(3))
    for row in to_rows(table):
        stages.update(
            json.dumps([row.get(column) for column in (*SEEN_BY_STAGES, *also_seen)], default=plain).encode()
        )
        content.update(_content(row))
        ids.update(json.dumps(row["id"], default=plain).encode())
    return {
        "file": name,
        "rows": len(table),
        "bad": len(table) - table.column("error").null_count,
        "digest": stages.hexdigest(),
        "content": content.hexdigest(),
        "ids": ids.hexdigest(),
        "seen": serialize_type(inspect_columns(table)),
    }
