"""A base LLM behind an OpenAI-compatible HTTP endpoint, asked through OpenAI's own client.

The client retries by itself: connection errors, timeouts, 408, 409, 429 and 5xx, after Retry-After (up to two
minutes; longer ones fail at once) or else after 0.5 s, doubled each time up to 8 s, with jitter. Added here:
a bound on a whole attempt (its own timeout is one of silence, so a dripping server could hold a request for
ever), a bound on requests in flight, and a strict reading of the answer, of which the client checks nothing.
"""

import asyncio
import os
from typing import Annotated, Any

import httpx2
import openai
from pydantic import BaseModel, Field, ValidationError

from actors.engines import Completion
from actors.errors import GenerationError, ModelLoadError
from actors.records import FinishReason, Message
from configs.schema import EndpointModel, Sampling


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


class _BoundedClient(openai.DefaultAsyncHttpxClient):
    """An HTTP client that gives up an attempt, body included, after `attempt_s` seconds."""

    def __init__(self, attempt_s: float) -> None:
        super().__init__(timeout=attempt_s)
        self._attempt_s = attempt_s

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        try:
            async with asyncio.timeout(self._attempt_s):
                return await super().send(request, **options)
        except TimeoutError as error:
            raise httpx2.ReadTimeout("the attempt took too long", request=request) from error


class EndpointEngine:
    """See `actors.engines.Engine`."""

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
                    model=self._model.model,
                    messages=messages,  # type: ignore[arg-type]  # its TypedDict is one of a role each
                    **_parameters(sampling),
                )
            return _completion(_Answer.model_validate_json(response.content))
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            problem = f"it refused the key ({error.status_code}); check {self._key_name}"
        except openai.APITimeoutError:
            problem = f"no answer within {self._model.timeout_s:g} s{self._tries()}; raise timeout_s"
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            problem = f"no connection, or it broke{self._tries()}: {type(cause).__name__}: {cause}"
        except openai.APIStatusError as error:
            problem = f"it answered {error.status_code}: {error.message}"
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            problem = f"its answer isn't a chat completion: {where + ': ' if where else ''}{first['msg']}"
        # Outside of the except blocks: the client's errors hold the request, and with it the key.
        raise GenerationError(f"{self._model.base_url}: {self._redacted(problem)}")

    async def check_health(self) -> None:
        """See `actors.engines.Engine`. A new actor would find the same endpoint."""

    async def close(self) -> None:
        """See `actors.engines.Engine`."""
        await self._client.close()

    def _tries(self) -> str:
        return f" in {self._model.max_retries + 1} tries" if self._model.max_retries else ""

    def _redacted(self, text: str) -> str:
        """The text without the key: some servers repeat it."""
        return text.replace(self._secret, "***") if self._secret else text


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
