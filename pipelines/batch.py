"""The bulk path: stages over Ray Data, a pool of actors for each model, rows streaming through all of them at once.

Rows travel as Arrow tables of plain columns; only inside an actor do they become records. Stages catch what goes
wrong with a row, so a task fails only when its actor does, and then Ray runs it again.
"""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.exceptions import RayError
from ray.util.annotations import RayDeprecationWarning

from actors.errors import BlendError, one_line
from actors.records import Blend
from actors.stages import Fuse, Generate, Rank, TakeBest
from actors.tables import to_blends, with_blends
from cluster.plan import Placement, Plan
from cluster.session import session, without_ray_output
from configs.schema import Fuser, Judge, PairRanker, RayCluster, RewardModel
from pipelines.progress import READ, shown, start_board

RETRIES = 3  # of a batch whose actor died; what a row does to a model is caught inside


class StageError(BlendError):
    """A stage gave back another number of rows than it got: a bug, and never to be written."""


class OnTables:
    """A stage as Ray Data calls it: a table in, the table with the stage's columns out."""

    def __init__(self, stage: type, settings: Sequence[Any], name: str, board: Any) -> None:
        self._name, self._board = name, board
        # Ray doesn't hide GPUs from an actor that has none, and `device: auto` would take one.
        if not ray.get_gpu_ids():
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        try:
            self._stage = stage(*settings)
        except BlendError as error:
            self._tell(error)
            raise

    def __call__(self, table: pa.Table) -> pa.Table:
        return self._out(table, self._stage(to_blends(table)))

    def _tell(self, error: BlendError) -> None:
        """Let the driver know of an error: what a worker raises, Ray passes on as the text of a traceback."""
        ray.get(self._board.fail.remote(error))

    def _out(self, table: pa.Table, blends: Sequence[Blend]) -> pa.Table:
        if len(blends) != table.num_rows:
            error = StageError(f"{self._name} gave back {len(blends)} rows for {table.num_rows}")
            self._tell(error)
            raise error
        self._board.add.remote(self._name, len(blends))
        return with_blends(table, blends)


class OnTablesAsync(OnTables):
    """The same for a stage that waits: several batches are in flight, so an engine never idles between them."""

    async def __call__(self, table: pa.Table) -> pa.Table:
        blends = await self._stage(to_blends(table))
        try:
            await self._stage.check_health()
        except BlendError as error:
            # This process can't be mended. Ray starts another and gives it the batch again.
            print(f"{self._name}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        return self._out(table, blends)


@dataclass(frozen=True, slots=True)
class Step:
    """One stage of a bulk run: what runs, and the pool it runs in."""

    stage: type
    placement: Placement

    def apply(self, dataset: Dataset, board: Any) -> Dataset:
        """The dataset with this step's columns added."""
        least, most = self.placement.replicas
        settings = self.placement.settings
        waits = self.stage in (Generate, Rank)
        with warnings.catch_warnings():
            # a finite number of retries takes an argument that Ray 2.64 drops; the default is to retry for ever
            warnings.simplefilter("ignore", RayDeprecationWarning)
            return dataset.map_batches(
                OnTablesAsync if waits else OnTables,
                fn_constructor_args=(self.stage, (settings,), self.placement.name, board),
                batch_size=settings.batch_size,
                batch_format="pyarrow",
                compute=ActorPoolStrategy(
                    min_size=least, max_size=most, max_concurrent_calls_per_actor=2 if waits else 1
                ),
                udf_modifying_row_count=False,
                max_task_retries=RETRIES,
                **self.placement.ray_options(),
            )


def steps(plan: Plan) -> list[Step]:
    """The steps of a plan, in the order of its placements."""
    stages = {PairRanker: Rank, RewardModel: Rank, Judge: Rank, Fuser: Fuse}
    return [Step(stages.get(type(place.settings), Generate), place) for place in plan.placements]


def blended(dataset: Dataset, plan: Plan, board: Any, *, take_best: bool = False) -> Dataset:
    """The dataset after all steps of the plan; lazy, as Ray Data is.

    take_best: there is no fuser, the best candidate is the answer.
    """

    def count(table: pa.Table) -> pa.Table:
        board.add.remote(READ, table.num_rows)
        return table

    dataset = dataset.map_batches(count, batch_format="pyarrow", udf_modifying_row_count=False)
    for step in steps(plan):
        dataset = step.apply(dataset, board)
    if take_best:
        best = TakeBest()
        dataset = dataset.map_batches(
            lambda table: with_blends(table, best(to_blends(table))), batch_format="pyarrow"
        )
    return dataset


@contextmanager
def running(settings: RayCluster) -> Iterator[None]:
    """Ray and Ray Data set up for a run: rows keep their order, and errors are told by us alone."""
    debugging = "BLEND_DEBUG" in os.environ
    quiet = contextlib.nullcontext() if debugging else without_ray_output()
    with quiet, session(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"ray\.data")  # advice on tuning: few rows don't fill all replicas
        context = DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        for handler in logging.getLogger("ray.data").handlers:
            if not debugging and not isinstance(handler, logging.FileHandler):
                handler.setLevel(logging.CRITICAL + 1)
        yield


@contextmanager
def watched(plan: Plan) -> Iterator[Any]:
    """A board for the block, shown while it runs. What Ray raises becomes the one BlendError behind it."""
    board = start_board()
    try:
        with shown(board, [place.name for place in plan.placements]):
            yield board
    except Exception as error:
        if isinstance(error, BlendError) and not isinstance(error, RayError):
            raise
        raise _reason(
            error, board
        ) from error  # what a worker raised: Ray gives it both types, and a traceback as text


def _reason(error: BaseException, board: Any) -> BlendError:
    """The error a user can act on: of a model that didn't load, else what is at the bottom of Ray's wrappings."""
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
