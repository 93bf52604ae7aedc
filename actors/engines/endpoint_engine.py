"""A base LLM behind an OpenAI-compatible HTTP endpoint, asked through OpenAI's own client.

The client retries by itself: connection errors, timeouts, 408, 409, 429 and 5xx, after Retry-After (up to two
minutes; longer ones fail at once) or else after 0.5 s, doubled each time up to 8 s, with jitter; a stream that
has begun isn't tried again. Added here: a bound on a whole attempt (its own timeout is one of silence, so a
dripping server could hold a request for ever), a bound on requests in flight, and a strict reading of the answer,
of which the client checks nothing.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from typing import Annotated, Any, cast

import httpx2
import openai
from pydantic import BaseModel, Field, ValidationError

from actors.engines import Completion
from actors.errors import GenerationError, ModelLoadError, TooLongError
from actors.records import FinishReason, Message
from configs.schema import EndpointModel, Sampling

TOO_LONG = "context_length_exceeded"  # OpenAI's code of an error that is the prompt's
_FAILURES = (openai.APIError, httpx2.HTTPError, ValidationError)  # of a request, and of reading its answer
DRAIN_S = 0.1  # for the end of a stream's body, behind its last event: then its connection can be used again


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Answer(BaseModel):
    """What is read of a chat completion; servers differ in the rest."""

    choices: Annotated[list[_Choice], Field(min_length=1)]
    usage: _Usage | None = None


class _Delta(BaseModel):
    content: str | None = None


class _Piece(BaseModel):
    delta: _Delta
    finish_reason: str | None = None


class _Error(BaseModel):
    message: str
    code: str | int | None = None


class _Chunk(BaseModel):
    """What is read of an event of a stream: a piece of the answer, the token counts, or what broke it off."""

    choices: list[_Piece] = Field(default_factory=list)
    usage: _Usage | None = None
    error: _Error | str | None = None


class _BoundedClient(openai.DefaultAsyncHttpxClient):
    """An HTTP client that gives up an attempt, body included, after `attempt_s` seconds."""

    def __init__(self, attempt_s: float) -> None:
        super().__init__(timeout=attempt_s)
        self._attempt_s = attempt_s

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        until = asyncio.get_running_loop().time() + self._attempt_s
        try:
            async with asyncio.timeout_at(until):
                response = await super().send(request, **options)
        except TimeoutError as error:
            raise httpx2.ReadTimeout("the attempt took too long", request=request) from error
        if isinstance(response.stream, httpx2.AsyncByteStream):
            response.stream = _BoundedStream(response.stream, until)
        return response


class _BoundedStream(httpx2.AsyncByteStream):
    """The same bytes, as long as they come before `until` on the loop's clock."""

    def __init__(self, stream: httpx2.AsyncByteStream, until: float) -> None:
        self._stream, self._until = stream, until

    async def __aiter__(self) -> AsyncIterator[bytes]:
        chunks = aiter(self._stream)
        try:
            while True:
                async with asyncio.timeout_at(self._until):  # not open while a chunk is out
                    chunk = await anext(chunks, None)
                if chunk is None:
                    return
                yield chunk
        except TimeoutError as error:
            raise httpx2.ReadTimeout("the attempt took too long") from error
        finally:
            if isinstance(chunks, AsyncGenerator):
                await chunks.aclose()

    async def aclose(self) -> None:
        await self._stream.aclose()


