"""The HTTP client below OpenAI's: bounds every attempt in time and size, and finds failures that status 200 hides.

OpenAI's client retries by status. So a failure within a 200 gets the status that it stands for here, also in a
stream of which no text has come yet, and is retried as any other: as often, as late, and after Retry-After. A
stream in answer to a request for a whole answer is read to its end here, so that one that breaks off is retried.
"""

import asyncio
import os
import ssl
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Self, cast

import httpx2
import openai

from llm_blender_ray.actors.engines import Completion
from llm_blender_ray.actors.engines.chat_completions import (
    Failure,
    ServiceError,
    StreamReader,
    failure_in,
    parse_response_json,
)
from llm_blender_ray.actors.engines.rate_limits import RateLimits, estimated_tokens
from llm_blender_ray.actors.engines.refusals import is_too_long
from llm_blender_ray.actors.engines.token_counts import usage_in
from llm_blender_ray.actors.errors import ModelLoadError, one_line
from llm_blender_ray.actors.usage import TokenUsage

BYTES_PER_MIB = 1 << 20
MAX_HELD_BYTES = BYTES_PER_MIB  # of a stream without text
EVENT_STREAM = "text/event-stream"
KEEPALIVE_S = 55.0  # of an unused connection; many servers and load balancers close theirs after 60 s
# Variables with certificates of authorities, the first that is set counts: OpenSSL's, requests', curl's.
CA_VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
DRAIN_S = 0.1  # for the end of a stream's body, behind its last event: then its connection can be used again
STREAMED = "llm_blender_ray.streamed"  # extension of a response that was a stream: `Streamed`
RESERVATION = "llm_blender_ray.reservation"  # extension of every response: `rate_limits.Reservation`

Streamed = Completion | ServiceError  # the answer in a stream, or why there is none


class OversizeError(openai.OpenAIError):
    """A response is larger than it may be. Not a kind of error that the client retries."""


class UntrustedServerError(openai.OpenAIError):
    """No known authority has signed the server's certificate. The client doesn't retry it."""


class BrokenStreamError(httpx2.RemoteProtocolError):
    """A stream ended before the answer did, and may end well another time: the client retries it."""


# Attempts that reached the service, which may bill them, and that OpenAI's client retries or gives up.
_LOST = (httpx2.ReadTimeout, httpx2.ReadError, httpx2.RemoteProtocolError)
_discarded: ContextVar[list[TokenUsage] | None] = ContextVar("discarded", default=None)


@contextmanager
def collecting_discarded(calls: list[TokenUsage]) -> Iterator[None]:
    """Add the usage of attempts without an answer to `calls`, within the block.

    OpenAI's client, which retries between an engine and this client, passes on only the last attempt's response.
    """
    token = _discarded.set(calls)
    try:
        yield
    finally:
        _discarded.reset(token)


