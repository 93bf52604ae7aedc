"""Rows as a Ray Dataset: order, blocks, columns."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.errors import BlendError
from pipelines.parsing import read_rows
from pipelines.rows import ROW_SCHEMA
from pipelines.sources import read

pytestmark = pytest.mark.usefixtures("ray_session")


def tables(dataset):
    return list(dataset.iter_batches(batch_size=None, batch_format="pyarrow"))


@pytest.fixture
def folder(tmp_path):
    """300 rows in three files of three kinds, every 50th of them bad."""
    rows = [{"prompt": str(i) if i % 50 else 5, "n": i} for i in range(300)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:120]))
    (tmp_path / "b.json").write_text(json.dumps(rows[120:200]))
    native = {"prompt": [str(i) for i in range(200, 300)], "year": pa.array([1] * 100, pa.int16())}
    pq.write_table(pa.table(native), tmp_path / "c.parquet")
    return tmp_path


def test_rows_come_in_order_in_blocks_of_the_size_asked_for(folder):
    blocks = tables(read(str(folder), rows_per_block=32))
    assert [len(block) for block in blocks] == [32] * 9 + [12]
    rows = [row for block in blocks for row in block.to_pylist()]
    assert rows == list(read_rows(str(folder)))
    assert [row["prompt"] for row in rows] == [str(i) if i % 50 or i >= 200 else None for i in range(300)]
    assert [i for i, row in enumerate(rows) if row["error"]] == [0, 50, 100, 150]
    assert rows[150]["error"] == "b.json item 31: prompt: expected text, got int"


def test_all_blocks_have_the_columns_of_all_files(folder):
    schema = pa.schema([*ROW_SCHEMA, ("year", pa.int16())])
    dataset = read(str(folder), rows_per_block=32)
    assert all(block.schema.equals(schema) for block in tables(dataset))
    assert dataset.schema().base_schema.equals(schema)


@pytest.mark.parametrize("limit", [1, 130, 1000])
def test_a_limit_takes_the_first_rows(folder, limit):
    assert [row["id"] for table in tables(read(str(folder), limit=limit)) for row in table.to_pylist()] == [
        row["id"] for row in read_rows(str(folder), limit)
    ]


def test_an_empty_file_is_no_rows(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n")
    assert read(str(tmp_path / "a.jsonl")).count() == 0


def test_what_cannot_be_read_is_told_before_anything_runs(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(BlendError, match=r"a\.parquet: not a readable Parquet file"):
        read(str(tmp_path))
    with pytest.raises(BlendError, match="no such file or folder"):
        read(str(tmp_path / "nothing.jsonl"))
