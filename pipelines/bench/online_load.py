"""Load on a chat completions service, and what came of it: closed loops, open loops, and accounts of both.

A closed loop asks when its last question is answered, so it never asks more than the service can take. An open loop
asks when its schedule says so, as many people do who don't know of each other; its latencies count from when a
request was due, since a generator that comes late would make a slow service look fast. How late it came, and how
much of a CPU it took, is told beside them.
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
KEPT_OPEN_S = 2.0  # an unused connection; less than servers keep it, so that none is closed while it is used again


@dataclass(frozen=True, slots=True)
class Reply:
    """How one request ended.

    outcome: `answered`; `degraded`: answered, but as its field `blend` says not by all; `refused`: 429 with
    Retry-After; else what went wrong: `HTTP 503`, or the name of an exception. first: when the first text came, on
    the loop's clock, where it was streamed. retries: made by the client before this came.
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


_Ask = Callable[[int], Awaitable[Reply]]  # the request of this number


@dataclass(frozen=True, slots=True)
class Load:
    """What was sent, and what counts of it: the time from `begin` to `end`, when the load was steady.

    cpu_share: of one CPU, taken by this process.
    """

    shots: tuple[Shot, ...]
    begin: float
    end: float
    cpu_share: float

    @property
    def goodput(self) -> float:
        """Whole answers a second that came in the time that counts."""
        good = sum(shot.reply.outcome == ANSWERED and self.begin <= shot.ended < self.end for shot in self.shots)
        return good / (self.end - self.begin)

    @property
    def outcomes(self) -> Counter[str]:
        """Of every request that was ever sent."""
        return Counter(shot.reply.outcome for shot in self.shots)

    def latencies(self, outcome: str) -> list[float]:
        """Seconds from when they were due of the requests that ended so, in the order in which they ended."""
        return [shot.ended - shot.due for shot in self.shots if shot.reply.outcome == outcome]

    def account(self) -> dict[str, Any]:
        """All of it as plain numbers."""
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
    """Percentiles: of the measured values the least that so many percent don't exceed. Of nothing, none."""
    if not seconds:
        return {}
    p50, p95, p99 = np.percentile(seconds, [50, 95, 99], method="inverted_cdf")
    found = {"p50": p50, "p95": p95, "p99": p99, "max": max(seconds)}
    return {name: round(1000 * float(value), 2) for name, value in found.items()}


def overlapping(shots: Iterable[Shot], begin: float, end: float) -> list[Shot]:
    """Those that were under way at any moment from `begin` to `end`."""
    return [shot for shot in shots if shot.sent <= end and shot.ended >= begin]


def arrivals(per_s: float, seconds: float, seed: int = 0) -> Iterator[float]:
    """When requests are due, in seconds from the start: a Poisson process of this rate, the same each time."""
    draw = random.Random(seed)
    at = draw.expovariate(per_s)
    while at < seconds:
        yield at
        at += draw.expovariate(per_s)


async def closed_loop(
    ask: _Ask, concurrency: int, *, requests: int | None = None, seconds: float = math.inf, settling_s: float = 0.0
) -> Load:
    """Keep so many requests under way: for so long, or until so many are answered.

    settling_s: at the start, that don't count; `seconds` begin then. One of requests and seconds must be given.
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
    """Requests that are sent when they are due, whatever became of the earlier ones.

    shots: what has ended so far. under_way: what hasn't.
    """

    def __init__(self, ask: _Ask, due: Iterable[float]) -> None:
        """due: in seconds from the start, none before the one ahead of it."""
        self._ask, self._due = ask, due
        self._stopped = False
        self.shots: list[Shot] = []
        self.under_way: set[asyncio.Task[None]] = set()

    def stop(self) -> None:
        """Send no more. What is under way ends by itself."""
        self._stopped = True

    async def run(self, settling_s: float = 0.0) -> Load:
        """Send everything, and wait for every answer. What counts ends with the sending."""
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
    """Asks one model of one service over connections that are kept open."""

    def __init__(
        self, session: aiohttp.ClientSession, prompts: Sequence[str], model: str = "blend", stream: bool = False
    ) -> None:
        """prompts: asked in turns, each time with the request's number, so that no two are the same."""
        self._session, self._prompts = session, prompts
        self._fields = {"model": model, "stream": stream}
        self._read = _streamed if stream else _whole

    async def __call__(self, number: int) -> Reply:
        """See `_Ask`. Raises nothing that a request may end with."""
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
    """Connections to a service, as many as there are requests; each request may take so long."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEPT_OPEN_S)
    timeout = aiohttp.ClientTimeout(total=patience_s)
    async with aiohttp.ClientSession(url, connector=connector, timeout=timeout) as session:
        yield session


def describe_load(answer: Any) -> str:
    """Whether an answer's body is a whole answer, a degraded one, or none."""
    match answer:
        case {"choices": [{"message": {"content": str()}}, *_]}:
            return DEGRADED if (answer.get("blend") or {}).get("degraded") else ANSWERED
    return "not a chat completion"


async def _whole(response: aiohttp.ClientResponse) -> Reply:
    return Reply(describe_load(json.loads(await response.read())))


async def _streamed(response: aiohttp.ClientResponse) -> Reply:
    """Of server-sent events; an answer without `[DONE]` was cut off."""
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