class BoundedClient(openai.DefaultAsyncHttpxClient):
    """An HTTP client that gives up an attempt after `attempt_s` seconds or `most_mib` MiB, body included.

    Redirects are not followed: a POST would lose its body, and the key would go elsewhere. Proxies are those of
    the environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY), and so are authorities (`CA_VARIABLES`).
    """

    def __init__(self, attempt_s: float, most_mib: int, most_requests: int, limits: RateLimits) -> None:
        """Make a client.

        Args:
            attempt_s: Seconds of one attempt.
            most_mib: Size of one response.
            most_requests: Requests at a time, whose connections are all kept for the next ones.
            limits: What each attempt waits for, before its time begins.

        Raises:
            ModelLoadError: A proxy or authority of the environment can't be used.
        """
        connections = httpx2.Limits(max_keepalive_connections=most_requests, keepalive_expiry=KEEPALIVE_S)
        try:
            super().__init__(timeout=attempt_s, follow_redirects=False, limits=connections, verify=_authorities())
        except (ValueError, ImportError, httpx2.InvalidURL) as error:  # a scheme; no package for SOCKS; no URL
            raise ModelLoadError(f"HTTP_PROXY, HTTPS_PROXY or ALL_PROXY: {one_line(error)}") from error
        self._attempt_s, self._most_mib, self._limits = attempt_s, most_mib, limits

    async def send(self, request: httpx2.Request, *, stream: bool = False, **options: Any) -> httpx2.Response:
        """Send a request; see `httpx2.AsyncClient.send`. The body is read, but for a stream that has begun well.

        Returns:
            The response, with the status that it stands for; one that was a stream and is read has `STREAMED`.

        Raises:
            OversizeError: The body is too large.
            UntrustedServerError: The server's certificate is none of a known authority.
            BrokenStreamError: A stream that was to be read as a whole broke off.
        """
        usage = TokenUsage()
        try:
            async with self._limits.attempt(estimated_tokens(request.content)) as reservation:
                response = await self.attempt(request, stream=stream, **options)
                response.extensions[RESERVATION] = reservation
                self._limits.learn(reservation, response.status_code, response.headers)
            if response.status_code != 200:
                usage = usage_of_failure(response.content)
        except _LOST:
            usage = TokenUsage.given_up()
            raise
        finally:
            if (calls := _discarded.get()) is not None and usage.calls:
                calls.append(usage)
        return response

    async def attempt(self, request: httpx2.Request, *, stream: bool, **options: Any) -> httpx2.Response:
        """Send a request whose turn it is; see `send`."""
        until = asyncio.get_running_loop().time() + self._attempt_s
        options["follow_redirects"] = False
        try:
            async with asyncio.timeout_at(until):
                response = await super().send(request, stream=True, **options)
        except TimeoutError as error:
            raise httpx2.ReadTimeout("the attempt took too long", request=request) from error
        except httpx2.ConnectError as error:
            if reason := _distrust(error):
                raise UntrustedServerError(reason) from None
            raise
        body = _Body(response, until, self._most_mib)
        extensions = dict(response.extensions)
        try:
            is_stream = response.status_code == 200 and content_type(response) == EVENT_STREAM
            if stream and is_stream:
                status, content = await _beginning(response, body)
            elif is_stream:
                status, content, streamed = await _whole(response, body)
                extensions[STREAMED] = streamed
            else:
                content = b"".join([chunk async for chunk in body])
                status = _status(response.status_code, content)
        except BaseException:
            await response.aclose()
            raise
        headers = response.headers.copy()
        for name in _FRAMING:
            headers.pop(name, None)
        whole: dict[str, Any] = {"stream": body}
        if content is not None:
            await response.aclose()
            whole = {"content": content}
            if content_type(response) == EVENT_STREAM:
                headers["content-type"] = "application/json"  # a failure, out of its event
        return httpx2.Response(status, headers=headers, request=request, extensions=extensions, **whole)


def _authorities() -> ssl.SSLContext | bool:
    """The certificates that a server's is checked with; True: the system's.

    Raises:
        ModelLoadError: A variable names none.
    """
    name = next((name for name in CA_VARIABLES if os.environ.get(name)), None)
    if name is None:
        return True
    path = Path(os.environ[name])
    try:
        return ssl.create_default_context(capath=path) if path.is_dir() else ssl.create_default_context(cafile=path)
    except OSError as error:  # ssl.SSLError, too
        raise ModelLoadError(f"{name}: {path}: no certificates can be read: {one_line(error)}") from error


def _distrust(error: BaseException | None) -> str | None:
    """Why a server's certificate isn't trusted; None where a connection failed for another reason."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error.verify_message
        error = error.__cause__ or error.__context__
    return None


_FRAMING = ("content-encoding", "content-length", "transfer-encoding")  # true of the body as it was sent


class _Body(httpx2.AsyncByteStream):
    """A response's bytes, decoded, as long as they come before `until` on the loop's clock and aren't too many."""

    def __init__(self, response: httpx2.Response, until: float, most_mib: int) -> None:
        self._response, self._until, self._most_mib = response, until, most_mib
        self._chunks = response.aiter_bytes()
        self._read = 0
        self._again: deque[bytes] = deque()
        self.held: list[bytes] | None = None  # what has been read, to be read again

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._again:
            return self._again.popleft()
        try:
            async with asyncio.timeout_at(self._until):  # not open while a chunk is out
                chunk = await anext(self._chunks, None)
        except TimeoutError as error:
            raise httpx2.ReadTimeout("the attempt took too long", request=self._response.request) from error
        if chunk is None:
            raise StopAsyncIteration
        self._read += len(chunk)
        if self._read > self._most_mib * BYTES_PER_MIB:
            raise OversizeError(f"its answer exceeds {self._most_mib} MiB; max_answer_mib allows more")
        if self.held is not None:
            self.held.append(chunk)
        return chunk

    @property
    def read(self) -> int:
        """Bytes so far."""
        return self._read

    def rewind(self) -> None:
        """Give what was held once more."""
        self._again.extend(self.held or ())
        self.held = None

    async def aclose(self) -> None:
        """Close the connection, or give it back where all is read."""
        await self._chunks.aclose()
        await self._response.aclose()


