"""Rate limits of one actor's requests to an endpoint: those of its settings, and those that the endpoint reports.

Every attempt waits here for its turn, retries too, so that a limit is kept rather than found by a 429 of each
request in flight. aiolimiter and pyrate-limiter keep a number per minute; neither corrects an amount that was
estimated (an answer's tokens are known when it has ended), nor knows a limit that a response reports.
"""

import asyncio
import math
import re
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from pydantic_core import from_json

MINUTE_S = 61.0  # a second more, since requests take different times to arrive
# OpenAI's client fails at once where it would have to wait longer; an attempt then gets the endpoint's own reason.
LONGEST_HOLD_S = 120.0
BYTES_PER_TOKEN = 3  # of a request's JSON; OpenAI's rule of thumb is 4 characters of English
_BUSY = frozenset({429, 503, 529})
_TIMER_S = 1e-6  # a timer may fire so much early
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhd])")


@dataclass(slots=True)
class Reservation:
    """An attempt's part of the limits.

    Attributes:
        began: When, on the loop's clock.
        tokens: Tokens of its prompt and answer: the most that they may be, then what they are.
        requests_before: Requests that have begun before it, and itself.
        tokens_before: What those have reserved.
        recent: Whether it counts towards the limits of a minute.
    """

    began: float
    tokens: int
    requests_before: int
    tokens_before: int
    recent: bool = True


@dataclass(slots=True)
class _Reported:
    """One of the endpoint's limits, by its last report and without what has begun since."""

    left: float = math.inf
    until: float = 0.0  # then the limit is whole again
    limit: float = math.inf  # the whole
    reset_s: float = 0.0
    last: int = 0  # request whose response reported it

    def wait_s(self, now: float, amount: int) -> float:
        """Seconds until this amount is left, more than the whole limit counting as that."""
        if self.until <= now + _TIMER_S:
            self.left, self.until = self.limit, now + self.reset_s
        wait = self.until - now
        return wait if min(amount, self.limit) > self.left and wait <= LONGEST_HOLD_S else 0.0


