"""Checkpoint store: what is saved is read back, what is damaged reads as missing, and names follow the content."""

from pathlib import Path

import pyarrow as pa
import pytest

from llm_blender_ray.pipelines.bulk.checkpoints import (
    INDEX,
    MANIFEST,
    RECORD,
    Block,
    CheckpointStore,
    Index,
    Result,
)
from llm_blender_ray.pipelines.bulk.checksums import DamagedError

TABLE = pa.table({"id": ["a", "b"], "error": pa.array([None, "bad"], pa.string())})
SEEN = pa.struct([("id", pa.string())])


def block(file: str, digest: str = "d", ids: str = "i") -> Block:
    return Block(file, rows=2, bad=1, digest=digest, content=f"{digest}{ids}", ids=ids)


def index(*blocks: Block) -> Index:
    return Index(blocks, "mark", SEEN)


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(str(tmp_path / "work"))


def damage(store: CheckpointStore, name: str) -> None:
    file = Path(store.root) / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_an_empty_work_folder_has_nothing(store: CheckpointStore) -> None:
    assert (store.run(), store.format(), store.manifest(), store.index()) == (None, None, None, None)
    assert (store.stages(), store.done("rank-0"), store.damaged()) == (set(), set(), [])
    assert store.result("rank-0", "x") is None


def test_what_is_saved_is_read_back(store: CheckpointStore) -> None:
    store.save_index(index(block("0"), block("1", "e")))
    store.save_rows("mark", "0", TABLE)
    store.save_result("rank-0", "x", Result(TABLE, {"rows": 2}))
    store.save_manifest('{\n  "a": 1\n}')
    assert store.index() == index(block("0"), block("1", "e"))
    assert store.rows("mark", "0") == TABLE
    found = store.result("rank-0", "x")
    assert found == Result(TABLE, {"rows": 2})
    assert (store.stages(), store.done("rank-0")) == ({"rank-0"}, {"x"})
    store.save_manifest(None)
    assert store.manifest() is None
    store.forget_result("rank-0", "x")
    assert store.done("rank-0") == set()


def test_what_is_damaged_reads_as_missing_and_is_named(store: CheckpointStore) -> None:
    store.save_run({"identity": {}})
    store.save_index(index(block("0")))
    store.save_manifest('{\n  "a": 1\n}')
    store.save_result("rank-0", "x", Result(TABLE, {}))
    store.save_result("rank-0", "y", Result(TABLE, {}))
    for name in (RECORD, INDEX, MANIFEST, "results/rank-0/x.parquet"):
        damage(store, name)
    assert (store.run(), store.index(), store.manifest(), store.result("rank-0", "x")) == (None,) * 4
    assert store.damaged() == sorted([RECORD, INDEX, MANIFEST])
    assert store.damaged_results("rank-0") == ["x"]


def test_lost_rows_are_named_and_reading_them_is_an_error(store: CheckpointStore) -> None:
    blocks = index(block("0"), block("1"), block("2"))
    for name in "12":
        store.save_rows("mark", name, TABLE)
    damage(store, "rows/mark/2.parquet")
    assert store.lost_rows(blocks) == ["rows/mark/0.parquet", "rows/mark/2.parquet"]
    for name in "02":
        with pytest.raises(DamagedError, match=rf"rows/mark/{name}\.parquet: gone or damaged"):
            store.rows("mark", name)


def test_rows_of_other_inputs_are_removed(store: CheckpointStore) -> None:
    for mark in ("old", "mark"):
        store.save_rows(mark, "0", TABLE)
    store.keep_rows("mark")
    assert not (Path(store.root) / "rows" / "old").exists()
    assert store.rows("mark", "0") == TABLE


def test_a_result_moved_to_another_name_is_damaged(store: CheckpointStore) -> None:
    store.save_result("rank-0", "x", Result(TABLE, {}))
    folder = Path(store.root) / "results" / "rank-0"
    (folder / "x.parquet").rename(folder / "y.parquet")
    assert store.result("rank-0", "y") is None


def test_blocks_keep_their_names_wherever_they_move() -> None:
    first, second = block("0", "d"), block("1", "e")
    assert index(first, second).names == tuple(reversed(index(second, first).names))
    assert index(first, second).digest != index(second, first).digest
    assert index(first).names[0].startswith("d-")


def test_equal_blocks_have_names_of_their_own() -> None:
    same = index(block("0"), block("1"), block("2", ids="other"))
    assert len(set(same.names)) == 3
    assert same.rows == 6


def test_a_work_folder_on_a_disk_is_private(store: CheckpointStore) -> None:
    store.make_private()
    assert Path(store.root).stat().st_mode & 0o777 == 0o700
    store.clear()
    assert not Path(store.root).exists()