class _Unclosed(httpx2.AsyncByteStream):
    """A body that is read for a while and not closed then."""

    def __init__(self, body: _Body) -> None:
        self._body = body

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        return await anext(self._body)


async def _beginning(response: httpx2.Response, body: _Body) -> tuple[int, bytes | None]:
    """Read a stream up to its first text or reasoning.

    Returns:
        The status it stands for, and its content where that is a failure.
    """
    body.held = []
    reader = StreamReader()
    none = True
    with suppress(httpx2.SSEError):  # the reader of the stream finds it again
        async with aclosing(_events_in(response, body)) as events:
            async for event in events:
                none = False
                if event.data == "[DONE]":
                    break
                try:
                    if (event.data and reader.add(event.data, event.event)) or body.read > MAX_HELD_BYTES:
                        break
                except ServiceError as error:
                    if error.failure.status is None:
                        break
                    return error.failure.status, event.data.encode()
    content = b"".join(body.held)
    if none and _failure(content):  # some gateways send it as it is
        return _status(response.status_code, content), content
    body.rewind()
    return response.status_code, None


async def _whole(response: httpx2.Response, body: _Body) -> tuple[int, bytes, Streamed | None]:
    """Read a stream to its end.

    Returns:
        The status it stands for, its content where that is a failure, and what it has come to otherwise.

    Raises:
        BrokenStreamError: It broke off, for no reason that another attempt would meet again.
    """
    body.held = []  # until there is an event
    reader = StreamReader()
    data, begun = "", False
    try:
        async with aclosing(_events_in(response, body)) as events:
            async for event in events:
                body.held = None
                if event.data == "[DONE]":
                    await drain(events)
                    break
                if event.data:
                    data = event.data
                    begun |= bool(reader.add(data, event.event))
        content = b"".join(body.held or ())
        if _failure(content):  # some gateways send it as it is
            return _status(200, content), content, None
        begun = True
        return 200, b"", reader.completion()
    except httpx2.SSEError as error:
        return 200, b"", ServiceError(Failure(f"its answer isn't a stream of events: {error}"))
    except ServiceError as error:
        status = _status(200, data.encode())
        if status != 200:
            return status, data.encode(), None
        if begun and not reader.ended and not error.failure.rejected:
            raise BrokenStreamError(str(error), request=response.request) from None
        error.usage = reader.usage
        return 200, b"", error


async def drain(events: AsyncGenerator[httpx2.ServerSentEvent, None]) -> None:
    """Wait a moment for the end of a stream's body, of which all that counts has come."""
    with suppress(TimeoutError, httpx2.HTTPError):
        async with asyncio.timeout(DRAIN_S):
            await anext(events, None)


def _events_in(response: httpx2.Response, body: _Body) -> AsyncGenerator[httpx2.ServerSentEvent, None]:
    """The events of a response's body, which stays open."""
    head = {"content-type": response.headers["content-type"]}
    return events_of(httpx2.Response(200, headers=head, request=response.request, stream=_Unclosed(body)))


def events_of(response: httpx2.Response) -> AsyncGenerator[httpx2.ServerSentEvent, None]:
    """The response's events, of at most 1 MiB each."""
    return cast(AsyncGenerator[httpx2.ServerSentEvent, None], aiter(httpx2.EventSource(response)))


def _status(status: int, content: bytes) -> int:
    """The status that a response stands for: that of the failure in it, if its own is a success.

    A prompt that is too long is no failure of the server, though some servers call it one: asked again, it would
    fail again.
    """
    if status != 200 and status < 500:
        return status
    failure = _failure(content)
    if failure is None:
        return status
    stands_for = failure.status or status if status == 200 else status
    return 400 if stands_for >= 500 and is_too_long(failure) else stands_for


def _failure(content: bytes) -> Failure | None:
    try:
        return failure_in(parse_response_json(content))
    except ServiceError:
        return None


def usage_of_failure(content: bytes) -> TokenUsage:
    """Usage that a response without an answer reports; nothing used where it reports none."""
    try:
        return usage_in(parse_response_json(content))
    except ServiceError:
        return TokenUsage()


def content_type(response: httpx2.Response) -> str:
    """The type alone, in lower case; empty where there is none."""
    return response.headers.get("content-type", "").partition(";")[0].strip().lower()
