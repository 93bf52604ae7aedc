"""Crash isolation: rows that kill their process get an error, and all others their result."""

import asyncio
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.pipelines.bulk.isolation import MAX_DEATHS, ROW_ATTEMPTS, Begun, Gate, Isolation, Ledger

Blocks = Sequence[Sequence[int]]


class LocalLedger:
    """A ledger of this process, which outlives the simulated ones."""

    def __init__(self) -> None:
        self._ledger = Ledger()

    async def begin(self, stage: str, work: Hashable, actor: str) -> Begun:
        return self._ledger.begin(stage, work, actor)

    async def end(self, stage: str, work: Hashable, result: Any = None, *, survived: bool = True) -> None:
        self._ledger.end(stage, work, result, survived=survived)


@dataclass
class Machine:
    """Runs blocks in one simulated process after another; rows in `killers` end the process that runs them.

    Attributes:
        saved: Results by block, which a process skips as a worker does.
        done: Rows in the order in which a process finished them.
        deaths: Processes that died.
    """

    killers: Collection[int]
    saved: dict[int, list[int]] = field(default_factory=dict)
    done: list[int] = field(default_factory=list)
    deaths: int = 0
    _ledger: LocalLedger = field(default_factory=LocalLedger)

    def run(self, blocks: Blocks) -> None:
        while len(self.saved) < len(blocks):
            assert self.deaths < 100, "the deaths do not end"
            asyncio.run(self._process(blocks))

    async def _process(self, blocks: Blocks) -> None:
        dead = asyncio.Event()
        isolation = Isolation[int]("stage", f"actor {self.deaths}", self._ledger, lambda row: -row)

        async def work(rows: Sequence[int]) -> list[int]:
            await asyncio.sleep(0)  # all blocks are at work before one of them kills
            if {*rows} & {*self.killers}:
                dead.set()
            if dead.is_set():
                await asyncio.Event().wait()  # nothing returns from a dead process
            self.done.extend(rows)
            return list(rows)

        async def block(at: int) -> None:
            self.saved[at] = await isolation.run(str(at), blocks[at], work)

        tasks = [asyncio.create_task(block(at)) for at in range(len(blocks)) if at not in self.saved]
        death = asyncio.create_task(dead.wait())
        ended = asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.wait([death, ended], return_when=asyncio.FIRST_COMPLETED)
        self.deaths += dead.is_set()
        death.cancel()
        for task in tasks:
            task.cancel()
        for error in await ended:
            if isinstance(error, Exception):
                raise error


@st.composite
def blocks_with_killers(draw: st.DrawFn) -> tuple[Blocks, set[int]]:
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    blocks = [list(range(end - size + 1, end + 1)) for size, end in zip(sizes, ends, strict=True)]
    return blocks, draw(st.sets(st.integers(1, ends[-1]), max_size=3))


@given(blocks_with_killers())
def test_rows_that_kill_fail_and_all_others_are_done(case: tuple[Blocks, set[int]]) -> None:
    blocks, killers = case
    machine = Machine(killers)
    machine.run(blocks)
    assert machine.saved == {
        at: [-row if row in killers else row for row in rows] for at, rows in enumerate(blocks)
    }
    assert {*machine.done} == {row for rows in blocks for row in rows} - killers
    # of each row: with all blocks at work, with its block, in a group of it, and ROW_ATTEMPTS by itself
    assert machine.deaths <= len(killers) * (3 + ROW_ATTEMPTS)


def test_groups_that_are_done_are_not_done_again() -> None:
    machine = Machine({64})
    machine.run([list(range(1, 65))])
    assert sorted(machine.done) == list(range(1, 64))


def test_a_block_beside_one_that_kills_is_done_in_one_piece() -> None:
    machine = Machine({2})
    machine.run([[1, 2], [3, 4, 5]])
    assert machine.done == [1, 3, 4, 5]


def test_empty_blocks_need_no_process() -> None:
    machine = Machine(())
    machine.run([[]])
    assert (machine.saved, machine.deaths) == ({0: []}, 0)


@pytest.mark.parametrize("size", [1, 200])
def test_a_process_that_dies_whatever_it_does_ends_the_run(size: int) -> None:
    machine = Machine(range(1, size * 20))
    blocks = [list(range(size * at + 1, size * (at + 1) + 1)) for at in range(19)]
    with pytest.raises(BlendError, match=r"^stage: its process died \d+ times and finished nothing in between$"):
        machine.run(blocks)
    assert machine.deaths == MAX_DEATHS + 1


