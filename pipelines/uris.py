"""Files behind a URI: a local path or any fsspec URL (`s3://...`); a file, a folder or a glob.

fsspec opens everything, so that a worker opens what the driver listed with credentials of its own environment
(s3fs reads the usual AWS variables, `AWS_ENDPOINT_URL` too): none travels in a task.
"""

import contextlib
import glob
import gzip
import os
import uuid
import zlib
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import IO, Any

import fsspec
from botocore.exceptions import BotoCoreError
from fsspec.implementations.local import LocalFileSystem

from actors.errors import BlendError, one_line

KINDS = (".jsonl", ".ndjson", ".json", ".parquet", ".csv")
UNREADABLE = (OSError, EOFError, zlib.error, BotoCoreError)  # what opening, reading or writing a file raises
_COMPRESSED = (".jsonl.gz", ".ndjson.gz", ".json.gz", ".csv.gz")


def kind(uri: str) -> str | None:
    """The file's ending, one of `KINDS` (without `.gz`); None for what isn't rows."""
    name = PurePosixPath(uri).name.lower()
    name = name.removesuffix(".gz") if name.endswith(_COMPRESSED) else name
    return next((ending for ending in KINDS if name.endswith(ending) and name != ending), None)


@contextlib.contextmanager
def told(uri: str, doing: str) -> Iterator[None]:
    """Turn what a file system raises into one line: `URI: can't DOING: why`."""
    try:
        yield
    except FileNotFoundError as error:
        raise BlendError(f"{uri}: no such file or folder") from error
    except UNREADABLE as error:
        why = getattr(error, "strerror", None) or one_line(error)
        raise BlendError(f"{uri}: can't {doing}: {why}") from error


def filesystem(uri: str) -> tuple[Any, str]:
    """The fsspec file system of a URI, and the path in it."""
    if "://" not in uri:
        return LocalFileSystem(), os.path.abspath(Path(uri).expanduser())  # noqa: PTH100 (doesn't follow links)
    try:
        fs, path = fsspec.url_to_fs(uri)
    except (ImportError, ValueError) as error:  # an extra package is missing; an unknown scheme
        raise BlendError(f"{uri}: {' '.join(str(error).split())}") from error
    return fs, path


def is_local(fs: Any) -> bool:
    """Whether paths of this file system are paths of this machine."""
    return isinstance(fs, LocalFileSystem)


def _visible(path: str, asked: str) -> bool:
    """Whether no name in the path is hidden, or starts with `_`, but for those that were asked for."""
    names = zip_longest(PurePosixPath(path).parts, PurePosixPath(asked).parts, fillvalue="")
    return not any(name.startswith((".", "_")) and name[0] != wish[:1] for name, wish in names)


def row_files(fs: Any, folder: str) -> list[str]:
    """All files of rows under a folder, sorted; hidden ones and names that start with `_` are skipped."""
    return sorted(path for path in fs.find(folder) if kind(path) and _visible(path, folder))


def list_files(uri: str) -> list[str]:
    """The files of a URI, each a URI of its own, sorted by path.

    Raises BlendError when there is none, or a file named outright has an ending that isn't read.
    """
    fs, path = filesystem(uri)
    with told(uri, "list it"):
        fs.invalidate_cache()
        if fs.isfile(path):
            if kind(path) is None:
                raise BlendError(f"{uri}: not a file of rows; expected {', '.join(KINDS)}")
            files = [path]
        elif fs.isdir(path):
            files = row_files(fs, path)
        elif glob.has_magic(path):
            found = [one for one in fs.glob(path) if _visible(one, path)]
            inside = (file for one in found for file in (row_files(fs, one) if fs.isdir(one) else [one]))
            files = sorted({file for file in inside if kind(file)})
        else:
            raise FileNotFoundError(path)
    if not files:
        raise BlendError(f"{uri}: nothing to read there; expected files ending in {', '.join(KINDS)}")
    return files if is_local(fs) else [fs.unstrip_protocol(file) for file in files]


def open_binary(uri: str) -> IO[bytes]:
    """Open one file for reading; `.gz` is unpacked on the way (by its ending, so no Parquet)."""
    fs, path = filesystem(uri)
    return fs.open(path, "rb", compression="gzip" if path.lower().endswith(_COMPRESSED) else None)


@contextlib.contextmanager
def replacing(uri: str) -> Iterator[IO[bytes]]:
    """A file for writing that gets its name when all of it is written: a killed run leaves no half file."""
    fs, path = filesystem(uri)
    zipped = path.lower().endswith(_COMPRESSED)
    if is_local(fs):
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            with temporary.open("wb") as file, _zipping(file, zipped) as sink:
                yield sink
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    else:
        file = fs.open(path, "wb", autocommit=False)  # an object store shows an object once it is committed
        try:
            with _zipping(file, zipped) as sink:
                yield sink
            file.close()
        except BaseException:
            file.discard()
            file.closed = True  # or its finalizer would try to write what was discarded
            raise
        file.commit()
        fs.invalidate_cache()


@contextlib.contextmanager
def _zipping(file: IO[bytes], zipped: bool) -> Iterator[Any]:
    if not zipped:
        yield file
        return
    with gzip.GzipFile(fileobj=file, mode="wb", mtime=0) as sink:
        yield sink
