"""`POST /v1/chat/completions`: the blend, the best of its members, or one of them by its name."""

import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace

from fastapi import APIRouter, Request, Response

from llm_blender_ray.actors.errors import one_line
from llm_blender_ray.pipelines.online.events import BlendResult, Event
from llm_blender_ray.pipelines.online.protocols import BlendRequest, NoAnswerError
from llm_blender_ray.pipelines.serve import chat
from llm_blender_ray.pipelines.serve.ballots import BallotBox, id_of
from llm_blender_ray.pipelines.serve.protocol import ChatRequest
from llm_blender_ray.pipelines.serve.responses import ERROR_RESPONSES, ChatCompletion
from llm_blender_ray.pipelines.serve.service import Endpoint, Service, json_response
from llm_blender_ray.pipelines.serve.streaming import EventStream, merge_streams, run_concurrently, while_connected
from llm_blender_ray.pipelines.serve.telemetry import RequestRecord


def _routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post(
        "/v1/chat/completions",
        operation_id="create_chat_completion",
        response_model=ChatCompletion,
        responses={
            **ERROR_RESPONSES,
            200: {
                "description": "The answer; with `stream` server-sent events, each a `Chunk`, then `[DONE]`.",
                "content": {"text/event-stream": {"schema": {"type": "string"}}},
            },
        },
    )
    async def create_chat_completion(asked: ChatRequest, request: Request) -> Response:
        """Ask the blend (`blend`), the best of its members (`blend-best`), or one of them by its name."""
        record: RequestRecord = request.state.record
        votes = service.ballots is not None
        good = chat.read(
            asked,
            request.state.id,
            service.blender,
            service.serving,
            service.models,
            service.prices,
            votes=votes,
        )
        good = replace(good, prompt=service.charged(good.prompt, record.caller))
        record.asks(asked.model, stream=bool(asked.stream), prompt=good.prompt)
        work = _ChatWork(service, good, record)
        if not asked.stream:
            return json_response(await while_connected(request.receive, work.complete()))
        lines = work.stream()
        first = await while_connected(request.receive, _first(lines))  # an earlier failure sets the status
        return EventStream(first, lines)

    return router


ENDPOINT = Endpoint("chat", "/v1/chat/completions", _routes, reads_json=True, uses_models=True)


async def _first(lines: AsyncGenerator[str, None]) -> str:
    return await anext(lines)


@dataclass(frozen=True, slots=True)
class _ChatWork:
    """Work of one request."""

    service: Service
    asked: chat.Chat
    record: RequestRecord

    async def complete(self) -> ChatCompletion:
        """The whole response."""
        async with self.service.admission.slot(self._deadline_s) as waited_s:
            self.record.waited(waited_s)
            outcomes = await run_concurrently([self._outcome(ask) for ask in self.asked.blend_requests(waited_s)])
            return chat.completion(self.asked, outcomes, waited_s)

    async def stream(self) -> AsyncGenerator[str, None]:
        """Lines of the response."""
        async with self.service.admission.slot(self._deadline_s) as waited_s:
            self.record.waited(waited_s)
            streams = [self._events(ask) for ask in self.asked.blend_requests(waited_s)]
            made = chat.lines(self.asked, merge_streams(streams), waited_s, self.record, self.service.heartbeat_s)
            async with contextlib.aclosing(made) as lines:
                async for line in lines:
                    yield line

    @property
    def _deadline_s(self) -> float:
        return self.asked.options.deadline_s or self.service.serving.deadline_s

    async def _outcome(self, ask: BlendRequest) -> BlendResult:
        async with contextlib.aclosing(self._events(ask)) as events:
            async for event in events:
                if isinstance(event, BlendResult):
                    return event
        raise AssertionError("no outcome")

    async def _events(self, ask: BlendRequest) -> AsyncGenerator[Event, None]:
        ballots = self.service.ballots if self.asked.options.vote else None
        try:
            async with contextlib.aclosing(self.service.blender.events(ask)) as events:
                async for event in events:
                    self.record.event(event)
                    if isinstance(event, BlendResult) and ballots:
                        asked = id_of(self.record.caller, self.asked.prompt.id)
                        event = await _open_to_votes(ballots, asked, event)
                    yield event
        except NoAnswerError as error:
            self.record.used(error.usages)
            raise


async def _open_to_votes(ballots: BallotBox, id: str, outcome: BlendResult) -> BlendResult:
    """The result, opened to votes, or with a note that it is not."""
    try:
        await ballots.remember(id, outcome.blend)
    except Exception as error:  # whatever the way to it raises: the answer is complete
        note = f"votes: {one_line(error)}; this answer can't be voted on"
        return replace(outcome, degraded=(*outcome.degraded, note))
    return outcome
