"""Outputs: where they are, what is there already, and whether their files are as they were written."""

import hashlib
from pathlib import Path

import pytest

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.pipelines.rows.outputs import FileRecord, Output, is_part
from llm_blender_ray.pipelines.rows.storage import put

PART = "part-000000-0123456789abcdef.parquet"


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("/data/out.jsonl", "/data/.out.jsonl.blend"),
        ("/data/out/", "/data/out/.blend"),
        ("s3://bucket/out", "s3://bucket/out/.blend"),
        ("s3://bucket/out/", "s3://bucket/out/.blend"),
        ("s3://bucket/out.jsonl.gz", "s3://bucket/.out.jsonl.gz.blend"),
    ],
)
def test_work_folders_are_hidden_beside_files_and_in_folders(output: str, expected: str) -> None:
    assert Output(output).work_folder == expected


def test_a_local_path_means_the_same_in_every_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Output("out.parquet").location == str(tmp_path / "out.parquet")
    assert Output("out.parquet").work_folder == str(tmp_path / ".out.parquet.blend")
    assert Output("s3://bucket/out/").location == "s3://bucket/out/"


def test_a_folder_has_parts_of_its_format() -> None:
    folder, file = Output("out", "jsonl"), Output("out.csv.gz", "jsonl")
    assert (folder.is_folder, folder.ending, folder.file("a").rpartition("/")[2]) == (True, ".jsonl", "a")
    assert (file.is_folder, file.ending) == (False, ".csv")


def test_what_no_run_wrote_is_not_replaced(tmp_path: Path) -> None:
    output = Output(str(tmp_path / "out"))
    assert not output.is_taken(overwrite=False)
    put(output.file(PART), b"x")
    assert output.parts() == [PART]
    assert output.is_taken(overwrite=False) and output.is_taken(overwrite=True)
    put(output.file("mine.jsonl"), b"x")
    assert output.is_taken(overwrite=False)
    with pytest.raises(BlendError, match=r"mine\.jsonl, which no run wrote"):
        output.is_taken(overwrite=True)


def test_a_folder_in_the_way_of_a_file_and_the_reverse(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").mkdir()
    (tmp_path / "b").write_text("")
    with pytest.raises(BlendError, match="in the way of the file"):
        Output(str(tmp_path / "a.jsonl")).is_taken(overwrite=True)
    with pytest.raises(BlendError, match="in the way of the folder"):
        Output(str(tmp_path / "b")).is_taken(overwrite=True)
    with pytest.raises(BlendError, match="not a glob"):
        Output(str(tmp_path / "*.jsonl")).is_taken(overwrite=True)


@pytest.mark.parametrize("name", ["out", "out.jsonl"])
def test_unfinished_files_are_swept_and_others_stay(tmp_path: Path, name: str) -> None:
    output = Output(str(tmp_path / name))
    finished = Path(output.file(PART) if output.is_folder else output.location)
    finished.parent.mkdir(exist_ok=True)
    finished.write_bytes(b"x")
    left = finished.with_name(f".{finished.name}.01234567.tmp")
    left.write_bytes(b"y")
    output.sweep()
    assert finished.exists() and not left.exists()


@pytest.mark.parametrize("name", ["out", "out.jsonl"])
def test_a_file_that_is_gone_or_other_is_damaged(tmp_path: Path, name: str) -> None:
    output = Output(str(tmp_path / name))
    names = ["a", "b", "c"] if output.is_folder else [name]
    records = []
    for one in names:
        place = output.file(one) if output.is_folder else output.location
        put(place, b"bytes")
        records.append(FileRecord(path=one, rows=1, bytes=5, sha256=hashlib.sha256(b"bytes").hexdigest()))
    assert output.damaged(records) == []
    put(output.file("b") if output.is_folder else output.location, b"BYTES")
    assert output.damaged(records) == [names[1 % len(names)]]
    Path(output.file("c") if output.is_folder else output.location).unlink()
    assert output.damaged(records) == (["b", "c"] if output.is_folder else [name])


@pytest.mark.parametrize(
    ("name", "expected"),
    [(PART, True), ("part-0-1.parquet", False), (PART.replace(".parquet", ".txt"), False), (f"x{PART}", False)],
)
def test_is_part(name: str, expected: bool) -> None:
    assert is_part(name) == expected
