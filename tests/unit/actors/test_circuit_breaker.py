"""The circuit breaker's states, by examples and against a model of it; the clock is the test's."""

import asyncio
import pickle

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle as Calls
from hypothesis.stateful import RuleBasedStateMachine, consumes, invariant, multiple, rule

from llm_blender_ray.actors.circuit_breaker import (
    CLOSED,
    Call,
    CircuitBreaker,
    CircuitStatus,
    NeverAskedError,
    NotAskedError,
)
from llm_blender_ray.actors.errors import GenerationError, PermanentError, PromptError, RejectedError, RowError
from llm_blender_ray.actors.records import Candidate
from llm_blender_ray.configs.breaker import BreakerSettings

DOWN = "https://host/v1: 503: overloaded"
SETTINGS = BreakerSettings(failures=3, wait_s=2, longest_wait_s=6)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def breaker(clock: Clock, **options) -> CircuitBreaker:
    return CircuitBreaker(SETTINGS, clock=clock, **options)


def opened(clock: Clock, **options) -> CircuitBreaker:
    one = breaker(clock, **options)
    for _ in range(SETTINGS.failures):
        one.begin().failed(DOWN)
    return one


def test_it_opens_after_failures_in_a_row_and_tells_the_cause(clock: Clock) -> None:
    one = breaker(clock)
    for _ in range(SETTINGS.failures - 1):
        one.begin().failed("others before")
        assert one.status == CLOSED and one.closed
    one.begin().failed(DOWN)
    with pytest.raises(NotAskedError) as caught:
        one.begin()
    assert str(caught.value) == f"not asked: 3 failures in a row, the last: {DOWN}"
    assert caught.value.retry_after_s == 2
    assert one.status == CircuitStatus("open", DOWN, 100.0, 2.0) and not one.status.can_answer


def test_a_success_between_failures_keeps_it_closed(clock: Clock) -> None:
    one = breaker(clock)
    for _ in range(10):
        one.begin().failed(DOWN)
        one.begin().failed(DOWN)
        one.begin().succeeded()
    assert one.closed


@pytest.mark.parametrize(
    "own",
    [
        Candidate("m", error="too long", refused="too long"),
        Candidate("m", error="no place in its template", refused="other"),
        Candidate("m", error="400: unknown parameter", rejected=True),
    ],
)
def test_what_is_the_prompts_own_neither_counts_nor_ends_the_row(clock: Clock, own: Candidate) -> None:
    one = breaker(clock)
    for _ in range(10):
        one.begin().ended(own)
    assert one.closed
    for _ in range(SETTINGS.failures):
        one.begin().ended(own)
        one.begin().ended(Candidate("m", error=DOWN))
    assert not one.closed


def test_one_probe_at_a_time_after_a_wait_that_grows_up_to_its_bound(clock: Clock) -> None:
    one = opened(clock)
    for wait in (2, 4, 6, 6):
        clock.now += wait - 1
        with pytest.raises(NotAskedError):
            one.begin()
        clock.now += 1
        assert one.status.can_answer
        probe = one.begin()
        assert probe.probe
        with pytest.raises(NotAskedError, match=r"50[34]"):
            one.begin()
        probe.failed("504 now")
        assert one.status.cause == "504 now" and one.status.since == 100.0
    clock.now += 6
    one.begin().succeeded()
    assert one.status == CLOSED
    assert opened_again_after(one, clock) == 2  # the wait begins anew


def opened_again_after(one: CircuitBreaker, clock: Clock) -> float | None:
    for _ in range(SETTINGS.failures):
        one.begin().failed(DOWN)
    return one.status.retry_after_s


def test_a_probe_that_is_dropped_makes_room_for_the_next(clock: Clock) -> None:
    one = opened(clock)
    clock.now += 2
    one.begin().dropped()
    assert one.begin().probe


def test_late_answers_of_calls_that_began_before_it_opened(clock: Clock) -> None:
    one = breaker(clock)
    late, later = one.begin(), one.begin()
    for _ in range(SETTINGS.failures):
        one.begin().failed(DOWN)
    late.failed("late")  # one more of the same: the wait stays as it is
    assert one.status == CircuitStatus("open", DOWN, 100.0, 2.0)
    later.succeeded()
    assert one.closed


def test_a_permanent_failure_opens_at_once(clock: Clock) -> None:
    one = breaker(clock)
    one.begin().ended(Candidate("m", error="401: no such key", permanent=True))
    with pytest.raises(NeverAskedError) as caught:
        one.begin()
    assert str(caught.value) == "not asked: 401: no such key"
    assert isinstance(caught.value, PermanentError)
    assert one.status == CircuitStatus("permanent", "401: no such key", 100.0, SETTINGS.longest_wait_s)
    clock.now += SETTINGS.longest_wait_s
    one.begin().succeeded()
    assert one.closed


