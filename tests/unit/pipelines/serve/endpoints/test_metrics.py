"""`/metrics` over HTTP: who may read it, and what it leaves no trace of."""

from collections.abc import Mapping

import httpx2
from fake_parts import fake_blender
from serving import app_of, logged, refused, served

from llm_blender_ray.pipelines.serve.access import Keys
from llm_blender_ray.pipelines.serve.service_metrics import ServiceMetric

PAGE = b"# HELP ray_blend_requests_total Requests.\n"


async def page() -> bytes:
    return PAGE


def test_with_keys_it_needs_one_and_scrapes_are_neither_counted_nor_logged(monkeypatch) -> None:
    counted: list[str] = []

    def meter(metric: ServiceMetric, value: float, labels: Mapping[str, str] | None = None) -> None:
        counted.append(metric.name)

    keys = Keys.load(None, {"BLEND_API_KEYS": "prometheus=a-long-secret-0001"})
    app = app_of(fake_blender(), keys=keys, meter=meter, metrics=page)
    with logged("blend.requests", monkeypatch) as lines, served(app) as url, httpx2.Client(base_url=url) as client:
        refused(client.get("/metrics"), 401, "invalid_api_key")
        answer = client.get("/metrics", headers={"authorization": "Bearer a-long-secret-0001"})
        assert (answer.status_code, answer.content) == (200, PAGE)
        assert answer.headers["content-type"].startswith("text/plain; version=")
        assert (counted, lines) == ([], [])


def test_without_keys_this_machine_reads_it() -> None:
    with served(app_of(fake_blender(), metrics=page)) as url, httpx2.Client(base_url=url) as client:
        assert client.get("/metrics").content == PAGE
        refused(client.get("/metrics", headers={"host": "blend.example"}), 403, "no_api_keys")


def test_without_ray_there_is_none() -> None:
    with served(app_of(fake_blender())) as url, httpx2.Client(base_url=url) as client:
        refused(client.get("/metrics"), 404, "not_found")
