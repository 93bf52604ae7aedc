"""The pool as pure asyncio, in virtual time: who gets which matchups, and what a broken replica costs."""

import asyncio
import math
import random
from collections import Counter
from collections.abc import Coroutine, Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from virtual_time import run

from llm_blender_ray.actors.pool import ALONE_AFTER, RETRIES, NoReplicaError, Pool, PoolError, even_shares
from llm_blender_ray.actors.records import Matchup, Prompt
from llm_blender_ray.actors.scorers import Score, Traits

PAIRWISE = Traits(pointwise=False)


def value(matchup: Matchup) -> float:
    return len(matchup.left) - len(matchup.right) + 0.25


class SimulatedReplica:
    """Takes a second per hundred characters of answers, one call at a time."""

    def __init__(self, *, broken_calls: int = 0, poison: str = "", comes_back: bool = True) -> None:
        self.calls: list[list[Matchup]] = []
        self.broken_calls, self.poison, self.comes_back = broken_calls, poison, comes_back
        self.busy = False

    async def score(self, matchups: Sequence[Matchup]) -> list[Score]:
        assert not self.busy
        self.busy = True
        self.calls.append(list(matchups))
        try:
            await asyncio.sleep(sum(len(m.left) + len(m.right) for m in matchups) / 100)
            if len(self.calls) <= self.broken_calls or (
                self.poison and any(m.left == self.poison for m in matchups)
            ):
                raise ConnectionError("the replica is gone")
            return [value(matchup) for matchup in matchups]
        finally:
            self.busy = False

    async def ready(self) -> None:
        await asyncio.sleep(3)
        if not self.comes_back:
            raise RuntimeError("it never comes back")


def request(name: str, count: int, seed: int = 0) -> list[Matchup]:
    """All ordered pairs of `count` answers of realistic lengths."""
    rng = random.Random(seed)
    texts = [name * int(rng.lognormvariate(6, 0.5)) for _ in range(count)]
    return [Matchup(Prompt("", name), a, b) for i, a in enumerate(texts) for j, b in enumerate(texts) if i != j]


async def timed(work: Coroutine[Any, Any, Any]) -> tuple[Any, float]:
    start = asyncio.get_running_loop().time()
    result = await work
    return result, asyncio.get_running_loop().time() - start


@pytest.mark.parametrize("count", [2, 4, 8, 16, 32, 64])
def test_one_request_is_spread_over_all_replicas(count: int) -> None:
    matchups = request("x", 11)

    async def latency(replicas: int) -> float:
        scores, seconds = await timed(Pool([SimulatedReplica() for _ in range(replicas)], PAIRWISE).score(matchups))
        assert scores == [value(matchup) for matchup in matchups]
        return seconds

    assert run(latency(1)) / run(latency(count)) >= 0.8 * count


def test_requests_of_one_moment_share_calls() -> None:
    replica = SimulatedReplica()
    requests = [request(name, 3) for name in "abcd"]

    async def work() -> list:
        pool = Pool([replica], PAIRWISE)
        return await asyncio.gather(*(pool.score(matchups) for matchups in requests))

    assert run(work()) == [[value(m) for m in matchups] for matchups in requests]
    assert len(replica.calls) == 1


def test_a_small_request_does_not_wait_for_all_of_a_large_one() -> None:
    large, small = request("x", 40), request("y", 2)

    async def work() -> tuple[float, float]:
        pool = Pool([SimulatedReplica(), SimulatedReplica()], PAIRWISE, share_characters=20_000)
        first = asyncio.ensure_future(timed(pool.score(large)))
        await asyncio.sleep(1)
        _, waited = await timed(pool.score(small))
        return waited, (await first)[1]

    waited, whole = run(work())
    assert waited < whole


def test_a_call_is_no_larger_than_a_share() -> None:
    replicas = [SimulatedReplica() for _ in range(3)]
    matchups = request("x", 20)
    run(Pool(replicas, PAIRWISE, share_characters=30_000).score(matchups))
    calls = [call for replica in replicas for call in replica.calls]
    longest = max(len(m.left) + len(m.right) for m in matchups) + 32
    assert all(sum(len(m.left) + len(m.right) for m in call) <= 30_000 + longest for call in calls)
    assert sum(map(len, calls)) == len(matchups)


