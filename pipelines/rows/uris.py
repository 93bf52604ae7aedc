"""Files behind a URI: a local path or any fsspec URL (`s3://...`); a file, a folder or a glob.

fsspec opens everything, so that a worker opens what the driver listed with credentials of its own environment
(`pipelines.rows.s3` reads the usual AWS variables, `AWS_ENDPOINT_URL` too): none travels in a task.
"""

import contextlib
import glob
import lzma
import os
import re
import sys
import uuid
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.exceptions import FSTimeoutError
from fsspec.implementations.local import LocalFileSystem

from llm_blender_ray.actors.errors import BlendError, one_line
from llm_blender_ray.configs.extras import missing_extra
from llm_blender_ray.pipelines.interruption import undone
from llm_blender_ray.pipelines.rows.compression import compressing, decompressed, ending_of
from llm_blender_ray.pipelines.rows.folders import FoundFiles, visible, walk
from llm_blender_ray.pipelines.rows.formats import format_endings, kind

S3_SCHEMES = ("s3://", "s3a://")
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")  # names of incomplete files; see `renaming`
_USER_IN_URL = re.compile(r"(?<=://)[^/]*@")
_S3_MODULE = "llm_blender_ray.pipelines.rows.s3"
_FILE_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError)  # of opening, reading, writing any file


def _file_errors() -> tuple[type[Exception], ...]:
    """Exceptions of any file system. aiohttp's (S3, `http://`) and S3's exist once a URI has needed them."""
    client_error = getattr(sys.modules.get("aiohttp"), "ClientError", None)
    s3_errors = getattr(sys.modules.get(_S3_MODULE), "S3_FILE_ERRORS", ())
    return (*_FILE_ERRORS, *([client_error] if client_error else []), *s3_errors)


def _permission_errors() -> tuple[type[Exception], ...]:
    """Exceptions of a refused access."""
    return (PermissionError, *getattr(sys.modules.get(_S3_MODULE), "S3_PERMISSION_ERRORS", ()))


@contextlib.contextmanager
def translate_errors(uri: str, doing: str) -> Iterator[None]:
    """Translate exceptions of a file system into one line: `URI: can't DOING: why`, without credentials.

    Raises:
        BlendError: The block raised one.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise BlendError(f"{uri}: no such file or folder") from error
    except _file_errors() as error:
        why = getattr(error, "strerror", None) or one_line(error)
        if isinstance(error, FSTimeoutError):
            why = "the answer broke off"  # fsspec's error has no message
        why = _clean(why)
        if uri.startswith(S3_SCHEMES) and isinstance(error, _permission_errors()):
            why += "; check the AWS credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID) and what they allow"
        raise BlendError(f"{uri}: can't {doing}: {why}") from error


@contextlib.contextmanager
def translate_write_errors(uri: str) -> Iterator[None]:
    """Report a missing bucket or upload: an object store's "not found" while an object is written.

    Raises:
        BlendError: See `translate_errors`.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise BlendError(f"{uri}: can't write it: {_clean(str(error))}") from error


def _clean(text: str) -> str:
    """The text in one line, without the user of an endpoint's URL."""
    return _USER_IN_URL.sub("", " ".join(text.split()))


def filesystem(uri: str) -> tuple[Any, str]:
    """The fsspec file system of a URI, and the path in it.

    Raises:
        BlendError: A package is missing, or scheme, profile or endpoint is wrong.
    """
    if "://" not in uri:
        return LocalFileSystem(), os.path.abspath(Path(uri).expanduser())  # noqa: PTH100 (doesn't follow links)
    try:
        with translate_errors(uri, "reach it"):  # a missing AWS profile
            if not uri.startswith(S3_SCHEMES):
                return fsspec.url_to_fs(uri)
            from llm_blender_ray.pipelines.rows.s3 import S3

            fs = S3()
            fs.connect()
            return fs, S3._strip_protocol(uri)
    except (ImportError, ValueError) as error:  # a package is missing; a bad scheme or endpoint
        raise BlendError(f"{uri}: {missing_extra(error) or _clean(str(error))}") from error


def is_local(fs: Any) -> bool:
    """Whether paths of this file system are paths of this machine."""
    return isinstance(fs, LocalFileSystem)


def row_files(fs: Any, folder: str) -> list[str]:
    """All files of rows under a folder, sorted; see `folders.walk`."""
    return walk(fs, folder).files


