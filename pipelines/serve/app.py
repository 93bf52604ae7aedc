"""HTTP API over a `Blender`, as a FastAPI application: the same in tests, in one process, and on Ray Serve."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from llm_blender_ray.pipelines.serve.endpoints import ENDPOINTS
from llm_blender_ray.pipelines.serve.errors import answer_rejected
from llm_blender_ray.pipelines.serve.middleware import API, REQUEST_ID_HEADER, RequestMiddleware
from llm_blender_ray.pipelines.serve.responses import Chunk
from llm_blender_ray.pipelines.serve.service import Endpoint, Service


def create_app(service: Service, *, tells_id: bool = True, endpoints: Sequence[Endpoint] = ENDPOINTS) -> FastAPI:
    """The application of a service.

    Args:
        service: What the endpoints work with; the application belongs to the event loop that its blender does.
        tells_id: Put the request's id into the headers of answers; False where something in front does.
        endpoints: Endpoints of the application.

    Returns:
        An ASGI application.
    """
    app = _App(
        title="LLM-Blender on Ray",
        description="One model name for many models: all answer, the answers are ranked, the best ones fused.",
        version="1",
        docs_url=None,  # they load scripts from another host
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lambda _: _closing(service),
    )
    app.add_middleware(RequestMiddleware, service=service, endpoints=endpoints, tells_id=tells_id)
    if service.serving.allowed_origins:  # outermost: a browser's preflight request carries no key
        app.add_middleware(
            CORSMiddleware,
            allow_origins=service.serving.allowed_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=[REQUEST_ID_HEADER, "retry-after"],
            max_age=600,
        )
    app.add_exception_handler(RequestValidationError, answer_rejected)
    app.add_exception_handler(HTTPException, answer_rejected)
    for endpoint in endpoints:
        app.include_router(endpoint.routes(service))
    service.blender.circuits.listen(service.telemetry.circuit)
    return app


@contextlib.asynccontextmanager
async def _closing(service: Service) -> AsyncIterator[None]:
    yield
    await asyncio.to_thread(service.telemetry.close)


class _App(FastAPI):
    """Its OpenAPI document includes what the middleware does, and no 422: malformed requests get 400."""

    def openapi(self) -> dict[str, Any]:
        """See base class."""
        document = super().openapi()
        parts = document["components"]
        parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, operations in document["paths"].items():
            for operation in operations.values():
                operation["responses"].pop("422", None)
                if path.startswith(API):
                    operation["security"] = [{"key": []}, {}]  # without keys, none is needed
        for name in ("HTTPValidationError", "ValidationError"):
            parts["schemas"].pop(name, None)
        _, chunk = models_json_schema([(Chunk, "serialization")], ref_template="#/components/schemas/{model}")
        parts["schemas"] = chunk["$defs"] | parts["schemas"]
        return document
