"""The bulk path: waves of stages over Ray Data, a pool of actors for each model, blocks streaming through all.

A wave is one chain of actor pools. Every stage keeps its results of a block as soon as it has them
(`pipelines.bulk.worker`), so a wave, and a run that starts again, reads only the blocks that lack something.
"""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import RayError

from llm_blender_ray.actors.errors import BlendError, one_line
from llm_blender_ray.cluster.session import session, without_ray_output
from llm_blender_ray.configs.schema import BaseLLM, RayCluster
from llm_blender_ray.pipelines.bulk.checkpoints import Block, Index, Store
from llm_blender_ray.pipelines.bulk.deduplication import leaders, lend
from llm_blender_ray.pipelines.bulk.retry import Todo
from llm_blender_ray.pipelines.bulk.stages import Step, Work
from llm_blender_ray.pipelines.bulk.tracker import Count
from llm_blender_ray.pipelines.bulk.worker import Worker

ELSEWHERE = 256  # results of an earlier input that are looked at; every actor reads them once
# Rows that an LLM's actor holds for each that its engine works on: one long answer delays its whole block, and the
# engine works on the other blocks meanwhile.
_ROWS_PER_SLOT = 8


def actors(step: Step, blocks: int) -> int:
    """How many actors work on so many blocks: none that would find no block, since a model takes long to load."""
    return min(step.placement.replicas, max(blocks, 1))


def calls_at_once(step: Step, rows_per_block: float) -> int:
    """Blocks that one actor of a step works on at once.

    Args:
        step: The step.
        rows_per_block: Mean over the blocks.
    """
    llm = step.placement.settings
    if not isinstance(llm, BaseLLM):
        return 2  # the next block is there when one is done
    return max(2, min(64, round(_ROWS_PER_SLOT * llm.width / llm.samples / rows_per_block)))


def run_wave(store: Store, index: Index, work: Work, wave: Sequence[Step], todo: Todo, board: Any) -> None:
    """Bring blocks through the steps of a wave.

    Args:
        store: Where rows and results are.
        index: The input.
        work: All steps.
        wave: Those of this wave.
        todo: What they have to make (`retry.to_do`).
        board: What the driver shows.

    Raises:
        BlendError: A part of the run failed for good; or what Ray raises.
    """
    blocks = dict(zip(index.names, index.blocks, strict=True))
    for step in wave:
        _saved(board, step, [block for name, block in blocks.items() if name not in todo[step.name]])

    def share() -> None:
        copied = lend(store, index, work, wave, todo)
        for step in wave:
            _saved(board, step, [blocks[name] for name in copied.get(step.name, ())])

    share()
    if first := leaders(blocks, work, wave, todo):
        _stream(store, index, work, [step for step in wave if step.name in first], first, board)
        for name, made in first.items():
            todo[name] -= made
        share()
    _stream(store, index, work, [step for step in wave if todo[step.name]], todo, board)


def _elsewhere(store: Store, index: Index, step: Step) -> list[str]:
    """Results of blocks that an earlier input had: rows that are in other blocks now keep theirs."""
    return sorted(store.done(step.key) - set(index.names))[:ELSEWHERE]


def _saved(board: Any, step: Step, blocks: Sequence[Block]) -> None:
    """Blocks whose results are there already."""
    rows = sum(block.rows for block in blocks)
    board.add.remote(step.name, Count(rows=rows, saved=rows))


def _stream(store: Store, index: Index, work: Work, steps: Sequence[Step], todo: Todo, board: Any) -> None:
    """Bring blocks through steps over Ray Data; each step makes those that `todo` has for it."""
    items = [
        {"file": block.file, "name": name, "steps": [step.name for step in steps if name in todo[step.name]]}
        for name, block in zip(index.names, index.blocks, strict=True)
    ]
    items = [item for item in items if item["steps"]]
    if not items:
        return
    mean = index.rows / len(index.blocks)
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    for step in steps:
        dataset = dataset.map_batches(
            Worker,
            fn_constructor_args=(step, work, store, index.fingerprint, board, _elsewhere(store, index, step)),
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(
                size=actors(step, len(todo[step.name])), max_concurrent_calls_per_actor=calls_at_once(step, mean)
            ),
            udf_modifying_row_count=False,
            **step.placement.ray_options(),
        )  # Ray Data restarts dead actors and their tasks without limit; `isolation` limits the deaths
    for _ in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        pass


@contextmanager
def running(settings: RayCluster) -> Iterator[None]:
    """Ray and Ray Data set up for a run: errors are told by us alone."""
    debugging = "BLEND_DEBUG" in os.environ
    quiet = contextlib.nullcontext() if debugging else without_ray_output()
    with quiet, session(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"ray\.data")  # advice on tuning: few rows don't fill all replicas
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.execution_no_progress_timeout_s = int(settings.stall_timeout_s)
        for handler in logging.getLogger("ray.data").handlers:
            if not debugging and not isinstance(handler, logging.FileHandler):
                handler.setLevel(logging.CRITICAL + 1)
        yield


@contextmanager
def told_by(board: Any) -> Iterator[None]:
    """What Ray raises in the block becomes the one BlendError behind it."""
    try:
        yield
    except Exception as error:
        if isinstance(error, BlendError) and not isinstance(error, RayError):
            raise
        # what a worker raised: Ray gives it both types, and a traceback as text
        raise reason(error, board) from error


def reason(error: BaseException, board: Any) -> BlendError:
    """The error a user can act on: what a worker told the board, else what is at the bottom of Ray's wrappings."""
    failure = ray.get(board.failure.remote()) if ray.is_initialized() else None
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
