"""Small whole objects by URI, on a disk or in an object store, shared by processes.

An object exists whole or not at all, and listings are never stale: a visible object is complete.
"""

import contextlib
import errno
import glob
from pathlib import Path, PurePosixPath

from llm_blender_ray.pipelines.rows.uris import (
    TEMPORARY,
    filesystem,
    is_local,
    renaming,
    translate_errors,
    translate_write_errors,
)


def get(uri: str) -> bytes | None:
    """Content of a file; None if it does not exist.

    Raises:
        BlendError: The storage fails.
    """
    fs, path = filesystem(uri)
    with translate_errors(uri, "read it"):
        try:
            return fs.cat_file(path)
        except FileNotFoundError:
            return None


def put(uri: str, data: bytes) -> None:
    """Write or replace one file atomically: folders are made; in an object store it is one PUT (below 100 MB).

    Raises:
        BlendError: The storage fails.
    """
    fs, path = filesystem(uri)
    with translate_errors(uri, "write it"):
        if is_local(fs):
            with renaming(path) as file:
                file.write(data)
        else:
            with translate_write_errors(uri):
                fs.pipe_file(path, data)


def upload(folder: Path, uri: str, last: str = "") -> None:
    """Copy the files in a local folder, and in folders in it, to another place.

    Args:
        folder: The folder.
        uri: Where its content goes.
        last: Name of the file to copy last: with it, the copy is complete.

    Raises:
        BlendError: The storage fails.
    """
    fs, path = filesystem(uri)
    files = sorted((one for one in folder.rglob("*") if one.is_file()), key=lambda one: (one.name == last, one))
    with translate_errors(uri, "write it"), translate_write_errors(uri):
        for file in files:
            target = f"{path}/{file.relative_to(folder).as_posix()}"
            if is_local(fs):
                Path(target).parent.mkdir(parents=True, exist_ok=True)
            fs.put_file(str(file), target)


def fetch_folder(uri: str, folder: Path) -> None:
    """Copy the files in a folder, and in folders in it, to a local one.

    Raises:
        BlendError: The storage fails.
    """
    fs, path = filesystem(uri)
    with translate_errors(uri, "read it"):
        fs.invalidate_cache()
        for file in fs.find(path):
            target = folder / file.removeprefix(path).lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            fs.get_file(file, str(target))


def names(uri: str) -> set[str]:
    """Names of the files and folders in one folder; none if it does not exist.

    Raises:
        BlendError: The storage fails.
    """
    fs, path = filesystem(uri)
    with translate_errors(uri, "list it"):
        fs.invalidate_cache()
        try:
            found = fs.ls(path, detail=False)
        except FileNotFoundError:
            return set()
    # one that ends in a slash is the folder itself, as an object
    inside = {PurePosixPath(one).name for one in found if not one.endswith("/")}
    return {name for name in inside if not TEMPORARY.fullmatch(name)}


def remove_temporary_files(uri: str, target: str = "") -> None:
    """Remove temporary files that killed writers left in a folder and those in it, on a disk.

    Args:
        uri: The folder.
        target: Only files meant for a name with this beginning, in the folder itself.

    Raises:
        BlendError: One cannot be removed.
    """
    fs, path = filesystem(uri)
    if not is_local(fs):
        return  # an upload has no name before its commit
    with translate_errors(uri, "clean it"):
        found = Path(path).glob(f".{glob.escape(target)}*.tmp") if target else Path(path).rglob(".*.tmp")
        for one in found:
            if TEMPORARY.fullmatch(one.name):
                one.unlink(missing_ok=True)


def remove(uri: str) -> None:
    """Remove a file, or a folder with its content; no error if it does not exist.

    Raises:
        BlendError: The storage fails.
    """
    fs, path = filesystem(uri)
    with translate_errors(uri, "remove it"):
        fs.invalidate_cache()
        with contextlib.suppress(FileNotFoundError):
            fs.rm(path, recursive=True)
        if not is_local(fs) and (left := fs.find(path)):  # S3 may refuse single objects, which s3fs does not report
            raise OSError(errno.EACCES, f"{len(left)} of its objects were not removed")
