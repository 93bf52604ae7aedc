"""Compressed files by the last ending of their names: `.gz`, `.zst`, `.bz2`, `.xz`.

A truncated stream raises an error here; fsspec's reader of `.zst` would silently lose the rest of the rows.
"""

import bz2
import contextlib
import functools
import gzip
import io
import lzma
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

import pyarrow as pa


class Codec(NamedTuple):
    """Streams of one compression over an opened file."""

    reader: Callable[[IO[bytes]], Any]
    writer: Callable[[IO[bytes]], Any]


CODECS = {
    ".gz": Codec(
        lambda file: gzip.GzipFile(fileobj=file), lambda file: gzip.GzipFile(fileobj=file, mode="wb", mtime=0)
    ),
    ".zst": Codec(
        lambda file: pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd"),
        lambda file: pa.CompressedOutputStream(pa.PythonFile(_LeftOpen(file), mode="w"), "zstd"),
    ),
    ".bz2": Codec(bz2.BZ2File, functools.partial(bz2.BZ2File, mode="wb")),
    ".xz": Codec(lzma.LZMAFile, functools.partial(lzma.LZMAFile, mode="wb")),
}


def ending_of(name: str) -> str | None:
    """Compression of a file of this name; None if it is not compressed."""
    return next((ending for ending in CODECS if name.lower().endswith(ending)), None)


def decompressed(file: IO[bytes], ending: str) -> IO[bytes]:
    """Content of a compressed file; closing it closes the file."""
    return _Unpacked(CODECS[ending].reader(file), file)


class _Unpacked(io.BufferedReader):
    """Stream over a file; both are closed together."""

    def __init__(self, stream: Any, file: IO[bytes]) -> None:
        super().__init__(stream, 2**20)
        self._file = file

    def close(self) -> None:
        super().close()
        self._file.close()


class _LeftOpen(io.RawIOBase):
    """Writable file that stays open when this is closed."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._file.write(data)


@contextlib.contextmanager
def compressing(file: IO[bytes], ending: str | None) -> Iterator[Any]:
    """File to write to whose content is compressed into another one."""
    if ending is None:
        yield file
        return
    with CODECS[ending].writer(file) as stream:
        yield stream
