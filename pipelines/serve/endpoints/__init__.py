"""The endpoints of the service. To add one, write a module with its `Endpoint` and list it here."""

from llm_blender_ray.pipelines.serve.endpoints import (
    chat_completions,
    health,
    metrics,
    models,
    page,
    ranking,
    votes,
)

ENDPOINTS = (
    page.ENDPOINT,
    health.ENDPOINT,
    metrics.ENDPOINT,
    models.ENDPOINT,
    chat_completions.ENDPOINT,
    ranking.RERANK,
    ranking.COMPARE,
    votes.ENDPOINT,
)