def test_a_replicas_death_costs_its_share_a_retry() -> None:
    replicas = [SimulatedReplica(broken_calls=1), SimulatedReplica()]
    matchups = request("x", 6)
    assert run(Pool(replicas, PAIRWISE).score(matchups)) == [value(matchup) for matchup in matchups]
    lost = replicas[0].calls[0]
    made = [m for replica in replicas for call in replica.calls for m in call]
    assert len(made) == len(matchups) + len(lost)


def test_a_replica_that_never_comes_back_is_left_out() -> None:
    replicas = [SimulatedReplica(broken_calls=99, comes_back=False), SimulatedReplica()]
    matchups = request("x", 6)

    async def work() -> None:
        pool = Pool(replicas, PAIRWISE)
        for _ in range(3):
            assert await pool.score(matchups) == [value(matchup) for matchup in matchups]
        await pool.check_health()

    run(work())
    assert len(replicas[0].calls) == 1


def test_without_any_replica_left_a_request_fails_in_one_line() -> None:
    async def work() -> None:
        pool = Pool([SimulatedReplica(broken_calls=99, comes_back=False)], PAIRWISE)
        for _ in range(2):  # also a request that comes later
            with pytest.raises(PoolError, match="it never comes back") as caught:
                await pool.score(request("x", 3))
            assert "\n" not in str(caught.value)
        with pytest.raises(PoolError):
            await pool.check_health()

    run(work())


def test_what_kills_every_replica_takes_no_other_request_with_it() -> None:
    poison = [Matchup(Prompt(""), "poison", "y")]
    others = [request(name, 4, seed) for seed, name in enumerate("abc")]
    replicas = [SimulatedReplica(poison="poison") for _ in range(2)]

    async def work() -> list:
        pool = Pool(replicas, PAIRWISE)
        return await asyncio.gather(*map(pool.score, [*others, poison]), return_exceptions=True)

    *fine, bad = run(work())
    assert fine == [[value(m) for m in matchups] for matchups in others]
    assert isinstance(bad, PoolError)
    assert sum(poison[0] in call for replica in replicas for call in replica.calls) == RETRIES + 1


def test_a_cancelled_request_leaves_the_queue() -> None:
    replica = SimulatedReplica()
    large, small = request("x", 30), request("y", 2)

    async def work() -> None:
        pool = Pool([replica], PAIRWISE, share_characters=10_000)
        task = asyncio.ensure_future(pool.score(large))
        await asyncio.sleep(1)
        task.cancel()
        assert await pool.score(small) == [value(matchup) for matchup in small]

    run(work())
    assert sum(map(len, replica.calls)) < len(large) / 10


@pytest.mark.parametrize("after_s", [0, 1])
def test_work_that_nobody_waits_for_any_more_is_cancelled(after_s: float) -> None:
    """In the middle of a call, and before a call's first step: the replica is free at once in both cases."""
    replica = SimulatedReplica()
    large, small = request("x", 30), request("y", 2)

    async def work() -> float:
        pool = Pool([replica], PAIRWISE)
        task = asyncio.ensure_future(pool.score(large))
        while not pool._tasks:  # dispatched, in the step of the loop before its task's first
            await asyncio.sleep(0)
        if after_s:
            await asyncio.sleep(after_s)
        assert bool(replica.calls) == bool(after_s)
        task.cancel()
        scores, seconds = await timed(pool.score(small))
        assert scores == [value(matchup) for matchup in small]
        return seconds

    assert run(work()) == pytest.approx(sum(len(m.left) + len(m.right) for m in small) / 100)


def test_a_share_that_another_request_waits_for_goes_on() -> None:
    replica = SimulatedReplica()
    leaves, stays = request("x", 4), request("y", 4)

    async def work() -> None:
        pool = Pool([replica], PAIRWISE)
        tasks = [asyncio.ensure_future(pool.score(matchups)) for matchups in (leaves, stays)]
        await asyncio.sleep(1)
        tasks[0].cancel()
        assert await tasks[1] == [value(matchup) for matchup in stays]

    run(work())
    assert len(replica.calls) == 1


def test_replicas_come_and_go() -> None:
    matchups = request("x", 8)

    async def latency(pool: Pool) -> float:
        scores, seconds = await timed(pool.score(matchups))
        assert scores == [value(matchup) for matchup in matchups]
        return seconds

    async def work() -> None:
        first, second = SimulatedReplica(), SimulatedReplica()
        pool = Pool([first], PAIRWISE)
        alone = await latency(pool)
        pool.use([first, second])
        assert await latency(pool) < 0.6 * alone
        busy = asyncio.ensure_future(latency(pool))
        await asyncio.sleep(0.5)
        pool.use([second])  # the first one finishes its share
        pool.use([first, second])  # and gets no second one before that
        await busy
        pool.use([second])
        before = len(first.calls)
        assert await latency(pool) == pytest.approx(alone)
        assert len(first.calls) == before
        with pytest.raises(ValueError, match="at least one replica"):
            pool.use([])

    run(work())


