"""`/healthz`: whether the service answers, and which of its parts are left out of requests, since when and why.

It stays 200 as long as one model can be asked: who looks at it must not take a service away that still answers.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from fastapi import APIRouter, Request, Response

from llm_blender_ray.actors.circuit_breaker import CircuitStatus
from llm_blender_ray.pipelines.online.blender import Blender
from llm_blender_ray.pipelines.online.clock import now
from llm_blender_ray.pipelines.serve.access import Access
from llm_blender_ray.pipelines.serve.responses import Health, PartHealth

PendingParts = Callable[[], Awaitable[Sequence[str]]]  # the parts that aren't up yet


def router(blender: Blender, access: Access, starting: PendingParts | None) -> APIRouter:
    """The route, which needs no key.

    Args:
        blender: Whose parts they are.
        access: Says who may know the causes.
        starting: Says which parts aren't up yet; None: all are.
    """
    router = APIRouter()

    @router.head("/healthz", include_in_schema=False)
    @router.get(
        "/healthz", operation_id="health", response_model_exclude_none=True, responses={503: {"model": Health}}
    )
    async def health(request: Request, response: Response) -> Health:
        """Whether the service answers: `starting` (503) until every part was up once, `down` (503) without models.

        `parts` tells which are left out of requests, since when and why.
        """
        missing = await starting() if starting else ()
        if missing:
            response.status_code = 503
            return Health(status="starting", missing=list(missing))
        circuits = blender.circuits
        down = not any(circuits[name].status.can_answer for name in blender.members)
        response.status_code = 503 if down else 200
        known = access.knows(request.headers, request.client.host if request.client else None)
        return Health(status="down" if down else "ok", parts=part_health(circuits.status(), known))

    return router


def part_health(parts: Mapping[str, CircuitStatus], known: bool) -> dict[str, PartHealth] | None:
    """The state of every part, where one of them is left out; None: none is.

    Args:
        parts: The statuses of their circuit breakers, of the running loop's clock.
        known: Whether who asks may know the causes.
    """
    if all(status.state == "closed" for status in parts.values()):
        return None
    opened = datetime.now(UTC) - timedelta(seconds=now())

    def of(status: CircuitStatus) -> PartHealth:
        if status.state == "closed" or status.since is None:
            return PartHealth(state="ok")
        return PartHealth(
            state=status.state,
            cause=status.cause if known else None,
            since=(opened + timedelta(seconds=status.since)).replace(microsecond=0),
            retry_after_s=None if status.retry_after_s is None else round(status.retry_after_s, 1),
        )

    return {name: of(status) for name, status in parts.items()}
