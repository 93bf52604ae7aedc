"""The bulk path: waves of stages over Ray Data, a pool of actors for each model, blocks streaming through all.

A wave is one chain of actor pools. Every stage keeps its results of a block as soon as it has them
(`pipelines.worker`), so a wave, and a run that starts again, reads only the blocks that lack something.
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

from actors.errors import BlendError, one_line
from cluster.session import session, without_ray_output
from configs.schema import RayCluster
from pipelines.board import Count
from pipelines.flow import Step, Work
from pipelines.store import Block, Index, Store
from pipelines.worker import Worker, calls_at_once


def actors(step: Step, blocks: int) -> int:
    """How many actors work on so many blocks: none that would find no block, since a model takes long to load."""
    return min(step.placement.replicas, max(blocks, 1))


def run_wave(
    store: Store, index: Index, blocks: Sequence[Block], work: Work, wave: Sequence[Step], board: Any
) -> None:
    """Bring blocks, those that `missing` found, through the steps of a wave.

    Raises what Ray raises when a part of the run fails for good.
    """
    kept = index.rows - sum(block.rows for block in blocks)
    for step in wave:
        board.add.remote(step.name, Count(rows=kept, saved=kept))
    if not blocks:
        return
    mean = sum(block.rows for block in blocks) / len(blocks)
    dataset = ray.data.from_items(
        [{"file": block.file, "digest": block.digest} for block in blocks], override_num_blocks=len(blocks)
    )
    for step in wave:
        dataset = dataset.map_batches(
            Worker,
            fn_constructor_args=(step, work, store, index.fingerprint, board),
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(
                size=actors(step, len(blocks)), max_concurrent_calls_per_actor=calls_at_once(step, mean)
            ),
            udf_modifying_row_count=False,
            **step.placement.ray_options(),
        )  # Ray starts dead actors and their tasks again for ever: the worker sees to it that deaths come to an end
    for _ in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        pass


def missing(store: Store, index: Index, wave: Sequence[Step]) -> list[Block]:
    """The blocks of which a step of the wave has no results, each content once."""
    done = [store.done(step.key) for step in wave]
    blocks = {block.digest: block for block in index.blocks}
    return [block for block in blocks.values() if not all(block.digest in one for one in done)]


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
        raise _reason(error, board) from error


def _reason(error: BaseException, board: Any) -> BlendError:
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
