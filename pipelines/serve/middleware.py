"""ASGI middleware around the application: ids, access, limits, error responses.

Plain ASGI: Starlette's BaseHTTPMiddleware costs a task a request, and hides a client's disconnection from the
application.
"""

import asyncio
import logging
import re
import uuid
from collections.abc import MutableMapping, Sequence
from typing import Any, Protocol

from starlette._utils import get_route_path  # the router's own, so that checked and routed paths are the same
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm_blender_ray.actors.prices import PriceList
from llm_blender_ray.configs.serving import Serving
from llm_blender_ray.pipelines.serve.access import Access
from llm_blender_ray.pipelines.serve.admission import Admission
from llm_blender_ray.pipelines.serve.connections import abort_of
from llm_blender_ray.pipelines.serve.errors import ApiError, internal_error, shutting_down, to_api_error
from llm_blender_ray.pipelines.serve.service import Endpoint
from llm_blender_ray.pipelines.serve.telemetry import CANCELLED, RequestRecord, Telemetry

log = logging.getLogger(__name__)

API = "/v1/"
DOCUMENT = "/openapi.json"  # open, like endpoints marked so; any other path needs a key, whether it exists or not
SLACK_S = 1.0  # between a request's deadline, when the best answer so far is sent, and the connection's reset
OTHER = "other"  # label of requests without an endpoint
REQUEST_ID_HEADER = "x-request-id"
_OWN_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_JSON = re.compile(r"application/(?:[\w.-]+\+)?json\s*(?:;.*)?", re.IGNORECASE)


class Front(Protocol):
    """What requests pass before their routes: of a `Service`, and of a campaign's server."""

    @property
    def access(self) -> Access:
        """API keys and rate limits."""

    @property
    def admission(self) -> Admission:
        """Queue before the models."""

    @property
    def telemetry(self) -> Telemetry:
        """Metrics and log of counted requests."""

    @property
    def prices(self) -> PriceList:
        """Of the tokens of counted requests."""

    @property
    def serving(self) -> Serving:
        """Limits and deadline."""


