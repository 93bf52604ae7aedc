"""A stage as Ray Data calls it: the name of a block comes in, and what the stage makes of it goes into the store.

What a row does to a model is caught in the stage. What is left is a process that dies, and that is told from the
board: work that was begun and never ended. Ray runs it again; the second time nothing else runs beside it, and if
it still dies, rows are tried in ever smaller groups, until those that kill the process stand alone and get an
error.
"""

import asyncio
import contextlib
import os
import re
import sys
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import ray

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.records import Blend
from llm_blender_ray.actors.tables import to_blends
from llm_blender_ray.cluster.session import keep_to_own_gpus
from llm_blender_ray.configs.schema import BaseLLM
from llm_blender_ray.pipelines.bulk.accounts import account_of
from llm_blender_ray.pipelines.bulk.checkpoints import Result, Store
from llm_blender_ray.pipelines.bulk.results import (
    ANSWERS,
    FAILED,
    ROWS,
    again,
    borrowed,
    columns_of,
    finished,
    known_scores,
    merged,
    row_mark,
    to_ask,
    with_earlier,
)
from llm_blender_ray.pipelines.bulk.stages import STAGES, Step, Work
from llm_blender_ray.pipelines.bulk.tracker import Count, telling

SPLIT = 16  # groups that rows are tried in after a death
ROW_ATTEMPTS = 2  # of one row by itself
DEATHS = 12  # of a stage's actors in a row: that isn't the rows. Four rows side by side that each kill make 11.
LOAD_DEATHS = 3  # of one actor in a row, while it loads its model
# What an actor writes to its log (Ray's `worker-*.err`) of a block that it computes: results' folder, block, what.
EVENT = re.compile(r"^(?P<stage>\S+) (?P<block>[0-9a-f]{16}-[0-9a-f]{16}) (?P<what>begun|saved)$", re.MULTILINE)
# Rows that an LLM's actor has, to each that its engine works on at once: a long answer holds up its block, and
# until it is done the engine lives on the other blocks.
_IN_FLIGHT = 8

Known = Mapping[bytes, float]


class StageError(BlendError):
    """A stage gave back another number of rows than it got: a bug, and never to be written."""


def calls_at_once(step: Step, rows_per_block: float) -> int:
    """Blocks of so many rows, in the mean, that one actor of a step works on at once."""
    llm = step.placement.settings
    if not isinstance(llm, BaseLLM):
        return 2  # the next one is there when one is done
    return max(2, min(64, round(_IN_FLIGHT * llm.width / llm.samples / rows_per_block)))


