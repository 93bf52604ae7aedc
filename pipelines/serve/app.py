"""The HTTP API over a `Blender`, as a FastAPI application: the same in tests, in one process, and on Ray Serve."""

import base64
import contextlib
import functools
import hashlib
import re
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from llm_blender_ray.actors.circuit_breaker import NotAskedError
from llm_blender_ray.actors.errors import PromptError, RowError, one_line
from llm_blender_ray.actors.records import Blend, Ranking
from llm_blender_ray.configs.serving import Serving
from llm_blender_ray.pipelines.online.blender import Blender
from llm_blender_ray.pipelines.online.events import BlendResult, Event
from llm_blender_ray.pipelines.online.protocols import BEST, BLEND, BlendRequest
from llm_blender_ray.pipelines.quality.votes import FUSED
from llm_blender_ray.pipelines.serve import ballots as voting
from llm_blender_ray.pipelines.serve import chat, health, ranking
from llm_blender_ray.pipelines.serve.access import Access
from llm_blender_ray.pipelines.serve.admission import Admission
from llm_blender_ray.pipelines.serve.errors import ApiError, later, to_api_error, unknown_model
from llm_blender_ray.pipelines.serve.middleware import API, REQUEST_ID_HEADER, Front
from llm_blender_ray.pipelines.serve.protocol import ChatRequest, CompareRequest, RerankRequest
from llm_blender_ray.pipelines.serve.responses import (
    ChatCompletion,
    Chunk,
    CompareAnswer,
    ErrorAnswer,
    Model,
    ModelList,
    RerankAnswer,
)
from llm_blender_ray.pipelines.serve.streaming import EventStream, merge_streams, side_by_side, while_connected
from llm_blender_ray.pipelines.serve.telemetry import RequestRecord, Telemetry

PAGE = Path(__file__).with_name("page.html")
SILENCE_S = 15.0  # without a word in a stream, and a comment is sent
ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": what}
    for status, what in {
        400: "The request is wrong: `param` tells where.",
        401: "No API key, or an unknown one.",
        403: "There are no API keys, and the request comes from another machine.",
        404: "There is no such model or answer.",
        408: "The body did not come in time.",
        413: "The body is too long.",
        415: "The body is not JSON, or compressed.",
        429: "Too many requests: `Retry-After` tells when to come again.",
        431: "The headers are too long.",
        500: "Something went wrong that nobody foresaw.",
        503: "No model answered, or none can be asked.",
    }.items()
}
READING_ERRORS: dict[int | str, dict[str, Any]] = {
    status: ERROR_RESPONSES[status] for status in (401, 403, 404, 429, 431, 500)
}
VOTING_ERRORS = ERROR_RESPONSES | {
    409: {"model": ErrorAnswer, "description": "These two answers have been voted on."}
}


def create_app(
    blender: Blender,
    serving: Serving,
    *,
    access: Access,
    admission: Admission,
    telemetry: Telemetry,
    ballots: voting.BallotBox | None = None,
    starting: health.PendingParts | None = None,
    silence_s: float = SILENCE_S,
    tells_id: bool = True,
) -> FastAPI:
    """The service; it belongs to the event loop that `blender` does.

    ballots: None where no votes are kept. starting: says which parts aren't up yet. tells_id: False where somebody
    in front puts the request's id into answers' headers.
    """
    app = _App(
        title="LLM-Blender on Ray",
        description="One model name that is many models: all are asked, their answers ranked, the best ones fused.",
        version="1",
        docs_url=None,  # they load scripts from another host
        redoc_url=None,
        redirect_slashes=False,
    )
    app.add_middleware(
        Front,
        access=access,
        admission=admission,
        telemetry=telemetry,
        serving=serving,
        tells_id=tells_id,
    )
    if serving.allowed_origins:  # in front of it: a browser's preflight carries no key
        app.add_middleware(
            CORSMiddleware,
            allow_origins=serving.allowed_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=[REQUEST_ID_HEADER, "retry-after"],
            max_age=600,
        )
    app.add_exception_handler(RequestValidationError, _answer)
    app.add_exception_handler(HTTPException, _answer)
    service = _Service(blender, serving, admission, ballots, silence_s)
    _add_models(app, blender)
    _add_work(app, service)
    _add_page(app)
    app.include_router(health.router(blender, access, starting))
    blender.circuits.listen(telemetry.circuit)
    if ballots is not None:
        app.include_router(voting.router(_Counted(ballots, telemetry)), responses=VOTING_ERRORS)
    return app


