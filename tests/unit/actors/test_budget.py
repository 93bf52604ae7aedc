"""A budget's ledger: nothing is overspent, whatever is asked at once and whenever its process dies."""

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from virtual_time import run

from llm_blender_ray.actors.budget import Balances, BudgetLedger, BudgetReservation
from llm_blender_ray.actors.errors import BlendError

LONG = 1000.0  # seconds; no reservation of these tests ends by time


@dataclass
class Disk:
    """What survives a kill: the balances that were written before it."""

    balances: Balances = field(default_factory=dict)
    writes: int = 0
    dead: bool = False

    def save(self, balances: Balances) -> None:
        if not self.dead:
            self.balances = dict(balances)
            self.writes += 1


def ledger(limit: int, disk: Disk, *, closes: bool = False) -> BudgetLedger:
    return BudgetLedger(limit, disk.balances, disk.save, closes=closes)


@dataclass(frozen=True)
class Call:
    bound: int
    cost: int  # at most the bound


calls = st.integers(1, 50).flatmap(lambda bound: st.builds(Call, st.just(bound), st.integers(0, bound)))


@settings(max_examples=3, deadline=None, phases=(Phase.generate,))  # shrinking would take minutes
@given(
    sessions=st.lists(st.lists(calls, min_size=1, max_size=20), min_size=20, max_size=20),
    kills=st.lists(st.integers(1, 500), min_size=20, max_size=20),
    limit=st.integers(0, 200_000),
)
def test_nothing_is_overspent_by_10000_reservations_and_20_kills(
    sessions: list[list[Call]], kills: list[int], limit: int
) -> None:
    """Each session makes 500 calls at once, and is killed after some of them."""
    disk, spent = Disk(), 0

    async def session(made: list[Call], calls_until_killed: int) -> None:
        book, killed = ledger(limit, disk), asyncio.Event()

        async def call(one: Call) -> None:
            nonlocal spent, calls_until_killed
            reservation = await book.reserve("run", one.bound, LONG)
            if reservation is None or killed.is_set():
                return
            spent += one.cost  # the service bills it, whatever happens here then
            assert spent <= limit
            calls_until_killed -= 1
            if calls_until_killed:
                await book.settle(reservation, one.cost)
            else:
                disk.dead = True
                killed.set()

        tasks = [asyncio.create_task(call(made[i % len(made)])) for i in range(500)]
        all_made = asyncio.gather(*tasks)
        await asyncio.wait([all_made, asyncio.create_task(killed.wait())], return_when=asyncio.FIRST_COMPLETED)
        if not killed.is_set():
            all_made.result()
        disk.dead = True
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    for made, calls_until_killed in zip(sessions, kills, strict=True):
        disk.dead = False
        asyncio.run(session(made, calls_until_killed))
        assert spent <= disk.balances.get("run", 0) <= limit


SPENDER = """
import asyncio, json, os, sys
from pathlib import Path
from llm_blender_ray.actors.budget import BudgetLedger

file, limit = Path(sys.argv[1]), int(sys.argv[2])

def save(balances):
    file.with_suffix(".new").write_text(json.dumps(balances))
    file.with_suffix(".new").replace(file)

async def main():
    book = BudgetLedger(limit, json.loads(file.read_text()) if file.exists() else {}, save)
    async def call(cost):
        while reservation := await book.reserve("run", 50, 1000):
            os.write(1, f"{cost}\\n".encode())  # the service has billed it
            await book.settle(reservation, cost)
    await asyncio.gather(*(call(cost) for cost in range(1, 51)))

asyncio.run(main())
"""


def test_nothing_is_overspent_when_processes_are_killed(tmp_path: Path) -> None:
    """SIGKILL after up to 400 billed calls, 20 times, and then to the end."""
    limit, billed = 300_000, 0
    command = [sys.executable, "-c", SPENDER, str(tmp_path / "balances.json"), str(limit)]
    for lines in [*range(10, 410, 20), None]:
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ, text=True) as process:
            assert process.stdout is not None
            for number, line in enumerate(process.stdout, 1):
                billed += int(line)
                if number == lines:
                    process.kill()  # what the pipe still holds was billed, too
        assert billed <= json.loads((tmp_path / "balances.json").read_text())["run"] <= limit
    assert process.returncode == 0
    assert (
        billed >= 0.7 * limit
    )  # a kill costs the bounds of at most 50 open calls and of the settlements not written


