"""Small whole objects, on a disk and in a bucket alike."""

import pytest
from s3fs import S3FileSystem

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.configs.extras import missing_method
from llm_blender_ray.pipelines.rows import s3
from llm_blender_ray.pipelines.rows.s3 import S3
from llm_blender_ray.pipelines.rows.storage import get, names, put, remove
from llm_blender_ray.pipelines.rows.uris import filesystem, replacing


@pytest.fixture(params=["disk", "s3"])
def folder(request, tmp_path):
    if request.param == "disk":
        return f"{tmp_path}/work"
    return f"{request.getfixturevalue('s3_bucket')}/work"


def test_what_is_put_is_there(folder):
    put(f"{folder}/a", b"old")
    put(f"{folder}/a", b"new")
    put(f"{folder}/deep/empty", b"")
    assert get(f"{folder}/a") == b"new"
    assert get(f"{folder}/deep/empty") == b""


def test_what_is_missing_is_none(folder):
    assert get(f"{folder}/a") is None
    assert names(folder) == set()
    remove(folder)
    put(f"{folder}/a", b"")
    assert get(f"{folder}/b") is None
    assert names(f"{folder}/b") == set()


def test_names_are_those_of_now(folder):
    put(f"{folder}/a", b"")
    assert names(folder) == {"a"}
    put(f"{folder}/b.parquet", b"")
    put(f"{folder}/deep/c", b"")
    put(f"{folder}/deep/deeper/d", b"")
    assert names(folder) == names(f"{folder}/") == {"a", "b.parquet", "deep"}
    assert names(f"{folder}/deep") == {"c", "deeper"}
    remove(f"{folder}/a")
    assert names(folder) == {"b.parquet", "deep"}


def test_folders_are_removed_whole_and_alone(folder):
    for name in ("a/1", "a/b/2", "ab", "c"):
        put(f"{folder}/{name}", b"")
    remove(f"{folder}/a")
    assert names(folder) == {"ab", "c"}
    remove(f"{folder}/c")
    assert names(folder) == {"ab"}


def test_a_file_being_written_has_no_name_yet(tmp_path):
    with replacing(f"{tmp_path}/a") as file:
        file.write(b"half")
        assert len(list(tmp_path.iterdir())) == 1
        assert names(str(tmp_path)) == set()
    assert names(str(tmp_path)) == {"a"}


def test_the_object_that_stands_for_a_folder_is_no_name(s3_bucket):
    """Consoles and other tools leave such objects, whose key ends in a slash."""
    S3().touch(f"{s3_bucket}/work/")
    put(f"{s3_bucket}/work/a", b"")
    assert names(f"{s3_bucket}/work") == {"a"}


def test_a_folder_can_not_be_read_or_written_as_a_file(tmp_path):
    put(f"{tmp_path}/deep/a", b"")
    with pytest.raises(BlendError, match=rf"{tmp_path}/deep: can't read it: Is a directory"):
        get(f"{tmp_path}/deep")
    with pytest.raises(BlendError, match=rf"{tmp_path}/deep: can't write it: Is a directory"):
        put(f"{tmp_path}/deep", b"")
    with pytest.raises(BlendError, match=r"can't write it: .*exists|can't write it: Not a directory"):
        put(f"{tmp_path}/deep/a/b", b"")


def test_a_missing_bucket_is_said_when_something_is_written(s3_bucket):
    missing = f"{s3_bucket}-not/a"
    assert get(missing) is None
    with pytest.raises(BlendError, match=f"{missing}: can't write it: The specified bucket does not exist"):
        put(missing, b"")
    with pytest.raises(BlendError, match=f"{missing}: can't write it: The specified bucket does not exist"):
        _replace(missing)


def _replace(uri):
    with replacing(uri) as file:
        file.write(b"rows")


def test_s3fs_without_a_hook_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    names = s3._HOOKS
    assert missing_method(S3FileSystem, names) is None and missing_method(object, names) == "_call_s3"
    S3.clear_instance_cache()
    monkeypatch.setattr(s3, "S3FileSystem", object)
    with pytest.raises(BlendError, match="this s3fs has no _call_s3"):
        filesystem("s3://bucket/key")
