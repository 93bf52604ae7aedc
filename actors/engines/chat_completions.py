"""Parser of responses of OpenAI-compatible chat completions services: answers, streams, and failures in all forms.

Pure: JSON in, a `Completion` or a `ServiceError` out. Services agree on `choices[0].message.content` and on little
else, so unneeded fields are not checked, and a failure is looked for before an answer: several services send one
with status 200, some after part of an answer.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from llm_blender_ray.actors.engines import Completion, ReasoningDelta
from llm_blender_ray.actors.engines.token_counts import read_token_counts, usage_in
from llm_blender_ray.actors.engines.token_logprobs import read_token_logprobs
from llm_blender_ray.actors.records import FinishReason, TokenLogprob
from llm_blender_ray.actors.usage import TokenUsage

STOPPED = frozenset(
    {"stop", "stopped", "eos", "eostoken", "eosfound", "endturn", "endofturn", "stopsequence", "stopstringfound"}
    | {"end", "endoftext", "complete", "completed", "finished", "done"}
)
CUT = frozenset({"length", "maxtokens", "maxoutputtokens", "maxcompletiontokens", "modellength", "maxlength"})
FILTERED = frozenset(
    {"contentfilter", "contentfiltered", "safety", "sensitive", "refusal", "recitation", "blocklist"}
    | {"prohibitedcontent", "spii", "guardrailintervened"}
)
# What services write where an HTTP status would stand, letters alone.
_NAMES: dict[int, str] = {
    400: "badrequest badrequesterror invalidrequest invalidrequesterror invalidargument contextlengthexceeded "
    "exceedcontextsizeerror contextwindowexceedederror contentfilter",
    401: "authenticationerror invalidapikey unauthenticated unauthorized",
    403: "permissionerror permissiondenied permissiondeniederror forbidden",
    404: "notfound notfounderror modelnotfound",
    408: "timeout timeouterror requesttimeout deadlineexceeded",
    429: "ratelimit ratelimited ratelimiterror ratelimitexceeded toomanyrequests resourceexhausted throttling "
    "throttlingexception insufficientquota",
    500: "servererror internal internalerror internalservererror apierror",
    502: "badgateway upstreamerror providererror networkerror",
    503: "overloaded overloadederror engineoverloaded unavailable serviceunavailable serviceunavailableerror "
    "insufficientsystemresource",
}
STATUS_OF = {name: status for status, names in _NAMES.items() for name in names.split()}
_STATUS_FIELDS = ("code", "status", "status_code", "statusCode", "http_code", "error_code", "type", "error_type")


@dataclass(frozen=True, slots=True)
class Failure:
    """Report of a service about a request without an answer.

    Attributes:
        message: Its reason, in its own words where it has any.
        status: HTTP status that the failure stands for; None where it names none.
        code: The service's code of it.
        param: Parameter of the request that it refuses.
        rejected: Whether this request is what it refuses, by a content filter.
    """

    message: str
    status: int | None = None
    code: str | None = None
    param: str | None = None
    rejected: bool = False


class ServiceError(Exception):
    """An answer that is none. `usage`: of the call, which may be billed all the same."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.usage = TokenUsage()