class RequestMiddleware:
    """Gives each request an id, identifies its caller, bounds its size and time, and turns errors to responses."""

    def __init__(self, app: ASGIApp, service: Front, endpoints: Sequence[Endpoint], tells_id: bool = True) -> None:
        """Put the middleware in front of an application.

        Args:
            app: The application.
            service: The access, queue, telemetry and limits of its requests.
            endpoints: The endpoints of the application.
            tells_id: Put the request's id into the headers of responses.
        """
        self._app, self._endpoints, self._tells_id = app, endpoints, tells_id
        self._access, self._admission, self._telemetry = service.access, service.admission, service.telemetry
        self._prices = service.prices
        self._limits, self._deadline_s = service.serving.limits, service.serving.deadline_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a connection."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # no WebSockets
            await send({"type": "websocket.close", "code": 1008, "reason": ""})
            return
        headers, path = Headers(scope=scope), get_route_path(scope)
        if not path:  # the page's URLs are relative to a folder
            await RedirectResponse(f"{scope['root_path']}/")(scope, receive, send)
            return
        given = headers.get(REQUEST_ID_HEADER, "")
        id = given if _OWN_ID.fullmatch(given) else uuid.uuid4().hex
        state: MutableMapping[str, Any] = scope.setdefault("state", {})
        state["id"] = id
        answer = _Answer(send, id if self._tells_id else None)
        endpoint = next((each for each in self._endpoints if each.matches(path)), None)
        if _is_open(endpoint, path) or (endpoint and not endpoint.counted):
            await self._handle(scope, receive, answer, endpoint)
            return
        label = endpoint.name if endpoint else OTHER
        with self._telemetry.request(id, label, headers.get("traceparent"), self._prices) as record:
            state["record"] = answer.record = record
            await self._handle(scope, receive, answer, endpoint)

    async def _handle(self, scope: Scope, receive: Receive, answer: "_Answer", endpoint: Endpoint | None) -> None:
        record = answer.record
        try:
            self._check_head(scope)
            if not _is_open(endpoint, get_route_path(scope)):
                self._admit(scope, record, endpoint)
            await self._within_time(scope, receive, answer)
        except asyncio.CancelledError:
            if answer.started or abort_of(scope) is None:
                raise
            # The gateway's own server cancels what is unfinished when it ends, and would answer 500.
            ended = shutting_down()
            if ended.code and record is not None:
                record.error(ended.code)
            await ended.response()(scope, receive, answer)
        except ClientDisconnect:
            if record is not None:
                record.status = CANCELLED
        except _UnreadError:
            if record is not None:
                record.status = CANCELLED
                record.error("unread")
            if (abort := abort_of(scope)) is None:
                raise
            abort()
            await asyncio.sleep(0)  # lets the server notice
        except Exception as error:
            if answer.started:
                raise  # the response has begun: no error can be sent
            known = to_api_error(error)
            if known is None:
                id = scope["state"]["id"]
                log.exception("request %s failed", id)
                known = internal_error(id)
            if known.code and record is not None:
                record.error(known.code)
            await known.response()(scope, receive, answer)

    def _check_head(self, scope: Scope) -> None:
        """Check the headers' length, for servers that do not.

        Raises:
            ApiError: They are too long.
        """
        headers, limits = scope["headers"], self._limits
        size = sum(len(name) + len(value) + 4 for name, value in headers)
        if len(headers) > limits.headers or size > limits.header_bytes:
            raise ApiError(
                431,
                f"the request's headers are longer than {limits.header_bytes} bytes (serve.limits.header_bytes) or "
                f"more than {limits.headers} (serve.limits.headers)",
                code="headers_too_large",
            )

    def _admit(self, scope: Scope, record: RequestRecord | None, endpoint: Endpoint | None) -> None:
        """Check a request before its body is read.

        Raises:
            ApiError: It is not admitted.
            AccessError: Its caller is not admitted.
            OverloadedError: The queue is full.
        """
        headers, client = Headers(scope=scope), scope.get("client")
        scope["state"]["caller"] = caller = self._access.check(headers, client[0] if client else None)
        if record is not None:
            record.caller = caller
        if scope["method"] != "POST" or not (endpoint and endpoint.reads_json):
            return
        if not _JSON.fullmatch(headers.get("content-type", "")):
            raise ApiError(415, "send JSON, with Content-Type: application/json", code="unsupported_media_type")
        encoding = ", ".join(headers.getlist("content-encoding")).strip()
        if encoding and encoding.lower() != "identity":
            shown = encoding if encoding.isascii() and encoding.isprintable() else "an unknown one"
            raise ApiError(
                415,
                f"Content-Encoding: expected none, got {shown[:100]}; send the body uncompressed",
                code="unsupported_content_encoding",
                headers={"accept-encoding": "identity"},
            )
        length = headers.get("content-length", "0")
        if length.isdecimal() and (len(length) > 18 or int(length) > self._limits.body_bytes):
            raise self._too_large()
        if endpoint.uses_models:
            self._admission.check()  # do not read a request without a place

    async def _within_time(self, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        """Let the application respond: the body has `body_s`, and the response `deadline_s`.

        Raises:
            ApiError: The body is late.
            _UnreadError: The response has begun, and is not read in time.
            Exception: What the application raises.
        """
        left, whole = self._limits.body_bytes, False
        loop = asyncio.get_running_loop()

        async def bounded() -> Message:
            nonlocal left, whole
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise self._too_large()
            if message["type"] == "http.request" and not message.get("more_body") and not whole:
                whole = True
                limit.reschedule(loop.time() + self._deadline_s + SLACK_S)
            return message

        limit = asyncio.timeout(self._limits.body_s)
        try:
            async with limit:
                await self._app(scope, bounded, answer)
        except TimeoutError as error:
            if not limit.expired():
                raise
            if answer.started:
                raise _UnreadError from error
            if whole:
                raise ApiError(503, "no answer within serve.deadline_s", code="no_answer") from error
            raise ApiError(
                408,
                f"the body did not come within {self._limits.body_s:g} s (serve.limits.body_s)",
                code="request_timeout",
                headers={"connection": "close"},
            ) from error

    def _too_large(self) -> ApiError:
        most = self._limits.body_bytes
        return ApiError(413, f"the request is longer than {most} bytes (serve.limits.body_bytes)", code="too_large")


def _is_open(endpoint: Endpoint | None, path: str) -> bool:
    """Whether requests need no key."""
    return endpoint.open if endpoint else path == DOCUMENT


class _UnreadError(Exception):
    """The response has begun, and the client has not read it within the request's time."""


class _Answer:
    """ASGI's `send` of a request, which records the status and puts the request's id into the headers."""

    def __init__(self, send: Send, id: str | None) -> None:
        self.record: RequestRecord | None = None
        self.started = False
        self._send, self._id = send, id

    async def __call__(self, message: Message) -> None:
        """Send a message."""
        if message["type"] == "http.response.start":
            self.started = True
            if self._id is not None:
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = self._id
            if self.record is not None:
                self.record.status = message["status"]
        await self._send(message)
