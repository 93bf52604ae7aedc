"""`GET /metrics`: figures of the service for Prometheus, its gateways' and its replicas'."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from llm_blender_ray.pipelines.serve.service import Endpoint, Service


def _routes(service: Service) -> APIRouter:
    router = APIRouter()
    if (page := service.metrics) is None:
        return router

    @router.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(await page(), media_type=CONTENT_TYPE_LATEST)

    return router


ENDPOINT = Endpoint("metrics", "/metrics", _routes, counted=False)
