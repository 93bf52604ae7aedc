"""The benchmark of outages: what it runs, and what it tells of a service with a model that is down."""

import asyncio
import socket
from urllib.parse import urlsplit

import pytest
from fake_parts import FakeFuser, FakeMember, FakeRanker
from serving import app_of, served

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.configs.breaker import BreakerSettings
from llm_blender_ray.configs.schema import BlendConfig
from llm_blender_ray.pipelines.bench import outage
from llm_blender_ray.pipelines.online.blender import Blender

SERVER = "http://127.0.0.1:9/v1"


def service(*members: FakeMember) -> Blender:
    breaker = BreakerSettings(failures=3, wait_s=60, longest_wait_s=60)
    return Blender(members, FakeRanker(), FakeFuser(), top_k=2, breaker=breaker)


def test_requests_are_timed_from_when_the_model_is_left_out() -> None:
    blender = service(FakeMember("up", "one"), FakeMember(outage.DOWN_MODEL, error="503"))
    with served(app_of(blender)) as url:
        took = asyncio.run(outage.ask(url, 20, broken=True))
    assert len(took["before_ms"]) == 3
    assert 0 < took["p50_ms"] <= took["p99_ms"] and took["p50_ms"] <= took["most_ms"]


def test_a_service_that_lacks_what_it_should_not_is_no_measure() -> None:
    app = app_of(service(FakeMember("up", "one"), FakeMember("odd", error="503")))
    with served(app) as url, pytest.raises(BlendError, match="not what was expected"):
        asyncio.run(outage.ask(url, 5, broken=False))


def test_the_model_that_is_down_is_asked_first() -> None:
    broken = outage.urls(SERVER)
    with socket.socket() as free:  # nobody listens there
        free.bind(("127.0.0.1", urlsplit(broken["refused"]).port or 0))
    config = BlendConfig.model_validate(outage.config_of(SERVER, broken["503"]))
    urls = [getattr(model, "base_url", None) for model in config.models]
    assert urls == ["http://127.0.0.1:9/unavailable/v1", SERVER, SERVER]
    assert config.models[0].name == outage.DOWN_MODEL and config.models[0] != config.models[1]
