"""What every request passes before anything reads its body, and every answer on its way out.

Plain ASGI: Starlette's BaseHTTPMiddleware costs a task a request, and hides from the application that a client
left.
"""

import logging
import re
import uuid
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.serve.access import Access
from pipelines.serve.admission import Admission
from pipelines.serve.errors import ApiError, told, unforeseen
from pipelines.serve.telemetry import CANCELLED, Record, Telemetry

log = logging.getLogger(__name__)

API = "/v1/"  # what is under it needs a key, and is counted
ROUTES = {  # those that take JSON
    "/v1/chat/completions": "chat",
    "/v1/rerank": "rerank",
    "/v1/compare": "compare",
    "/v1/votes": "votes",
}
WORK = ROUTES.keys() - {"/v1/votes"}  # those that models work for
MODELS = "/v1/models"
ID = "x-request-id"
_OWN_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_JSON = re.compile(r"application/(?:[\w.-]+\+)?json\s*(?:;.*)?", re.IGNORECASE)


class Front:
    """Gives each request an id, asks who it is from, bounds its body, and turns errors into answers."""

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        admission: Admission,
        telemetry: Telemetry,
        body_bytes: int,
        tells_id: bool = True,
    ) -> None:
        """body_bytes: the longest body that is read. tells_id: put the id into answers' headers."""
        self._app, self._access, self._admission, self._telemetry = app, access, admission, telemetry
        self._body_bytes, self._tells_id = body_bytes, tells_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get(ID, "")
        id = given if _OWN_ID.fullmatch(given) else uuid.uuid4().hex
        state: MutableMapping[str, Any] = scope.setdefault("state", {})
        state["id"] = id
        if not scope["path"].startswith(API):
            await self._app(scope, receive, self._noting(send, id))
            return
        route = ROUTES.get(scope["path"], "models" if scope["path"].startswith(MODELS) else "other")
        with self._telemetry.request(id, route, headers.get("traceparent")) as record:
            state["record"] = record
            await self._answer(scope, receive, self._noting(send, id, record), id, record)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, id: str, record: Record) -> None:
        try:
            self._admit(scope, record)
            await self._app(scope, self._bounded(receive), send)
        except ClientDisconnect:
            record.status = CANCELLED
        except Exception as error:
            if record.status is not None:
                raise  # in the midst of the answer: nothing can be told
            known = told(error)
            if known is None:
                log.exception("request %s failed", id)
                known = unforeseen(id)
            if known.code:
                record.error(known.code)
            await known.response()(scope, receive, send)

    def _admit(self, scope: Scope, record: Record) -> None:
        """Raise what keeps the request from being read at all."""
        headers, client = Headers(scope=scope), scope.get("client")
        record.caller = self._access.check(headers, client[0] if client else None)
        if scope["method"] != "POST" or scope["path"] not in ROUTES:
            return
        if not _JSON.fullmatch(headers.get("content-type", "")):
            raise ApiError(415, "send JSON, with Content-Type: application/json", code="unsupported_media_type")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._body_bytes:
            raise self._too_large()
        if scope["path"] in WORK:
            self._admission.check()  # what there will be no place for isn't worth reading

    def _bounded(self, receive: Receive) -> Receive:
        left = self._body_bytes

        async def bounded() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise self._too_large()
            return message

        return bounded

    def _too_large(self) -> ApiError:
        return ApiError(
            413, f"the request is longer than {self._body_bytes} bytes (serve.limits.body_bytes)", code="too_large"
        )

    def _noting(self, send: Send, id: str, record: Record | None = None) -> Send:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                if self._tells_id:
                    MutableHeaders(scope=message)[ID] = id
                if record is not None:
                    record.status = message["status"]
            await send(message)

        return sending
