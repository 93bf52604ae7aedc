"""Blocks that each stage of a wave has to run, and the effect of `--retry-failed` on a finished run.

Attempts are counted. `run.json` has the number of the current one, written before any of its results, and the
manifest has that of the attempt it describes: a killed retry resumes as the same attempt. Each result has the
number of the attempt that made it. In attempt n a stage runs a block again if its result is of an earlier attempt
and has failures; a ranker or fuser also checks blocks in which a stage before it has a newer result, and runs those
rows again whose inputs differ (see `results`). A block's new result replaces the old one at once, so that at any
moment each result is an old or a new one, and rows that did not fail keep their results.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from llm_blender_ray.pipelines.bulk.checkpoints import CheckpointStore, Index
from llm_blender_ray.pipelines.bulk.manifest import Manifest
from llm_blender_ray.pipelines.bulk.stages import StageGraph, StageSpec, is_independent

Todo = dict[str, set[str]]  # names of blocks, by stage


def attempt_of(record: Mapping[str, Any] | None, manifest: Manifest | None, *, retry: bool) -> int:
    """Number of the attempt of a session.

    Args:
        record: Record of the sessions before (`CheckpointStore.run`).
        manifest: That of the last finished session; None if it is missing.
        retry: Whether failed rows are to be run again.

    Returns:
        0 without any retry.
    """
    number = int((record or {}).get("attempt", 0))
    under_way = (
        number > 0 and (record or {}).get("retrying", False) and (manifest is None or manifest.attempt < number)
    )
    return number + 1 if retry and not under_way else number


def to_do(store: CheckpointStore, index: Index, work: StageGraph, wave: Sequence[StageSpec]) -> Todo:
    """Find the blocks that the steps of a wave have to run."""
    names = index.names
    done = {step.name: store.done(step.key) for step in wave}
    todo = {step.name: {name for name in names if name not in done[step.name]} for step in wave}
    if work.attempt:
        last = max(work.steps.index(step) for step in wave)
        steps = work.steps[: last + 1]
        there = {step.name: store.done(step.key) for step in steps}
        accounts = {
            step.name: store.accounts(step.key, [name for name in names if name in there[step.name]])
            for step in steps
        }
        for name in names:
            _look_again(name, steps, accounts, todo, work.attempt)
    return todo


def _look_again(
    name: str, steps: Sequence[StageSpec], accounts: Mapping[str, Mapping[str, Any]], todo: Todo, attempt: int
) -> None:
    """Add the steps that failed on a block in an earlier attempt, and those after them."""
    newest, changes = 0, False
    for step in steps:
        account = accounts[step.name].get(name)
        if account is not None:
            made_in = account.get("attempt", 0)
            failed = account.get("retryable", account.get("failed", 0)) and made_in < attempt
            outdated = not is_independent(step.kind) and (changes or made_in < newest)
            if (failed or outdated) and step.name in todo:
                todo[step.name].add(name)
            newest = max(newest, made_in)
        changes = changes or name in todo.get(step.name, ())


def can_retry(manifest: Manifest) -> bool:
    """Whether a finished run has failures that a retry would run again."""
    return any(stage.retryable for stage in manifest.stages)
