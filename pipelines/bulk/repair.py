"""What is damaged in a run's work folder or output is found, named in one line, and made again."""

import sys
from collections.abc import Callable, Sequence

from llm_blender_ray.pipelines.bulk.checkpoints import Index, Store
from llm_blender_ray.pipelines.bulk.stages import Work

_READ_AT_ONCE = 16
_NAMED = 3  # files in a line


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
