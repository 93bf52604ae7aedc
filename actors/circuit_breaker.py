"""Circuit breaker of one model: after failures in a row, calls fail at once with the cause, until a probe succeeds.

    closed --- `failures` in a row, or a permanent one ---> open --- wait is over ---> one probe at a time
       ^                                                      ^                            |       |
       +--------------------------- success ------------------|----------------------------+       |
                                                              +----- failure: longer wait ---------+

What is a call's own (a prompt that the model refuses, a client that goes away) changes no state. Any success closes
the breaker, also of a call that began before it opened. No I/O and no timers: the clock is a parameter.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from llm_blender_ray.actors.errors import GenerationError, PermanentError, RejectedError, RowError, one_line
from llm_blender_ray.actors.records import Candidate
from llm_blender_ray.configs.breaker import BreakerSettings

NOT_ASKED = "not asked: "
MAX_CAUSE_LENGTH = 300  # characters
State = Literal["closed", "open", "permanent"]
CALLS_OWN = (RejectedError, RowError)  # errors without information about the next call


class NotAskedError(GenerationError):
    """A call that an open circuit breaker refuses.

    Attributes:
        retry_after_s: Seconds until a call may be let through; None: never in this process.
    """

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message, retry_after_s)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return str(self.args[0])


class NeverAskedError(NotAskedError, PermanentError):
    """The same where the failure is permanent."""


@dataclass(frozen=True, slots=True)
class CircuitStatus:
    """State of a breaker at one moment.

    Attributes:
        state: `permanent`: open, because of a failure that holds for every prompt.
        cause: The last failure; None while closed.
        since: When it opened, on the breaker's clock; None while closed.
        retry_after_s: Seconds until a call may be let through, 0 when the next one is; None: never.
    """

    state: State
    cause: str | None = None
    since: float | None = None
    retry_after_s: float | None = 0.0

    @property
    def can_answer(self) -> bool:
        """Whether the next call is let through."""
        return self.retry_after_s == 0.0


CLOSED = CircuitStatus("closed")


class Call:
    """A call that was let through. One of its methods is to be called when it ends; the first one counts.

    Attributes:
        probe: Whether it is the one call that is let through while the breaker is open.
    """

    def __init__(self, breaker: "CircuitBreaker", *, probe: bool) -> None:
        self._breaker, self.probe = breaker, probe
        self._open = True

    def succeeded(self) -> None:
        """The model answered."""
        if self._ends():
            self._breaker._succeeded(self)

    def failed(self, cause: str, *, permanent: bool = False) -> None:
        """The model did not answer.

        Args:
            cause: One line.
            permanent: Whether it would fail for every prompt (`PermanentError`).
        """
        if self._ends():
            self._breaker._failed(self, cause, permanent)

    def dropped(self) -> None:
        """The call ended without information about the model: cancelled, or the prompt was rejected."""
        if self._ends():
            self._breaker._dropped(self)

    def ended(self, candidate: Candidate) -> None:
        """The call gave a candidate."""
        if candidate.error is None:
            self.succeeded()
        elif candidate.refused or candidate.rejected:
            self.dropped()
        else:
            self.failed(candidate.error, permanent=candidate.permanent)

    def _ends(self) -> bool:
        was, self._open = self._open, False
        return was


class CircuitBreaker:
    """Circuit breaker of one model. It belongs to one event loop or thread."""

    def __init__(
        self,
        settings: BreakerSettings = BreakerSettings(),  # noqa: B008 (frozen)
        *,
        clock: Callable[[], float] = time.monotonic,
        final: bool = False,
        on_change: Callable[[CircuitStatus], None] | None = None,
    ) -> None:
        """Make a closed breaker.

        Args:
            settings: When it opens, and how long it waits.
            clock: Seconds, never going back.
            final: Whether nothing is tried any more after a permanent failure.
            on_change: Called with the status whenever the state changes.
        """
        self._settings, self._clock, self._final = settings, clock, final
        self._on_change = on_change
        self._state: State = "closed"
        self._answered = False  # ever
        self._in_a_row = 0
        self._why = self._cause = ""
        self._since = self._until = 0.0
        self._wait_s = settings.wait_s
        self._probe: Call | None = None

    @property
    def closed(self) -> bool:
        """Whether every call is let through."""
        return self._state == "closed"

    @property
    def status(self) -> CircuitStatus:
        """State, cause and since when."""
        if self._state == "closed":
            return CLOSED
        return CircuitStatus(self._state, self._cause, self._since, self._retry_after_s())

    def begin(self) -> Call:
        """Let a call through.

        Returns:
            The call; the caller must end it.

        Raises:
            NotAskedError: The breaker is open, and it is not time for a probe, or one is in progress; the message
                has the cause.
            NeverAskedError: The same with a permanent cause.
        """
        if self._state == "closed":
            return Call(self, probe=False)
        if self._retry_after_s() != 0.0:
            raise self.refusal()
        self._probe = Call(self, probe=True)
        return self._probe

    def refusal(self) -> NotAskedError:
        """Error of a call that is not let through."""
        message = f"{NOT_ASKED}{self._why}{self._cause}"
        return (NeverAskedError if self._state == "permanent" else NotAskedError)(message, self._retry_after_s())

    @contextlib.contextmanager
    def guard(self) -> Iterator[Call]:
        """A call as long as the block: how the block ends is how the call does.

        Raises:
            NotAskedError: See `begin`.
        """
        call = self.begin()
        try:
            yield call
        except CALLS_OWN:
            call.dropped()
            raise
        except Exception as error:
            call.failed(one_line(error, MAX_CAUSE_LENGTH), permanent=isinstance(error, PermanentError))
            raise
        except BaseException:  # cancelled, or the reader of the answer stopped
            call.dropped()
            raise
        call.succeeded()

    def _retry_after_s(self) -> float | None:
        if self._state == "permanent" and self._final:
            return None
        left = max(self._until - self._clock(), 0.0)
        return left or self._settings.wait_s if self._probe else left

    def _succeeded(self, call: Call) -> None:
        self._dropped(call)
        self._answered = True
        self._in_a_row = 0
        self._probe = None
        self._wait_s = self._settings.wait_s
        self._change("closed")

    def _failed(self, call: Call, cause: str, permanent: bool) -> None:
        now = self._clock()
        self._in_a_row += 1
        if call.probe and call is self._probe:
            self._cause = cause
            self._wait_s = min(2 * self._wait_s, self._settings.longest_wait_s)
            self._until = now + self._wait_s
        self._dropped(call)
        # of a model that has answered, the same status is about one prompt (a provider's moderation) or passes
        lasting = permanent and not self._answered
        if lasting and self._state != "permanent":
            self._open("permanent", "", cause, now)
        elif self._state == "closed" and self._in_a_row >= self._settings.failures:
            times = "1 failure" if self._in_a_row == 1 else f"{self._in_a_row} failures in a row, the last"
            self._open("open", f"{times}: ", cause, now)

    def _open(self, state: State, why: str, cause: str, now: float) -> None:
        if self._state == "closed":
            self._since = now
        if state == "permanent":  # it needs a change of settings first
            self._wait_s = self._settings.longest_wait_s
        self._until = now + self._wait_s
        self._why, self._cause = why, cause
        self._change(state)

    def _dropped(self, call: Call) -> None:
        if call is self._probe:
            self._probe = None

    def _change(self, state: State) -> None:
        if state != self._state:
            self._state = state
            if self._on_change:
                self._on_change(self.status)