def test_a_permanent_failure_is_final_where_it_shall_be_so(clock: Clock) -> None:
    one = breaker(clock, final=True)
    before = one.begin()
    one.begin().failed("401: no such key", permanent=True)
    clock.now += 10**9
    with pytest.raises(NeverAskedError) as caught:
        one.begin()
    assert caught.value.retry_after_s is None and not one.status.can_answer
    before.succeeded()  # so it was one prompt's own
    assert one.closed


def test_of_a_model_that_has_answered_a_permanent_failure_is_one_like_others(clock: Clock) -> None:
    """A provider's moderation answers 403 to one prompt; that must not end a run's use of the model."""
    one = breaker(clock, final=True)
    one.begin().succeeded()
    for _ in range(SETTINGS.failures):
        assert one.closed
        one.begin().failed("403: flagged", permanent=True)
    assert one.status.state == "open"


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (GenerationError("503"), "open"),
        (OSError("the connection broke"), "open"),
        (PermanentError("404: no such model"), "permanent"),
        (RejectedError("400"), "closed"),
        (PromptError("no place"), "closed"),
        (RowError("two candidates expected"), "closed"),
        (asyncio.CancelledError(), "closed"),
        (GeneratorExit(), "closed"),
    ],
)
def test_guarded_blocks(clock: Clock, error: BaseException, state: str) -> None:
    one = CircuitBreaker(BreakerSettings(failures=1), clock=clock)
    with pytest.raises(type(error)), one.guard():
        raise error
    assert one.status.state == state


def test_a_guarded_block_that_ends_well_closes_it(clock: Clock) -> None:
    one = opened(clock)
    clock.now += 2
    with one.guard() as call:
        assert call.probe
    assert one.closed


def test_each_change_is_told_once(clock: Clock) -> None:
    told: list[str] = []
    one = opened(clock, on_change=lambda status: told.append(status.state))
    clock.now += 2
    one.begin().failed(DOWN)
    clock.now += 4
    one.begin().succeeded()
    one.begin().succeeded()
    assert told == ["open", "closed"]


@pytest.mark.parametrize("kind", [NotAskedError, NeverAskedError])
def test_its_errors_survive_pickling(kind: type[NotAskedError]) -> None:
    error = pickle.loads(pickle.dumps(kind("not asked: 503", 3.0)))
    assert (type(error), str(error), error.retry_after_s) == (kind, "not asked: 503", 3.0)


class Breaking(RuleBasedStateMachine):
    """Calls begin, end and are dropped in any order, at any time."""

    calls = Calls("calls")

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.one = CircuitBreaker(SETTINGS, clock=self.clock)
        self.probe: Call | None = None
        self.refused_until = 0.0  # after a failed probe, or opening
        self.wait = SETTINGS.wait_s
        self.in_a_row = 0
        self.answered = False

    @rule(target=calls)
    def begin(self):
        before = self.one.status
        try:
            call = self.one.begin()
        except NotAskedError as error:
            assert before.state != "closed"
            assert self.probe is not None or self.clock.now < self.refused_until
            assert error.retry_after_s is not None and 0 < error.retry_after_s <= SETTINGS.longest_wait_s
            assert before.cause is not None and str(error).endswith(before.cause)
            return multiple()
        assert call.probe == (before.state != "closed")
        if call.probe:
            assert self.probe is None and self.clock.now >= self.refused_until
            self.probe = call
        return call

    @rule(call=consumes(calls))
    def success(self, call: Call) -> None:
        call.succeeded()
        self.probe, self.in_a_row, self.answered, self.wait = None, 0, True, SETTINGS.wait_s
        assert self.one.closed

    @rule(call=consumes(calls), permanent=st.booleans())
    def failure(self, call: Call, permanent: bool) -> None:
        before = self.one.status.state
        self.in_a_row += 1
        call.failed(f"failure {self.in_a_row}", permanent=permanent)
        after = self.one.status.state
        if before == "closed":
            lasting = permanent and not self.answered
            assert (after != "closed") == (lasting or self.in_a_row >= SETTINGS.failures)
        else:
            assert after == before or after == "permanent"
        if call is self.probe:
            self.probe = None
            self.wait = min(2 * self.wait, SETTINGS.longest_wait_s)
            self.refused_until = self.clock.now + self.wait
        if after != before:
            self.wait = SETTINGS.longest_wait_s if after == "permanent" else self.wait
            self.refused_until = self.clock.now + self.wait

    @rule(call=consumes(calls))
    def dropped(self, call: Call) -> None:
        before = self.one.status.state
        call.dropped()
        self.probe = None if call is self.probe else self.probe
        assert self.one.status.state == before

    @rule(sixty_fourths=st.integers(0, 640))
    def time_passes(self, sixty_fourths: int) -> None:
        self.clock.now += sixty_fourths / 64  # sums of these are exact

    @invariant()
    def what_is_told_is_so(self) -> None:
        status = self.one.status
        assert status.can_answer == (
            status.state == "closed" or (self.probe is None and self.clock.now >= self.refused_until)
        )
        assert (status.cause is None) == (status.since is None) == (status.state == "closed")


TestBreaking = Breaking.TestCase
