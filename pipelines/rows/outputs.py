"""Outputs of a run: one file or a folder of parts, on a local disk or in S3, and their current content."""

import errno
import glob
import hashlib
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.pipelines.rows.folders import WORK_FOLDER
from llm_blender_ray.pipelines.rows.formats import format_endings
from llm_blender_ray.pipelines.rows.storage import remove_temporary_files
from llm_blender_ray.pipelines.rows.uris import filesystem, is_local, kind, row_files, translate_errors

_PART = re.compile(r"part-\d{6}-[0-9a-f]{16}(\.\w+)")
_CHECKED_AT_ONCE = 16


class FileRecord(BaseModel):
    """One output file of a run in the manifest; `path` is relative to the output's folder."""

    model_config = ConfigDict(extra="ignore", frozen=True)  # later versions' manifests may have more fields

    path: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Output:
    """An output of a run.

    A registered ending (text also compressed: .gz, .zst, .bz2, .xz) makes one file; anything else is a folder of
    parts.

    Attributes:
        uri: Path or URI as the user wrote it.
        format: Format of a folder's parts.
    """

    uri: str
    format: str = "parquet"

    @property
    def location(self) -> str:
        """The URI, the same in every process: an absolute path if it is local."""
        return self.uri if "://" in self.uri else filesystem(self.uri)[1]

    @property
    def is_folder(self) -> bool:
        """Whether the rows become parts in a folder."""
        return kind(self.uri) is None

    @property
    def ending(self) -> str:
        """Ending of its files, which is their format."""
        return kind(self.uri) or f".{self.format}"

    @property
    def work_folder(self) -> str:
        """Folder of a run's checkpoints: hidden, so that readers of the output folder skip it."""
        location = self.location.rstrip("/")
        if self.is_folder:
            return f"{location}/{WORK_FOLDER}"
        head, slash, name = location.rpartition("/")
        return f"{head}{slash}.{name}{WORK_FOLDER}"

    def file(self, name: str) -> str:
        """URI of a file in the folder."""
        return f"{self.location.rstrip('/')}/{name}"

    def parts(self) -> list[str]:
        """Names of the parts that runs have written into the folder; none for a file.

        Raises:
            BlendError: The folder can't be listed.
        """
        if not self.is_folder:
            return []
        fs, folder = filesystem(self.location)
        with translate_errors(self.uri, "list it"):
            files = [PurePosixPath(path) for path in row_files(fs, folder)] if fs.isdir(folder) else []
        return [path.name for path in files if path.parent == PurePosixPath(folder) and is_part(path.name)]

    def is_taken(self, *, overwrite: bool) -> bool:
        """Whether the output exists.

        Args:
            overwrite: Whether a run may replace it; files that no run wrote are never replaced.

        Raises:
            BlendError: A run cannot write there, or may not replace it.
        """
        uri = self.uri
        if glob.has_magic(uri):
            raise BlendError(f"{uri}: an output is one file or folder, not a glob")
        fs, path = filesystem(uri)
        with translate_errors(uri, "write it"):
            fs.invalidate_cache()
            if is_local(fs):
                _check_place(Path(path))
            if not self.is_folder:
                if fs.isdir(path):
                    raise BlendError(f"{uri}: a folder of that name is in the way of the file")
                return bool(fs.exists(path))
            if fs.isfile(path):
                raise BlendError(f"{uri}: a file of that name is in the way of the folder")
            found = row_files(fs, path) if fs.isdir(path) else []
            parts = {str(PurePosixPath(path) / name) for name in self.parts()}
            others = sorted({str(PurePosixPath(file)) for file in found} - parts)
            if others and overwrite:
                raise BlendError(f"{uri}: holds {others[0]}, which no run wrote; choose another folder")
            return bool(found)

    def sweep(self) -> None:
        """Remove temporary files that killed writers left.

        Raises:
            BlendError: The storage fails.
        """
        if self.is_folder:
            remove_temporary_files(self.location, "part-")
        else:
            folder, _, name = self.location.rpartition("/")
            remove_temporary_files(folder or "/", f"{name}.")

    def damaged(self, files: Sequence[FileRecord]) -> list[str]:
        """Check the output against the record of its files.

        Args:
            files: The record.

        Returns:
            Files that are missing, or whose size or hash differs, in the order of the record.

        Raises:
            BlendError: The storage fails.
        """
        fs, path = filesystem(self.location)
        fs.invalidate_cache()
        folder = path if self.is_folder else path.rpartition("/")[0]

        def is_damaged(file: FileRecord) -> bool:
            there = f"{folder}/{file.path}"
            with translate_errors(self.file(file.path) if self.is_folder else self.uri, "read it"):
                if not fs.exists(there) or fs.size(there) != file.bytes:
                    return True
                with fs.open(there, "rb") as source:
                    return hashlib.file_digest(source, "sha256").hexdigest() != file.sha256

        with ThreadPoolExecutor(_CHECKED_AT_ONCE) as pool:
            return [file.path for file, bad in zip(files, pool.map(is_damaged, files), strict=True) if bad]


def is_part(name: str) -> bool:
    """Whether a file of this name is a part that a run wrote into a folder."""
    match = _PART.fullmatch(name)
    return match is not None and match[1] in format_endings()


def _check_place(path: Path) -> None:
    """Check that a local path can be made.

    Raises:
        OSError: It cannot.
    """
    there = next(parent for parent in path.parents if parent.exists())
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    if not os.access(there, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
