"""Executor of a bulk run: waves of stages over Ray Data, a pool of actors for each model, blocks streaming through.

A wave is one chain of actor pools. Every stage stores its result of a block at once (`pipelines.bulk.worker`), so a
wave, also of a resumed run, reads only the blocks that lack something.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.data import ActorPoolStrategy
from ray.exceptions import RayError

from llm_blender_ray.actors.errors import BlendError, one_line
from llm_blender_ray.cluster.placement_groups import placement_groups
from llm_blender_ray.configs.schema import BaseLLM
from llm_blender_ray.pipelines.bulk.checkpoints import Block, CheckpointStore, Index
from llm_blender_ray.pipelines.bulk.deduplication import copy_results, representatives
from llm_blender_ray.pipelines.bulk.retry import Todo
from llm_blender_ray.pipelines.bulk.spending import RunBudget
from llm_blender_ray.pipelines.bulk.stages import StageGraph, StageSpec, pools
from llm_blender_ray.pipelines.bulk.tracker import Count
from llm_blender_ray.pipelines.bulk.worker import Worker

ELSEWHERE = 256  # most results of an earlier input to search; every actor reads them once
# Rows that an LLM's actor holds for each that its engine runs: one long answer delays its whole block, while the
# engine runs the other blocks.
_ROWS_PER_SLOT = 8


def actor_count(steps: Sequence[StageSpec], todo: Todo) -> int:
    """Number of actors of a pool: none without a block, since a model takes long to load.

    Args:
        steps: The pool's.
        todo: Blocks of each step.
    """
    blocks = set[str]().union(*(todo[step.name] for step in steps))
    return min(steps[0].actors.replicas, max(len(blocks), 1))


def calls_at_once(steps: Sequence[StageSpec], rows_per_block: float) -> int:
    """Blocks that one actor of a pool runs concurrently.

    Args:
        steps: The pool's.
        rows_per_block: Mean over the blocks.
    """
    llms = [step.placement.settings for step in steps]
    answers = sum(llm.samples for llm in llms if isinstance(llm, BaseLLM))
    if not answers:
        return 2  # the next block already waits
    return max(2, min(64, round(_ROWS_PER_SLOT * steps[0].actors.model.width / answers / rows_per_block)))


def run_wave(
    store: CheckpointStore,
    index: Index,
    work: StageGraph,
    wave: Sequence[StageSpec],
    todo: Todo,
    tracker: Any,
    budget: RunBudget | None = None,
) -> None:
    """Run the steps of a wave on their blocks.

    Args:
        store: The checkpoints.
        index: The input.
        work: All steps.
        wave: Those of this wave.
        todo: What they have to make (`retry.to_do`).
        tracker: Handle of the run's `RunTracker`.
        budget: Bounds what endpoints may cost.

    Raises:
        BlendError: A part of the run failed for good.
        Exception: What Ray raises.
    """
    blocks = dict(zip(index.names, index.blocks, strict=True))
    for step in wave:
        there = [name for name in blocks if name not in todo[step.name]]
        failed = sum(account.get("failed", 0) for account in store.accounts(step.key, there).values())
        _saved(tracker, step, [blocks[name] for name in there], failed)

    def share() -> None:
        copied = copy_results(store, index, work, wave, todo)
        for step in wave:
            _saved(tracker, step, [blocks[name] for name in copied.get(step.name, ())])

    share()
    if first := representatives(blocks, work, wave, todo):
        _stream(store, index, work, [step for step in wave if step.name in first], first, tracker, budget)
        for name, made in first.items():
            todo[name] -= made
        share()
    _stream(store, index, work, [step for step in wave if todo[step.name]], todo, tracker, budget)


def _elsewhere(store: CheckpointStore, index: Index, step: StageSpec) -> list[str]:
    """Results of blocks of an earlier input, whose rows are now in other blocks."""
    return sorted(store.done(step.key) - set(index.names))[:ELSEWHERE]


def _saved(tracker: Any, step: StageSpec, blocks: Sequence[Block], failed: int = 0) -> None:
    """Report blocks whose results exist."""
    rows = sum(block.rows for block in blocks)
    tracker.add.remote(step.name, Count(rows=rows, saved=rows, failed=failed))


def _stream(
    store: CheckpointStore,
    index: Index,
    work: StageGraph,
    steps: Sequence[StageSpec],
    todo: Todo,
    tracker: Any,
    budget: RunBudget | None,
) -> None:
    """Run steps over Ray Data, each on the blocks that `todo` has for it."""
    items = [
        {"file": block.file, "name": name, "steps": [step.name for step in steps if name in todo[step.name]]}
        for name, block in zip(index.names, index.blocks, strict=True)
    ]
    items = [item for item in items if item["steps"]]
    if not items:
        return
    mean = index.rows / len(index.blocks)
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    with placement_groups() as options_of:
        for pool in pools(steps):
            actors, placement = actor_count(pool, todo), pool[0].actors
            dataset = dataset.map_batches(
                Worker,
                fn_constructor_args=(
                    pool,
                    work,
                    store,
                    index.fingerprint,
                    tracker,
                    {step.name: _elsewhere(store, index, step) for step in pool},
                    budget.meter(pool[0].price) if budget else None,  # endpoints share none
                ),
                batch_size=1,
                batch_format="pyarrow",
                compute=ActorPoolStrategy(size=actors, max_concurrent_calls_per_actor=calls_at_once(pool, mean)),
                udf_modifying_row_count=False,
                ray_remote_args_fn=options_of(placement, actors),
                **placement.ray_options(),
            )  # Ray Data restarts dead actors and their tasks without limit; `isolation` limits the deaths
        for _ in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            pass


@contextmanager
def translated_errors(tracker: Any) -> Iterator[None]:
    """Turn what Ray raises in the block into the one BlendError that caused it."""
    try:
        yield
    except Exception as error:
        if isinstance(error, BlendError) and not isinstance(error, RayError):
            raise
        # raised by a worker: Ray gives it both types, and a traceback as text
        raise reason(error, tracker) from error


def reason(error: BaseException, tracker: Any) -> BlendError:
    """Error for the user: the one that a worker reported to the tracker, else the innermost of Ray's."""
    failure = ray.get(tracker.failure.remote()) if ray.is_initialized() else None
    if failure is not None:
        return failure
    seen = {id(error)}
    while (inner := getattr(error, "cause", None) or error.__cause__) and id(inner) not in seen:
        error = inner
        seen.add(id(error))
    if isinstance(error, BlendError):
        return BlendError(str(error).splitlines()[0])  # Ray appends to it
    kind = "Ray: " if isinstance(error, RayError) else ""
    return BlendError(f"the run failed: {kind}{one_line(error)}")