class StreamReader:
    """The answer that a stream's events make."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._reasoning: list[str] = []
        self._reason: str | None = None
        self._said = False  # any content at all, blank too
        self._usage: Any = None
        self._logprobs: list[TokenLogprob] = []

    def add(self, data: str, event: str = "message") -> list[str | ReasoningDelta]:
        """Take an event.

        Args:
            data: Its data.
            event: Its name; one that is called `error` is a failure in whatever form.

        Returns:
            Its pieces of reasoning and text, none empty.

        Raises:
            ServiceError: It reports a failure, or isn't part of a chat completion.
        """
        try:
            chunk = parse_response_json(data)
        except ServiceError:
            if event == "error":
                raise ServiceError(Failure(data)) from None
            raise
        failure = failure_in(chunk)
        if event == "error":
            failure = failure or Failure(data)
        if failure:
            raise ServiceError(failure)
        if not isinstance(chunk, Mapping):
            raise _malformed("", "expected an object")
        self._usage = chunk.get("usage") or self._usage
        choices = chunk.get("choices")
        if not choices:
            return []
        choice = _first(choices)
        self._reason = _word(choice.get("finish_reason")) or self._reason
        self._logprobs += read_token_logprobs(choice.get("logprobs")) or ()
        delta = choice.get("delta")
        if (delta is None and "message" in choice) or not isinstance(delta, Mapping | None):
            raise _malformed("choices.0.delta", "expected an object")
        text = content_text((delta or {}).get("content"), "choices.0.delta.content")
        reasoning = reasoning_text(delta or {})
        self._said |= text is not None
        self._pieces.append(text or "")
        self._reasoning.append(reasoning)
        return [*([ReasoningDelta(reasoning)] if reasoning else []), *([text] if text else [])]

    @property
    def usage(self) -> TokenUsage:
        """Usage of the call so far; unreported as soon as there is any text without a count."""
        return usage_in({"choices": self._said or any(self._reasoning), "usage": self._usage})

    @property
    def ended(self) -> bool:
        """Whether the answer has ended, as its finish reason says."""
        return self._reason is not None

    def completion(self) -> Completion:
        """The whole answer, after its last event.

        Raises:
            ServiceError: The stream ended before the answer did, or the answer has no text.
        """
        if self._reason is None:
            raise ServiceError(Failure("the answer broke off: its stream ended without a finish_reason"))
        if not self._said:
            raise _no_text(self._reason)
        logprobs = tuple(self._logprobs) or None
        return _completion("".join(self._pieces), self._reason, "".join(self._reasoning), self._usage, logprobs)


def read_completion(body: bytes | str) -> Completion:
    """The answer in a response's body.

    Raises:
        ServiceError: There is none; with the service's own reason where it gives one.
    """
    answer = parse_response_json(body)
    try:
        return _read_answer(answer)
    except ServiceError as error:
        error.usage = usage_in(answer)
        raise


def _read_answer(answer: Any) -> Completion:
    if failure := failure_in(answer):
        raise ServiceError(failure)
    if not isinstance(answer, Mapping):
        raise _malformed("", "expected an object")
    choices = answer.get("choices")
    if not choices:
        raise _malformed("choices", "expected one, got none")
    choice = _first(choices)
    message = choice.get("message")
    if not isinstance(message, Mapping):
        raise _malformed("choices.0.message", "expected an object")
    text = content_text(message.get("content"), "choices.0.message.content")
    reason = _word(choice.get("finish_reason"))
    if text is None:
        refusal = message.get("refusal")
        raise ServiceError(Failure(f"it refused: {refusal}", rejected=True)) if refusal else _no_text(reason)
    logprobs = read_token_logprobs(choice.get("logprobs"))
    return _completion(text, reason, reasoning_text(message), answer.get("usage"), logprobs)


def _completion(
    text: str, reason: str | None, reasoning: str, usage: Any, logprobs: tuple[TokenLogprob, ...] | None
) -> Completion:
    counts = read_token_counts(usage)
    return Completion(
        text,
        finish_reason_of(reason),
        counts.prompt,
        counts.completion,
        reasoning=reasoning or None,
        reasoning_tokens=counts.reasoning,
        logprobs=logprobs,
        cached_prompt_tokens=counts.cached,
    )


def parse_response_json(body: bytes | str) -> Any:
    """JSON as a value.

    Raises:
        ServiceError: It isn't JSON (or nests too deep, or has half of a surrogate pair, which no column can hold).
    """
    try:
        return from_json(body.removeprefix(b"\xef\xbb\xbf") if isinstance(body, bytes) else body)
    except ValueError as error:
        raise _malformed("", str(error)) from None


def content_text(content: Any, where: str) -> str | None:
    """The text of a message's content: as it is, or joined from parts of which only text counts, not thinking.

    Raises:
        ServiceError: It is neither.
    """
    if content is None or isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    if not all(isinstance(part, str | Mapping) for part in parts):
        raise _malformed(where, "expected text, or a list of parts")
    return "".join(part if isinstance(part, str) else _text_of_part(part) for part in parts)


def _text_of_part(part: Mapping[str, Any]) -> str:
    text = part.get("text")
    if isinstance(text, Mapping):  # as OpenAI's assistants have it
        text = text.get("value")
    kind = part.get("type", "text")
    return text if kind in ("text", "output_text", "text_delta") and isinstance(text, str) else ""


def reasoning_text(message: Mapping[str, Any]) -> str:
    """The reasoning beside a message's content, or in its thinking parts; "" for none.

    DeepSeek, SGLang and vLLM call it `reasoning_content`, newer vLLM, OpenRouter and Groq `reasoning`; Mistral and
    Anthropic have parts of the type `thinking`.
    """
    for name in ("reasoning_content", "reasoning"):
        if isinstance(message.get(name), str):
            return str(message[name])
    parts = message.get("content")
    return (
        "".join(_thinking_of(part) for part in parts if isinstance(part, Mapping))
        if isinstance(parts, list)
        else ""
    )


def _thinking_of(part: Mapping[str, Any]) -> str:
    if part.get("type") not in ("thinking", "reasoning"):
        return ""
    thinking = part.get("thinking") or part.get("text")
    if isinstance(thinking, list):  # Mistral's: text parts
        return "".join(_text_of_part(one) for one in thinking if isinstance(one, Mapping))
    return thinking if isinstance(thinking, str) else ""


def finish_reason_of(reason: str | None) -> FinishReason:
    """A service's finish reason as one of ours; none, with a whole answer, is the end.

    Raises:
        ServiceError: The answer was broken off.
    """
    letters = _letters(reason or "stop")
    if letters in STOPPED:
        return "stop"
    if letters in CUT:
        return "length"
    raise ServiceError(_broken_off(reason))


def failure_in(body: Any) -> Failure | None:
    """The failure that a parsed body, or an event of a stream, reports; None where it reports none.

    Known are the forms of OpenAI, Azure, OpenRouter, LiteLLM, Together, vLLM, SGLang, llama.cpp, TGI, Ollama,
    Anthropic, Gemini, Mistral (FastAPI) and Cloudflare.
    """
    if isinstance(body, list) and body:  # Gemini's streams
        body = body[0]
    if not isinstance(body, Mapping):
        return None
    if body.get("error"):
        return _failure(body["error"], body)
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if isinstance(choice, Mapping):
        reason = _word(choice.get("finish_reason"))
        if choice.get("error"):
            return _failure(choice["error"], choice)
        if reason and _letters(reason) not in STOPPED | CUT:
            return _broken_off(reason, choice)
        return None
    for name in ("errors", "detail"):  # without choices these are no part of an answer
        if body.get(name):
            return _failure(body[name], body)
    if any(isinstance(body.get(name), str) and body[name] for name in ("message", "msg")):
        return _failure(body, body)
    return None


def _broken_off(reason: str | None, choice: Mapping[str, Any] | None = None) -> Failure:
    filtered = _letters(reason) in FILTERED
    if filtered:
        return Failure("the endpoint's content filter refused the answer", code=reason, rejected=True)
    if _letters(reason) in ("toolcalls", "toolcall", "tooluse", "functioncall"):
        message = (choice or {}).get("message")
        content = message.get("content") if isinstance(message, Mapping) else None
        missing = "" if content else ": the answer has no text"
        return Failure(f"it called a tool (finish_reason {reason}){missing}", code=reason, rejected=True)
    return Failure(f"no whole answer: finish_reason {reason}", STATUS_OF.get(_letters(reason)), reason)


def _failure(error: Any, around: Mapping[str, Any]) -> Failure:
    """A failure reported as text, an object or a list of objects, with what surrounds it."""
    if isinstance(error, list):
        messages = [failure.message for item in error if (failure := _failure(item, {})).message]
        return Failure("; ".join(messages) or _told(error), _status([around], ""))
    if not isinstance(error, Mapping):
        message = str(error)
        return Failure(message, _status([around], message), _word(around.get("code") or around.get("error_type")))
    message = next((_told(error[name]) for name in ("message", "msg", "detail", "error") if error.get(name)), "")
    if isinstance(error.get("loc"), list):  # FastAPI's
        message = f"{'.'.join(map(str, error['loc']))}: {message}"
    metadata = error.get("metadata")
    if isinstance(metadata, Mapping) and metadata.get("raw"):  # OpenRouter: what the provider behind it sent
        message = f"{message}: {_told(metadata['raw'])}"
    rejected = isinstance(metadata, Mapping) and bool(metadata.get("flagged_input") or metadata.get("reasons"))
    rejected |= _letters(error.get("code")) in FILTERED
    return Failure(
        message or _told(error),
        _status([error, around], message),
        _word(error.get("code") or error.get("type")),
        _word(error.get("param")),
        rejected,
    )


def _told(value: Any) -> str:
    """The message of a service as text; objects within JSON have a message, too."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping) and isinstance(value.get("message"), str):
        return str(value["message"])
    return json.dumps(value, ensure_ascii=False)


