"""Files behind a URI: a local path or any fsspec URL (`s3://...`); a file, a folder or a glob.

fsspec opens everything, so that a worker opens what the driver listed with credentials of its own environment
(`pipelines.s3` reads the usual AWS variables, `AWS_ENDPOINT_URL` too): none travels in a task.
"""

import contextlib
import glob
import gzip
import os
import re
import uuid
import zlib
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import IO, Any

import aiohttp
import fsspec
from botocore.exceptions import BotoCoreError, NoCredentialsError
from botocore.parsers import ResponseParserError
from fsspec.exceptions import FSTimeoutError
from fsspec.implementations.local import LocalFileSystem

from actors.errors import BlendError, one_line
from pipelines.s3 import S3

S3_SCHEMES = ("s3://", "s3a://")
KINDS = (".jsonl", ".ndjson", ".json", ".parquet", ".csv")
# What opening, reading or writing a file raises.
UNREADABLE = (OSError, EOFError, zlib.error, BotoCoreError, ResponseParserError, aiohttp.ClientError)
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")  # names of files that aren't complete; see `renaming`
_COMPRESSED = (".jsonl.gz", ".ndjson.gz", ".json.gz", ".csv.gz")
_USER_IN_URL = re.compile(r"(?<=://)[^/]*@")


def kind(uri: str) -> str | None:
    """The file's ending, one of `KINDS` (without `.gz`); None for what isn't rows."""
    name = PurePosixPath(uri).name.lower()
    name = name.removesuffix(".gz") if name.endswith(_COMPRESSED) else name
    return next((ending for ending in KINDS if name.endswith(ending) and name != ending), None)


@contextlib.contextmanager
def told(uri: str, doing: str) -> Iterator[None]:
    """Turn what a file system raises into one line: `URI: can't DOING: why`. No credential is in it."""
    try:
        yield
    except FileNotFoundError as error:
        raise BlendError(f"{uri}: no such file or folder") from error
    except UNREADABLE as error:
        why = getattr(error, "strerror", None) or one_line(error)
        if isinstance(error, FSTimeoutError):
            why = "the answer broke off"  # fsspec's error has no message
        why = _clean(why)
        if isinstance(error, PermissionError | NoCredentialsError) and uri.startswith(S3_SCHEMES):
            why += "; check the AWS credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID) and what they allow"
        raise BlendError(f"{uri}: can't {doing}: {why}") from error


@contextlib.contextmanager
def written_told(uri: str) -> Iterator[None]:
    """What an object store doesn't find when an object is written is the bucket, or the upload: it says which."""
    try:
        yield
    except FileNotFoundError as error:
        raise BlendError(f"{uri}: can't write it: {_clean(str(error))}") from error


def _clean(text: str) -> str:
    """In one line, and without what stands for a user in an endpoint's URL."""
    return _USER_IN_URL.sub("", " ".join(text.split()))


def filesystem(uri: str) -> tuple[Any, str]:
    """The fsspec file system of a URI, and the path in it."""
    if "://" not in uri:
        return LocalFileSystem(), os.path.abspath(Path(uri).expanduser())  # noqa: PTH100 (doesn't follow links)
    try:
        with told(uri, "reach it"):  # an AWS profile that isn't there
            if not uri.startswith(S3_SCHEMES):
                return fsspec.url_to_fs(uri)
            fs = S3()
            fs.connect()
            return fs, S3._strip_protocol(uri)
    except (ImportError, ValueError) as error:  # an extra package is missing; an unknown scheme; a bad endpoint
        raise BlendError(f"{uri}: {_clean(str(error))}") from error


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
    with renaming(path) if is_local(fs) else _committing(fs, path, uri) as file, _zipping(file, zipped) as sink:
        yield sink


@contextlib.contextmanager
def renaming(path: str) -> Iterator[IO[bytes]]:
    """`replacing` on a disk. Folders are made."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _committing(fs: Any, path: str, uri: str) -> Iterator[IO[bytes]]:
    """`replacing` in an object store, which shows an object once its upload is committed."""
    mark = {"upload": uuid.uuid4().hex}
    file = fs.open(path, "wb", autocommit=False, **({"Metadata": mark} if isinstance(fs, S3) else {}))
    try:
        yield file
        with written_told(uri):
            file.close()
            try:
                file.commit()
            except FileNotFoundError:  # no such upload: it ended at the first attempt, whose answer got lost
                if not isinstance(fs, S3) or mark.items() - fs.metadata(path).items():
                    raise
    except BaseException:
        with contextlib.suppress(*UNREADABLE):  # the store may still be down
            file.discard()
        file.closed = True  # or its finalizer would try to write what was discarded
        raise
    fs.invalidate_cache()


@contextlib.contextmanager
def _zipping(file: IO[bytes], zipped: bool) -> Iterator[Any]:
    if not zipped:
        yield file
        return
    with gzip.GzipFile(fileobj=file, mode="wb", mtime=0) as sink:
        yield sink
