"""Budget of a bulk run: one ledger for all its actors, whose balance is in the work folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from llm_blender_ray.actors.budget import BudgetLedger, BudgetReservation
from llm_blender_ray.actors.engines.call_meter import CallMeter
from llm_blender_ray.actors.prices import NANO, TokenPrice, nano_usd
from llm_blender_ray.pipelines.bulk.checkpoints import CheckpointStore
from llm_blender_ray.pipelines.bulk.manifest import BudgetRecord
from llm_blender_ray.pipelines.bulk.tracker import on_this_node

ACCOUNT = "run"
MAX_WAITING = 100_000  # calls that wait in the ledger at once


@dataclass(frozen=True, slots=True)
class RunBudget:
    """The ledger of a run, in its actor: a `Budget`."""

    ledger: Any
    usd: float

    async def reserve(self, account: str, amount: int, seconds: float) -> BudgetReservation | None:
        """See `BudgetLedger`."""
        reservation: BudgetReservation | None = await self.ledger.reserve.remote(account, amount, seconds)
        return reservation

    async def settle(self, reservation: BudgetReservation, amount: int) -> None:
        """See `BudgetLedger`."""
        await self.ledger.settle.remote(reservation, amount)

    def meter(self, price: TokenPrice | None) -> CallMeter | None:
        """Meter of a part with this price; None: it asks no endpoint."""
        return None if price is None else CallMeter(self, ACCOUNT, price)

    def record(self) -> BudgetRecord:
        """What was spent, for the manifest."""
        balances = ray.get(self.ledger.balances.remote())
        return BudgetRecord(usd_per_run=self.usd, spent_usd=balances.get(ACCOUNT, 0) / NANO)


@contextmanager
def run_budget(usd: float | None, store: CheckpointStore) -> Iterator[RunBudget | None]:
    """Budget of a run for the block, with what its earlier sessions have spent; None where it has no limit.

    Raises:
        BlendError: The record of what was spent is damaged.
    """
    if usd is None:
        yield None
        return
    ledger = (
        ray.remote(BudgetLedger)
        .options(num_cpus=0, max_concurrency=MAX_WAITING, scheduling_strategy=on_this_node())
        .remote(nano_usd(usd), store.balances(), store.save_balances, closes=True)
    )
    try:
        yield RunBudget(ledger, usd)
    finally:
        if ray.is_initialized():
            ray.kill(ledger)
