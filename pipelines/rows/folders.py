"""Content of a folder: files of rows, columns from its folders' names, and files that are not read."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

from fsspec.implementations.local import LocalFileSystem

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.pipelines.rows.formats import kind

WORK_FOLDER = ".blend"  # ending of work folders' names
STATE = "state.json"  # of a folder written by `save_to_disk` of Hugging Face datasets
METADATA = frozenset(("dataset_infos.json", "dataset_info.json", "dataset_dict.json", STATE))
_NULL = "__HIVE_DEFAULT_PARTITION__"
_EXAMPLES = 3


@dataclass
class FoundFiles:
    """Files of rows under a URI.

    Attributes:
        files: Sorted paths.
        left_out: Paths of files, and of hidden folders, that are not read.
        keys: Columns of a file from its folders' names: `lang=en/part.jsonl` has the column `lang`, as in Hive.
        root: Folder above all files; errors of rows name their file relative to it.
    """

    files: list[str]
    left_out: list[str] = field(default_factory=list)
    keys: dict[str, Mapping[str, str | None]] = field(default_factory=dict)
    root: str = ""

    def name(self, file: str) -> str:
        """Path of the file relative to the root."""
        return file.removeprefix(f"{self.root}/") if self.root else PurePosixPath(file).name

    def add_file(self, path: str, root: str) -> None:
        """Add a file, to `files` if its name is one of a file of rows."""
        if kind(path) is None or PurePosixPath(path).name in METADATA:
            self.left_out.append(path)
            return
        self.files.append(path)
        if keys := _keys(path, root):
            self.keys[path] = keys

    def add(self, other: "FoundFiles") -> None:
        """Add the files of another place."""
        self.files += other.files
        self.left_out += other.left_out
        self.keys |= other.keys

    def left_out_text(self) -> str:
        """Files that are not read: their number, and examples, first those that may hold rows."""
        names = [PurePosixPath(path).name + ("/" if path.endswith("/") else "") for path in self.left_out]
        names.sort(key=lambda name: (name.startswith((".", "_")), name in METADATA, name))
        more = f", and {len(names) - _EXAMPLES} more" if len(names) > _EXAMPLES else ""
        return f"not read: {', '.join(names[:_EXAMPLES])}{more}"


def walk(fs: Any, folder: str, without: Sequence[str] = (), root: str | None = None) -> FoundFiles:
    """Find the files under a folder; links are followed.

    Hidden files, and those whose names start with `_`, are not read.

    Args:
        fs: The file system.
        folder: The folder.
        without: Paths to ignore.
        root: The folder whose own name, and those above it, give no columns.
    """
    root = folder if root is None else root
    found = FoundFiles([], root=root)
    for path in sorted(_paths(fs, folder)):
        name = path.rstrip("/")
        if name in without or _is_work(name):
            continue
        if path.endswith("/") or not visible(path, folder):
            found.left_out.append(path)
        else:
            found.add_file(path, root)
    for state in [path for path in found.left_out if PurePosixPath(path).name == STATE]:
        _keep_saved(fs, state, found)
    return found


def _paths(fs: Any, folder: str) -> Iterator[str]:
    """All files, and hidden folders (ending in a slash) without their content."""
    if not isinstance(fs, LocalFileSystem):
        for path in fs.find(folder):
            if path.endswith("/"):  # an object in place of a folder
                continue
            inside = PurePosixPath(path).relative_to(folder).parts
            hidden = next((i for i, name in enumerate(inside[:-1]) if name.startswith((".", "_"))), None)
            yield path if hidden is None else f"{folder.rstrip('/')}/{'/'.join(inside[: hidden + 1])}/"
        return
    seen: set[str] = set()
    for above, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        real = os.path.realpath(above)
        if real in seen:  # a link to a folder above it
            folders.clear()
            continue
        seen.add(real)
        for name in [name for name in folders if name.startswith((".", "_"))]:
            folders.remove(name)
            yield f"{above}/{name}/"
        yield from (f"{above}/{name}" for name in names)


def _raise(error: OSError) -> None:
    raise error


def _is_work(path: str) -> bool:
    name = PurePosixPath(path).name
    return name.startswith(".") and name.endswith(WORK_FOLDER)


def visible(path: str, asked: str) -> bool:
    """Whether no name in the path is hidden, or starts with `_`, except for those given explicitly."""
    names = zip_longest(PurePosixPath(path).parts, PurePosixPath(asked).parts, fillvalue="")
    return not any(name.startswith((".", "_")) and name[0] != wish[:1] for name, wish in names)


def _keys(path: str, root: str) -> dict[str, str | None]:
    """Columns of `root/lang=en/a.jsonl`: `lang`, `en`."""
    inside = path.removeprefix(root).strip("/").split("/")[:-1] if path.startswith(f"{root}/") or not root else []
    pairs = [part.partition("=") for part in inside if "=" in part]
    return {unquote(key): None if value == _NULL else unquote(value) for key, _, value in pairs if key}


def _keep_saved(fs: Any, state: str, found: FoundFiles) -> None:
    """Leave out the `.arrow` files of a folder that are not part of the dataset saved in it.

    Raises:
        BlendError: A file of the dataset is missing.
    """
    try:
        saved = json.loads(fs.cat_file(state))
        names = {one["filename"] for one in saved["_data_files"]}
    except (ValueError, KeyError, TypeError):  # another program's state.json
        return
    folder = state.rpartition("/")[0]
    if saved.get("_indices_data_files") or saved.get("_indices_files"):
        raise BlendError(f"{folder}: a dataset saved with an index mapping; save it again after flatten_indices()")
    here = [path for path in found.files if path.rpartition("/")[0] == folder]
    if missing := sorted(names - {PurePosixPath(path).name for path in here}):
        raise BlendError(f"{folder}: {STATE} names {missing[0]}, which isn't there")
    for path in here:
        if path.endswith(".arrow") and PurePosixPath(path).name not in names:
            found.files.remove(path)
            found.left_out.append(path)