def test_replicas_that_come_while_requests_wait_are_used_at_once() -> None:
    matchups = request("x", 12)

    async def work() -> tuple[float, float]:
        pool = Pool([SimulatedReplica()], PAIRWISE, share_characters=5_000)
        _, alone = await timed(pool.score(matchups))
        first = SimulatedReplica()
        pool = Pool([first], PAIRWISE, share_characters=5_000)
        task = asyncio.ensure_future(timed(pool.score(matchups)))
        await asyncio.sleep(1)
        pool.use([first, SimulatedReplica()])
        return alone, (await task)[1]

    alone, together = run(work())
    assert together < 0.6 * alone


def test_where_no_replica_can_be_reached_nothing_is_tried_again() -> None:
    class Unreachable(SimulatedReplica):
        async def score(self, matchups: Sequence[Matchup]) -> list[Score]:
            self.calls.append(list(matchups))
            if len(self.calls) == 1:
                raise NoReplicaError("it is not up")
            return [value(matchup) for matchup in matchups]

    replica = Unreachable()

    async def work() -> None:
        pool = Pool([replica], PAIRWISE)
        with pytest.raises(PoolError, match="it is not up"):
            await pool.score(request("x", 3))
        assert len(replica.calls) == 1
        await pool.score(request("x", 3))  # later it may be up

    run(work())


def test_closing_fails_what_is_open_and_what_comes_later() -> None:
    """What a replica works on, what waits for one that is broken, and what waits in the queue."""
    replicas = [SimulatedReplica(), SimulatedReplica(broken_calls=1)]

    async def work() -> None:
        pool = Pool(replicas, PAIRWISE, share_characters=2_000)
        calls = [asyncio.ensure_future(pool.score(request(name, 6))) for name in "abc"]
        while not (all(replica.calls for replica in replicas) and not replicas[1].busy):
            await asyncio.sleep(0.1)
        assert replicas[0].busy
        just_begun = asyncio.ensure_future(pool.score(request("d", 2)))
        await asyncio.sleep(0)
        await pool.close()
        for error in await asyncio.gather(*calls, just_begun, return_exceptions=True):
            assert isinstance(error, PoolError) and "closed" in str(error)
        assert not replicas[0].busy
        with pytest.raises(PoolError, match="closed"):
            await pool.score(request("e", 2))
        with pytest.raises(PoolError, match="closed"):
            await pool.check_health()

    run(work())


def test_an_idle_pool_closes() -> None:
    replica = SimulatedReplica()

    async def work() -> None:
        pool = Pool([replica], PAIRWISE)
        await pool.score(request("x", 2))
        await pool.close()

    run(work())


def test_a_small_request_is_not_always_overtaken_by_larger_ones() -> None:
    """Two replicas that are never idle together, and a larger matchup waits whenever one of them is."""

    def large(number: int) -> list[Matchup]:
        return [Matchup(Prompt("", str(number)), "x" * 100, "y" * 100)]

    async def work() -> float:
        pool = Pool([SimulatedReplica(), SimulatedReplica()], PAIRWISE)
        tasks = [asyncio.ensure_future(timed(pool.score(large(0))))]
        await asyncio.sleep(1)
        tasks.append(asyncio.ensure_future(timed(pool.score(large(1)))))
        await asyncio.sleep(0.5)
        tasks.append(asyncio.ensure_future(timed(pool.score([Matchup(Prompt(""), "x", "y")]))))
        for number in range(2, 20):
            tasks.append(asyncio.ensure_future(timed(pool.score(large(number)))))
            await asyncio.sleep(1)
        return (await asyncio.gather(*tasks))[2][1]

    assert run(work()) < 3


