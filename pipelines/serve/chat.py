"""`/v1/chat/completions`: from a request to blend requests, and from a blend's events to the response."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field

from llm_blender_ray.actors.chats import read_messages
from llm_blender_ray.actors.engines import ReasoningDelta
from llm_blender_ray.actors.prices import PriceList, total_usd
from llm_blender_ray.actors.records import Candidate, Prompt
from llm_blender_ray.actors.usage import TokenUsage
from llm_blender_ray.configs.schema import BaseLLM, SamplingOverrides
from llm_blender_ray.configs.serving import Serving
from llm_blender_ray.pipelines.online.blender import Blender
from llm_blender_ray.pipelines.online.events import (
    AnswerDelta,
    Answered,
    BlendResult,
    Event,
    Fusing,
    MemberDelta,
    Ranked,
    usage_by_part,
)
from llm_blender_ray.pipelines.online.protocols import BEST, BLEND, BlendRequest
from llm_blender_ray.pipelines.serve.errors import UNSUPPORTED, internal_error, invalid, to_api_error, unknown_model
from llm_blender_ray.pipelines.serve.protocol import MAX_ITEMS, BlendOptions, ChatRequest
from llm_blender_ray.pipelines.serve.response_parts import ChoiceLogprobs, Usage
from llm_blender_ray.pipelines.serve.responses import (
    AnsweredEvent,
    AnswerMessage,
    CandidateAnswer,
    ChatCompletion,
    Choice,
    Chunk,
    ChunkChoice,
    Cost,
    Degraded,
    Delta,
    Details,
    DoneEvent,
    FusingEvent,
    MemberPieceEvent,
    RankedEvent,
    RankingAnswer,
    StageEvent,
    Timings,
)
from llm_blender_ray.pipelines.serve.sampling import read_sampling
from llm_blender_ray.pipelines.serve.streaming import merge_streams
from llm_blender_ray.pipelines.serve.telemetry import RequestRecord

log = logging.getLogger(__name__)

# a comment, which clients skip; it keeps proxies from closing the connection
HEARTBEAT = ": keep-alive\n\n"
LAST = "data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Chat:
    """A validated request; `began` is the `loop.time()` of its arrival, `prices` are those of the service."""

    id: str
    asked: ChatRequest
    options: BlendOptions
    prompt: Prompt
    change: SamplingOverrides
    began: float
    prices: PriceList = field(default_factory=PriceList)
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def choices(self) -> int:
        """Number of answers."""
        return self.asked.n or 1

    def blend_requests(self, waited_s: float) -> list[BlendRequest]:
        """Blend requests, one per choice."""
        return [
            BlendRequest(
                self.prompt,
                self.asked.model,
                choice=choice,
                change=self.change,
                follow=bool(self.asked.stream),
                follow_members=self.options.events,
                deadline_s=self.options.deadline_s,
                waited_s=waited_s,
            )
            for choice in range(self.choices)
        ]

    def logprobs(self, outcome: BlendResult) -> ChoiceLogprobs | None:
        """Log-probabilities of the answer's tokens, if requested."""
        found = outcome.answer.logprobs
        return ChoiceLogprobs.of(found) if self.asked.logprobs and found is not None else None

    def blend_field(self, outcome: BlendResult, waited_s: float) -> Details | Degraded | None:
        """Field `blend` of the response: everything if requested, else only what is degraded."""
        if self.options.details:
            return self.details(outcome, waited_s)
        return Degraded(degraded=list(outcome.degraded)) if outcome.degraded else None

    @property
    def with_reasoning(self) -> bool:
        """Whether the response has what LLMs have reasoned."""
        return self.asked.include_reasoning is not False

    def candidate(self, candidate: Candidate) -> CandidateAnswer:
        """A candidate in the response."""
        return CandidateAnswer.of(candidate, reasoning=self.with_reasoning)

    def details(self, outcome: BlendResult, waited_s: float) -> Details:
        """Candidates, ranking, scores timings and cost of the response."""
        blend, ranking = outcome.blend, outcome.blend.ranking
        total = asyncio.get_running_loop().time() - self.began
        return Details(
            candidates=[self.candidate(candidate) for candidate in blend.candidates],
            ranking=list(ranking.order) if ranking else None,
            scores=list(ranking.scores) if ranking else None,
            logits=[list(row) for row in ranking.logits] if ranking else None,
            comparisons=ranking.comparisons if ranking else 0,
            fused_from=list(blend.fused_from),
            timings=Timings(queue=waited_s, total=total, **outcome.seconds),
            degraded=list(outcome.degraded),
            usage=_usage_by_part(outcome),
            cost_usd=_cost(outcome, self.prices),
        )


