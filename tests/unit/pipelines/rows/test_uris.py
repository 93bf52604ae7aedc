"""Files that appear only when they are complete, and file systems that refuse."""

import gzip
import re
import socket
import subprocess
import sys

import pytest

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.pipelines.rows.uris import kind, list_files, open_binary, replacing, translate_errors


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("a/b.JSONL", ".jsonl"),
        ("s3://b/c.jsonl.gz", ".jsonl"),
        ("a.csv.gz", ".csv"),
        ("a.json", ".json"),
        ("a.parquet.gz", None),
        ("folder", None),
        ("a/.csv", None),
    ],
)
def test_kinds(uri, expected):
    assert kind(uri) == expected


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_file_appears_when_it_is_complete(tmp_path, name):
    target = tmp_path / "new" / name
    with replacing(str(target)) as file:
        file.write(b"rows")
        assert not target.exists()
    with open_binary(str(target)) as file:
        assert file.read() == b"rows"
    assert target.read_bytes() == b"rows" or gzip.decompress(target.read_bytes()) == b"rows"
    assert list(target.parent.iterdir()) == [target]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "a.jsonl"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(str(target)) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_is_one_line(tmp_path):
    """A limit on the size of files stands for the disk: the same error comes from the same write."""
    script = """
import resource, sys
from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.pipelines.rows.uris import replacing, translate_errors
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with translate_errors(sys.argv[1], "write it"), replacing(sys.argv[1]) as file:
        file.write(bytes(100_000))
except BlendError as error:
    print(error)
"""
    target = tmp_path / "a.jsonl"
    command = [sys.executable, "-c", script, str(target)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said == f"{target}: can't write it: File too large\n"
    assert list(tmp_path.iterdir()) == []


def test_a_path_through_a_file_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    target = str(tmp_path / "file" / "a.jsonl")
    with pytest.raises(BlendError, match="can't write it"), translate_errors(target, "write it"), replacing(target):
        pass


def test_s3_objects_appear_when_they_are_complete(s3_bucket):
    uri = f"{s3_bucket}/deep/a.jsonl"
    with pytest.raises(KeyboardInterrupt), replacing(uri) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    with pytest.raises(BlendError, match="no such file or folder"):
        list_files(uri)
    large = b"x" * 12_000_000  # more than one part of an upload
    with replacing(uri) as file:
        file.write(large)
    assert list_files(f"{s3_bucket}/deep") == list_files(f"{s3_bucket}/*/a.js*") == [uri]
    with open_binary(uri) as file:
        assert file.read() == large


def test_a_missing_bucket_is_one_line(s3_bucket):
    with pytest.raises(BlendError, match=r"s3://nobody/a.jsonl: no such file or folder"):
        list_files("s3://nobody/a.jsonl")


def test_s3_without_a_server_is_one_line(monkeypatch, new_s3):
    """The key is in the environment, and stays there."""
    with socket.socket() as bound:  # and not listening
        bound.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{bound.getsockname()[1]}")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a-key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
        with pytest.raises(
            BlendError, match=r"s3://rows/a.jsonl: can't list it: .*connect to the endpoint"
        ) as caught:
            list_files("s3://rows/a.jsonl")
    assert not re.search("a-key|a-secret|\n", str(caught.value))
