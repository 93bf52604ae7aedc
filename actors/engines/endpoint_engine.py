"""A base LLM behind an OpenAI-compatible HTTP endpoint, asked through OpenAI's own client.

The client retries by itself: connection errors, timeouts, 408, 409, 429 and 5xx, after Retry-After (up to two
minutes; longer ones fail at once) or else after 0.5 s, doubled each time up to 8 s, with jitter; a stream isn't
tried again once it has text. Beside it are a client that bounds attempts and sees failures within a 200
(`http_client`), requests that learn what an endpoint refuses (`chat_requests`), limits per minute (`rate_limits`),
and a bound on requests in flight.
"""

import asyncio
import os
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2
import openai
from openai.lib.azure import API_KEY_SENTINEL

from llm_blender_ray.actors.engines import Completion, Piece
from llm_blender_ray.actors.engines.chat_completions import (
    Failure,
    ServiceError,
    StreamReader,
    failure_in,
    parse_response_json,
    read_completion,
)
from llm_blender_ray.actors.engines.chat_requests import Requests
from llm_blender_ray.actors.engines.http_client import (
    EVENT_STREAM,
    RESERVATION,
    STREAMED,
    BrokenStreamError,
    OversizeError,
    Streamed,
    UntrustedServerError,
    collecting_discarded,
    content_type,
    drain,
    events_of,
)
from llm_blender_ray.actors.engines.metered_client import MeteredClient, settle_response
from llm_blender_ray.actors.engines.rate_limits import RateLimits
from llm_blender_ray.actors.engines.refusals import is_too_long, is_unknown_model
from llm_blender_ray.actors.errors import (
    GenerationError,
    ModelLoadError,
    PermanentError,
    RejectedError,
    TooLongError,
    UnavailableError,
)
from llm_blender_ray.actors.records import Message
from llm_blender_ray.actors.usage import TokenUsage
from llm_blender_ray.configs.endpoint import header_problem
from llm_blender_ray.configs.schema import EndpointModel, Sampling

# Of a request, and of reading its answer.
_FAILURES = (openai.APIError, OversizeError, UntrustedServerError, httpx2.HTTPError, ServiceError)
OPENAI_HOST = "api.openai.com"  # and its regions', such as eu.api.openai.com
MAX_ERROR_CHARACTERS = 80  # characters of a response without an answer

_R = TypeVar("_R")


