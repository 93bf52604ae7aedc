"""`POST /v1/votes`: users' votes on answers."""

from typing import Literal

from fastapi import APIRouter, Request

from llm_blender_ray.pipelines.quality.votes import FUSED
from llm_blender_ray.pipelines.serve.ballots import Kept, Vote, id_of
from llm_blender_ray.pipelines.serve.responses import VOTING_ERRORS
from llm_blender_ray.pipelines.serve.service import Endpoint, Service


def _routes(service: Service) -> APIRouter:
    router = APIRouter()
    if (ballots := service.ballots) is None:
        return router

    @router.post("/v1/votes", status_code=201, operation_id="cast_vote", responses=VOTING_ERRORS)
    async def cast_vote(vote: Vote, request: Request) -> Kept:
        """Vote on two answers to a request of the same API key."""
        id = id_of(getattr(request.state, "caller", None), vote.id)
        await ballots.cast(vote.model_copy(update={"id": id}))
        service.telemetry.vote(_kind(vote))
        return Kept(id=vote.id)

    return router


def _kind(vote: Vote) -> Literal["fused", "member", "tie"]:
    """Preferred answer: a tie, the fused answer or a member's."""
    if vote.preferred == "tie":
        return "tie"
    side = vote.left if vote.preferred == "left" else vote.right
    return "fused" if side == FUSED else "member"


ENDPOINT = Endpoint("votes", "/v1/votes", _routes, reads_json=True)