def _status(places: Iterable[Mapping[str, Any]], message: str) -> int | None:
    """The HTTP status that a failure stands for, as a number or by name, in the first place that has one."""
    for place in places:
        for name in _STATUS_FIELDS:
            value = place.get(name)
            if isinstance(value, str | int) and not isinstance(value, bool):
                number = int(value) if str(value).isascii() and str(value).isdigit() and len(str(value)) == 3 else 0
                if 400 <= number <= 599:
                    return number
                if status := STATUS_OF.get(_letters(value)):
                    return status
    letters = _letters(message)
    named = ("ratelimit", "toomanyrequests", "overloaded", "serviceunavailable", "badgateway")
    return next((STATUS_OF[name] for name in named if name in letters), None)


def _first(choices: Any) -> Mapping[str, Any]:
    choice = choices[0] if isinstance(choices, list) else None
    if not isinstance(choice, Mapping):
        raise _malformed("choices.0", "expected an object")
    return choice


def _word(value: Any) -> str | None:
    """A name as text; some services wrap it in an object with a `type`."""
    if isinstance(value, Mapping):
        value = value.get("type")
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) and value != "" else None


def _letters(value: Any) -> str:
    return "".join(character for character in str(value).lower() if character.isalnum())


def _no_text(reason: str | None) -> ServiceError:
    return ServiceError(Failure(f"the answer has no text (finish_reason {reason})"))


def _malformed(where: str, expected: str) -> ServiceError:
    return ServiceError(Failure(f"its answer isn't a chat completion: {where + ': ' if where else ''}{expected}"))
