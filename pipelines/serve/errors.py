"""Errors of requests, in the form of OpenAI's API: `{"error": {message, type, param, code}}`.

Clients evaluate the status, `code`, and `param`, the path of the wrong value in the request.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llm_blender_ray.actors.errors import BlendError, FieldError, PromptError, RowError
from llm_blender_ray.pipelines.online.protocols import NoAnswerError
from llm_blender_ray.pipelines.serve.access import NoKeyError, NotLocalError, RateError
from llm_blender_ray.pipelines.serve.admission import OverloadedError
from llm_blender_ray.pipelines.serve.ballots import UnknownAnswerError, VotedBeforeError, VoteLostError
from llm_blender_ray.pipelines.serve.protocol import TAGS
from llm_blender_ray.pipelines.serve.responses import ErrorAnswer, Problem

UNSUPPORTED = "unsupported_parameter"
NO_QUOTA = "insufficient_quota"  # type and code of OpenAI's error
_TYPES = {403: "permission_error", 429: "rate_limit_error"}  # others: see `ApiError.body`


class ApiError(HTTPException):
    """A request that is answered with an error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Make an error.

        Args:
            status: HTTP status.
            message: What is wrong.
            param: Path of the wrong value, such as `messages[0].content`.
            code: OpenAI's or our code of the error.
            headers: More headers of the response.
        """
        super().__init__(status, message, headers)
        self.param, self.code = param, code

    def body(self) -> ErrorAnswer:
        """Body of the response."""
        usual = "server_error" if self.status_code >= 500 else "invalid_request_error"
        kind = NO_QUOTA if self.code == NO_QUOTA else _TYPES.get(self.status_code, usual)
        return ErrorAnswer(error=Problem(message=self.detail, type=kind, param=self.param, code=self.code))

    def response(self) -> Response:
        """The response."""
        return JSONResponse(self.body().model_dump(), self.status_code, self.headers)


def to_api_error(error: Exception) -> ApiError | None:
    """The error as an `ApiError`; None: it is an internal error."""
    match error:
        case ApiError():
            return error
        case RequestValidationError():
            return _invalid(error.errors())
        case NoAnswerError(refused="too long"):
            return ApiError(400, str(error), param="messages", code="context_length_exceeded")
        case NoAnswerError(refused="other"):
            return ApiError(400, str(error), param="messages", code="invalid_value")
        case NoAnswerError(unpaid=True):
            return over_budget(error)
        case NoAnswerError():
            return ApiError(503, str(error), code="no_answer", headers=retry_after_header(error.retry_after_s))
        case FieldError():
            return _field(error)
        case RowError() | PromptError():
            return ApiError(400, str(error), code="invalid_value")
        case NoKeyError():
            return ApiError(401, str(error), code="invalid_api_key", headers={"www-authenticate": "Bearer"})
        case NotLocalError():
            return ApiError(403, str(error), code="no_api_keys")
        case RateError():
            return ApiError(
                429, str(error), code="rate_limit_exceeded", headers=retry_after_header(error.retry_after_s)
            )
        case OverloadedError():
            return ApiError(429, str(error), code="overloaded", headers=retry_after_header(error.retry_after_s))
        case UnknownAnswerError():
            return ApiError(404, str(error), code="unknown_answer")
        case VotedBeforeError():
            return ApiError(409, str(error), code="voted_before")
        case VoteLostError():
            return ApiError(503, str(error), code="vote_lost")
        case HTTPException(status_code=404):
            return ApiError(404, "there is nothing at this path", code="not_found")
        case HTTPException(status_code=405):
            return ApiError(405, "this path has no such method", code="method_not_allowed", headers=error.headers)
        case HTTPException(status_code=400):  # FastAPI's, for any other failure to read the body
            return ApiError(400, "the body can't be read as JSON", code="invalid_json")
    return None


async def answer_rejected(request: Request, error: Exception) -> Response:
    """Response to a request that FastAPI itself rejects."""
    known = to_api_error(error)
    if known is None:
        assert isinstance(error, HTTPException)
        known = ApiError(error.status_code, error.detail, headers=error.headers)
    if known.code and (record := getattr(request.state, "record", None)):
        record.error(known.code)
    return known.response()


def internal_error(id: str) -> ApiError:
    """Error of a request whose cause is only logged."""
    return ApiError(500, f"something went wrong here; the log has it under the id {id}", code="internal_error")


def shutting_down() -> ApiError:
    """Error of a request that the service ends before."""
    message = "the service is shutting down, and ended before the answer"
    return ApiError(503, message, code="shutting_down", headers=retry_after_header(1.0))


def over_budget(error: BlendError) -> ApiError:
    """Error of a request that its budget has no room for."""
    # OpenAI's clients retry a 429 by themselves, and none of the retries would have room
    return ApiError(429, str(error), code=NO_QUOTA, headers={"x-should-retry": "false"})


def unknown_model(name: str, known: Iterable[str]) -> ApiError:
    """Error of a request for an unknown model."""
    message = f"there is no model {_shown(name)}, but {', '.join(known)}"
    return ApiError(404, message, param="model", code="model_not_found")


def invalid(param: str, why: str, code: str = "invalid_value") -> ApiError:
    """Error of a field's value."""
    return ApiError(400, f"{param}: {why}", param=param, code=code)


def retry_after_header(seconds: float | None) -> dict[str, str] | None:
    """Header Retry-After; None without a time."""
    return None if seconds is None else {"retry-after": str(max(math.ceil(seconds), 1))}


def _field(error: FieldError) -> ApiError:
    """Error of a field that `actors.chats` rejected, in the form of FastAPI's."""
    match error.problem:
        case "missing":
            return _missing(error.field)
        case "unsupported":
            return _unsupported(error.field)
    return invalid(error.field, error.why)


def _missing(param: str) -> ApiError:
    return ApiError(400, f"{param} is missing", param=param, code="missing_required_parameter")


def _unsupported(param: str) -> ApiError:
    message = f"{param} is not supported here, or not with this value"
    return ApiError(400, message, param=param, code=UNSUPPORTED)


def _invalid(errors: Sequence[Any]) -> ApiError:
    """The first of FastAPI's validation errors of a request."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first['ctx']['error']}", code="invalid_json")
    where = path(first["loc"])
    if first["type"] in ("none_required", UNSUPPORTED):  # an unknown field, or an unsupported value
        return _unsupported(where or "the body")
    if first["type"] == "missing" and where:
        return _missing(where)
    if first["type"] == "missing":
        return ApiError(400, "the request has no body", code="missing_required_parameter")
    said = "Input should be an object" if first["type"] == "model_attributes_type" else first["msg"]
    what = said.replace("Input should be", "expected", 1)  # the usual beginning of pydantic's messages
    message = f"{where or 'the body'}: {what[:1].lower()}{what[1:]}"
    return ApiError(400, message, param=where, code="invalid_value")


def path(loc: Sequence[str | int]) -> str | None:
    """Path of a value in the request, like `messages[0].content`; None: the request itself."""
    names = [part for part in loc[1:] if part not in TAGS]
    joined = "".join(f"[{name}]" if isinstance(name, int) else f".{_shown(name)}" for name in names)
    return joined.removeprefix(".") or None


def _shown(name: str, limit: int = 100) -> str:
    """A key in a message: untrusted text, shortened."""
    name = name if name.isprintable() else json.dumps(name)
    return name if len(name) <= limit else name[: limit - 1] + "…"