def read(
    asked: ChatRequest,
    id: str,
    blender: Blender,
    serving: Serving,
    models: Mapping[str, BaseLLM],
    prices: PriceList,
    *,
    votes: bool,
) -> Chat:
    """Validate a request.

    Args:
        asked: The request's body.
        id: The request's id.
        blender: The blend.
        serving: Limits.
        models: Settings of the base LLMs by name, as far as they are known.
        prices: Of the service.
        votes: Whether votes are stored.

    Raises:
        ApiError: The request is malformed, names an unknown model, or asks a model for what it can't.
        FieldError: A message is malformed.
    """
    options = asked.blend or BlendOptions(details=False)
    if asked.model not in (names := (BLEND, BEST, *blender.members)):
        raise unknown_model(asked.model, names)
    _check_size(asked, blender, serving)
    _check_options(asked, options, serving, votes=votes)
    messages = read_messages(asked.messages, most=MAX_ITEMS)
    if not any(message["content"].strip() for message in messages):
        raise invalid("messages", "nothing is asked")
    change = read_sampling(asked, models, serving.limits)
    began = asyncio.get_running_loop().time()
    return Chat(f"chatcmpl-{id}", asked, options, Prompt(id, messages=messages), change, began, prices)


def _check_size(asked: ChatRequest, blender: Blender, serving: Serving) -> None:
    if asked.max_tokens and asked.max_completion_tokens and asked.max_tokens != asked.max_completion_tokens:
        raise invalid("max_completion_tokens", "max_tokens says otherwise")
    alone = asked.model in blender.members
    each = 1 if alone else sum(member.samples for member in blender.members.values())
    if (asked.n or 1) * each > serving.limits.candidates:
        raise invalid("n", f"more answers of the models than {serving.limits.candidates} (serve.limits.candidates)")


def _check_options(asked: ChatRequest, options: BlendOptions, serving: Serving, *, votes: bool) -> None:
    if asked.stream_options is not None and not asked.stream:
        raise invalid("stream_options", "only with stream")
    if options.events and not asked.stream:
        raise invalid("blend.events", "only with stream")
    if (options.deadline_s or 0) > serving.deadline_s:
        raise invalid("blend.deadline_s", f"at most {serving.deadline_s:g} (serve.deadline_s)")
    if options.vote and not votes:
        raise invalid("blend.vote", "no votes are kept here (serve.votes)", UNSUPPORTED)
    if options.vote and ((asked.n or 1) > 1 or asked.model not in (BLEND, BEST)):
        raise invalid("blend.vote", "only on one answer of the blend")


def completion(chat: Chat, outcomes: list[BlendResult], waited_s: float) -> ChatCompletion:
    """The whole response."""
    blends = [chat.blend_field(outcome, waited_s) for outcome in outcomes]
    return ChatCompletion(
        id=chat.id,
        created=chat.created,
        model=chat.asked.model,
        choices=[
            Choice(
                index=at,
                message=AnswerMessage(
                    content=outcome.answer.text,
                    reasoning_content=outcome.answer.reasoning if chat.with_reasoning else None,
                ),
                logprobs=chat.logprobs(outcome),
                finish_reason=outcome.answer.finish_reason,
                blend=blends[at] if len(outcomes) > 1 else None,
            )
            for at, outcome in enumerate(outcomes)
        ],
        usage=_usage(outcomes),
        blend=blends[0],
    )


def _usage(outcomes: list[BlendResult]) -> Usage:
    """Tokens of all choices."""
    return Usage.of(sum((outcome.usage for outcome in outcomes), TokenUsage()))


def _usage_by_part(outcome: BlendResult) -> dict[str, Usage] | None:
    """Tokens by part; None where the candidates' own and the fuser's are all."""
    candidates = outcome.blend.candidates
    shown = sum((one.prompt_tokens or 0) + (one.completion_tokens or 0) for one in candidates)
    shown += (outcome.blend.fusing_usage or TokenUsage()).total_tokens
    if shown == outcome.usage.total_tokens:
        return None
    return {name: Usage.of(usage) for name, usage in usage_by_part(outcome.blend).items()}