class EndpointEngine:
    """See `actors.engines.Engine`."""

    def __init__(self, model: EndpointModel) -> None:
        """Make a client of the endpoint.

        Raises:
            ModelLoadError: An environment variable that the settings name has no value, or one for proxies or
                certificates a wrong one.
        """
        key = _secret(model, model.api_key_env, "the endpoint's key") if model.api_key_env is not None else None
        headers = {name: _secret(model, env, f"the header {name}") for name, env in model.headers_env.items()}
        self._secrets = [*([key] if key is not None else []), *headers.values()]
        self._key_name = model.api_key_env or "api_key_env, which isn't set"
        self._model = model
        self._requests = Requests(model)
        self._in_flight = asyncio.Semaphore(model.max_in_flight)
        self._limits = RateLimits(
            model.per_actor(model.requests_per_minute), model.per_actor(model.tokens_per_minute)
        )
        self._client = _openai_client(model, key, {**model.headers, **headers}, self._limits)

    async def generate(self, messages: list[Message], sampling: Sampling) -> Completion:
        """See `actors.engines.Engine`."""
        discarded: list[TokenUsage] = []
        try:
            async with self._in_flight:
                create = self._client.chat.completions.with_raw_response.create
                request = self._requests.build(messages, sampling, stream=self._model.stream)
                response = await self._asked(create, request, discarded)
            return await self._settled(response.http_response, _read(response.http_response), discarded)
        except _FAILURES as error:
            failed = self._failed(error, discarded)
        raise failed  # outside of the except block: the client's errors hold the request, and with it the key

    async def stream(self, messages: list[Message], sampling: Sampling) -> AsyncGenerator[Piece, None]:
        """See `actors.engines.Engine`. The time that a caller takes between pieces counts towards `timeout_s`."""
        reader = StreamReader()
        failed: GenerationError | None = None
        begun = False
        discarded: list[TokenUsage] = []
        try:
            async with self._in_flight, AsyncExitStack() as stack:

                async def create(**request: Any) -> openai.AsyncAPIResponse[Any]:
                    opened = self._client.chat.completions.with_streaming_response.create(**request)
                    return await stack.enter_async_context(opened)

                request = self._requests.build(messages, sampling, stream=True)
                response = await self._asked(create, request, discarded)
                _check_is_stream(response.http_response)
                events = await stack.enter_async_context(aclosing(events_of(response.http_response)))
                async for event in events:
                    if event.data == "[DONE]":
                        await drain(events)
                        break
                    for piece in reader.add(event.data, event.event) if event.data else ():
                        begun = True
                        yield piece
            completion = await self._settled(response.http_response, reader.completion(), discarded)
        except _FAILURES as error:
            failed = self._failed(error, [*discarded, reader.usage], begun=begun)
        if failed:
            raise failed  # as above
        yield completion

    async def check_health(self) -> None:
        """See `actors.engines.Engine`. A new actor would find the same endpoint."""

    async def close(self) -> None:
        """See `actors.engines.Engine`."""
        await self._client.close()

    async def _asked(
        self, create: Callable[..., Awaitable[_R]], request: dict[str, Any], discarded: list[TokenUsage]
    ) -> _R:
        """The response to a request, which is changed as often as the endpoint refuses a part that may be.

        The usage of attempts without an answer is added to `discarded`.
        """
        sent = request
        while True:
            try:
                with collecting_discarded(discarded):
                    response = await create(**sent)
            except openai.APIStatusError as error:
                adapted = self._requests.adapted(sent, _failure_of(error))
                if adapted is None:
                    raise
                sent = adapted
            else:
                self._requests.learn(request, sent)
                return response

    async def _settled(
        self, response: httpx2.Response, completion: Completion, discarded: Sequence[TokenUsage]
    ) -> Completion:
        """An answer after its discarded attempts. Its tokens replace what rate limit and budget reserved for it."""
        if completion.prompt_tokens is not None and completion.completion_tokens is not None:
            tokens = completion.prompt_tokens + completion.completion_tokens
            self._limits.settle(response.extensions[RESERVATION], tokens)
        await settle_response(response, completion.usage)
        return completion.after(sum(discarded, TokenUsage()))

    def _failed(self, error: Exception, usages: Sequence[TokenUsage], *, begun: bool = False) -> GenerationError:
        """One of `_FAILURES` as an error of ours, with the endpoint's address and without secrets.

        Args:
            error: What went wrong.
            usages: Of the calls until then.
            begun: Whether it broke off an answer of which some text has come.
        """
        kind: type[GenerationError] = GenerationError
        tries = f" in {self._model.max_retries + 1} tries" if self._model.max_retries else ""
        match error:
            case ServiceError():
                problem = f"{error.failure.status}: {error}" if error.failure.status else str(error)
                problem = f"it broke the answer off: {problem}" if begun else problem
                kind = _kind(error.failure)
            case openai.APITimeoutError():
                problem = f"no answer within {self._model.timeout_s:g} s{tries}; raise timeout_s"
                kind = UnavailableError
            case UntrustedServerError():
                problem = (
                    f"its certificate isn't trusted: {error}; set SSL_CERT_FILE to its authority's certificates"
                )
                kind = PermanentError
            case openai.APIConnectionError():
                cause, kind = error.__cause__ or error, UnavailableError
                problem = f"no connection, or it broke{tries}: {type(cause).__name__}: {cause}"
                if isinstance(cause, BrokenStreamError):
                    problem = f"it broke the answer off{tries}: {cause}"
            case openai.APIStatusError():
                failure = _failure_of(error)
                problem, kind = f"{error.status_code}: {failure.message}", _kind(failure)
                if error.status_code in (401, 403) and not failure.rejected:
                    refused = f"it refused the key; check {self._key_name}"
                    problem = f"{error.status_code}: {refused}: {failure.message}"
            case httpx2.SSEError():
                problem = f"its answer isn't a stream of events: {error}"
            case httpx2.TimeoutException():
                problem = f"the answer didn't end within {self._model.timeout_s:g} s; raise timeout_s"
            case httpx2.HTTPError():
                problem = f"the connection broke in the midst of the answer: {type(error).__name__}: {error}"
            case _:
                problem = str(error)
        for secret in self._secrets:
            problem = problem.replace(secret, "***")
        billed = error.usage if isinstance(error, ServiceError) else TokenUsage()
        return kind(f"{self._model.base_url}: {problem}").with_usage(sum(usages, billed))