class _App(FastAPI):
    """Its OpenAPI document tells what `Front` does, and has no 422: requests that are wrong are answered 400."""

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        parts = document["components"]
        parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, operations in document["paths"].items():
            for operation in operations.values():
                operation["responses"].pop("422", None)
                if path.startswith(API):
                    operation["security"] = [{"key": []}, {}]  # where there are no keys, none is needed
        for name in ("HTTPValidationError", "ValidationError"):
            parts["schemas"].pop(name, None)
        _, chunk = models_json_schema([(Chunk, "serialization")], ref_template="#/components/schemas/{model}")
        parts["schemas"] = chunk["$defs"] | parts["schemas"]
        return document


@dataclass(frozen=True, slots=True)
class _Service:
    """What the routes work with."""

    blender: Blender
    serving: Serving
    admission: Admission
    ballots: voting.BallotBox | None
    silence_s: float

    async def complete(self, asked: chat.Chat, record: RequestRecord) -> ChatCompletion:
        """The whole answer."""
        async with self.admission.slot(asked.options.deadline_s or self.serving.deadline_s) as waited_s:
            record.waited(waited_s)
            asks = asked.asks(waited_s)
            outcomes = await side_by_side([self._outcome(asked, ask, record) for ask in asks])
            return chat.completion(asked, outcomes, waited_s)

    async def stream(self, asked: chat.Chat, record: RequestRecord) -> AsyncGenerator[str, None]:
        """The answer's lines."""
        async with self.admission.slot(asked.options.deadline_s or self.serving.deadline_s) as waited_s:
            record.waited(waited_s)
            events = merge_streams(
                [self._events(asked, ask, record) for ask in asked.asks(waited_s)], self.silence_s
            )
            async with contextlib.aclosing(chat.lines(asked, events, waited_s, record)) as lines:
                async for line in lines:
                    yield line

    async def rank(self, ranking: Callable[[], Coroutine[Any, Any, Ranking]], record: RequestRecord) -> Ranking:
        """A ranking that is asked for by itself."""
        async with self.admission.slot(self.serving.deadline_s) as waited_s:
            record.waited(waited_s)
            began = time.monotonic()
            try:
                ranked = await ranking()
            except (RowError, PromptError):
                raise
            except TimeoutError as error:
                raise ApiError(503, "no ranking in time", code="no_ranking") from error
            except NotAskedError as error:
                wait = later(error.retry_after_s)
                raise ApiError(503, f"no ranking: {error}", code="no_ranking", headers=wait) from error
            except Exception as error:  # whatever the ranker, or the way to it, raises
                raise ApiError(503, f"no ranking: {one_line(error)}", code="no_ranking") from error
            record.ranked(ranked, time.monotonic() - began)
            return ranked

    async def _outcome(self, asked: chat.Chat, ask: BlendRequest, record: RequestRecord) -> BlendResult:
        async with contextlib.aclosing(self._events(asked, ask, record)) as events:
            async for event in events:
                if isinstance(event, BlendResult):
                    return event
        raise AssertionError("no outcome")

    async def _events(
        self, asked: chat.Chat, ask: BlendRequest, record: RequestRecord
    ) -> AsyncGenerator[Event, None]:
        async with contextlib.aclosing(self.blender.events(ask)) as events:
            async for event in events:
                record.event(event)
                if isinstance(event, BlendResult) and asked.options.vote and self.ballots:
                    event = await _open_to_votes(self.ballots, voting.id_of(record.caller, asked.prompt.id), event)
                yield event


async def _open_to_votes(ballots: voting.BallotBox, id: str, outcome: BlendResult) -> BlendResult:
    """The outcome, which can be voted on from now on, or says that it can't."""
    try:
        await ballots.remember(id, outcome.blend)
    except Exception as error:  # whatever the way to it raises; the answer is there
        told = f"votes: {one_line(error)}; this answer can't be voted on"
        return replace(outcome, degraded=(*outcome.degraded, told))
    return outcome


class _Counted:
    """Ballots whose votes are counted."""

    def __init__(self, ballots: voting.BallotBox, telemetry: Telemetry) -> None:
        self._ballots, self._telemetry = ballots, telemetry

    async def remember(self, request_id: str, blend: Blend) -> None:
        await self._ballots.remember(request_id, blend)

    async def cast(self, vote: voting.Vote) -> None:
        await self._ballots.cast(vote)
        if vote.preferred == "tie":
            self._telemetry.vote("tie")
        else:
            side = vote.left if vote.preferred == "left" else vote.right
            self._telemetry.vote("fused" if side == FUSED else "member")


