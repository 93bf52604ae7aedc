"""HTTP protocol of uvicorn with limits on connections, on a request's head, and on the time of reading and sending.

uvicorn has a timeout for idle connections only, and httptools, its parser, accepts a header of any length. The
middleware bounds a request's body and its whole time, under any server.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from llm_blender_ray.configs.serving import Limits
from llm_blender_ray.pipelines.serve.errors import ApiError

ABORT = "blend.abort"  # extension in the ASGI scope: a function that resets the connection
PIPELINED = 16  # requests of a connection that wait for an earlier response
BODY_SLACK_S = 1.0  # after the middleware's own timeout of the body, which sends a response


def server_config(app: ASGIApp, limits: Limits, **options: Any) -> uvicorn.Config:
    """Configuration of a uvicorn server with these limits.

    Args:
        app: The application.
        limits: Of connections and requests.
        **options: More of `uvicorn.Config`.

    Returns:
        The configuration.
    """

    class Bounded(BoundedProtocol):
        bounds = limits

    return uvicorn.Config(
        app,
        http=Bounded,
        ws="none",
        access_log=False,
        timeout_keep_alive=limits.keep_alive_s,  # type: ignore[arg-type]  # it goes to call_later
        **options,
    )


class _HeadTooLargeError(Exception):
    """Stops the parser."""


class BoundedProtocol(HttpToolsProtocol):
    """One connection. Its transport counts as full as soon as a byte waits for the client."""

    bounds = Limits()

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._begun = self._in_body = False
        self._head_bytes = 0  # of the current request, in complete parts
        self._unread_bytes = 0  # parsed since the end of a part
        self._too_large = False
        self._reading: asyncio.TimerHandle | None = None
        self._sending: asyncio.TimerHandle | None = None

    # of the transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See base class."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)
        if len(self.connections) > self.bounds.connections:
            self._refuse(503, "too many connections (serve.limits.connections); come again later", "overloaded")
        else:
            self._read_within(self.bounds.header_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """See base class."""
        self._read_within(None)
        super().connection_lost(exc)  # resumes writing
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        """See base class."""
        if self.transport.is_closing():
            return
        if self._reading is None:
            self._read_within(self.bounds.header_s)
        self._unread_bytes += len(data)
        super().data_received(data)
        if self._unread_bytes > self.bounds.header_bytes and not self.transport.is_closing():
            self._too_large = True
            self.send_400_response("")

    def pause_writing(self) -> None:
        """See base class."""
        super().pause_writing()
        if self._sending is None:
            self._sending = self.loop.call_later(self.bounds.send_s, self._cut)

    def resume_writing(self) -> None:
        """See base class."""
        super().resume_writing()
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None

    # of the parser

    def on_message_begin(self) -> None:
        """See base class."""
        super().on_message_begin()
        self.scope["extensions"] = {ABORT: self._cut}  # type: ignore[dict-item]
        self._begun, self._in_body = True, False
        self._head_bytes = self._unread_bytes = 0
        if self._reading is None:  # sent together with the request before it
            self._read_within(self.bounds.header_s)

    def on_url(self, url: bytes) -> None:
        """See base class."""
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """See base class."""
        self._unread_bytes = 0
        super().on_header(name, value)
        self._count(len(name) + len(value) + 4)

    def on_headers_complete(self) -> None:
        """See base class."""
        self._unread_bytes = 0
        if len(self.pipeline) >= PIPELINED:
            self._cut()
            raise _HeadTooLargeError
        self._in_body = True
        self._read_within(self.bounds.body_s + BODY_SLACK_S)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """See base class."""
        self._unread_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """See base class."""
        self._unread_bytes = 0
        self._begun = self._in_body = False
        self._read_within(None)
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Called when the parser, or a method of it above, raises."""
        if self._too_large:
            bounds = self.bounds
            self._refuse(
                431,
                f"the request's headers are longer than {bounds.header_bytes} bytes (serve.limits.header_bytes) or "
                f"more than {bounds.headers} (serve.limits.headers)",
                "headers_too_large",
            )
        else:
            self._refuse(400, "the request is not HTTP", "invalid_http")

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self.bounds.header_bytes or len(self.headers) > self.bounds.headers:
            self._too_large = True
            raise _HeadTooLargeError

    # of time

    def _read_within(self, seconds: float | None) -> None:
        """Set the time limit of the next part of a request; None: none is expected."""
        if self._reading is not None:
            self._reading.cancel()
        self._reading = None if seconds is None else self.loop.call_later(seconds, self._late, seconds)

    def _late(self, seconds: float) -> None:
        self._reading = None
        if self.transport.is_closing():
            return
        if self.flow.read_paused:  # the client waits for this side
            self._read_within(seconds)
        elif self._begun or self._unread_bytes:
            self._refuse(408, "the request did not come in time (serve.limits)", "request_timeout")
        else:
            self.transport.close()

    def _cut(self) -> None:
        """Reset the connection: after a regular close the system would keep unread data."""
        connection = self.transport.get_extra_info("socket")
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _refuse(self, status: int, message: str, code: str) -> None:
        """Respond to the current request, if its response can be the next one, and close the connection."""
        if self.transport.is_closing():
            return
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if not self._in_body or cycle.response_started or self.pipeline:
                self._cut()  # another response is being sent
                return
            cycle.disconnected = True
            cycle.message_event.set()
        elif cycle is not None and self._in_body:  # its response preceded its body
            self._cut()
            return
        body = ApiError(status, message, code=code).body().model_dump_json().encode()
        head = (
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        ).encode()
        self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()


def abort_of(scope: Any) -> Callable[[], None] | None:
    """The function that resets a request's connection; None: this server has none."""
    found: Callable[[], None] | None = (scope.get("extensions") or {}).get(ABORT)
    return found