def test_stages_of_one_process_are_alone_together() -> None:
    """A block on which a process died runs while no other stage does, which could be to blame as well."""

    async def scene() -> list[str]:
        ledger, gate, events, leave = LocalLedger(), Gate(), [], asyncio.Event()
        await ledger.begin("one", "0", "dead")

        async def first(rows: Sequence[int]) -> list[int]:
            events.append("one")
            return list(rows)

        async def second(rows: Sequence[int]) -> list[int]:
            events.append("two begins")
            await leave.wait()
            events.append("two ends")
            return list(rows)

        one, two = (Isolation[int](name, "alive", ledger, lambda row: -row, gate) for name in ("one", "two"))
        running = asyncio.create_task(two.run("0", [1], second))
        while not events:
            await asyncio.sleep(0)
        waiting = asyncio.create_task(one.run("0", [1], first))
        for _ in range(10):
            await asyncio.sleep(0)
        leave.set()
        await asyncio.gather(running, waiting)
        return events

    assert asyncio.run(scene()) == ["two begins", "two ends", "one"]


class TestLedger:
    def test_an_actor_dies_once_whatever_it_had_begun(self) -> None:
        ledger = Ledger()
        assert [ledger.begin("stage", work, "one") for work in range(50)] == [Begun()] * 50
        assert [ledger.begin("stage", work, "two") for work in range(50)] == [Begun(died=1, deaths=1)] * 50
        assert ledger.begin("stage", 0, "three") == Begun(died=2, deaths=2)

    def test_stages_are_apart(self) -> None:
        ledger = Ledger()
        ledger.begin("one", "a", "x")
        ledger.end("one", "b", "result")
        assert ledger.begin("two", "a", "y") == ledger.begin("two", "b", "y") == Begun()
        assert ledger.begin("one", "b", "y") == Begun(result="result")

    def test_ended_work_is_forgotten(self) -> None:
        ledger = Ledger()
        ledger.begin("stage", "a", "one")
        ledger.end("stage", "a")
        assert ledger.begin("stage", "a", "two") == Begun()

    def test_deaths_in_a_row_end_with_survived_work_and_not_with_given_up_rows(self) -> None:
        ledger = Ledger()
        assert [ledger.begin("stage", "a", actor).deaths for actor in "xyz"] == [0, 1, 2]
        ledger.end("stage", "b", survived=False)
        assert ledger.begin("stage", "a", "w").deaths == 3
        ledger.end("stage", "b")
        assert ledger.begin("stage", "c", "w").deaths == 0


class TestGate:
    def test_shared_is_together_and_alone_is_alone(self) -> None:
        """One that wants to be alone waits for those inside, and goes before those that come later."""

        async def scene() -> list[str]:
            gate, events = Gate(), []
            leave = asyncio.Event()

            async def stay(name: str, way: Any, until: asyncio.Event | None = None) -> None:
                async with way():
                    events.append(f"{name} in")
                    if until:
                        await until.wait()
                events.append(f"{name} out")

            first = [asyncio.create_task(stay(name, gate.shared, leave)) for name in "ab"]
            while len(events) < 2:
                await asyncio.sleep(0)
            alone = asyncio.create_task(stay("alone", gate.alone))
            await asyncio.sleep(0)
            late = asyncio.create_task(stay("late", gate.shared))
            await asyncio.sleep(0)
            leave.set()
            await asyncio.gather(*first, alone, late)
            return events

        events = asyncio.run(scene())
        assert events[:2] == ["a in", "b in"]
        assert events.index("alone in") > max(events.index("a out"), events.index("b out"))
        assert events.index("late in") > events.index("alone in")
        assert set(events[-2:]) <= {"alone out", "late in", "late out"}

    def test_one_that_gives_up_waiting_is_forgotten(self) -> None:
        async def scene() -> None:
            gate = Gate()

            async def alone() -> None:
                async with gate.alone():
                    raise AssertionError("it was cancelled before")

            async with gate.shared():
                waiting = asyncio.create_task(alone())
                await asyncio.sleep(0)
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
            async with gate.shared(), gate.shared():
                pass

        asyncio.run(asyncio.wait_for(scene(), 60))
