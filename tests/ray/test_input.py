"""The input as blocks: order, sizes, columns, and that the same rows make the same blocks."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.pipelines.bulk.checkpoints import CheckpointStore, Index
from llm_blender_ray.pipelines.bulk.checksums import DamagedError
from llm_blender_ray.pipelines.bulk.input import READ, begins_with, read_input, rows_of_block
from llm_blender_ray.pipelines.bulk.tracker import start_tracker
from llm_blender_ray.pipelines.rows.fingerprint import fingerprint
from llm_blender_ray.pipelines.rows.readers import read_rows
from llm_blender_ray.pipelines.rows.schema import ROW_SCHEMA

ray_is_there = pytest.mark.usefixtures("ray_session")


def imported(uri: object, store: CheckpointStore, *, limit: int | None = None, rows_per_block: int = 32) -> Index:
    index = read_input(store, str(uri), limit, rows_per_block, start_tracker())
    store.save_index(index)
    return index


def tables(store: CheckpointStore, index: Index) -> list[pa.Table]:
    return [store.rows(index.fingerprint, block.file) for block in index.blocks]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """300 rows in three files of three kinds, every 50th of them bad."""
    rows = [{"prompt": str(i) if i % 50 else 5, "n": i} for i in range(300)]
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:120]))
    (folder / "b.json").write_text(json.dumps(rows[120:200]))
    native = {"prompt": [str(i) for i in range(200, 300)], "year": pa.array([1] * 100, pa.int16())}
    pq.write_table(pa.table(native), folder / "c.parquet")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(str(tmp_path / "work"))


@ray_is_there
def test_rows_come_in_order_in_blocks_that_never_cross_a_file(folder: Path, store: CheckpointStore) -> None:
    index = imported(folder, store)
    blocks = tables(store, index)
    assert [len(block) for block in blocks] == [32, 32, 32, 24, 32, 32, 16, 32, 32, 32, 4]
    assert [block.rows for block in index.blocks] == [len(block) for block in blocks]
    rows = [row for block in blocks for row in block.to_pylist()]
    assert rows == list(read_rows(str(folder)))
    assert [row["prompt"] for row in rows] == [str(i) if i % 50 or i >= 200 else None for i in range(300)]
    assert [i for i, row in enumerate(rows) if row["error"]] == [0, 50, 100, 150]
    assert (index.rows, sum(block.bad for block in index.blocks)) == (300, 4)
    assert rows[150]["error"] == "b.json item 31: prompt: expected text, got int"
    assert store.index() == index


@ray_is_there
def test_all_blocks_have_the_columns_of_all_files(folder: Path, store: CheckpointStore) -> None:
    schema = pa.schema([*ROW_SCHEMA, ("year", pa.int16())])
    assert all(block.schema.equals(schema) for block in tables(store, imported(folder, store)))


@ray_is_there
@pytest.mark.parametrize("limit", [1, 130, 1000])
def test_a_limit_takes_the_first_rows(folder: Path, store: CheckpointStore, limit: int) -> None:
    found = [
        row["id"] for table in tables(store, imported(folder, store, limit=limit)) for row in table.to_pylist()
    ]
    assert found == [row["id"] for row in read_rows(str(folder), limit)]


@ray_is_there
def test_the_board_is_told_what_was_read(folder: Path, store: CheckpointStore) -> None:
    tracker = start_tracker()
    read_input(store, str(folder), None, 32, tracker)
    assert ray.get(tracker.snapshot.remote()).counts[READ].rows == 300


@ray_is_there
def test_an_empty_file_is_no_rows(tmp_path: Path, store: CheckpointStore) -> None:
    (tmp_path / "a.jsonl").write_text("\n")
    index = imported(tmp_path / "a.jsonl", store)
    assert (index.blocks, index.rows) == ((), 0)
    assert store.index() == index


@ray_is_there
def test_what_cannot_be_read_is_told_before_anything_runs(tmp_path: Path, store: CheckpointStore) -> None:
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(BlendError, match=r"a\.parquet: not a readable Parquet file"):
        imported(tmp_path / "a.parquet", store)
    with pytest.raises(BlendError, match="no such file or folder"):
        imported(tmp_path / "nothing.jsonl", store)


@ray_is_there
def test_digests_tell_what_changed(tmp_path: Path, store: CheckpointStore) -> None:
    """A changed reference is another content, but nothing that stages see; rows appended leave blocks alone."""
    file = tmp_path / "in.jsonl"
    rows = [{"id": str(i), "prompt": f"p{i}", "output": "a"} for i in range(70)]

    def read(rows: list[dict]) -> Index:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return imported(file, store)

    first = read(rows)
    assert read(rows).digest == first.digest
    other = read([row | {"output": "b"} for row in rows])
    assert [block.digest for block in other.blocks] == [block.digest for block in first.blocks]
    assert other.digest != first.digest
    longer = read([*rows, {"prompt": "more"}])
    assert [block.digest for block in longer.blocks][:2] == [block.digest for block in first.blocks][:2]
    assert longer.blocks[2].digest != first.blocks[2].digest
    asked = read([rows[0] | {"prompt": "another"}, *rows[1:]])
    assert asked.blocks[0].digest != first.blocks[0].digest
    assert asked.blocks[1:] == first.blocks[1:]


@ray_is_there
def test_an_input_begins_with_its_limited_self_however_it_is_cut(folder: Path, store: CheckpointStore) -> None:
    whole = imported(folder, store)
    for limit in (1, 50, 130):
        assert begins_with(store, whole, imported(folder, store, limit=limit))
    cut = imported(folder, store, limit=50, rows_per_block=8)
    assert begins_with(store, whole, cut) and not begins_with(store, cut, whole)
    rows = (folder / "a.jsonl").read_text().splitlines()
    (folder / "a.jsonl").write_text("\n".join([*rows[:48], rows[49], rows[48], *rows[50:]]))
    changed = imported(folder, store)
    assert not begins_with(store, changed, cut)
    assert begins_with(store, changed, imported(folder, store, limit=48))
    store.keep_rows(changed.fingerprint)
    with pytest.raises(DamagedError, match="gone or damaged"):
        begins_with(store, changed, cut)


def test_a_fingerprint_is_of_files_and_limit(folder: Path) -> None:
    first = fingerprint(str(folder), None)
    assert fingerprint(str(folder), None) == first
    assert fingerprint(str(folder), 5) != first
    os.utime(folder / "a.jsonl", (1, 1))
    assert fingerprint(str(folder), None) != first


@given(st.integers(0, 10**7), st.integers(1, 5000))
def test_blocks_grow_up_to_the_most(before: int, most: int) -> None:
    size = rows_of_block(before, most)
    assert 1 <= size <= most
    assert size <= max(32, before / 64 * 2)
    assert size <= rows_of_block(before + 1, most)
    if before >= 128 * most:
        assert size == most or most < 32
