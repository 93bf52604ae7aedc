"""Responses of the HTTP API: answers, chunks of a stream, events, errors; `protocol` has the requests.

The forms are OpenAI's, Jina's and Cohere's, with this service's own fields in `blend`.
"""

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from llm_blender_ray.actors.records import Candidate, FinishReason, Ranking
from llm_blender_ray.pipelines.serve.response_parts import ChoiceLogprobs, ResponseModel, Usage, is_absent


class CandidateAnswer(ResponseModel):
    """One model's answer, or its error."""

    model: str | None
    text: str | None
    error: str | None
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    reasoning_content: str | None = Field(default=None, exclude_if=is_absent)
    reasoning_tokens: int | None = Field(default=None, exclude_if=is_absent)

    @classmethod
    def of(cls, candidate: Candidate, *, reasoning: bool = False) -> "CandidateAnswer":
        """Make one of a candidate, with its reasoning or without."""
        return cls(
            model=candidate.model,
            text=candidate.text,
            error=candidate.error,
            finish_reason=candidate.finish_reason,
            prompt_tokens=candidate.prompt_tokens,
            completion_tokens=candidate.completion_tokens,
            reasoning_content=candidate.reasoning if reasoning else None,
            reasoning_tokens=candidate.reasoning_tokens,
        )


class RankingAnswer(ResponseModel):
    """`ranking`: indexes of candidates, best first. `scores`: of each, null without text.

    `comparisons`: forwards made. `logits`: `logits[i][j]` is how much better i is than j, i being read first; null
    where not compared.
    """

    ranking: list[int]
    scores: list[float | None]
    logits: list[list[float | None]]
    comparisons: int

    @classmethod
    def fields_of(cls, ranking: Ranking) -> dict[str, Any]:
        """Fields of a ranking."""
        return {
            "ranking": list(ranking.order),
            "scores": list(ranking.scores),
            "logits": [list(row) for row in ranking.logits],
            "comparisons": ranking.comparisons,
        }


class Timings(ResponseModel):
    """Seconds: waiting for a place, in each stage, and from the request's arrival in total."""

    queue: float
    generate: float | None = Field(default=None, exclude_if=is_absent)
    rank: float | None = Field(default=None, exclude_if=is_absent)
    fuse: float | None = Field(default=None, exclude_if=is_absent)
    total: float


class Cost(ResponseModel):
    """Cost of LLM calls by their tokens, in USD: in total, and of each part that was called and bills tokens.

    Null where a price is unknown.
    """

    total: float | None
    parts: dict[str, float | None]


class Degraded(ResponseModel):
    """What the answer lacks, and why, one line each."""

    degraded: list[str]


class Details(Degraded):
    """Origin of an answer. The ranking is null for a single member's own answer.

    `usage`: by model, `ranker` and `fuser`; absent where the candidates' tokens and the fuser's are all.
    `cost_usd`: absent where the service knows no price.
    """

    candidates: list[CandidateAnswer]
    ranking: list[int] | None
    scores: list[float | None] | None
    logits: list[list[float | None]] | None
    comparisons: int
    fused_from: list[int]
    timings: Timings
    usage: dict[str, Usage] | None = Field(default=None, exclude_if=is_absent)
    cost_usd: Cost | None = Field(default=None, exclude_if=is_absent)


class MemberPieceEvent(ResponseModel):
    """A piece of a member's answer. `candidate` is its index, here and below."""

    event: Literal["member_piece"] = "member_piece"
    choice: int
    candidate: int
    model: str
    text: str


class AnsweredEvent(ResponseModel):
    """A member's whole answer, or its error; seconds since the member was called."""

    event: Literal["answered"] = "answered"
    choice: int
    candidate: int
    answer: CandidateAnswer
    seconds: float


class RankedEvent(RankingAnswer):
    """The ranking so far; `complete` for the last."""

    event: Literal["ranked"] = "ranked"
    choice: int
    complete: bool


class FusingEvent(ResponseModel):
    """The fuser has begun to write from these candidates; its text is the choice's content."""

    event: Literal["fusing"] = "fusing"
    choice: int
    fused_from: list[int]


class DoneEvent(ResponseModel):
    """The last event of a choice."""

    event: Literal["done"] = "done"
    choice: int
    details: Details


StageEvent = MemberPieceEvent | AnsweredEvent | RankedEvent | FusingEvent | DoneEvent


class AnswerMessage(ResponseModel):
    """The answer. `reasoning_content`: what the LLM has reasoned before it, as in DeepSeek's API."""

    role: Literal["assistant"] = "assistant"
    content: str
    reasoning_content: str | None = Field(default=None, exclude_if=is_absent)
    refusal: None = None