def find(uri: str, without: Sequence[str] = ()) -> FoundFiles:
    """Find the files of a URI, each a URI of its own, sorted by path, and the other files there.

    Args:
        uri: File, folder or glob.
        without: Paths to ignore, which the same run wrote.

    Raises:
        BlendError: There is nothing to read, or a file given explicitly has an unknown ending.
    """
    fs, path = filesystem(uri)
    with translate_errors(uri, "list it"):
        fs.invalidate_cache()
        if fs.isfile(path):
            if kind(path) is None:
                raise BlendError(f"{uri}: not a file of rows; expected {', '.join(format_endings())}")
            found = FoundFiles([path])
        elif fs.isdir(path):
            found = walk(fs, path, without)
        elif glob.has_magic(path) or "{" in path:
            found = _globbed(fs, path, without)
        else:
            raise FileNotFoundError(path)
    if not found.files:
        passed = f"; {found.left_out_text()}" if found.left_out else ""
        raise BlendError(
            f"{uri}: nothing to read there; expected files ending in {', '.join(format_endings())}{passed}"
        )
    if is_local(fs):
        return found
    unstripped = fs.unstrip_protocol
    return FoundFiles(
        [unstripped(file) for file in found.files],
        found.left_out,
        {unstripped(file): keys for file, keys in found.keys.items()},
        unstripped(found.root) if found.root else "",
    )


def _globbed(fs: Any, path: str, without: Sequence[str]) -> FoundFiles:
    fixed = _fixed(path)
    found = FoundFiles([], root=fixed)
    for pattern in _alternatives(path):
        for one in _matches(fs, pattern):
            if not visible(one, pattern) or one in without:
                continue
            if fs.isdir(one):
                found.add(walk(fs, one, without, root=fixed))
            else:
                found.add_file(one, fixed)
    found.files = sorted(set(found.files))
    return found


def _matches(fs: Any, pattern: str) -> list[str]:
    """Matches of a glob. fsspec's own does not follow links; a file behind several links is listed once."""
    if not is_local(fs):
        return list(fs.glob(pattern))
    found: dict[tuple[str, str], str] = {}
    for path in sorted(glob.glob(pattern, recursive=True), key=lambda path: (path.count("/"), path)):  # noqa: PTH207
        folder, _, name = path.rstrip("/").rpartition("/")
        found.setdefault((os.path.realpath(folder), name), path.rstrip("/"))
    return list(found.values())


def _fixed(pattern: str) -> str:
    """Folder above the first part of a glob that is not a plain name."""
    before = re.split(r"[*?\[{]", pattern, maxsplit=1)[0]
    return before.rpartition("/")[0]


def _alternatives(pattern: str) -> list[str]:
    """Globs that one with braces stands for: `{a,b}*` is `a*` and `b*`, as in a shell."""
    match = re.search(r"\{([^{}]*,[^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [one for part in match[1].split(",") for one in _alternatives(head + part + tail)]


def list_files(uri: str, without: Sequence[str] = ()) -> list[str]:
    """Files of a URI. See `find`."""
    return find(uri, without).files


def open_binary(uri: str) -> IO[bytes]:
    """Open one file for reading, decompressed if its ending says so."""
    fs, path = filesystem(uri)
    packed = ending_of(path)
    file: IO[bytes] = fs.open(path, "rb")
    return decompressed(file, packed) if packed and kind(path) else file


@contextlib.contextmanager
def replacing(uri: str) -> Iterator[IO[bytes]]:
    """File for writing that gets its name when it is complete: a killed run leaves no partial file."""
    fs, path = filesystem(uri)
    packed = ending_of(path) if kind(path) else None
    with renaming(path) if is_local(fs) else _committing(fs, path, uri) as file, compressing(file, packed) as sink:
        yield sink


@contextlib.contextmanager
def renaming(path: str) -> Iterator[IO[bytes]]:
    """`replacing` on a disk. Folders are made.

    Bytes reach the disk before the name does, and the name before the block ends: no power loss leaves a partial
    file.
    """
    target = Path(path)
    _make_folder(target.parent)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with undone(lambda: temporary.unlink(missing_ok=True)), temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
        _sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _make_folder(folder: Path) -> None:
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        _sync_folder(made.parent)


def _sync_folder(folder: Path) -> None:
    """Flush names in a folder to the disk, if the file system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _is_s3(fs: Any) -> bool:
    return "s3" in fs.protocol


@contextlib.contextmanager
def _committing(fs: Any, path: str, uri: str) -> Iterator[IO[bytes]]:
    """`replacing` in an object store, which shows an object once its upload is committed."""
    mark = {"upload": uuid.uuid4().hex}
    file = fs.open(path, "wb", autocommit=False, **({"Metadata": mark} if _is_s3(fs) else {}))
    try:
        with undone(file.discard):
            yield file
        with translate_write_errors(uri):
            file.close()
            try:
                file.commit()
            except FileNotFoundError:  # no such upload: the first attempt committed it, and its response got lost
                if not _is_s3(fs) or mark.items() - fs.metadata(path).items():
                    raise
    except BaseException:
        with contextlib.suppress(*_file_errors()):  # the store may still be down
            file.discard()
        file.closed = True  # otherwise its finalizer would write the discarded data
        raise
    fs.invalidate_cache()
