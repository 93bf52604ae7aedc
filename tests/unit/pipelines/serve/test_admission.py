"""Places and the queue for them, in virtual time, and under random comings, goings and cancellations."""

import asyncio
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from virtual_time import run

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.pipelines.serve.admission import (
    MAX_RETRY_AFTER_S,
    MIN_RETRY_AFTER_S,
    Admission,
    OverloadedError,
)


async def hold(admission: Admission, seconds: float, patience_s: float | None = None) -> float:
    """Hold a place for so long; returns how long it was waited for."""
    async with admission.slot(patience_s) as waited_s:
        await asyncio.sleep(seconds)
        return waited_s


def test_places_are_given_at_once_then_in_the_order_of_coming() -> None:
    async def main() -> list[float]:
        admission = Admission(max_in_flight=2, max_queued=3)
        return await asyncio.gather(*(hold(admission, seconds) for seconds in (3, 1, 1, 5, 1)))

    assert run(main()) == [0, 0, 1, 2, 3]  # the third gets the second's place, the fourth the third's


def test_one_more_than_the_queue_holds_is_refused_at_once() -> None:
    async def main() -> None:
        admission = Admission(max_in_flight=1, max_queued=2)
        holders = [asyncio.create_task(hold(admission, 1)) for _ in range(3)]
        await asyncio.sleep(0.5)
        assert (admission.in_flight, admission.queued) == (1, 2)
        with pytest.raises(OverloadedError, match="the queue is full"):
            await hold(admission, 1)
        assert asyncio.get_running_loop().time() == 0.5
        assert await asyncio.gather(*holders) == [0, 1, 2]
        assert (admission.in_flight, admission.queued) == (0, 0)
        assert await hold(admission, 1) == 0  # full speed again

    run(main())


def test_without_a_queue_only_a_free_place_counts() -> None:
    async def main() -> None:
        admission = Admission(max_in_flight=1, max_queued=0)
        async with admission.slot():
            with pytest.raises(OverloadedError):
                await hold(admission, 1)
        assert await hold(admission, 1, patience_s=0) == 0

    run(main())


def test_who_waited_a_whole_deadline_is_not_begun_any_more() -> None:
    async def main() -> None:
        admission = Admission(max_in_flight=1, max_queued=3)
        busy = asyncio.create_task(hold(admission, 10))
        late = asyncio.create_task(hold(admission, 1, patience_s=4))
        patient = asyncio.create_task(hold(admission, 1, patience_s=20))
        with pytest.raises(OverloadedError, match="deadline"):
            await late
        assert asyncio.get_running_loop().time() == 4
        assert admission.queued == 1
        assert await asyncio.gather(busy, patient) == [0, 10]

    run(main())


def test_a_place_that_comes_as_its_request_is_cancelled_goes_to_the_next() -> None:
    async def main() -> None:
        admission = Admission(max_in_flight=1, max_queued=3)
        leave = asyncio.Event()

        async def first() -> None:
            async with admission.slot():
                await leave.wait()

        holder = asyncio.create_task(first())
        await asyncio.sleep(0)
        gone = asyncio.create_task(hold(admission, 1))
        heir = asyncio.create_task(hold(admission, 1))
        await asyncio.sleep(0)
        leave.set()
        await holder  # the place is given to `gone`, which has not run since
        assert admission.in_flight == 1
        gone.cancel()
        assert await heir == 0
        assert gone.cancelled()
        assert (admission.in_flight, admission.queued) == (0, 0)

    run(main())


def test_a_request_cancelled_just_before_a_place_comes_is_passed_over() -> None:
    async def main() -> None:
        admission = Admission(max_in_flight=1, max_queued=3)
        async with admission.slot():
            gone = asyncio.create_task(hold(admission, 1))
            heir = asyncio.create_task(hold(admission, 1))
            await asyncio.sleep(0)
            gone.cancel()  # what it waits for is cancelled, but it has not run since
        assert await heir == 0
        assert gone.cancelled()
        assert (admission.in_flight, admission.queued) == (0, 0)

    run(main())


def test_a_failed_request_gives_its_place_back() -> None:
    async def main() -> None:
        admission = Admission(max_in_flight=1, max_queued=0)
        with pytest.raises(BlendError, match="no answer"):
            async with admission.slot():
                raise BlendError("no answer")
        assert admission.in_flight == 0

    run(main())


def test_when_to_come_again_follows_the_pace_of_late() -> None:
    async def after(seconds: float) -> float:
        """What is told when two places and a queue of three are taken, after requests that took so long."""
        admission = Admission(max_in_flight=2, max_queued=3)
        for _ in range(3):
            await hold(admission, seconds)
        holders = [asyncio.create_task(hold(admission, 1)) for _ in range(5)]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError) as refused:
            await hold(admission, 1)
        await asyncio.gather(*holders)
        return refused.value.retry_after_s

    assert run(after(3)) == pytest.approx(4 * 3 / 2)  # four requests at two places
    assert run(after(0.01)) == MIN_RETRY_AFTER_S
    assert run(after(600)) == MAX_RETRY_AFTER_S


REQUESTS = st.lists(
    st.tuples(
        st.integers(0, 6),  # when it comes
        st.integers(0, 4),  # how long it works
        st.none() | st.integers(0, 4),  # how long it is ready to wait
        st.none() | st.integers(0, 8),  # when its client goes away
    ),
    max_size=30,
)


@given(REQUESTS, st.integers(1, 3), st.integers(0, 4))
def test_no_place_is_lost_or_given_twice(
    requests: list[tuple[int, int, int | None, int | None]], max_in_flight: int, max_queued: int
) -> None:
    async def main() -> None:
        admission = Admission(max_in_flight, max_queued)
        inside = 0

        def check() -> None:
            assert inside <= admission.in_flight <= max_in_flight
            assert 0 <= admission.queued <= max_queued
            assert admission.in_flight == max_in_flight or not admission.queued  # nobody waits beside a free place

        places: list[tuple[float, float]] = []  # of those who got one: when they came, and when they had it

        async def request(comes: int, works: int, patience_s: int | None) -> None:
            nonlocal inside
            await asyncio.sleep(comes)
            came = asyncio.get_running_loop().time()
            async with admission.slot(patience_s) as waited_s:
                assert patience_s is None or waited_s <= patience_s
                places.append((came, asyncio.get_running_loop().time()))
                inside += 1
                check()
                try:
                    await asyncio.sleep(works)
                finally:
                    inside -= 1
            check()

        async def going(task: asyncio.Task[None], when: int) -> None:
            await asyncio.sleep(when)
            task.cancel()

        tasks = [asyncio.create_task(request(*rest[:3])) for rest in requests]
        clients = [
            asyncio.create_task(going(task, leaves))
            for task, (*_, leaves) in zip(tasks, requests, strict=True)
            if leaves is not None
        ]
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*clients)
        for end in ends:
            assert end is None or isinstance(end, OverloadedError | asyncio.CancelledError), end
        assert all(had <= later for (came, had), (after, later) in permutations(places, 2) if came < after)
        assert (admission.in_flight, admission.queued, inside) == (0, 0, 0)
        assert await asyncio.gather(*(hold(admission, 1) for _ in range(max_in_flight))) == [0] * max_in_flight

    run(main())