class Choice(ResponseModel):
    """One of `n` answers; with n > 1 each has its own `blend`."""

    index: int
    message: AnswerMessage
    finish_reason: FinishReason
    logprobs: ChoiceLogprobs | None = None
    blend: Details | Degraded | None = Field(default=None, exclude_if=is_absent)


class ChatCompletion(ResponseModel):
    """A whole response. `blend` is the first choice's: requested, or because it is degraded."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    system_fingerprint: None = None
    blend: Details | Degraded | None = Field(default=None, exclude_if=is_absent)


class Delta(ResponseModel):
    """Addition of a chunk to a choice."""

    role: Literal["assistant"] | None = Field(default=None, exclude_if=is_absent)
    content: str | None = Field(default=None, exclude_if=is_absent)
    reasoning_content: str | None = Field(default=None, exclude_if=is_absent)


class ChunkChoice(ResponseModel):
    """A choice in a chunk."""

    index: int
    delta: Delta
    finish_reason: FinishReason | None = None
    logprobs: ChoiceLogprobs | None = None
    blend: Details | Degraded | None = Field(default=None, exclude_if=is_absent)


class Chunk(ResponseModel):
    """A chunk of a streamed response.

    Chunks with an event in `blend` have no choices. The last one has the usage, if requested, and in `blend` the
    first choice's details, if requested; with events, a `done` event has them instead.
    """

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None  # absent unless requested
    system_fingerprint: None = None
    blend: StageEvent | Details | Degraded | None = Field(default=None, exclude_if=is_absent)


class Model(ResponseModel):
    """A model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "llm-blender"


class ModelList(ResponseModel):
    """All models: the blend, the best candidate alone, and every member."""

    object: Literal["list"] = "list"
    data: list[Model]


class Document(ResponseModel):
    """A document's text."""

    text: str


class RerankResult(ResponseModel):
    """`relevance_score`: the logistic function of the ranker's score; comparable within one response only."""

    index: int
    relevance_score: float
    document: Document | None = Field(default=None, exclude_if=is_absent)


class RerankUsage(ResponseModel):
    """Work of the ranker; tokens are those of an LLM that judges."""

    comparisons: int
    prompt_tokens: int | None = Field(default=None, exclude_if=is_absent)
    completion_tokens: int | None = Field(default=None, exclude_if=is_absent)
    total_tokens: int | None = Field(default=None, exclude_if=is_absent)


class RerankAnswer(ResponseModel):
    """The documents, best first."""

    id: str
    model: str
    results: list[RerankResult]
    usage: RerankUsage


class CompareAnswer(ResponseModel):
    """`margin`: how much better the first candidate is. `preference`: index of the better one, null for a tie.

    `usage`: of an LLM that judges.
    """

    id: str
    model: str
    preference: Literal[0, 1] | None
    margin: float
    comparisons: int
    usage: Usage | None = Field(default=None, exclude_if=is_absent)


class PartHealth(ResponseModel):
    """State of a model, the ranker or the fuser, by its circuit breaker.

    `state`: `open` and `permanent` parts are left out of requests until a probe succeeds. `cause`: the last
    failure, visible to authorized callers. `retry_after_s`: until the next probe.
    """

    state: Literal["ok", "open", "permanent"]
    cause: str | None = None
    since: datetime | None = None
    retry_after_s: float | None = None


class Health(ResponseModel):
    """Whether the service answers. `missing`: parts that are not up yet. `parts`: all, if one of them is not ok."""

    status: Literal["ok", "starting", "down"] = "ok"
    missing: list[str] | None = None
    parts: dict[str, PartHealth] | None = None


class Problem(ResponseModel):
    """An error. `param`: path in the request, such as `messages[0].content`."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(ResponseModel):
    """An error, as in OpenAI's API."""

    error: Problem


ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": what}
    for status, what in {
        400: "The request is invalid at `param`.",
        401: "No API key, or an unknown one.",
        403: "There are no API keys, and the request comes from another machine.",
        404: "There is no such model or answer.",
        408: "The body did not come in time.",
        413: "The body is too long.",
        415: "The body is not JSON, or compressed.",
        429: "Too many requests: retry after `Retry-After` seconds.",
        431: "The headers are too long.",
        500: "Internal error.",
        503: "No model answered, or none is available.",
    }.items()
}
READING_ERRORS: dict[int | str, dict[str, Any]] = {
    status: ERROR_RESPONSES[status] for status in (401, 403, 404, 429, 431, 500)
}
VOTING_ERRORS = ERROR_RESPONSES | {
    409: {"model": ErrorAnswer, "description": "These two answers have been voted on."}
}
