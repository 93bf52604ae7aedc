"""Preparation of training data: rows of any URI into the data folder of a training, once.

The folder, `OUTPUT/data`, has Arrow files (`stored`) that all processes of the training read. A file's name has the
digest of what decides its content, so an interrupted training finds it again. The folder is removed at the end.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from filelock import FileLock

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.configs.identity import settings_digest
from llm_blender_ray.pipelines.rows import storage
from llm_blender_ray.pipelines.rows.fingerprint import fingerprint
from llm_blender_ray.pipelines.rows.readers import InputFile, input_files, native_schema, read_files
from llm_blender_ray.pipelines.rows.uris import filesystem, is_local, translate_errors
from llm_blender_ray.pipelines.train.pairs import TrainingPair
from llm_blender_ray.pipelines.train.rows import TrainingRow
from llm_blender_ray.pipelines.train.stored import StoredRecords, store_pairs, store_rows, stored_pairs, stored_rows

Convert = Callable[[Mapping[str, Any]], TrainingRow]
MakePairs = Callable[[Iterable[TrainingRow]], Iterable[TrainingPair]]


@dataclass(frozen=True)
class Part:
    """Some files of a URI, to be stored as one Arrow file. It travels to workers of a cluster."""

    files: tuple[InputFile, ...]
    native: pa.Schema
    limit: int | None
    convert: Convert
    target: str

    def store(self) -> None:
        """Store the rows.

        Raises:
            BlendError: A row cannot be learnt from, or a file cannot be read.
        """
        store_rows(map(self.convert, read_files(self.files, self.native, self.limit)), self.target)


def store_here(parts: Sequence[Part]) -> None:
    """Store parts in this process, one after the other."""
    for part in parts:
        part.store()


@dataclass(frozen=True)
class StoredSplit:
    """Prepared rows of a training set, or of held-out rows, and pairs of them.

    Attributes:
        folder: URI of the data folder.
        mark: Digest of what decides the rows.
        row_files: Names of the files with rows, in order.
        pair_file: Name of the file with pairs; None: there are none.
    """

    folder: str
    mark: str
    row_files: tuple[str, ...]
    pair_file: str | None = None

    def rows(self) -> StoredRecords[TrainingRow]:
        """The rows, mapped into memory from this machine's disk."""
        return stored_rows([local_copy(self.folder, name) for name in self.row_files])

    def pairs(self) -> StoredRecords[TrainingPair]:
        """The pairs, mapped likewise.

        Raises:
            ValueError: The split has none.
        """
        if self.pair_file is None:
            raise ValueError("a split without pairs")
        return stored_pairs(local_copy(self.folder, self.pair_file))


@dataclass(frozen=True)
class TrainingData:
    """Prepared data of a training.

    Attributes:
        train: To learn from.
        heldout: To measure on; None: nothing is measured.
        leak: Text about prompts that are in both (`failures.shared_prompts`).
    """

    train: StoredSplit
    heldout: StoredSplit | None
    leak: str | None = None


class Preparation:
    """Prepares the data of a training in its folder."""

    def __init__(
        self, output: str, store_parts: Callable[[Sequence[Part]], None] = store_here, at_once: int = 1
    ) -> None:
        """Start.

        Args:
            output: Output of the training.
            store_parts: Runs `Part.store` of each.
            at_once: Parts of a URI, at most.
        """
        self.folder = f"{output.rstrip('/')}/data"
        self._store_parts = store_parts
        self._at_once = at_once

    def rows(self, name: str, uri: str, limit: int | None, convert: Convert, key: Any = None) -> StoredSplit:
        """Store the rows of a URI, unless they are there.

        Args:
            name: Of the split.
            uri: The rows.
            limit: Rows to read; None: all.
            convert: Makes a row to learn from; raises BlendError for one that is not.
            key: A JSON value that decides what `convert` returns.

        Raises:
            BlendError: There are no rows, or one cannot be learnt from.
        """
        mark = settings_digest([fingerprint(uri, limit), key])
        files = input_files(uri)
        size = len(files) if limit is not None else -(-len(files) // self._at_once)  # one alone can count
        groups = [tuple(files[start : start + size]) for start in range(0, len(files), size)]
        names = tuple(f"{name}-{mark}-{i + 1}-of-{len(groups)}.arrow" for i in range(len(groups)))
        if missing := set(names) - storage.names(self.folder):
            native = native_schema(files)
            self._store_parts(
                [
                    Part(group, native, limit, convert, f"{self.folder}/{file}")
                    for group, file in zip(groups, names, strict=True)
                    if file in missing
                ]
            )
        split = StoredSplit(self.folder, mark, names)
        if not len(split.rows()):
            raise BlendError(f"{uri}: no rows")
        return split

    def with_pairs(
        self,
        name: str,
        split: StoredSplit,
        key: Any,
        pairs: MakePairs,
    ) -> StoredSplit:
        """Store pairs of a split's rows, unless they are there; they pass through one by one.

        Args:
            name: Of the split.
            split: The rows.
            key: A JSON value that decides the pairs.
            pairs: Makes the pairs of all rows.
        """
        file = f"{name}-pairs-{settings_digest([split.mark, key])}.arrow"
        if file not in storage.names(self.folder):
            store_pairs(pairs(split.rows()), f"{self.folder}/{file}")
        return replace(split, pair_file=file)

    def made(
        self, name: str, key: Any, make: Callable[[], tuple[Iterable[TrainingRow], Iterable[TrainingPair]]]
    ) -> StoredSplit:
        """Store rows and pairs that are made together, unless they are there."""
        mark = settings_digest(key)
        rows_file, pairs_file = f"{name}-{mark}.arrow", f"{name}-pairs-{mark}.arrow"
        if not {rows_file, pairs_file} <= storage.names(self.folder):
            rows, pairs = make()
            store_rows(rows, f"{self.folder}/{rows_file}")
            store_pairs(pairs, f"{self.folder}/{pairs_file}")
        return StoredSplit(self.folder, mark, (rows_file,), pairs_file)

    def remove(self) -> None:
        """Remove the folder and this machine's copies of it."""
        storage.remove(self.folder)
        remove_copies(self.folder)


def local_copy(folder: str, name: str) -> Path:
    """A file of a data folder on this machine: itself, or a copy that all processes of the machine share.

    Raises:
        BlendError: It is not there.
    """
    fs, path = filesystem(f"{folder}/{name}")
    if is_local(fs):
        if not Path(path).is_file():
            raise BlendError(
                f"{path}: not on this machine; the output of a training on several machines is a folder that all "
                "share, or s3://"
            )
        return Path(path)
    copies = _copies(folder)
    copies.mkdir(parents=True, exist_ok=True, mode=0o700)
    target = copies / name
    with FileLock(copies / f"{name}.lock"):
        if not target.is_file():  # a name stands for its content
            partial = target.with_suffix(".partial")
            with translate_errors(f"{folder}/{name}", "read it"):
                fs.get_file(path, str(partial))
            partial.replace(target)
    return target


def remove_copies(folder: str) -> None:
    """Remove this machine's copies of a data folder that is elsewhere."""
    with contextlib.suppress(FileNotFoundError):
        storage.remove(str(_copies(folder)))


def _copies(folder: str) -> Path:
    return Path(tempfile.gettempdir()) / f"blend-data-{os.getuid()}-{settings_digest(folder)}"
