"""A proxy between a client and an HTTP server, both on 127.0.0.1, that injects planned faults.

Written on bare sockets, because no HTTP server will reset a connection within a body. It runs in a thread of its
own, for clients in any process. One request per connection, bodies held whole.
"""

import asyncio
import contextlib
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self


@dataclass(frozen=True)
class Exchange:
    """One request on its way. `target` is its path and query."""

    method: str
    target: str
    raw: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    forward: Callable[[bytes], Awaitable[bytes]]  # a request to the server behind, its whole response back


Fault = Callable[[Exchange], Awaitable[None]]


def refuse(status: int, code: str, message: str = "Injected.") -> Fault:
    """A fault that answers with one of S3's errors, without asking the server."""
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'.encode()

    async def fault(exchange: Exchange) -> None:
        head = [f"HTTP/1.1 {status} X", "content-type: application/xml", f"content-length: {len(body)}"]
        exchange.writer.write("\r\n".join([*head, "connection: close", "", ""]).encode())
        exchange.writer.write(b"" if exchange.method == "HEAD" else body)
        await exchange.writer.drain()

    return fault


async def reset(exchange: Exchange) -> None:
    """A TCP reset instead of an answer; the server never saw the request."""
    _reset(exchange.writer)


async def lose_answer(exchange: Exchange) -> None:
    """The server does what was asked, and a TCP reset takes the place of its answer."""
    await exchange.forward(exchange.raw)
    _reset(exchange.writer)


async def reset_in_body(exchange: Exchange) -> None:
    """A TCP reset in the middle of the response's body."""
    await _half(exchange)
    _reset(exchange.writer)


async def cut_body(exchange: Exchange) -> None:
    """A connection closed in order in the middle of the response's body."""
    await _half(exchange)


async def stall(exchange: Exchange) -> None:
    """No answer until the client has given up."""
    await exchange.reader.read()


async def stall_in_body(exchange: Exchange) -> None:
    """Half of the body, then nothing until the client has given up."""
    await _half(exchange)
    await exchange.reader.read()


async def _half(exchange: Exchange) -> None:
    head, _, body = (await exchange.forward(exchange.raw)).partition(b"\r\n\r\n")
    assert len(body) > 1, "no body to break off in"
    exchange.writer.write(head + b"\r\n\r\n" + body[: len(body) // 2])
    await exchange.writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    lingering = struct.pack("ii", 1, 0)  # for no time: what is closed then is reset
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, lingering)
    writer.transport.abort()


@dataclass
class Plan:
    """Which requests meet a fault: of one method (any: ""), whose target `pattern` is found in.

    Of requests that are alike (method and target) those from number `first` on, `times` of them; None: for ever.
    """

    fault: Fault
    method: str
    pattern: re.Pattern[str]
    first: int
    times: int | None
    seen: Counter[tuple[str, str]] = field(default_factory=Counter)
    injected: int = 0  # so far

    def strikes(self, method: str, target: str) -> bool:
        """Whether the fault is for this request, which is counted."""
        if self.method not in ("", method) or not self.pattern.search(target):
            return False
        self.seen[method, target] += 1
        since = self.seen[method, target] - self.first
        return since >= 0 and (self.times is None or since < self.times)


class FaultyProxy:
    """Use as `with`; `url` is where it listens, from the start. `port` of the server behind it may be set later."""

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self.requests: list[tuple[str, str]] = []  # method and target, since the last `clear`
        self._plans: list[Plan] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()

    def plan(
        self, fault: Fault, method: str = "", pattern: str = "", *, first: int = 1, times: int | None = 1
    ) -> Plan:
        """Inject a fault from now on; where several plans strike, the one made first does. See `Plan`."""
        plan = Plan(fault, method, re.compile(pattern), first, times)
        self._plans.append(plan)
        return plan

    def clear(self) -> None:
        """Forget all plans and requests."""
        self._plans, self.requests = [], []

    def __enter__(self) -> Self:
        self._thread.start()
        start = asyncio.start_server(self._accept, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(start, self._loop).result()
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # the client may leave at any moment, without having asked anything too
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError), contextlib.closing(writer):
            method, target, raw = await _request(reader, writer)
            self.requests.append((method, target))
            exchange = Exchange(method, target, raw, reader, writer, self._forward)
            if striking := [plan for plan in self._plans if plan.strikes(method, target)]:
                striking[0].injected += 1
                await striking[0].fault(exchange)
            else:
                writer.write(await self._forward(raw))
                await writer.drain()

    async def _forward(self, raw: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        with contextlib.closing(writer):
            writer.write(raw)
            await writer.drain()
            return await reader.read()


async def _request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[str, str, bytes]:
    """Method, target, and the whole request as the server behind gets it: the only one on its connection."""
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    assert "transfer-encoding" not in headers, "a chunked request"
    if headers.pop("expect", None):
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    headers["connection"] = "close"
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    head = "\r\n".join([first, *(f"{name}: {value}" for name, value in headers.items()), "", ""])
    method, target, _ = first.split(" ")
    return method, target, head.encode("latin-1") + body
