"""One actor of a stage: Ray Data calls it with the name of a block, and it saves the stage's result of that block.

Base LLMs that share an engine are the stages of one actor, which runs a block by all of them at the same time.

The stage catches what a row does to its model; `isolation` handles what a row does to the process.
"""

import asyncio
import functools
import os
import re
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import ray

from llm_blender_ray.actors.engines.call_meter import CallMeter, metering
from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.records import Blend
from llm_blender_ray.cluster.placement_groups import own_gpus
from llm_blender_ray.pipelines.bulk.checkpoints import CheckpointStore, Result
from llm_blender_ray.pipelines.bulk.isolation import Gate, Isolation
from llm_blender_ray.pipelines.bulk.reuse import Reuse
from llm_blender_ray.pipelines.bulk.row_stages import ROW_STAGES
from llm_blender_ray.pipelines.bulk.stages import STAGES, StageGraph, StageSpec
from llm_blender_ray.pipelines.bulk.tracker import Count, RemoteLedger, reporting_failure

MAX_LOAD_DEATHS = 3  # of one actor in a row, while it loads its model
# What an actor writes to its log (Ray's `worker-*.err`) of a block that it runs: results' folder, block, event.
EVENT = re.compile(r"^(?P<stage>\S+) (?P<block>[0-9a-f]{16}-[0-9a-f]{16}) (?P<what>begun|saved)$", re.MULTILINE)


class StageError(BlendError):
    """A stage returned another number of rows than it got: a bug, so the result is not saved."""


class Worker:
    """One actor of one pool: loads its model, skips blocks that are done, runs and saves the others."""

    def __init__(
        self,
        steps: Sequence[StageSpec],
        work: StageGraph,
        store: CheckpointStore,
        fingerprint: str,
        tracker: Any,
        elsewhere: Mapping[str, Sequence[str]] = {},
        meter: CallMeter | None = None,
    ) -> None:
        """Load the model.

        Args:
            steps: The stage, or those of the base LLMs that share an engine.
            work: All stages.
            store: Where rows and results are.
            fingerprint: Of the input.
            tracker: Handle of the run's `RunTracker`.
            elsewhere: By stage, names of results of blocks that an earlier input had and this one does not.
            meter: Reserves the calls of its endpoint in the run's budget.

        Raises:
            BlendError: The model cannot be used. The tracker has the error, too.
        """
        self._pool, self._tracker, self._actor = steps[0].actors, tracker, uuid.uuid4().hex[:8]
        with reporting_failure(tracker), metering(meter), own_gpus():
            stages = self._load(steps)
        gate = Gate()
        self._runners = [
            _Runner(step, stage, work, store, fingerprint, tracker, elsewhere.get(step.name, ()), self._actor, gate)
            for step, stage in zip(steps, stages, strict=True)
        ]
        for step in steps:
            tracker.loaded.remote(step.name)

    def _load(self, steps: Sequence[StageSpec]) -> list[Any]:
        loading = ("loading", ray.get_runtime_context().get_actor_id())  # the same after a restart
        died = ray.get(self._tracker.begin.remote(self._pool.name, loading, self._actor)).died
        if died >= MAX_LOAD_DEATHS:  # Ray restarts it without limit
            raise BlendError(
                f"{self._pool.name}: its process died {died} times while it loaded the model; most often the "
                "machine has too little memory for it (num_cpus, num_gpus and replicas set how many share one)"
            )
        engine = [self._pool.settings.load()] if steps[0].shared else []
        stages = [STAGES[step.kind](step.placement.settings, *engine) for step in steps]
        self._tracker.end.remote(self._pool.name, loading, survived=False)
        return stages

    async def __call__(self, row: pa.Table) -> pa.Table:
        """Run the stages on one block: its `file`, the `name` of its results, and the `steps` that must run."""
        with reporting_failure(self._tracker):
            (block,) = row.to_pylist()
            await asyncio.gather(*(one.run(block) for one in self._runners if one.name in block["steps"]))
            return row


class _Runner:
    """One stage in its actor: runs blocks, and saves their results."""

    def __init__(
        self,
        step: StageSpec,
        stage: Any,
        work: StageGraph,
        store: CheckpointStore,
        fingerprint: str,
        tracker: Any,
        elsewhere: Sequence[str],
        actor: str,
        gate: Gate,
    ) -> None:
        self.name = step.name
        self._step, self._stage, self._work, self._store, self._fingerprint = step, stage, work, store, fingerprint
        self._tracker, self._actor = tracker, actor
        self._reuse = Reuse(step, store, elsewhere, work.attempt)
        self._isolation = Isolation(step.name, actor, RemoteLedger(tracker), self._fail, gate)

    async def run(self, block: Mapping[str, Any]) -> None:
        """Run the stage on one block, and report what it did."""
        count = await self._through(block["file"], block["name"])
        self._tracker.add.remote(self.name, count)

    async def _through(self, file: str, block: str) -> Count:
        earlier = await asyncio.to_thread(self._store.result, self._step.key, block)
        if earlier is not None and earlier.account.get("attempt", 0) >= self._work.attempt:
            rows = len(earlier.table)  # of an actor that died before it reported them
            return Count(rows=rows, saved=rows, failed=earlier.account.get("failed", 0))
        self._log(block, "begun")
        table = await asyncio.to_thread(self._work.seen_by, self._step, self._store, self._fingerprint, file, block)
        result, made = await self._computed(block, table, earlier)
        await asyncio.to_thread(self._store.save_result, self._step.key, block, result)
        if (stage := ROW_STAGES.get(self._step.kind)) is not None and stage.journaled:
            await asyncio.to_thread(self._store.forget_replies, self._step.key, block)
        self._log(block, "saved")
        counted = {name: value for name, value in result.account.items() if name in Count.__slots__}
        return Count(**counted, saved=len(result.table) - made)

    async def _computed(self, block: str, table: pa.Table, earlier: Result | None) -> tuple[Result, int]:
        """The result of a block, and the number of its rows that were run for it."""
        started = time.time()
        pending = await asyncio.to_thread(self._reuse.pending, block, table, earlier)
        done = await self._isolation.run(block, pending.asked, functools.partial(self._run, known=pending.known))
        if len(done) != len(pending.asked):
            raise StageError(f"{self._step.name} returned {len(done)} rows for {len(pending.asked)}")
        session = {
            "attempt": self._work.attempt,
            "actor": self._actor,
            "started": started,
            "ended": time.time(),
        }
        result = await asyncio.to_thread(self._reuse.result, block, pending, done, session)
        return result, len(pending.asked)

    async def _run(self, blends: Sequence[Blend], known: Any) -> list[Blend]:
        done: list[Blend] = await (self._stage(blends, known) if known else self._stage(blends))
        try:
            await self._stage.check_health()
        except BlendError as error:
            # The process cannot be repaired. Ray starts another one and repeats the block there.
            print(f"{self._step.name}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        return done

    def _fail(self, blend: Blend) -> Blend:
        failed: Blend = self._stage.fail(blend, "the process died each time on this row")
        return failed

    def _log(self, block: str, what: str) -> None:
        print(f"{self._step.key} {block} {what}", file=sys.stderr, flush=True)