class RateLimits:
    """Limits of one actor. It belongs to the event loop of its first call.

    In any minute at most `requests` begin, with at most `tokens` together. While the endpoint has reported
    (`x-ratelimit-*`) that less is left than a request needs, or has asked to wait (`Retry-After`), none begins.

    From the first refusal on (429, 503, 529), attempts without a response are bounded as TCP bounds packets: half
    as many after a refusal, and one or a tenth more after as many successes as there may be. Of 200 prompts, 32 at
    a time, at a server that takes 20 in 2 s, 113 attempts were refused instead of 279, and 12 where it reports its
    limit. A restarted actor begins anew.
    """

    def __init__(self, requests: int | None = None, tokens: int | None = None) -> None:
        """Set the limits of the settings.

        Args:
            requests: Most requests per minute; None: any number.
            tokens: Most tokens per minute. A request that needs more has a minute for itself.
        """
        self._requests, self._tokens = requests, tokens
        self._recent: deque[Reservation] = deque()
        self._recent_tokens = 0
        self._begun_requests = self._begun_tokens = 0
        self._left_requests, self._left_tokens = _Reported(), _Reported()
        self._held_until = 0.0
        self._pending, self._most_pending, self._reduced = 0, math.inf, 0.0
        self._turn, self._changed = asyncio.Lock(), asyncio.Event()

    @asynccontextmanager
    async def attempt(self, tokens: int) -> AsyncIterator[Reservation]:
        """Wait until an attempt may begin, first come, first served; the block is the attempt up to its response.

        Args:
            tokens: An estimate of the most that its prompt and answer may have.
        """
        reservation = await self._reserve(tokens)
        self._pending += 1
        try:
            yield reservation
        finally:
            self._pending -= 1
            self._changed.set()

    async def _reserve(self, tokens: int) -> Reservation:
        async with self._turn:
            while (wait := self._wait_s(tokens)) > _TIMER_S or self._pending + 1 > self._most_pending:
                self._changed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait if wait > _TIMER_S else None):
                        await self._changed.wait()
            self._begun_requests += 1
            self._begun_tokens += tokens
            self._left_requests.left -= 1
            self._left_tokens.left -= tokens
            reservation = Reservation(_now(), tokens, self._begun_requests, self._begun_tokens)
            self._recent.append(reservation)
            self._recent_tokens += tokens
            return reservation

    def settle(self, reservation: Reservation, tokens: int) -> None:
        """Correct a reservation to the tokens that prompt and answer had."""
        if reservation.recent:
            self._recent_tokens += tokens - reservation.tokens
            reservation.tokens = tokens
            self._changed.set()

    def learn(self, reservation: Reservation, status: int, headers: Mapping[str, str]) -> None:
        """Take what a response reports of the endpoint's limits.

        Args:
            reservation: That of its request.
            status: The status that it stands for.
            headers: Its headers; names in lower case find them.
        """
        now = _now()
        for known, kind, since in (
            (self._left_requests, "requests", self._begun_requests - reservation.requests_before),
            (self._left_tokens, "tokens", self._begun_tokens - reservation.tokens_before),
        ):
            left = _number(headers.get(f"x-ratelimit-remaining-{kind}"))
            reset = duration_s(headers.get(f"x-ratelimit-reset-{kind}"))
            if left is not None and reset is not None and reservation.requests_before > known.last:
                known.left, known.until, known.reset_s = left - since, now + reset, reset
                known.limit = _number(headers.get(f"x-ratelimit-limit-{kind}")) or math.inf
                known.last = reservation.requests_before
        wait = retry_after_s(headers) if status >= 400 else None
        if wait is not None and wait <= LONGEST_HOLD_S:
            self._held_until = max(self._held_until, now + wait)
        if status in _BUSY and reservation.began >= self._reduced:  # of those begun together one reduces
            self._most_pending, self._reduced = max(min(self._most_pending, self._pending) / 2, 1.0), now
        elif status < 400:
            self._most_pending += max(
                1 / self._most_pending, 0.1
            )  # by 1 alone, to 256 would take 256 answers' time
        self._changed.set()

    def _wait_s(self, tokens: int) -> float:
        """Seconds until an attempt with these tokens may begin, by what is known now; 0 or less: it may."""
        now = _now()
        while self._recent and self._recent[0].began + MINUTE_S <= now + _TIMER_S:
            oldest = self._recent.popleft()
            oldest.recent = False
            self._recent_tokens -= oldest.tokens
        return max(
            self._held_until - now,
            self._left_requests.wait_s(now, 1),
            self._left_tokens.wait_s(now, tokens),
            self._wait_for_window_s(now, tokens),
        )

    def _wait_for_window_s(self, now: float, tokens: int) -> float:
        """Seconds until enough of the last minute's requests are older."""
        more_requests = 0 if self._requests is None else len(self._recent) + 1 - self._requests
        more_tokens = 0 if self._tokens is None else self._recent_tokens + min(tokens, self._tokens) - self._tokens
        wait = 0.0
        for oldest in self._recent:
            if more_requests <= 0 and more_tokens <= 0:
                break
            wait = oldest.began + MINUTE_S - now
            more_requests -= 1
            more_tokens -= oldest.tokens
        return wait


def estimated_tokens(request: bytes) -> int:
    """Estimate the most tokens that prompt and answer may have, by a request's JSON."""
    body = from_json(request)
    answer = body.get("max_completion_tokens") or body.get("max_tokens") or 0
    return int(answer) + math.ceil(len(request) / BYTES_PER_TOKEN)


def duration_s(text: str | None) -> float | None:
    """Seconds of a duration as rate limits have it (`6m0s`, `120ms`, or a number of seconds); None for none."""
    if text is None:
        return None
    parts = _DURATION.findall(text)
    if parts and "".join(map("".join, parts)) == text:
        return sum(float(number) * _UNITS[unit] for number, unit in parts)
    return _number(text)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that a response asks to wait; None where it doesn't."""
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    seconds = _number(value)
    if seconds is not None or value is None:
        return seconds
    try:
        return (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):  # no date; one without a zone
        return None


def _number(text: str | None) -> float | None:
    """A header's number, from 0 on."""
    return float(text) if text is not None and re.fullmatch(r"\d+(\.\d+)?", text.strip()) else None


def _now() -> float:
    return asyncio.get_running_loop().time()
