"""The bulk path: waves of stages over Ray Data, a pool of actors for each model, blocks streaming through all.

A wave is one chain of actor pools. Every stage keeps its results of a block as soon as it has them
(`pipelines.worker`), so a wave, and a run that starts again, reads only the blocks that lack something.
"""

import contextlib
import functools
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.data._internal.execution.backpressure_policy import DownstreamCapacityBackpressurePolicy
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.exceptions import RayError

from actors.errors import BlendError, one_line
from cluster.session import session, without_ray_output
from configs.schema import RayCluster
from pipelines.board import Count, telling
from pipelines.flow import FLOWING, Step, Work, nested
from pipelines.store import Block, Index, Store
from pipelines.worker import LOAD_DEATHS, Worker, calls_at_once

_READ_AT_ONCE = 4
_AHEAD = 4.0  # how much may wait for a stage, to what it works on: beyond that the stage before it waits


class Blocks(Datasource):
    """Blocks of a run's rows with the results of earlier waves: one read task and one row each."""

    def __init__(
        self,
        store: Store,
        fingerprint: str,
        blocks: Sequence[Block],
        work: Work,
        earlier: Sequence[Step],
        board: Any,
    ) -> None:
        super().__init__()
        self._blocks = blocks
        self._load = functools.partial(_load, store, fingerprint, work, tuple(earlier), board)

    def get_name(self) -> str:
        """What Ray calls it."""
        return "Blocks"

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown, and not needed: the number of tasks is that of the blocks."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """One for each block."""
        about = BlockMetadata(num_rows=1, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(functools.partial(self._load, block), about) for block in self._blocks]


def _load(
    store: Store, fingerprint: str, work: Work, earlier: Sequence[Step], board: Any, block: Block
) -> list[pa.Table]:
    with telling(board):
        table = work.fresh(store.rows(fingerprint, block.file)).select(FLOWING)
        for step in earlier:
            result = store.result(step.key, block.digest)
            if result is None:
                raise BlendError(f"{store.root}: results of {step.name} were there, and are gone")
            table = work.joined(table, step, result.table)
        return [nested(block.digest, table)]


def run_wave(
    store: Store, index: Index, work: Work, wave: Sequence[Step], earlier: Sequence[Step], board: Any, largest: int
) -> None:
    """Bring every block through the steps of a wave. largest: rows of a block at most.

    Raises what Ray raises when a part of the run fails for good.
    """
    blocks = missing(store, index, wave)
    kept = sum(block.rows for block in index.blocks) - sum(block.rows for block in blocks)
    for step in wave:
        board.add.remote(step.name, Count(rows=kept, saved=kept))
    if not blocks:
        return
    dataset = ray.data.read_datasource(
        Blocks(store, index.fingerprint, blocks, work, earlier, board),
        override_num_blocks=len(blocks),
        concurrency=_READ_AT_ONCE,
        num_cpus=0,  # reading mostly waits, and mustn't wait for a CPU that models hold for good
    )
    mean = sum(block.rows for block in blocks) / len(blocks)
    for step in wave:
        dataset = _applied(dataset, step, work, store, board, mean, last=step is wave[-1])
    for _ in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        pass


def missing(store: Store, index: Index, wave: Sequence[Step]) -> list[Block]:
    """The blocks of which a step of the wave has no results, each content once."""
    done = [store.done(step.key) for step in wave]
    blocks = {block.digest: block for block in index.blocks}
    return [block for block in blocks.values() if not all(block.digest in one for one in done)]


def _applied(
    dataset: Dataset, step: Step, work: Work, store: Store, board: Any, rows: float, *, last: bool
) -> Dataset:
    return dataset.map_batches(
        Worker,
        fn_constructor_args=(step, work, store, board),
        fn_constructor_kwargs={"last": last},
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(
            size=step.placement.replicas, max_concurrent_calls_per_actor=calls_at_once(step, rows)
        ),
        udf_modifying_row_count=False,
        **step.placement.ray_options(),
    )  # Ray starts dead actors and their tasks again for ever: the worker sees to it that deaths come to an end


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
        # Small blocks that wait are in the driver's memory; Ray limits them only when half the object store is full
        context.downstream_capacity_backpressure_ratio = _AHEAD
        DownstreamCapacityBackpressurePolicy.OBJECT_STORE_BUDGET_UTIL_THRESHOLD = 0.0
        context.max_consecutive_actor_init_deaths = LOAD_DEATHS
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
