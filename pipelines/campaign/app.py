"""HTTP application of a campaign: the page, and the API behind it, which needs an annotator's key."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeVar

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from llm_blender_ray.actors.prices import PriceList
from llm_blender_ray.actors.records import read_prompt
from llm_blender_ray.configs.serving import Limits, Serving
from llm_blender_ray.configs.settings import Settings
from llm_blender_ray.pipelines.campaign.assignments import Assignments
from llm_blender_ray.pipelines.campaign.records import (
    AnsweredBeforeError,
    Assignment,
    CampaignError,
    ItemLostError,
    UnknownItemError,
)
from llm_blender_ray.pipelines.campaign.store import CampaignStore
from llm_blender_ray.pipelines.quality.judgements import Preferred
from llm_blender_ray.pipelines.quality.votes import side_text
from llm_blender_ray.pipelines.serve.access import Access, Keys
from llm_blender_ray.pipelines.serve.admission import Admission
from llm_blender_ray.pipelines.serve.endpoints.page import page_headers
from llm_blender_ray.pipelines.serve.errors import ApiError, answer_rejected
from llm_blender_ray.pipelines.serve.middleware import RequestMiddleware
from llm_blender_ray.pipelines.serve.service import Endpoint
from llm_blender_ray.pipelines.serve.telemetry import Telemetry

CAMPAIGN_PAGE = Path(__file__).with_name("page.html")
REQUESTS_PER_MINUTE = 240  # of one annotator
MAX_COMMENT = 5000  # characters
_STATUS = {  # of errors of the store; others are 503: the vote may be sent again
    UnknownItemError: (404, "unknown_item"),
    AnsweredBeforeError: (409, "answered_before"),
    ItemLostError: (409, "item_lost"),
}
_ResultT = TypeVar("_ResultT")
ItemId = Annotated[int, Field(ge=1, lt=1 << 63)]


class CampaignAnswer(Settings):
    """An annotator's answer to an item: a vote, or a skip where `preferred` is null."""

    item: ItemId
    preferred: Preferred | None
    comment: Annotated[str, Field(max_length=MAX_COMMENT)] | None = None
    seconds: Annotated[float, Field(ge=0, le=1e9)] | None = None


class TakenBack(Settings):
    """An item whose answer an annotator takes back."""

    item: ItemId


class AboutCampaign(BaseModel):
    """What the page shows besides items."""

    title: str
    instructions: str
    criteria: tuple[str, ...]
    annotator: str


class ShownTurn(BaseModel):
    """A turn of a prompt."""

    role: str
    content: str


class ShownItem(BaseModel):
    """An item as it is shown: without names of models."""

    item: int
    prompt: list[ShownTurn]
    left: str
    right: str


class CampaignProgress(BaseModel):
    """How far an annotator and the campaign are.

    Attributes:
        answered: Items that the annotator has voted on or skipped.
        votes: Votes of all annotators that the campaign needs, so far.
        wanted: How many it needs.
        last: Item that the annotator has answered last.
    """

    answered: int
    votes: int
    wanted: int
    last: int | None


class CampaignState(BaseModel):
    """The annotator's next item, if there is one now, and the progress."""

    item: ShownItem | None
    progress: CampaignProgress


@dataclass(frozen=True, slots=True)
class CampaignFront:
    """See `serve.middleware.Front`. No request of a campaign uses a model."""

    access: Access
    admission: Admission = field(default_factory=lambda: Admission(1, 0))
    telemetry: Telemetry = field(default_factory=Telemetry)
    prices: PriceList = field(default_factory=PriceList)
    serving: Serving = field(default_factory=lambda: Serving(limits=Limits(body_bytes=64 << 10), deadline_s=60.0))


def campaign_service(store: CampaignStore, keys: Keys) -> FastAPI:
    """The application of a campaign.

    Args:
        store: The campaign.
        keys: Of its annotators.
    """
    front = CampaignFront(Access(keys, REQUESTS_PER_MINUTE))
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    endpoints = (
        Endpoint("page", "/", lambda _: APIRouter(), open=True),
        Endpoint("campaign", "/api/*", lambda _: APIRouter(), counted=False, reads_json=True),
    )
    app.add_middleware(RequestMiddleware, service=front, endpoints=endpoints)
    app.add_exception_handler(RequestValidationError, answer_rejected)
    app.add_exception_handler(HTTPException, answer_rejected)
    app.include_router(_routes(store, Assignments(store)))
    return app


def _routes(store: CampaignStore, items: Assignments) -> APIRouter:
    router = APIRouter()
    page = CAMPAIGN_PAGE.read_text(encoding="utf-8")

    @router.head("/")
    @router.get("/", response_class=HTMLResponse)
    async def show_page() -> HTMLResponse:
        return HTMLResponse(page, headers=page_headers(page))

    @router.get("/api/campaign")
    async def about(request: Request) -> AboutCampaign:
        settings = store.settings
        return AboutCampaign(
            title=settings.title,
            instructions=settings.instructions,
            criteria=settings.criteria,
            annotator=request.state.caller,
        )

    def state(annotator: str) -> CampaignState:
        assignment = items.next_item(annotator)
        votes, wanted = store.progress()
        progress = CampaignProgress(
            answered=items.answered(annotator), votes=votes, wanted=wanted, last=items.last_answered(annotator)
        )
        return CampaignState(item=_shown(assignment) if assignment else None, progress=progress)

    @router.post("/api/next")
    async def next_item(request: Request) -> CampaignState:
        return await _apart(lambda: state(request.state.caller))

    @router.post("/api/answers", status_code=201)
    async def answer(given: CampaignAnswer, request: Request) -> CampaignState:
        def keep() -> CampaignState:
            comment = (given.comment or "").strip() or None
            items.answer(request.state.caller, given.item, given.preferred, comment, given.seconds)
            return state(request.state.caller)

        return await _apart(keep)

    @router.post("/api/undo")
    async def undo(given: TakenBack, request: Request) -> CampaignState:
        def take_back() -> CampaignState:
            items.undo(request.state.caller, given.item)
            return state(request.state.caller)

        return await _apart(take_back)

    return router


async def _apart(work: Callable[[], _ResultT]) -> _ResultT:
    """Do work on the store in a thread.

    Raises:
        ApiError: The store does not allow it, or can't be used.
    """
    try:
        return await asyncio.to_thread(work)
    except CampaignError as error:
        status, code = _STATUS.get(type(error), (503, "vote_lost"))
        raise ApiError(status, str(error), code=code) from error


def _shown(assignment: Assignment) -> ShownItem:
    row = assignment.row
    # some models begin each answer with a space, which would tell them apart
    left, right = ((side_text(row, side) or "").strip() for side in (assignment.left, assignment.right))
    turns = [ShownTurn(role=turn["role"], content=turn["content"]) for turn in read_prompt(row).chat()]
    return ShownItem(item=assignment.item, prompt=turns, left=left, right=right)