def test_a_reservation_waits_for_open_calls_that_may_settle_to_less() -> None:
    async def main() -> None:
        book = ledger(100, Disk())
        first = await book.reserve("run", 80, LONG)
        assert first is not None
        second = asyncio.create_task(book.reserve("run", 60, LONG))
        third = asyncio.create_task(book.reserve("run", 10, LONG))  # would fit, but is not first
        await asyncio.sleep(0)
        assert not second.done() and not third.done()
        await book.settle(first, 20)
        assert await second is not None
        assert await third is not None
        assert await book.balances() == {"run": 90}

    asyncio.run(main())


def test_a_reservation_is_refused_when_no_open_call_can_make_room() -> None:
    async def main(closes: bool) -> list[bool]:
        book = ledger(100, Disk(), closes=closes)
        first = await book.reserve("run", 80, LONG)
        assert first is not None
        await book.settle(first, 70)
        return [await book.reserve("run", amount, LONG) is not None for amount in (31, 30)]

    assert asyncio.run(main(closes=False)) == [False, True]
    assert asyncio.run(main(closes=True)) == [False, False]


def test_a_call_that_is_never_settled_costs_its_bound_and_blocks_nobody() -> None:
    async def main() -> None:
        book = ledger(100, Disk())
        lost = await book.reserve("run", 80, 0.0)
        assert lost is not None
        assert await book.reserve("run", 30, LONG) is None  # once the lost one has ended
        assert await book.balances() == {"run": 80}
        await book.settle(lost, 10)  # known after all
        assert await book.reserve("run", 90, LONG) is not None

    asyncio.run(main())


def test_one_that_gives_up_waiting_leaves_its_room_to_the_next() -> None:
    async def main() -> None:
        book = ledger(100, Disk())
        assert await book.reserve("run", 60, LONG)
        impatient = asyncio.create_task(book.reserve("run", 50, LONG))
        patient = asyncio.create_task(book.reserve("run", 40, LONG))
        await asyncio.sleep(0)
        impatient.cancel()
        await asyncio.gather(impatient, return_exceptions=True)
        assert await book.settle(BudgetReservation("run", 0, "none"), 0) is None
        assert await patient is not None
        assert await book.balances() == {"run": 100}

    asyncio.run(main())


def test_accounts_have_limits_of_their_own_and_a_write_serves_all_that_wait_for_it() -> None:
    async def main() -> None:
        disk = Disk()
        book = ledger(10, disk)
        granted = await asyncio.gather(*(book.reserve(f"key {i % 100}", 1, LONG) for i in range(1000)))
        assert None not in granted
        assert disk.balances == {f"key {i}": 10 for i in range(100)}
        assert disk.writes < 10

    asyncio.run(main())


def test_a_call_is_not_made_when_its_reservation_can_not_be_written() -> None:
    def full(balances: Balances) -> None:
        raise BlendError("disk full")

    async def main() -> None:
        book = BudgetLedger(100, {}, full)
        found = await asyncio.gather(*(book.reserve("run", 60, LONG) for _ in range(2)), return_exceptions=True)
        assert [str(one) for one in found] == ["disk full", "disk full"]

    asyncio.run(main())


def test_accounts_that_need_not_survive_are_dropped_after_their_last_call() -> None:
    """A service has one for every request; until then each knows what it has spent."""

    async def main() -> None:
        book = BudgetLedger(10, {}, None)
        one = await book.reserve("request", 6, 100.0)
        two = await book.reserve("request", 4, 200.0)
        assert one and two
        await book.settle(one, 6)
        await asyncio.sleep(150)
        assert await book.reserve("other", 11, 10.0) is None
        assert await book.balances() == {"request": 10}
        await asyncio.sleep(100)
        assert await book.balances() == {}

    run(main())
