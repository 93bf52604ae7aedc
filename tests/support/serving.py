"""The HTTP API on a real server of 127.0.0.1, everything in this process: what tests of the service run against."""

import asyncio
import contextlib
import functools
import json
import logging
import socket
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import httpx2
import pytest
import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from llm_blender_ray.configs.loading import load
from llm_blender_ray.configs.schema import BlendConfig
from llm_blender_ray.configs.serving import Limits, Serving
from llm_blender_ray.pipelines.online.blender import Blender
from llm_blender_ray.pipelines.serve.access import Access, Keys
from llm_blender_ray.pipelines.serve.admission import Admission
from llm_blender_ray.pipelines.serve.app import create_app
from llm_blender_ray.pipelines.serve.connections import server_config
from llm_blender_ray.pipelines.serve.endpoints import ENDPOINTS
from llm_blender_ray.pipelines.serve.service import Endpoint, Service
from llm_blender_ray.pipelines.serve.service_metrics import Meter
from llm_blender_ray.pipelines.serve.telemetry import Telemetry

QUESTION = "1) What is the capital of France? 2) What is the capital of Japan? 3) What is the capital of Egypt?"
HELLO = [{"role": "user", "content": "hello"}]


@functools.cache
def demo_config() -> BlendConfig:
    """The included miniature's."""
    return load("configs/demo.yaml", BlendConfig, [])


@functools.cache
def demo_blender() -> Blender:
    """The included miniature, loaded once for all tests."""
    return Blender.local(demo_config())


def app_of(
    blender: Blender | None = None,
    serving: Serving = Serving(),  # noqa: B008 (frozen)
    *,
    keys: Keys | None = None,
    meter: Meter | None = None,
    ballots: Any = None,
    endpoints: Sequence[Endpoint] = ENDPOINTS,
    **options: Any,
) -> FastAPI:
    """The service over the miniature, unless another `blender` is given. `options` go to `Service`."""
    gateway = serving.gateway
    service = Service(
        blender or demo_blender(),
        serving,
        Access(keys, serving.requests_per_minute, origins=serving.allowed_origins),
        Admission(gateway.max_in_flight, gateway.max_queued),
        Telemetry(serving.log_prompts, meter),
        ballots,
        **options,
    )
    return create_app(service, endpoints=endpoints)


@contextlib.contextmanager
def served(app: ASGIApp, limits: Limits = Limits(), **options: Any) -> Iterator[str]:  # noqa: B008 (frozen)
    """The app on a free port as gateways serve it, while the block runs; its URL has no slash at the end."""
    server = uvicorn.Server(
        server_config(app, limits, log_level="warning", **{"timeout_graceful_shutdown": 10, **options})
    )
    with socket.socket(proto=socket.IPPROTO_TCP) as listener:  # asyncio sets TCP_NODELAY on such only
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)  # who connects before the server runs waits for it
        serving = asyncio.run_coroutine_threadsafe(_serve(server, listener), event_loop())
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            serving.result(timeout=60)


async def _serve(server: uvicorn.Server, listener: socket.socket) -> None:
    """Serve until the server and the requests that it has cancelled have ended."""
    await server.serve([listener])
    await asyncio.gather(*server.server_state.tasks, return_exceptions=True)


@functools.cache
def event_loop() -> asyncio.AbstractEventLoop:
    """The loop of all servers, in a thread of its own: models belong to the loop that they were first asked in."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="servers", daemon=True).start()
    return loop


def chat(client: httpx2.Client, **fields: Any) -> httpx2.Response:
    """The answer to a greeting; `fields` are the request's."""
    return client.post("/v1/chat/completions", json={"model": "blend", "messages": HELLO, **fields})


def refused(response: httpx2.Response, status: int, code: str, param: str | None = None) -> str:
    """The message of an error, which has OpenAI's shape and this code."""
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param)
    assert error["message"] and "\n" not in error["message"]
    assert response.headers["x-request-id"]
    return str(error["message"])


def chunks(client: httpx2.Client, **fields: Any) -> list[dict[str, Any]]:
    """The chunks of a stream, which is well formed and ends with [DONE]."""
    body = {"model": "blend", "messages": HELLO, "stream": True, **fields}
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def text_of(stream: list[dict[str, Any]], choice: int = 0) -> str:
    """The text that the chunks of a stream make up."""
    parts = (part for chunk in stream for part in chunk["choices"] if part["index"] == choice)
    return "".join(part["delta"].get("content", "") for part in parts)


@contextlib.contextmanager
def logged(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[logging.LogRecord]]:
    """What a module logs in the block, whatever libraries in this process have done to loggers."""
    records: list[logging.LogRecord] = []

    class Keeping(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    log, keeping = logging.getLogger(name), Keeping()
    monkeypatch.setattr(log, "disabled", False)
    monkeypatch.setattr(logging.root.manager, "disable", logging.NOTSET)
    log.addHandler(keeping)
    try:
        yield records
    finally:
        log.removeHandler(keeping)