def _cost(outcome: BlendResult, prices: PriceList) -> Cost | None:
    """Cost of an answer; None where no price is known."""
    if not prices.known:
        return None
    parts = prices.usd_by_part(usage_by_part(outcome.blend))
    return Cost(total=total_usd(parts.values()), parts=parts)


async def lines(
    chat: Chat,
    events: AsyncGenerator[tuple[int, Event] | None, None],
    waited_s: float,
    record: RequestRecord,
    heartbeat_s: float,
) -> AsyncGenerator[str, None]:
    """Lines of the stream, and a comment after each `heartbeat_s` without one.

    An error before the first line is raised; a later one is the last line.
    """
    said = False
    try:
        # events without a line, such as a member's answer, are silence too
        made = merge_streams([_lines(chat, events, waited_s)], heartbeat_s)
        async with contextlib.aclosing(made):
            async for item in made:
                said = True
                yield HEARTBEAT if item is None else item[1]
    except Exception as error:
        if not said:
            raise
        known = to_api_error(error)
        if known is None:
            log.exception("request %s failed in mid-stream", chat.prompt.id)
            known = internal_error(chat.prompt.id)
        if known.code:
            record.error(known.code)
        yield f"data: {known.body().model_dump_json()}\n\n"


async def _lines(
    chat: Chat, events: AsyncGenerator[tuple[int, Event] | None, None], waited_s: float
) -> AsyncGenerator[str, None]:
    with_usage = bool(chat.asked.stream_options and chat.asked.stream_options.include_usage)
    outcomes: dict[int, BlendResult] = {}
    begun: set[int] = set()  # choices whose role has been sent

    def line(
        *choices: ChunkChoice,
        usage: Usage | None = None,
        blend: StageEvent | Details | Degraded | None = None,
    ) -> str:
        chunk = Chunk(
            id=chat.id,
            created=chat.created,
            model=chat.asked.model,
            choices=list(choices),
            usage=usage,
            blend=blend,
        )
        return f"data: {chunk.model_dump_json(exclude=None if with_usage else {'usage'})}\n\n"

    def first() -> Details | Degraded | None:
        """Field `blend` of the first choice in the last chunk; with events, `done` has it instead."""
        return None if chat.options.events else chat.blend_field(outcomes[0], waited_s)

    async with contextlib.aclosing(events):
        async for item in events:
            assert item is not None  # merged without `silence_s`
            choice, event = item
            if isinstance(event, ReasoningDelta) and not chat.with_reasoning:
                continue
            if isinstance(event, ReasoningDelta | AnswerDelta | BlendResult) and choice not in begun:
                begun.add(choice)
                yield line(ChunkChoice(index=choice, delta=Delta(role="assistant", content="")))
            match event:
                case ReasoningDelta(text):
                    yield line(ChunkChoice(index=choice, delta=Delta(reasoning_content=text)))
                case AnswerDelta(text):
                    if text:
                        yield line(ChunkChoice(index=choice, delta=Delta(content=text)))
                case BlendResult():
                    outcomes[choice] = event
                    ended = ChunkChoice(
                        index=choice,
                        delta=Delta(),
                        logprobs=chat.logprobs(event),
                        finish_reason=event.answer.finish_reason,
                        blend=chat.blend_field(event, waited_s) if chat.choices > 1 else None,
                    )
                    last = len(outcomes) == chat.choices and not with_usage
                    yield line(ended, blend=first() if last else None)
                    if chat.options.events:
                        yield line(blend=DoneEvent(choice=choice, details=chat.details(event, waited_s)))
                case _:
                    if chat.options.events:
                        yield line(blend=_event(chat, choice, event))
    if with_usage:
        yield line(usage=_usage(list(outcomes.values())), blend=first())
    yield LAST


def _event(chat: Chat, choice: int, event: MemberDelta | Answered | Ranked | Fusing) -> StageEvent:
    """The event in the API's form."""
    match event:
        case MemberDelta(index, model, text):
            return MemberPieceEvent(choice=choice, candidate=index, model=model, text=text)
        case Answered(index, candidate, seconds):
            return AnsweredEvent(choice=choice, candidate=index, answer=chat.candidate(candidate), seconds=seconds)
        case Ranked(ranking):
            return RankedEvent(choice=choice, complete=ranking.complete, **RankingAnswer.fields_of(ranking))
        case Fusing(fused_from):
            return FusingEvent(choice=choice, fused_from=list(fused_from))
