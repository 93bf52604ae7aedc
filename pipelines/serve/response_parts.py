"""Parts of the HTTP API's responses with several users: token counts and log-probabilities."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from llm_blender_ray.actors.records import TokenLogprob
from llm_blender_ray.actors.usage import TokenUsage


class ResponseModel(BaseModel):
    """A part of a response."""

    model_config = ConfigDict(frozen=True)


def is_absent(value: object) -> bool:
    """Whether a field is left out of a response."""
    return value is None


class TokenDetails(ResponseModel):
    """Kinds of completion tokens."""

    reasoning_tokens: int


class PromptTokenDetails(ResponseModel):
    """Kinds of prompt tokens."""

    cached_tokens: int


class Usage(ResponseModel):
    """Tokens of all models that worked on the answer, a judge and a fuser too, where known, failed calls included.

    Prompt tokens include cached ones, completion tokens those of reasoning.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokenDetails | None = Field(default=None, exclude_if=is_absent)
    completion_tokens_details: TokenDetails | None = Field(default=None, exclude_if=is_absent)

    @classmethod
    def of(cls, usage: TokenUsage) -> "Usage":
        """Make one of calls."""
        cached, reasoning = usage.cached_prompt_tokens, usage.reasoning_tokens
        return cls(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            total_tokens=usage.total_tokens,
            prompt_tokens_details=PromptTokenDetails(cached_tokens=cached) if cached else None,
            completion_tokens_details=TokenDetails(reasoning_tokens=reasoning) if reasoning else None,
        )


class TopLogprob(ResponseModel):
    """A token with its log-probability. `bytes`: null for a token that is no whole character."""

    token: str
    logprob: float
    bytes: list[int] | None

    @staticmethod
    def fields_of(token: TokenLogprob) -> dict[str, Any]:
        """Fields of a token."""
        whole = "\N{REPLACEMENT CHARACTER}" not in token.token
        return {
            "token": token.token,
            "logprob": token.logprob,
            "bytes": list(token.token.encode()) if whole else None,
        }


class ContentLogprob(TopLogprob):
    """One token of the answer, and the likeliest ones in its place."""

    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(ResponseModel):
    """Log-probabilities of all tokens of an answer, reasoning and the end token included."""

    content: list[ContentLogprob]
    refusal: None = None

    @classmethod
    def of(cls, tokens: Sequence[TokenLogprob]) -> "ChoiceLogprobs":
        """Make one of an answer's tokens."""
        return cls(
            content=[
                ContentLogprob(
                    **TopLogprob.fields_of(token),
                    top_logprobs=[TopLogprob(**TopLogprob.fields_of(one)) for one in token.top_logprobs],
                )
                for token in tokens
            ]
        )
