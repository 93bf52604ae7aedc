"""Errors a user can act on. Each is one clear line, and survives pickling between Ray's processes.

Pickle rebuilds an exception from `args`: what its constructor needs must be in them.
"""

from typing import Literal, Self

from llm_blender_ray.actors.usage import TokenUsage

UNPAID = "budget spent"  # of a call that was not made, because its budget had no room for it
BLANK = "blank answer"  # of an LLM: nothing, or nothing that shows


class BlendError(Exception):
    """A run can't continue; the message names the problem and its cure (exit code 1).

    Attributes:
        usage: Calls of LLMs that ended in this error and are billed all the same.
    """

    usage = TokenUsage()

    def with_usage(self, usage: TokenUsage) -> Self:
        """Add calls of LLMs; returns the error."""
        self.usage += usage
        return self


class ModelLoadError(BlendError):
    """A model folder, checkpoint or engine can't be used."""


class RowError(BlendError):
    """One input row is bad; it is written with this message and the run continues."""


class FieldError(RowError):
    """One field of a row or of a request is bad.

    Attributes:
        field: Path of the field, such as `messages[0].content`.
        why: What is wrong with it.
        problem: "missing": it is absent. "unsupported": it requests what can't be done here. "invalid": any other.
    """

    def __init__(
        self, field: str, why: str, problem: Literal["invalid", "missing", "unsupported"] = "invalid"
    ) -> None:
        super().__init__(field, why)
        self.field, self.why = field, why
        self.problem: Literal["invalid", "missing", "unsupported"] = problem

    def __str__(self) -> str:
        return f"{self.field}: {self.why}"


class GenerationError(BlendError):
    """One prompt got no answer from one LLM; the candidate carries this message."""


class UnavailableError(GenerationError):
    """The LLM is unavailable for any prompt: no connection, no answer in time, or a server's own error (5xx)."""


class PermanentError(GenerationError):
    """The LLM answers no prompt until its operator changes something: a rejected key, an unknown model."""


class RejectedError(GenerationError):
    """One request was rejected (400, 422, a content filter) by an LLM that works: others may be answered."""


class PromptError(RejectedError):
    """The prompt itself can't be answered by this LLM (no place in its template), however often asked."""


class TooLongError(PromptError):
    """Prompt and answer exceed what this LLM takes: a shorter one might be answered."""


def one_line(error: BaseException, limit: int = 300) -> str:
    """The error as one line of at most `limit` characters: what goes into a row or onto stderr."""
    text = " ".join(str(error).split()) or "no message"
    text = text if isinstance(error, BlendError) else f"{type(error).__name__}: {text}"
    return text if len(text) <= limit else text[: limit - 1] + "…"


def usage_of_error(error: BaseException) -> TokenUsage:
    """Calls of LLMs that ended in the error, as far as it knows any."""
    return error.usage if isinstance(error, BlendError) else TokenUsage()
