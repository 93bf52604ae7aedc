"""`/healthz`: whether the service answers, and which of its parts are left out of requests, since when and why.

It stays 200 while at least one model is up: a load balancer must not remove a service that still answers.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from fastapi import APIRouter, Request, Response

from llm_blender_ray.actors.circuit_breaker import CircuitStatus
from llm_blender_ray.pipelines.online.clock import now
from llm_blender_ray.pipelines.serve.responses import Health, PartHealth
from llm_blender_ray.pipelines.serve.service import Endpoint, Service


def _routes(service: Service) -> APIRouter:
    router = APIRouter()
    circuits, members, access = service.blender.circuits, service.blender.members, service.access

    @router.head("/healthz", include_in_schema=False)
    @router.get(
        "/healthz", operation_id="health", response_model_exclude_none=True, responses={503: {"model": Health}}
    )
    async def health(request: Request, response: Response) -> Health:
        """Whether the service answers: `starting` (503) at first, `down` (503) without models.

        It starts until every part that is kept loaded (`replicas.min` above 0) was up once.
        `parts` has those that are left out of requests, since when and why.
        """
        missing = await service.starting() if service.starting else ()
        if missing:
            response.status_code = 503
            return Health(status="starting", missing=list(missing))
        down = not any(circuits[name].status.can_answer for name in members)
        response.status_code = 503 if down else 200
        known = access.knows(request.headers, request.client.host if request.client else None)
        return Health(status="down" if down else "ok", parts=part_health(circuits.status(), known))

    return router


ENDPOINT = Endpoint("health", "/healthz", _routes, open=True)


def part_health(parts: Mapping[str, CircuitStatus], known: bool) -> dict[str, PartHealth] | None:
    """State of every part, if one of them is left out; else None.

    Args:
        parts: Statuses of their circuit breakers, on the running loop's clock.
        known: Whether the caller may see the causes.
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
