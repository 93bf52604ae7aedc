"""What is damaged in a run's work folder or output is found, named in one line, and made again."""

import hashlib
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from llm_blender_ray.pipelines.bulk.checkpoints import Index, Store
from llm_blender_ray.pipelines.bulk.manifest import OutputRecord
from llm_blender_ray.pipelines.bulk.stages import Work
from llm_blender_ray.pipelines.rows.storage import sweep
from llm_blender_ray.pipelines.rows.uris import filesystem, kind, translate_errors
from llm_blender_ray.pipelines.rows.writers import FileRecord

_READ_AT_ONCE = 16
_NAMED = 3  # files in a line


def damaged_files(output: OutputRecord, uri: str) -> list[str]:
    """Check an output against its record.

    Args:
        output: what the manifest says of it.
        uri: where it is.

    Returns:
        The files that are gone, or whose size or hash is another; in the order of the record.

    Raises:
        BlendError: the storage stays broken.
    """
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    folder = path if kind(uri) is None else path.rpartition("/")[0]

    def damaged(file: FileRecord) -> bool:
        there = f"{folder}/{file.path}"
        with translate_errors(f"{uri.rstrip('/')}/{file.path}" if kind(uri) is None else uri, "read it"):
            if not fs.exists(there) or fs.size(there) != file.bytes:
                return True
            with fs.open(there, "rb") as source:
                return hashlib.file_digest(source, "sha256").hexdigest() != file.sha256

    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        return [file.path for file, bad in zip(output.files, pool.map(damaged, output.files), strict=True) if bad]


def mend(store: Store, index: Index, work: Work, read_again: Callable[[list[str]], Index]) -> Index:
    """Make everything that is kept of a run's input and results either whole or missing.

    A result goes too when one is missing that it was made of: made again, that one may be another.

    Args:
        store: where it is kept.
        index: of the input.
        work: whose results.
        read_again: called when rows are lost, with their names; gives the input's new index.

    Returns:
        The index that holds afterwards.

    Raises:
        BlendError: the rows can't be read again.
    """
    damaged, whole = [], dict[str, set[str]]()
    for step in work.steps:
        bad = store.damaged_results(step.key)
        damaged += [f"results/{step.key}/{name}.parquet" for name in bad]
        there = store.done(step.key)
        made_of = [] if step.kind == "generate" else list(whole.values())
        whole[step.name] = {name for name in there - {*bad} if all(name in before for before in made_of)}
        for name in there - whole[step.name]:
            store.forget_result(step.key, name)
    tell_damaged(store, damaged)
    if lost := store.lost_rows(index):
        tell_damaged(store, lost)
        return read_again(lost)
    return index


def sweep_output(uri: str) -> None:
    """Remove the unfinished files that killed writers of an output left beside it. Raises BlendError."""
    if kind(uri) is None:
        sweep(uri, "part-")
    else:
        folder, _, name = uri.rpartition("/")
        sweep(folder or "/", f"{name}.")


def tell_damaged(store: Store, objects: Sequence[str]) -> None:
    """One line on stderr that names damaged objects of a work folder; none when there are none."""
    if objects:
        one = len(objects) == 1
        tell(
            f"{store.root}: {len(objects)} damaged {'file' if one else 'files'} made again "
            f"(gone, or not the bytes that were written): {named(objects)}"
        )


def named(files: Sequence[str]) -> str:
    """The first few of some names."""
    more = len(files) - _NAMED
    return ", ".join(files[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def tell(line: str) -> None:
    """A line on stderr."""
    print(f"blend: {line}", file=sys.stderr, flush=True)
