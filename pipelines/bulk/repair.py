"""Repair of a run's work folder and output: damaged objects are found, listed in one line, and made again."""

from collections.abc import Callable, Sequence

from llm_blender_ray.cluster.notices import report_line
from llm_blender_ray.pipelines.bulk.checkpoints import CheckpointStore, Index
from llm_blender_ray.pipelines.bulk.stages import StageGraph

_READ_AT_ONCE = 16
_NAMED = 3  # names in a line


def repair_store(
    store: CheckpointStore, index: Index, work: StageGraph, read_again: Callable[[list[str]], Index]
) -> Index:
    """Make every stored object of a run's input and results whole or missing.

    A result is removed too if one that it was made of is missing: made again, that one may differ.

    Args:
        store: The checkpoints.
        index: Of the input.
        work: All steps.
        read_again: Called with the names of lost rows; returns the input's new index.

    Returns:
        The index that holds afterwards.

    Raises:
        BlendError: The rows cannot be read again.
    """
    damaged, whole = [], dict[str, set[str]]()
    for step in work.steps:
        bad = store.damaged_results(step.key)
        damaged += [f"results/{step.key}/{name}.parquet" for name in bad]
        there = store.done(step.key)
        made_of = [whole[before.name] for before in work.before(step)]
        whole[step.name] = {name for name in there - {*bad} if all(name in before for before in made_of)}
        for name in there - whole[step.name]:
            store.forget_result(step.key, name)
    report_damaged(store, damaged)
    if lost := store.lost_rows(index):
        report_damaged(store, lost)
        return read_again(lost)
    return index


def report_damaged(store: CheckpointStore, objects: Sequence[str]) -> None:
    """Print one line on stderr with the names of damaged objects of a work folder, if any."""
    if objects:
        one = len(objects) == 1
        report_line(
            f"{store.root}: {len(objects)} damaged {'file' if one else 'files'} made again "
            f"(gone, or not the bytes that were written): {listed_names(objects)}"
        )


def listed_names(files: Sequence[str]) -> str:
    """The first few of some names."""
    more = len(files) - _NAMED
    return ", ".join(files[:_NAMED]) + (f" and {more} more" if more > 0 else "")