def _openai_client(
    model: EndpointModel, key: str | None, headers: Mapping[str, str], limits: RateLimits
) -> openai.AsyncOpenAI:
    """OpenAI's client, or its variant for Azure.

    With an API version, the URL of a resource (`https://NAME.openai.azure.com`), or of its `/openai`, is Azure's
    API of deployments. Azure's other APIs (`/openai/v1`, `/models`) are as OpenAI's, and have a version, too.
    OpenAI's own variables for organization and project count for OpenAI alone, and configured headers precede them.
    """
    given = {name.title(): value for name, value in headers.items()}
    # The client has parameters for these two, and drops headers of the same name.
    organization, project = given.pop("Openai-Organization", None), given.pop("Openai-Project", None)
    settings: dict[str, Any] = {
        "max_retries": model.max_retries,
        "timeout": model.timeout_s,
        "default_headers": given,
        "http_client": MeteredClient(model.timeout_s, model.max_answer_mib, model.max_in_flight, limits),
    }
    url = model.base_url.rstrip("/")
    path = urlsplit(url).path
    if model.api_version is None or (path and (path.endswith("/v1") or "openai" not in path.split("/"))):
        query = {"api-version": model.api_version} if model.api_version else None
        # servers without keys accept any
        client = openai.AsyncOpenAI(base_url=url, api_key=key or "none", default_query=query, **settings)
    else:
        if key is None:  # then a header may be in its place
            key = API_KEY_SENTINEL if {"Authorization", "Api-Key"} & given.keys() else "none"
        client = openai.AsyncAzureOpenAI(
            base_url=url if path else f"{url}/openai", api_version=model.api_version, api_key=key, **settings
        )
    # The client also reads OPENAI_ORG_ID, OPENAI_PROJECT_ID and OPENAI_CUSTOM_HEADERS, whatever its URL.
    host = urlsplit(url).hostname or ""
    is_openai = host == OPENAI_HOST or host.endswith(f".{OPENAI_HOST}")
    client.organization = organization or (client.organization if is_openai else None)
    client.project = project or (client.project if is_openai else None)
    client._custom_headers = given
    return client


def _secret(model: EndpointModel, variable: str, what: str) -> str:
    """An environment variable's value.

    Raises:
        ModelLoadError: The variable isn't set.
    """
    value = os.environ.get(variable, "").strip()
    if not value:
        raise ModelLoadError(f"{model.name}: set the environment variable {variable} to {what}")
    if problem := header_problem(value):
        raise ModelLoadError(f"{model.name}: the environment variable {variable}: {problem}")
    return value


def _read(response: httpx2.Response) -> Completion:
    """The answer in a response.

    Raises:
        ServiceError: The service reports a failure.
    """
    streamed: Streamed | None = response.extensions.get(STREAMED)
    if isinstance(streamed, Completion):
        return streamed
    if streamed is not None:
        raise streamed
    try:
        return read_completion(response.content)
    except ServiceError:
        if _is_json(response.content):
            raise
    raise ServiceError(Failure(f"its answer isn't a chat completion: {_described(response)}"))


def _check_is_stream(response: httpx2.Response) -> None:
    """Check that a response has events.

    Raises:
        ServiceError: It has none; the message is the failure in it, or its kind.
    """
    if content_type(response) == EVENT_STREAM:
        return
    failure = failure_in(parse_response_json(response.content)) if _is_json(response.content) else None
    raise ServiceError(failure or Failure(f"its answer isn't a stream of events: {_described(response)}"))


def _failure_of(error: openai.APIStatusError) -> Failure:
    """The message of an HTTP error, with its own status."""
    response = error.response
    if response.is_redirect:
        target = response.headers.get("location", "").partition("?")[0]
        return Failure(f"it redirects to {target or 'nowhere'}; set base_url to where it is", error.status_code)
    try:
        failure = failure_in(parse_response_json(response.content))
    except ServiceError:
        failure = None
    if failure is None:
        return Failure(_described(response), error.status_code)
    return Failure(failure.message, error.status_code, failure.code, failure.param, failure.rejected)


def _kind(failure: Failure) -> type[GenerationError]:
    """Error class of a failure, by what it implies for the next prompts."""
    status = failure.status
    refuses = status in (None, 400, 413, 422)
    if status == 413 or (refuses and is_too_long(failure)):
        return TooLongError
    if failure.rejected:
        return RejectedError
    if status in (401, 402, 403, 404, 405) or (status or 0) // 100 == 3 or (refuses and is_unknown_model(failure)):
        return PermanentError
    if (status or 0) >= 500:
        return UnavailableError
    return RejectedError if status in (400, 422) else GenerationError


def _is_json(content: bytes) -> bool:
    try:
        parse_response_json(content)
    except ServiceError:
        return False
    return True


def _described(response: httpx2.Response) -> str:
    """Description of a response that no service of this kind sends: a web page's title, else its text."""
    kind = content_type(response) or "no content type"
    text = response.content[:100_000].decode(errors="replace")
    if "html" in kind or text.lstrip()[:1] == "<":
        title = re.search(r"<title[^>]*>(.*?)</title>", text, re.IGNORECASE | re.DOTALL)
        name = f" {' '.join(title[1].split())[:MAX_ERROR_CHARACTERS]!r}" if title else ""
        return f"a web page{name} ({kind}); check base_url"
    shown = " ".join(text.split())
    return f"{shown[:MAX_ERROR_CHARACTERS]!r} ({kind})" if shown else f"an empty body ({kind})"
