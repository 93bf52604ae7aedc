"""Small whole objects by URI, on a disk or in an object store: what many processes keep for each other.

An object is there whole or it isn't, and a listing is never an old one: what is seen, others have finished writing.
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
    """What is in one file; None when it isn't there. Raises BlendError when the storage stays broken."""
    fs, path = filesystem(uri)
    with translate_errors(uri, "read it"):
        try:
            return fs.cat_file(path)
        except FileNotFoundError:
            return None


def put(uri: str, data: bytes) -> None:
    """Write or replace one file, at once: folders are made; in an object store it is one PUT (below 100 MB).

    Raises BlendError when the storage stays broken.
    """
    fs, path = filesystem(uri)
    with translate_errors(uri, "write it"):
        if is_local(fs):
            with renaming(path) as file:
                file.write(data)
        else:
            with translate_write_errors(uri):
                fs.pipe_file(path, data)


def names(uri: str) -> set[str]:
    """The names of the files and folders in one folder; none when it isn't there. Raises BlendError."""
    fs, path = filesystem(uri)
    with translate_errors(uri, "list it"):
        fs.invalidate_cache()
        try:
            found = fs.ls(path, detail=False)
        except FileNotFoundError:
            return set()
    # one that ends in a slash is an object that stands for the folder itself
    inside = {PurePosixPath(one).name for one in found if not one.endswith("/")}
    return {name for name in inside if not TEMPORARY.fullmatch(name)}


def sweep(uri: str, target: str = "") -> None:
    """Remove what killed writers left in a folder and those in it, on a disk.

    Args:
        uri: the folder.
        target: only what was to become a file whose name starts so, in the folder itself.

    Raises:
        BlendError: something can't be removed.
    """
    fs, path = filesystem(uri)
    if not is_local(fs):
        return  # an upload that isn't committed has no name
    with translate_errors(uri, "clean it"):
        found = Path(path).glob(f".{glob.escape(target)}*.tmp") if target else Path(path).rglob(".*.tmp")
        for one in found:
            if TEMPORARY.fullmatch(one.name):
                one.unlink(missing_ok=True)


def remove(uri: str) -> None:
    """Remove a file, or a folder with all that is in it; fine when it isn't there. Raises BlendError."""
    fs, path = filesystem(uri)
    with translate_errors(uri, "remove it"):
        fs.invalidate_cache()
        with contextlib.suppress(FileNotFoundError):
            fs.rm(path, recursive=True)
        if not is_local(fs) and (left := fs.find(path)):  # S3 refuses single objects; s3fs leaves that unsaid
            raise OSError(errno.EACCES, f"{len(left)} of its objects were not removed")
