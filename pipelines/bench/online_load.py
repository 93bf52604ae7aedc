"""Load on a chat completions service and its results: closed loops, open loops, and accounts of both.

A closed loop sends a request when the last one is answered, so it never exceeds the service's capacity. An open
loop sends requests on a schedule, like many independent users; latencies count from when a request was due, since
a late generator would make a slow service look fast. Its lateness and CPU share are reported too.
"""

import asyncio
import itertools
import json
import math
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import numpy as np

ANSWERED, DEGRADED, REFUSED = "answered", "degraded", "refused"
KEPT_OPEN_S = 2.0  # an unused connection; shorter than servers' limits, so that none is closed while it is reused


@dataclass(frozen=True, slots=True)
class Reply:
    """End of one request.

    Attributes:
        outcome: `answered`; `degraded`: answered, but not by all, according to its field `blend`; `refused`: 429
            with Retry-After; else the error: `HTTP 503`, or the name of an exception.
        first: When the first text of a stream came, on the loop's clock.
        retries: Made by the client before.
    """

    outcome: str
    first: float | None = None
    retries: int = 0


@dataclass(frozen=True, slots=True)
class Shot:
    """One request: when it was due, was sent, and had ended, in seconds of the loop's clock."""

    due: float
    sent: float
    ended: float
    reply: Reply


_Ask = Callable[[int], Awaitable[Reply]]  # sends the request of this number


@dataclass(frozen=True, slots=True)
class Load:
    """Requests sent, and the time that counts, from `begin` to `end`, when the load was steady.

    `cpu_share` is of one CPU, taken by this process.
    """

    shots: tuple[Shot, ...]
    begin: float
    end: float
    cpu_share: float

    @property
    def goodput(self) -> float:
        """Whole answers a second in the time that counts."""
        good = sum(shot.reply.outcome == ANSWERED and self.begin <= shot.ended < self.end for shot in self.shots)
        return good / (self.end - self.begin)

    @property
    def outcomes(self) -> Counter[str]:
        """Outcomes of all requests."""
        return Counter(shot.reply.outcome for shot in self.shots)

    def latencies(self, outcome: str) -> list[float]:
        """Seconds from when requests with this outcome were due, in the order in which they ended."""
        return [shot.ended - shot.due for shot in self.shots if shot.reply.outcome == outcome]

    def account(self) -> dict[str, Any]:
        """Everything as plain numbers."""
        return {
            "seconds": round(self.end - self.begin, 2),
            "sent": len(self.shots),
            "outcomes": dict(self.outcomes),
            "goodput_per_s": round(self.goodput, 2),
            "latency_ms": {
                outcome: milliseconds(latencies)
                for outcome in (ANSWERED, DEGRADED, REFUSED)
                if (latencies := self.latencies(outcome))
            },
            "generator": {
                "lag_ms": milliseconds([shot.sent - shot.due for shot in self.shots]),
                "cpu_share": round(self.cpu_share, 3),
            },
        }


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """Percentiles: the least measured value that so many percent do not exceed; none for no values."""
    if not seconds:
        return {}
    p50, p95, p99 = np.percentile(seconds, [50, 95, 99], method="inverted_cdf")
    found = {"p50": p50, "p95": p95, "p99": p99, "max": max(seconds)}
    return {name: round(1000 * float(value), 2) for name, value in found.items()}


def overlapping(shots: Iterable[Shot], begin: float, end: float) -> list[Shot]:
    """Requests that were under way at any moment from `begin` to `end`."""
    return [shot for shot in shots if shot.sent <= end and shot.ended >= begin]


def arrivals(per_s: float, seconds: float, seed: int = 0) -> Iterator[float]:
    """Times of requests, in seconds from the start: a Poisson process of this rate, the same for the same seed."""
    draw = random.Random(seed)
    at = draw.expovariate(per_s)
    while at < seconds:
        yield at
        at += draw.expovariate(per_s)


async def closed_loop(
    ask: _Ask, concurrency: int, *, requests: int | None = None, seconds: float = math.inf, settling_s: float = 0.0
) -> Load:
    """Keep `concurrency` requests under way, for a time or until a number is answered.

    Args:
        ask: Sends a request.
        concurrency: Requests under way.
        requests: How many count; None: see `seconds`.
        seconds: How long, after `settling_s`; None: see `requests`.
        settling_s: Seconds at the start that do not count.
    """
    loop = asyncio.get_running_loop()
    numbers = iter(range(requests)) if requests is not None else itertools.count()
    shots: list[Shot] = []
    cpu, began = time.process_time(), loop.time()
    begin = began + settling_s
    until = begin + seconds

    async def client() -> None:
        while (sent := loop.time()) < until and (number := next(numbers, None)) is not None:
            reply = await ask(number)
            shots.append(Shot(sent, sent, loop.time(), reply))

    async with asyncio.TaskGroup() as clients:
        for _ in range(concurrency):
            clients.create_task(client())
    ended = loop.time()
    end = ended if math.isinf(until) else until
    return Load(tuple(shots), begin, end, (time.process_time() - cpu) / (ended - began))


