"""`GET /v1/models`: names of the models."""

import time

from fastapi import APIRouter

from llm_blender_ray.pipelines.online.protocols import BEST, BLEND
from llm_blender_ray.pipelines.serve.errors import unknown_model
from llm_blender_ray.pipelines.serve.responses import READING_ERRORS, Model, ModelList
from llm_blender_ray.pipelines.serve.service import Endpoint, Service


def _routes(service: Service) -> APIRouter:
    router = APIRouter()
    created = int(time.time())
    models = {name: Model(id=name, created=created) for name in (BLEND, BEST, *service.blender.members)}

    @router.get("/v1/models", operation_id="list_models", responses=READING_ERRORS)
    async def list_models() -> ModelList:
        """List the models."""
        return ModelList(data=list(models.values()))

    @router.get("/v1/models/{name:path}", operation_id="retrieve_model", responses=READING_ERRORS)
    async def retrieve_model(name: str) -> Model:
        """Describe one model."""
        if name not in models:
            raise unknown_model(name, models)
        return models[name]

    return router


ENDPOINT = Endpoint("models", "/v1/models/*", _routes)
