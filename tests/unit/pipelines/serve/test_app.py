"""An endpoint of one's own is a module and a place in a list: what holds for the others holds for it."""

import asyncio
from collections.abc import Mapping

import httpx2
from fake_parts import FakeMember, fake_blender
from fastapi import APIRouter, Request
from serving import app_of, refused, served

from llm_blender_ray.configs.serving import GatewaySettings, Limits, Serving
from llm_blender_ray.pipelines.serve.access import Keys
from llm_blender_ray.pipelines.serve.endpoints import ENDPOINTS
from llm_blender_ray.pipelines.serve.service import Endpoint, Service
from llm_blender_ray.pipelines.serve.service_metrics import REQUESTS, ServiceMetric

KEYS = Keys.load(None, {"BLEND_API_KEYS": "ann=correct-horse-battery"})
ANN = {"authorization": "Bearer correct-horse-battery"}


def routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/echo")
    async def echo(request: Request) -> dict[str, object]:
        return {"caller": request.state.caller, "sent": await request.json(), "members": [*service.blender.members]}

    @router.get("/open")
    async def show() -> str:
        return "for everybody"

    @router.get("/shelf/{book}")
    async def shelf(book: str) -> str:
        return book

    return router


ECHO = Endpoint("echo", "/v1/echo", routes, reads_json=True, uses_models=True)
MINE = (
    *ENDPOINTS,
    ECHO,
    Endpoint("open", "/open", lambda _: APIRouter(), open=True),
    Endpoint("shelf", "/shelf/*", lambda _: APIRouter(), open=True),
)


def test_keys_limits_and_paths_hold_for_an_endpoint_of_ones_own() -> None:
    serving = Serving(limits=Limits(body_bytes=1000))
    app = app_of(fake_blender(FakeMember("m", "words")), serving, keys=KEYS, endpoints=MINE)
    with served(app) as url, httpx2.Client(base_url=url) as client:
        refused(client.post("/v1/echo", json={}), 401, "invalid_api_key")
        assert client.post("/v1/echo", json={"a": 1}, headers=ANN).json() == {
            "caller": "ann",
            "sent": {"a": 1},
            "members": ["m"],
        }
        refused(client.post("/v1/echo", json="x" * 2000, headers=ANN), 413, "too_large")
        refused(client.post("/v1/echo", content="{}", headers=ANN), 415, "unsupported_media_type")
        assert client.get("/open").json() == "for everybody"
        assert client.get("/shelf/one").json() == "one"
        assert "/v1/echo" in client.get("/openapi.json").json()["paths"]
        refused(client.get("/v1/other"), 401, "invalid_api_key")  # what doesn't exist needs a key, too


def test_the_queue_and_the_log_know_it() -> None:
    counted = []

    def meter(metric: ServiceMetric, value: float, labels: Mapping[str, str] | None = None) -> None:
        if metric is REQUESTS:
            counted.append((labels or {})["route"])

    member = FakeMember("m", "some words")
    member.hold()
    serving = Serving(gateway=GatewaySettings(max_in_flight=1, max_queued=0))
    app = app_of(fake_blender(member), serving, endpoints=MINE, meter=meter)
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}

    async def full() -> httpx2.Response:
        async with httpx2.AsyncClient(base_url=url) as client:
            first = asyncio.ensure_future(client.post("/v1/chat/completions", json=body))
            await asyncio.to_thread(member.began.wait)
            answer = await client.post("/v1/echo", json={})
            first.cancel()
            return answer

    with served(app) as url:
        refused(asyncio.run(full()), 429, "overloaded")
    assert "echo" in counted