class Observed:
    """Does what is drawn, and records what a pool must not do: an assertion would only be a failure of the call."""

    def __init__(self, observed: "Observations") -> None:
        self.observed = observed
        self.busy = False

    async def score(self, matchups: Sequence[Matchup]) -> list[Score]:
        observed, now = self.observed, asyncio.get_running_loop().time()
        observed.check(not self.busy, "a replica has two calls at once")
        observed.check(
            all(now <= observed.ended.get(m.prompt.id, math.inf) for m in matchups),
            "an ended call's share begins",
        )
        observed.check(
            len(matchups) == 1 or all(observed.failures[m] < ALONE_AFTER for m in matchups),
            "a matchup that may kill replicas is scored together with others",
        )
        self.busy = True
        try:
            await asyncio.sleep(1 + sum(len(m.left) for m in matchups) / 10)
        finally:
            self.busy = False
        observed.check(
            any(m.prompt.id not in observed.ended for m in matchups),
            "a share goes on when all its calls have ended",
        )
        match observed.outcomes.pop() if observed.outcomes else "scores":
            case "fails":
                observed.failures.update(matchups)
                raise ConnectionError("the replica is gone")
            case "unreachable":
                raise NoReplicaError("it is not up")
        return [value(matchup) for matchup in matchups]

    async def ready(self) -> None:
        await asyncio.sleep(2)
        if not (self.observed.recoveries.pop() if self.observed.recoveries else True):
            raise RuntimeError("it never comes back")


class Observations:
    """What is drawn for all replicas, and what they have seen."""

    def __init__(self, outcomes: list[str], recoveries: list[bool]) -> None:
        self.outcomes, self.recoveries = [*outcomes], [*recoveries]
        self.failures: Counter[Matchup] = Counter()
        self.ended: dict[str, float] = {}  # when, by call
        self.wrong: set[str] = set()

    def check(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.wrong.add(otherwise)


SECONDS = st.integers(0, 20)
CALLS = st.tuples(SECONDS, st.integers(1, 6), st.integers(1, 40), st.none() | SECONDS)  # start, count, size, leaves
USES = st.tuples(SECONDS, st.sets(st.integers(0, 2), min_size=1))


@given(
    st.lists(CALLS, min_size=1, max_size=8),
    st.lists(USES, max_size=6),
    st.lists(st.sampled_from(["scores", "fails", "unreachable"]), max_size=16),
    st.lists(st.booleans(), max_size=4),
    st.sampled_from([60, 150, 10_000]),
)
# a matchup that has failed twice comes back behind one that has failed once
@example([(0, 1, 1, None), (1, 1, 2, None)], [(0, {0})], ["fails", "fails"], [], 60)
def test_whatever_happens_every_call_ends_and_the_pool_is_idle_again(
    calls: list[tuple[int, int, int, int | None]],
    uses: list[tuple[int, set[int]]],
    outcomes: list[str],
    recoveries: list[bool],
    share_characters: int,
) -> None:
    observed = Observations(outcomes, recoveries)
    replicas = [Observed(observed) for _ in range(3)]

    async def call(pool: Pool, id: str, start: int, count: int, size: int, leaves: int | None) -> None:
        matchups = [Matchup(Prompt(id), "x" * size, f"{i}") for i in range(count)]
        await asyncio.sleep(start)
        try:
            async with asyncio.timeout(leaves):
                assert await pool.score(matchups) == [value(matchup) for matchup in matchups]
        except TimeoutError:
            assert leaves is not None
        except PoolError:
            assert {"fails", "unreachable"} & set(outcomes)
        finally:
            observed.ended[id] = asyncio.get_running_loop().time()

    async def use(pool: Pool, start: int, wanted: set[int]) -> None:
        await asyncio.sleep(start)
        pool.use([replicas[i] for i in wanted])

    async def work() -> None:
        pool = Pool(replicas, PAIRWISE, share_characters=share_characters)
        async with asyncio.timeout(10_000), asyncio.TaskGroup() as group:
            for i, each in enumerate(calls):
                group.create_task(call(pool, str(i), *each))
            for each in uses:
                group.create_task(use(pool, *each))
        await asyncio.sleep(10)  # what was begun for them comes to its end
        assert not pool._tasks and not pool._busy and not pool._waiting
        assert sorted(map(id, pool._idle)) == sorted(map(id, pool._replicas))

    run(work())
    assert not observed.wrong


@given(st.lists(st.integers(1, 1000), max_size=60), st.integers(1, 20))
def test_even_shares(sizes: list[int], count: int) -> None:
    shares = even_shares(sizes, count)
    assert sorted(i for share in shares for i in share) == list(range(len(sizes)))
    assert len(shares) == min(count, len(sizes)) and all(shares)
    sums = [sum(sizes[i] for i in share) for share in shares]
    assert sums == sorted(sums, reverse=True)
    if sums:  # no share could be shortened by giving its last item to the smallest
        assert sums[0] - sums[-1] <= max(sizes)