class EndpointEngine:
    """See `actors.engines.Engine`."""

    opens_reasoning = ""  # as far as can be known

    def __init__(self, model: EndpointModel) -> None:
        key = "none"  # servers without keys accept any
        if model.api_key_env is not None:
            key = os.environ.get(model.api_key_env, "").strip()
            if not key:
                raise ModelLoadError(
                    f"{model.name}: set the environment variable {model.api_key_env} to the endpoint's key"
                )
        self._secret = key if model.api_key_env is not None else None
        self._key_name = model.api_key_env or "api_key_env, which isn't set"
        self._model = model
        self._in_flight = asyncio.Semaphore(model.max_in_flight)
        self._client = openai.AsyncOpenAI(
            api_key=key,
            base_url=model.base_url,
            max_retries=model.max_retries,
            timeout=model.timeout_s,
            http_client=_BoundedClient(model.timeout_s),
        )

    async def generate(self, messages: list[Message], sampling: Sampling) -> Completion:
        """See `actors.engines.Engine`."""
        try:
            async with self._in_flight:
                response = await self._client.chat.completions.with_raw_response.create(
                    **self._request(messages, sampling)
                )
            return _completion(_Answer.model_validate_json(response.content))
        except _FAILURES as error:
            failed = self._told(error)
        raise failed  # outside of the except block: the client's errors hold the request, and with it the key

    async def stream(self, messages: list[Message], sampling: Sampling) -> AsyncGenerator[str | Completion, None]:
        """See `actors.engines.Engine`. The time that a caller takes between pieces counts towards `timeout_s`."""
        request = self._request(messages, sampling)
        if self._model.stream_usage:
            request["stream_options"] = {"include_usage": True}
        answer = _Answer(choices=[_Choice(message=_Message())])  # what has come of it
        failed: GenerationError | None = None
        try:
            async with (
                self._in_flight,
                self._client.chat.completions.with_streaming_response.create(**request, stream=True) as response,
                aclosing(_events(response.http_response)) as events,
            ):
                async for event in events:
                    if event.data == "[DONE]":
                        with suppress(TimeoutError, httpx2.HTTPError):  # the answer is whole, whatever follows
                            async with asyncio.timeout(DRAIN_S):
                                await anext(events, None)
                        break
                    if text := self._added(answer, _Chunk.model_validate_json(event.data)):
                        yield text
        except _FAILURES as error:
            failed = self._told(error)
        if failed:
            raise failed  # as above
        if answer.choices[0].finish_reason is None:
            raise self._failed("the answer broke off: its stream ended without a finish_reason")
        yield _completion(answer)

    async def check_health(self) -> None:
        """See `actors.engines.Engine`. A new actor would find the same endpoint."""

    async def close(self) -> None:
        """See `actors.engines.Engine`."""
        await self._client.close()

    def _request(self, messages: list[Message], sampling: Sampling) -> dict[str, Any]:
        return {"model": self._model.model, "messages": messages, **_parameters(sampling)}

    def _added(self, answer: _Answer, chunk: _Chunk) -> str:
        """Add an event to what has come of the answer: its piece of the text. Raises GenerationError."""
        if isinstance(chunk.error, str):
            raise self._failed(f"it broke the answer off: {chunk.error}")
        if chunk.error:
            too_long = chunk.error.code == TOO_LONG
            raise self._failed(f"it broke the answer off: {chunk.error.message}", too_long=too_long)
        answer.usage = chunk.usage or answer.usage
        if not chunk.choices:
            return ""
        piece, choice = chunk.choices[0], answer.choices[0]
        choice.finish_reason = piece.finish_reason or choice.finish_reason
        if piece.delta.content is not None:
            choice.message.content = (choice.message.content or "") + piece.delta.content
        return piece.delta.content or ""

    def _told(self, error: Exception) -> GenerationError:
        """One of `_FAILURES` as an error of ours."""
        too_long = False
        tries = f" in {self._model.max_retries + 1} tries" if self._model.max_retries else ""
        match error:
            case openai.AuthenticationError() | openai.PermissionDeniedError():
                problem = f"it refused the key ({error.status_code}); check {self._key_name}"
            case openai.APITimeoutError():
                problem = f"no answer within {self._model.timeout_s:g} s{tries}; raise timeout_s"
            case openai.APIConnectionError():
                cause = error.__cause__ or error
                problem = f"no connection, or it broke{tries}: {type(cause).__name__}: {cause}"
            case openai.APIStatusError():
                problem = f"it answered {error.status_code}: {error.message}"
                too_long = error.status_code == 413 or (error.status_code == 400 and error.code == TOO_LONG)
            case httpx2.SSEError():
                problem = f"its answer isn't a stream of events: {error}"
            case httpx2.TimeoutException():
                problem = f"the answer didn't end within {self._model.timeout_s:g} s; raise timeout_s"
            case httpx2.HTTPError():
                problem = f"the connection broke in the midst of the answer: {type(error).__name__}: {error}"
            case ValidationError():
                first = error.errors(include_input=False, include_url=False)[0]
                where = ".".join(str(part) for part in first["loc"])
                problem = f"its answer isn't a chat completion: {where + ': ' if where else ''}{first['msg']}"
            case _:
                problem = str(error)
        return self._failed(problem, too_long=too_long)

    def _failed(self, problem: str, *, too_long: bool = False) -> GenerationError:
        """The problem with the endpoint's address, and without the key: some servers repeat it."""
        told = problem.replace(self._secret, "***") if self._secret else problem
        return (TooLongError if too_long else GenerationError)(f"{self._model.base_url}: {told}")


def _events(response: httpx2.Response) -> AsyncGenerator[httpx2.ServerSentEvent, None]:
    """The response's events, of at most 1 MiB each."""
    return cast(AsyncGenerator[httpx2.ServerSentEvent, None], aiter(httpx2.EventSource(response)))


def _parameters(sampling: Sampling) -> dict[str, Any]:
    """The request's parameters: temperature and max_tokens always, since servers' defaults differ."""
    parameters: dict[str, Any] = {"temperature": sampling.temperature, "max_tokens": sampling.max_tokens}
    if sampling.top_p < 1:
        parameters["top_p"] = sampling.top_p
    if sampling.stop:
        parameters["stop"] = list(sampling.stop)
    if sampling.seed is not None:
        parameters["seed"] = sampling.seed
    if sampling.top_k is not None:  # not OpenAI's, but vLLM's, SGLang's, llama.cpp's, OpenRouter's
        parameters["extra_body"] = {"top_k": sampling.top_k}
    return parameters


def _completion(answer: _Answer) -> Completion:
    choice, usage = answer.choices[0], answer.usage or _Usage()
    if choice.finish_reason == "content_filter":
        raise GenerationError("the endpoint's content filter refused the answer")
    if choice.message.content is None:
        raise GenerationError(f"the endpoint's answer has no text (finish_reason {choice.finish_reason})")
    reason: FinishReason = "length" if choice.finish_reason == "length" else "stop"
    return Completion(choice.message.content, reason, usage.prompt_tokens, usage.completion_tokens)