async def _answer(request: Request, error: Exception) -> Response:
    """The answer to a request that FastAPI itself refuses."""
    known = to_api_error(error)
    if known is None:
        assert isinstance(error, HTTPException)
        known = ApiError(error.status_code, error.detail, headers=error.headers)
    if known.code and (record := getattr(request.state, "record", None)):
        record.error(known.code)
    return known.response()


def _add_work(app: FastAPI, service: _Service) -> None:
    """The routes behind which models work."""

    @app.post(
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
        good = chat.read(asked, request.state.id, service.blender, service.serving, votes=votes)
        record.asks(asked.model, stream=bool(asked.stream), prompt=good.prompt)
        if not asked.stream:
            return _json(await while_connected(request.receive, service.complete(good, record)))
        lines = service.stream(good, record)
        first = await while_connected(request.receive, _first(lines))  # what fails before it has a status
        return EventStream(first, lines)

    @app.post("/v1/rerank", operation_id="rerank", response_model=RerankAnswer, responses=ERROR_RESPONSES)
    async def rerank(asked: RerankRequest, request: Request) -> Response:
        """Order documents by how well they answer a query."""
        record: RequestRecord = request.state.record
        model, id = ranking.model_of(asked), request.state.id
        prompt = ranking.read_rerank(asked, id, service.serving)
        record.asks(model, prompt=prompt)
        documents = ranking.candidates_from_texts(asked.documents)
        work = functools.partial(service.blender.rerank, prompt, documents, asked.top_n)
        ranked = await while_connected(request.receive, service.rank(work, record))
        return _json(ranking.reranked(asked, id, ranked))

    @app.post("/v1/compare", operation_id="compare", response_model=CompareAnswer, responses=ERROR_RESPONSES)
    async def compare(asked: CompareRequest, request: Request) -> Response:
        """Say which of two answers is better."""
        record: RequestRecord = request.state.record
        model, id = ranking.model_of(asked), request.state.id
        prompt = ranking.read_compare(asked, id)
        record.asks(model, prompt=prompt)
        work = functools.partial(service.blender.compare, prompt, ranking.candidates_from_texts(asked.candidates))
        ranked = await while_connected(request.receive, service.rank(work, record))
        return _json(ranking.compared(asked, id, ranked))


async def _first(lines: AsyncGenerator[str, None]) -> str:
    return await anext(lines)


def _json(answer: BaseModel) -> Response:
    """The answer as it is: FastAPI would check it again."""
    return Response(answer.model_dump_json(), media_type="application/json")


def _add_models(app: FastAPI, blender: Blender) -> None:
    created = int(time.time())
    models = {name: Model(id=name, created=created) for name in (BLEND, BEST, *blender.members)}

    @app.get("/v1/models", operation_id="list_models", responses=READING_ERRORS)
    async def list_models() -> ModelList:
        """All that answers."""
        return ModelList(data=list(models.values()))

    @app.get("/v1/models/{name:path}", operation_id="retrieve_model", responses=READING_ERRORS)
    async def retrieve_model(name: str) -> Model:
        """One of them."""
        if name not in models:
            raise unknown_model(name, models)
        return models[name]


def _add_page(app: FastAPI) -> None:
    """The page for people, which needs no key."""
    page = PAGE.read_text(encoding="utf-8")
    headers = {
        "content-security-policy": content_security_policy(page),
        "cache-control": "no-cache",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }

    @app.head("/", include_in_schema=False)
    @app.get("/", operation_id="page", response_class=HTMLResponse)
    async def show_page() -> HTMLResponse:
        """A page on which people can ask and vote."""
        return HTMLResponse(page, headers=headers)


def content_security_policy(page: str) -> str:
    """Nothing but the page's own script and style, which hashes name, and requests to its own host.

    See https://www.w3.org/TR/CSP3/; a browser hashes what stands between the tags.
    """
    allowed = {
        "default-src": "'none'",
        "img-src": "'self' data:",
        "connect-src": "'self'",
        "frame-ancestors": "'none'",
    }
    allowed |= {"base-uri": "'none'", "form-action": "'none'"}
    for element in ("script", "style"):
        texts = re.findall(rf"<{element}[^>]*>(.*?)</{element}>", page, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts)
        allowed[f"{element}-src"] = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    return "; ".join(f"{directive} {sources}" for directive, sources in allowed.items())