class Worker:
    """One actor of one stage."""

    def __init__(
        self, step: Step, work: Work, store: Store, fingerprint: str, board: Any, elsewhere: Sequence[str] = ()
    ) -> None:
        """Load the model.

        Args:
            step: The stage.
            work: All stages.
            store: Where rows and results are.
            fingerprint: Of the input.
            board: What the driver shows.
            elsewhere: Results of blocks that an earlier input had and this one hasn't.

        Raises:
            BlendError: The model can't be used; the board has it too.
        """
        self._elsewhere = elsewhere
        self._marks: dict[str, str] | None = None  # where the results of their rows are
        self._step, self._work, self._store, self._fingerprint, self._board = step, work, store, fingerprint, board
        self._actor = uuid.uuid4().hex[:8]
        keep_to_own_gpus()
        loading = ("loading", ray.get_runtime_context().get_actor_id())  # which a restart leaves as it is
        died = ray.get(board.begin.remote(step.name, loading, self._actor))
        with telling(board):
            if died >= LOAD_DEATHS:  # Ray would go on for ever
                raise BlendError(
                    f"{step.name}: its process died {died} times while it loaded the model; most often the machine "
                    "hasn't enough memory for it (num_cpus, num_gpus and replicas say how many share one)"
                )
            self._stage = STAGES[step.kind](step.placement.settings)
        board.end.remote(step.name, loading, survived=False)
        self._gate = Gate()
        board.loaded.remote(step.name)

    async def __call__(self, row: pa.Table) -> pa.Table:
        """One block: its `file`, the `name` of its results, and the `steps` that have to make it."""
        with telling(self._board):
            (block,) = row.to_pylist()
            if self._step.name in block["steps"]:
                await self._through(block["file"], block["name"])
            return row

    async def _through(self, file: str, block: str) -> None:
        had = await asyncio.to_thread(self._store.result, self._step.key, block)
        if had is not None and had.account.get("attempt", 0) >= self._work.attempt:
            count = Count(rows=len(had.table), saved=len(had.table))  # by an actor that died before it said so
        else:
            self._log(block, "begun")
            table = await asyncio.to_thread(
                self._work.seen_by, self._step, self._store, self._fingerprint, file, block
            )
            result = await self._made(block, table, had)
            await asyncio.to_thread(self._store.save_result, self._step.key, block, result)
            self._log(block, "saved")
            count = Count(**{name: value for name, value in result.account.items() if name in Count.__slots__})
        self._board.add.remote(self._step.name, count)

    async def _made(self, block: str, table: pa.Table, had: Result | None) -> Result:
        """The results of a block; where there are older ones, only rows that failed or have changed are made."""
        started, kind = time.time(), self._step.kind
        before = await asyncio.to_thread(to_blends, table)
        old = had.table if had is not None and len(had.table) == len(before) else None
        if had is None and self._elsewhere:
            old = await asyncio.to_thread(self._borrowed, before)
        rows = list(range(len(before))) if old is None else again(kind, before, old, retry=True)
        asked = before if old is None else to_ask(kind, self._step.name, before, old)
        asked = [asked[row] for row in rows]
        after = await self._survived(block, asked, await asyncio.to_thread(self._known, block, before, old))
        if len(after) != len(asked):
            raise StageError(f"{self._step.name} gave back {len(after)} rows for {len(asked)}")
        made = columns_of(kind, asked, after)
        if old is not None:
            made = merged(kind, rows, old, made)
        elif self._step.previous and (earlier := await asyncio.to_thread(self._earlier, block)):
            made = with_earlier(kind, after, made, earlier.table)
        failed = made.column(FAILED).to_pylist() if kind != "generate" else ()
        account = account_of(kind, before, finished(before, kind, made), failed)
        account |= {"attempt": self._work.attempt, "actor": self._actor, "started": started, "ended": time.time()}
        if kind == "rank":
            account["scorer"] = self._step.scorer
        if had is not None:
            account |= _so_far(had.account, len(rows))
        return Result(made, account)

    def _borrowed(self, before: Sequence[Blend]) -> pa.Table | None:
        """What the stage made of these rows in blocks of an earlier input."""
        if self._marks is None:
            marks: dict[str, str] = {}
            for name in self._elsewhere:
                result = self._store.result(self._step.key, name)
                if result is not None and ROWS in result.table.column_names:
                    marks |= dict.fromkeys(result.table.column(ROWS).to_pylist(), name)
            self._marks = marks
        names = {self._marks.get(row_mark(self._step.kind, blend)) for blend in before} - {None}
        found = [self._store.result(self._step.key, name) for name in sorted(name for name in names if name)]
        return borrowed(self._step.kind, before, [result.table for result in found if result])

    def _earlier(self, block: str) -> Result | None:
        """What the stage made of the block before the config was changed."""
        return self._store.result(self._step.previous, block) if self._step.previous else None

    async def _survived(self, block: str, blends: list[Blend], known: Known) -> list[Blend]:
        """The stage's blends of a block, whatever that does to this process."""
        if not blends:
            return []
        if await self._begin(block) == 0:
            async with self._gate.shared():
                done = await self._run(blends, known)
            await self._end(block)
        else:
            async with self._gate.alone():
                done = await self._group(block, blends, known, 0, len(blends))
            await self._end(block, survived=False)  # its groups have told what they survived
        return done

    async def _group(self, block: str, blends: list[Blend], known: Known, low: int, high: int) -> list[Blend]:
        """The rows from `low` to `high`, with nothing beside them."""
        work = (block, low, high)
        if kept := await self._board.kept.remote(self._step.name, work):
            return kept
        died = await self._begin(work)
        if died < (ROW_ATTEMPTS if high - low == 1 else 1):
            done = await self._run(blends[low:high], known)
            await self._end(work, done)
            return done
        if high - low == 1:
            return [self._stage.fail(blends[low], "the process died each time on this row")]
        size = -(-(high - low) // SPLIT)
        done = []
        for start in range(low, high, size):
            done += await self._group(block, blends, known, start, min(start + size, high))
        return done

    async def _run(self, blends: Sequence[Blend], known: Known) -> list[Blend]:
        done = await (self._stage(blends, known) if known else self._stage(blends))
        try:
            await self._stage.check_health()
        except BlendError as error:
            # This process can't be mended. Ray starts another and gives it the block again.
            print(f"{self._step.name}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        return done

    def _known(self, block: str, blends: Sequence[Blend], old: pa.Table | None) -> Known:
        """The scores that this ranker has given, to these candidates or to others of the same rows."""
        if self._step.kind != "rank":
            return {}
        found = [self._store.result(key, block) for key in self._step.older]
        tables = [one.table for one in found if one and one.account.get("scorer") == self._step.scorer]
        if old is not None:
            tables.append(old)
        return known_scores(
            blends, [table for table in tables if len(table) == len(blends) and ANSWERS in table.column_names]
        )

    async def _begin(self, work: Any) -> int:
        died = await self._board.begin.remote(self._step.name, work, self._actor)
        if died and (deaths := await self._board.deaths.remote(self._step.name)) > DEATHS:
            raise BlendError(f"{self._step.name}: its process died {deaths} times and finished nothing in between")
        return died

    async def _end(self, work: Any, result: Any = None, *, survived: bool = True) -> None:
        await self._board.end.remote(self._step.name, work, result, survived=survived)

    def _log(self, block: str, what: str) -> None:
        print(f"{self._step.key} {block} {what}", file=sys.stderr, flush=True)


def _so_far(account: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """What attempts before this one have cost, which asks so many rows again."""
    own = [account[name] for name in ("actor", "started", "ended")]
    return {"earlier": [*account.get("earlier", ()), own], "again": account.get("again", 0) + rows}


class Gate:
    """Many at once, or one alone: what runs beside a piece of work can't be what killed it."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._inside = 0
        self._waiting_alone = 0

    @contextlib.asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        """Together with others; those who want to be alone go first."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._inside >= 0 and not self._waiting_alone)
            self._inside += 1
        try:
            yield
        finally:
            await self._leave(-1)

    @contextlib.asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """With nobody else inside."""
        async with self._changed:
            self._waiting_alone += 1
            try:
                await self._changed.wait_for(lambda: self._inside == 0)
            finally:
                self._waiting_alone -= 1
                self._changed.notify_all()
            self._inside = -1
        try:
            yield
        finally:
            await self._leave(1)

    async def _leave(self, change: int) -> None:
        async with self._changed:
            self._inside += change
            self._changed.notify_all()
