"""An OpenAI-compatible HTTP server on 127.0.0.1 that misbehaves on demand.

Written on bare sockets, because no web framework will cut a connection within a body or drip it for ever.
Each request takes the next of the `faults` it was started with; when none is left, `answer` answers, and
`chunks` a request for a stream.
"""

import asyncio
import contextlib
import json
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

Fault = Callable[[asyncio.StreamWriter], Awaitable[None]]
Answer = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
Chunks = Callable[[dict[str, Any]], AsyncIterator[dict[str, Any]]]


@dataclass(frozen=True)
class Request:
    """What a client sent. Header names are in lower case."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


def respond(status: int, body: object, content_type: str = "application/json", **headers: str) -> Fault:
    """A fault that is a whole response; `body` is sent as it is when it is text, else as JSON."""

    async def fault(writer: asyncio.StreamWriter) -> None:
        content = (body if isinstance(body, str) else json.dumps(body)).encode()
        lines = [f"HTTP/1.1 {status} X", f"content-type: {content_type}", f"content-length: {len(content)}"]
        headers.setdefault("connection", "close")
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + content)
        await writer.drain()

    return fault


async def hang(writer: asyncio.StreamWriter) -> None:
    """Accept the request and never answer."""
    await asyncio.Event().wait()


async def cut(writer: asyncio.StreamWriter) -> None:
    """Close the connection in the middle of the body."""
    writer.write(b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{"choices": [')
    await writer.drain()


async def drip(writer: asyncio.StreamWriter) -> None:
    """Send a blank every few milliseconds, for ever: no read ever times out."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000000\r\n\r\n")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.005)


def completion(text: str | None, finish_reason: str = "stop", **more: Any) -> dict[str, Any]:
    """The body of a chat completion."""
    message = {"role": "assistant", "content": text}
    return {
        "id": "1",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        **more,
    }


def chunk(text: str | None = None, finish_reason: str | None = None, **more: Any) -> dict[str, Any]:
    """An event of a streamed chat completion."""
    choice = {"index": 0, "delta": {} if text is None else {"content": text}, "finish_reason": finish_reason}
    return {"id": "1", "object": "chat.completion.chunk", "choices": [choice], **more}


def usage_chunk(prompt_tokens: int | None, completion_tokens: int | None) -> dict[str, Any]:
    """The event that comes last where `stream_options` asks for it."""
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return {**chunk(), "choices": [], "usage": usage}


async def _event(writer: asyncio.StreamWriter, data: object) -> None:
    event = f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode()
    writer.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")
    await writer.drain()


def _stream_head(connection: str) -> bytes:
    return (
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"
        f"connection: {connection}\r\n\r\n"
    ).encode()


def stream(*events: object, then: Fault | None = None, connection: str = "close") -> Fault:
    """A fault that is a stream of these events, as JSON unless they are text, and then `then` or its end."""

    async def fault(writer: asyncio.StreamWriter) -> None:
        writer.write(_stream_head(connection))
        for event in events:
            await _event(writer, event)
        if then:
            await then(writer)
        else:
            writer.write(b"0\r\n\r\n")
            await writer.drain()

    return fault


async def leave(writer: asyncio.StreamWriter) -> None:
    """Send nothing more: the connection is closed before the body's end."""


async def comment(writer: asyncio.StreamWriter) -> None:
    """Keep a stream alive for ever, and send no event."""
    while True:
        writer.write(b"3\r\n:\n\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.005)


async def greet(body: dict[str, Any]) -> dict[str, Any]:
    """Answer every request alike."""
    return completion("hello", usage={"prompt_tokens": 3, "completion_tokens": 2})


async def greet_in_pieces(body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """The same as a stream."""
    for text in ("", "hel", "lo"):
        yield chunk(text)
    yield chunk(finish_reason="stop")
    if body.get("stream_options"):
        yield usage_chunk(3, 2)


@dataclass
class EndpointServer:
    """Use as `async with`; `url` is the base URL then.

    Attributes:
        keep_alive: Take further requests from a connection, and don't watch for clients that leave.
        tls: Of HTTPS.
    """

    faults: Iterable[Fault] = ()
    answer: Answer = greet
    chunks: Chunks = greet_in_pieces
    keep_alive: bool = False
    tls: ssl.SSLContext | None = None
    connections: int = 0
    requests: list[Request] = field(default_factory=list)
    disconnected: asyncio.Event = field(default_factory=asyncio.Event)  # a client left before it had its answer
    in_flight: int = 0
    max_in_flight: int = 0

    async def __aenter__(self) -> Self:
        self._faults = list(self.faults)
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self.tls)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"{'https' if self.tls else 'http'}://127.0.0.1:{port}/v1"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            with contextlib.suppress(ConnectionError):  # the client was faster
                await writer.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        self.connections += 1
        serve = self._serve_all if self.keep_alive else self._serve
        task = asyncio.create_task(serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request per connection."""
        try:
            request = await _read(reader)
        except asyncio.IncompleteReadError:  # a connection opened and not used
            writer.close()
            return
        self.requests.append(request)
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        working = asyncio.create_task(self._reply(request, writer))
        leaving = asyncio.create_task(reader.read())  # ends when the client closes
        try:
            await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                self.disconnected.set()
        finally:
            self.in_flight -= 1
            working.cancel()
            leaving.cancel()
            writer.close()

    async def _serve_all(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """All requests of a connection, until its client closes it."""
        with contextlib.closing(writer), contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                request = await _read(reader)
                self.requests.append(request)
                await self._reply(request, writer)

    async def _reply(self, request: Request, writer: asyncio.StreamWriter) -> None:
        connection = "keep-alive" if self.keep_alive else "close"
        if self._faults:
            await self._faults.pop(0)(writer)
        elif request.body.get("stream"):
            writer.write(_stream_head(connection))
            async for event in self.chunks(request.body):
                await _event(writer, event)
            await _event(writer, "[DONE]")
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        else:
            await respond(200, await self.answer(request.body), connection=connection)(writer)


async def _read(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
    body = await reader.readexactly(int(headers["content-length"]))
    return Request(head[0].split()[1], headers, json.loads(body))


@contextlib.contextmanager
def in_a_thread(server: EndpointServer) -> Iterator[EndpointServer]:
    """Run a server beside a test that isn't asynchronous."""
    ready, done, loop = threading.Event(), asyncio.Event(), asyncio.new_event_loop()

    async def serve() -> None:
        async with server:
            ready.set()
            await done.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    ready.wait()
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join()
        loop.close()
