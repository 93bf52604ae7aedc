"""Clients that go away, and streams that are silent."""

import http.client
import itertools
import json
import queue
from collections.abc import Mapping
from typing import Any

import httpx2
import pytest
from fake_parts import FakeMember, fake_blender
from serving import HELLO, app_of, event_loop, logged, served

from llm_blender_ray.configs.serving import GatewaySettings, Serving
from llm_blender_ray.pipelines.serve.service_metrics import IN_FLIGHT, QUEUED, ServiceMetric


def asked(url: str, **fields: Any) -> http.client.HTTPConnection:
    """A connection on which something was asked, and no answer read."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    body = json.dumps({"model": "blend", "messages": HELLO, **fields})
    connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
    return connection


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_ends_the_work(stream: bool, n: int) -> None:
    member = FakeMember("m", "some words")
    member.hold()
    with served(app_of(fake_blender(member))) as url:
        connection = asked(url, stream=stream, n=n)
        assert member.began.wait(60)
        connection.close()
        assert member.cancelled.wait(60)


def test_a_client_that_leaves_in_mid_stream_ends_the_work() -> None:
    member = FakeMember("m", "some words")
    member.hold()
    with served(app_of(fake_blender(member))) as url:
        connection = asked(url, stream=True, blend={"events": True})
        response = connection.getresponse()
        assert response.readline().startswith(b"data: ")
        response.close()
        connection.close()
        assert member.cancelled.wait(60)


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_that_ends_answers_what_it_cannot_finish(stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    member = FakeMember("m", "some words")
    member.hold()
    with logged("blend.requests", monkeypatch) as records:
        with served(app_of(fake_blender(member)), timeout_graceful_shutdown=0) as url:
            connection = asked(url, stream=stream)
            assert member.began.wait(60)
        response = connection.getresponse()
        error = json.load(response)["error"]
        assert (response.status, error["code"], response.getheader("retry-after")) == (503, "shutting_down", "1")
        assert member.cancelled.wait(60)
        connection.close()
    (line,) = (json.loads(record.getMessage()) for record in records)
    assert (line["status"], line["error"]) == (503, "shutting_down")


def test_who_leaves_the_queue_leaves_its_place() -> None:
    member = FakeMember("m", "some words")
    member.hold()
    load: queue.Queue[tuple[str, float]] = queue.Queue()

    def meter(metric: ServiceMetric, value: float, labels: Mapping[str, str] | None = None) -> None:
        if metric in (IN_FLIGHT, QUEUED):
            load.put((metric.name, value))

    def wait_for(metric: ServiceMetric, value: float) -> None:
        while load.get(timeout=60) != (metric.name, value):
            pass

    serving = Serving(gateway=GatewaySettings(max_in_flight=1, max_queued=1))
    with served(app_of(fake_blender(member), serving, meter=meter)) as url:
        first = asked(url)
        wait_for(IN_FLIGHT, 1)
        for _ in range(3):  # each in the one place that there is
            waiting = asked(url)
            wait_for(QUEUED, 1)
            waiting.close()
            wait_for(QUEUED, 0)
        first.close()
        wait_for(IN_FLIGHT, 0)


def test_a_silent_stream_is_kept_alive() -> None:
    member = FakeMember("m", "some words")
    member.hold()
    body = {"model": "blend", "messages": HELLO, "stream": True}
    with (
        served(app_of(fake_blender(member), heartbeat_s=0.01)) as url,
        httpx2.Client(base_url=url) as client,
        client.stream("POST", "/v1/chat/completions", json=body) as response,
    ):
        lines = (line for line in response.iter_lines() if line)
        silent = list(itertools.islice(lines, 3))
        event_loop().call_soon_threadsafe(member.let_go)
        rest = list(lines)
    assert silent == [": keep-alive"] * 3
    assert rest[-1] == "data: [DONE]"