class OpenLoop:
    """Requests sent when they are due, whatever the state of earlier ones.

    Attributes:
        shots: Requests that have ended.
        under_way: Requests that have not.
    """

    def __init__(self, ask: _Ask, due: Iterable[float]) -> None:
        """Set the schedule.

        Args:
            ask: Sends a request.
            due: Seconds from the start, in order.
        """
        self._ask, self._due = ask, due
        self._stopped = False
        self.shots: list[Shot] = []
        self.under_way: set[asyncio.Task[None]] = set()

    def stop(self) -> None:
        """Send no more requests; those under way end by themselves."""
        self._stopped = True

    async def run(self, settling_s: float = 0.0) -> Load:
        """Send everything, and wait for every answer. The time that counts ends with the last sending."""
        loop = asyncio.get_running_loop()
        cpu, began = time.process_time(), loop.time()
        async with asyncio.TaskGroup() as requests:
            for number, due in enumerate(self._due):
                at = began + due
                if at > loop.time():
                    await asyncio.sleep(at - loop.time())
                if self._stopped:
                    break
                task = requests.create_task(self._one(number, at))
                self.under_way.add(task)
                task.add_done_callback(self.under_way.discard)
            end = loop.time()
            cpu_share = (time.process_time() - cpu) / (end - began)
        return Load(tuple(self.shots), began + settling_s, end, cpu_share)

    async def _one(self, number: int, due: float) -> None:
        loop = asyncio.get_running_loop()
        sent = loop.time()
        reply = await self._ask(number)
        self.shots.append(Shot(due, sent, loop.time(), reply))


class ChatClient:
    """Client of one model of one service, with connections that are kept open."""

    def __init__(
        self, session: aiohttp.ClientSession, prompts: Sequence[str], model: str = "blend", stream: bool = False
    ) -> None:
        """Configure the client.

        Args:
            session: Connections to the service.
            prompts: Sent in turns, each with the request's number, so that no two requests are the same.
            model: Name of the model.
            stream: Whether to stream.
        """
        self._session, self._prompts = session, prompts
        self._fields = {"model": model, "stream": stream}
        self._read = _streamed if stream else _whole

    async def __call__(self, number: int) -> Reply:
        """See `_Ask`. Errors are outcomes; none is raised."""
        prompt = f"{number}. {self._prompts[number % len(self._prompts)]}"
        body = {**self._fields, "messages": [{"role": "user", "content": prompt}]}
        try:
            async with self._session.post("/v1/chat/completions", json=body) as response:
                if response.status == 200:
                    return await self._read(response)
                await response.read()
                if response.status == 429 and "Retry-After" in response.headers:
                    return Reply(REFUSED)
                return Reply(f"HTTP {response.status}")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return Reply(type(error).__name__)


@asynccontextmanager
async def connections(url: str, patience_s: float = 300.0) -> AsyncGenerator[aiohttp.ClientSession, None]:
    """Connections to a service, as many as there are requests, with a time limit for each request."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEPT_OPEN_S)
    timeout = aiohttp.ClientTimeout(total=patience_s)
    async with aiohttp.ClientSession(url, connector=connector, timeout=timeout) as session:
        yield session


def describe_load(answer: Any) -> str:
    """Outcome by an answer's body: whole, degraded, or no answer."""
    match answer:
        case {"choices": [{"message": {"content": str()}}, *_]}:
            return DEGRADED if (answer.get("blend") or {}).get("degraded") else ANSWERED
    return "not a chat completion"


async def _whole(response: aiohttp.ClientResponse) -> Reply:
    return Reply(describe_load(json.loads(await response.read())))


async def _streamed(response: aiohttp.ClientResponse) -> Reply:
    """Outcome of server-sent events; an answer without `[DONE]` was cut off."""
    loop = asyncio.get_running_loop()
    first: float | None = None
    degraded = False
    async for line in response.content:
        if not line.startswith(b"data:"):
            continue
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            return Reply(DEGRADED if degraded else ANSWERED, first)
        chunk = json.loads(data)
        if "error" in chunk:
            return Reply("error while streaming", first)
        degraded = degraded or bool((chunk.get("blend") or {}).get("degraded"))
        if first is None and any(choice["delta"].get("content") for choice in chunk["choices"]):
            first = loop.time()
    return Reply("cut off", first)
