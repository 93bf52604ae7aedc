"""Processes of the service's benchmarks: `blend serve`, a bare Ray Serve graph, and a model server.

The bare graph has the same calls as a blend of six models, without any work: Ray Serve's own overhead. The model
server answers anything after a fixed time and takes little CPU, so that the service's own limits decide its rate.
"""

import argparse
import asyncio
import contextlib
import functools
import http.client
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from aiohttp import web

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.cluster.address import LOCAL_ADDRESS
from llm_blender_ray.cluster.processes import PROCESS_POLL_S, descendants, free_port, remaining, title
from llm_blender_ray.cluster.serving import lean_serve
from llm_blender_ray.cluster.session import session
from llm_blender_ray.configs.loading import PRESETS, load
from llm_blender_ray.configs.schema import BlendConfig, RayCluster

HOST = "127.0.0.1"
_MODELS = 6  # of the bare graph, and of the service compared with it
SERVICE_PATIENCE_S = 300.0  # for a service to start or to end
ANSWER_TEXT = "The answer that every model gives."


@dataclass(frozen=True, slots=True)
class Running:
    """A service that answers.

    `pid` is the ancestor of all its processes.
    """

    pid: int
    url: str

    def healthy(self) -> bool:
        """Whether it answers now."""
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=5)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/healthz")
            return connection.getresponse().status == 200
        return False

    def cpu_s(self) -> float:
        """CPU seconds of its processes, except those that have ended."""
        taken = 0.0
        for one in descendants(self.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = one.cpu_times()
                taken += times.user + times.system
        return taken


@contextlib.contextmanager
def blend_service(config: Mapping[str, Any], *changes: str) -> Iterator[Running]:
    """`blend serve` of a config, within the block.

    Args:
        config: The config.
        *changes: As for `--set`.

    Raises:
        BlendError: It does not start.
    """
    with tempfile.TemporaryDirectory(prefix="bo", ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(yaml.safe_dump(dict(config)), encoding="utf-8")
        port = free_port()
        command = ["-m", "llm_blender_ray", "serve", str(file), "--host", HOST, "--port", str(port)]
        command += [part for change in changes for part in ("--set", change)]
        with _started(command, port, Path(folder)) as running:
            yield running


@contextlib.contextmanager
def bare_graph() -> Iterator[Running]:
    """A Ray Serve graph without work, started by the same means.

    Raises:
        BlendError: It does not start.
    """
    with tempfile.TemporaryDirectory(prefix="bo", ignore_cleanup_errors=True) as folder:
        port = free_port()
        with _started(["-m", __name__, "--port", str(port)], port, Path(folder)) as running:
            yield running


@contextlib.contextmanager
def _started(command: Sequence[str], port: int, folder: Path) -> Iterator[Running]:
    """A Python process, once it answers; after the block it gets SIGINT and must leave nothing behind."""
    log = folder / "log"
    environment = os.environ | {"RAY_TMPDIR": str(folder)}  # a short path, for Ray's sockets
    environment.pop("RAY_ADDRESS", None)
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, *command], stdout=output, stderr=output, env=environment)
    running = Running(process.pid, f"http://{HOST}:{port}")
    try:
        until = time.monotonic() + SERVICE_PATIENCE_S
        while not running.healthy():
            if process.poll() is not None or time.monotonic() > until:
                raise BlendError(f"the service didn't start: {_last_line(log)}")
            time.sleep(PROCESS_POLL_S)
        yield running
        if process.poll() is not None:
            raise BlendError(f"the service ended by itself, with exit code {process.returncode}: {_last_line(log)}")
    finally:
        _end(process)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it wrote nothing")


def _end(process: subprocess.Popen[Any]) -> None:
    """End the process like Ctrl-C does.

    Raises:
        BlendError: It has to be killed, or leaves processes behind.
    """
    started = descendants(process)
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
    try:
        process.wait(SERVICE_PATIENCE_S)
    except subprocess.TimeoutExpired:
        _kill([psutil.Process(process.pid), *descendants(process)])
        raise BlendError(f"the service didn't end within {SERVICE_PATIENCE_S:g} s of SIGINT") from None
    if left := remaining(started):
        told = ", ".join(title(one) for one in left)
        _kill(left)
        raise BlendError(f"the service left behind: {told}")


def _kill(processes: Sequence[psutil.Process]) -> None:
    for one in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()


def miniature(**serve: Any) -> dict[str, Any]:
    """Config of the included miniature with these settings of the service."""
    config = load(PRESETS / "demo.yaml", BlendConfig).model_dump(mode="json", exclude_unset=True)
    return {**config, "serve": serve}


def without_models() -> dict[str, Any]:
    """A service without work: six models and a fuser that answer at once, and a ranker with nothing to compare.

    All answers are the same text, which is one answer to the ranker.
    """
    echo = {"engine": "echo", "model": "echo", "num_cpus": 0.1}
    config = miniature()
    return {
        "models": [{**echo, "name": f"echo{number}"} for number in range(_MODELS)],
        "ranker": config["ranker"],
        "fuser": {"kind": "chat", "llm": {**echo, "name": "writer"}},
        "ray": config["ray"],
    }


def waiting_models(url: str, models: int, **serve: Any) -> dict[str, Any]:
    """A blend of models and a fuser behind a model server; no part of it takes much CPU."""
    llm = {"engine": "endpoint", "base_url": url, "model": "waiting", "max_in_flight": 1000, "num_cpus": 0.1}
    config = miniature()
    return {
        "models": [{**llm, "name": f"waiting{number}"} for number in range(models)],
        "ranker": config["ranker"],
        "fuser": {"kind": "chat", "llm": {**llm, "name": "writer"}},
        "serve": serve,
        "ray": config["ray"],
    }


@contextlib.contextmanager
def model_server(delay_s: float) -> Iterator[str]:
    """A process that answers any chat after `delay_s`, within the block; yields its URL.

    With `/unavailable` before `/v1` it answers 503 to all, with `/silent` never, with `/distinct` a different text
    each time, as long as real answers are.
    """
    with subprocess.Popen(
        [sys.executable, "-m", __name__, "--delay-s", str(delay_s)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def made_answer(number: int) -> str:
    """A different text for each number, of 40 to 160 words of the included prompts."""
    draw = random.Random(number)
    return " ".join([str(number), *draw.choices(_words(), k=draw.randint(40, 160))])


@functools.cache
def _words() -> list[str]:
    return (PRESETS / "miniature" / "heldout.jsonl").read_text(encoding="utf-8").split()[:2000]


async def serve_models(delay_s: float) -> None:
    """Serve until the process ends; the URL is printed first."""

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        await asyncio.sleep(delay_s)
        choice = {"message": {"role": "assistant", "content": ANSWER_TEXT}, "finish_reason": "stop"}
        return web.json_response({"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})

    numbers = itertools.count()

    async def answer_otherwise(request: web.Request) -> web.Response:
        await request.read()
        choice = {"message": {"role": "assistant", "content": made_answer(next(numbers))}, "finish_reason": "stop"}
        return web.json_response({"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})

    async def refuse(request: web.Request) -> web.Response:
        await request.read()
        return web.json_response({"error": {"message": "overloaded"}}, status=503)

    async def be_silent(request: web.Request) -> web.Response:
        await request.read()
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    app.router.add_post("/distinct/v1/chat/completions", answer_otherwise)
    app.router.add_post("/unavailable/v1/chat/completions", refuse)
    app.router.add_post("/silent/v1/chat/completions", be_silent)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, HOST, port := free_port())
    await site.start()
    print(f"http://{HOST}:{port}/v1", flush=True)
    await asyncio.Event().wait()


def serve_bare(port: int) -> None:
    """Serve the bare graph until SIGINT; its gateway listens itself, like the service's."""
    os.environ |= {
        "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(port),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(port + 1),  # exclusive
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
    }
    with lean_serve(), session(RayCluster(address=LOCAL_ADDRESS, num_cpus=2)):
        from fastapi import FastAPI, Request
        from ray import serve

        app = FastAPI()
        quiet = {"enable_access_log": False, "log_level": "ERROR"}
        options = {"max_ongoing_requests": 1000, "ray_actor_options": {"num_cpus": 0.1}}

        class Nothing:
            async def __call__(self, prompt: str, texts: Sequence[str] = ()) -> str:
                return prompt

        @serve.ingress(app)
        class Gateway:
            def __init__(self, members: Sequence[Any], ranker: Any, fuser: Any) -> None:
                self._members, self._ranker, self._fuser = members, ranker, fuser

            @app.get("/healthz")
            async def healthz(self) -> dict[str, str]:
                return {"status": "ok"}

            @app.post("/v1/chat/completions")
            async def chat(self, request: Request) -> dict[str, Any]:
                prompt = json.loads(await request.body())["messages"][0]["content"]
                texts = await asyncio.gather(*(member.remote(prompt) for member in self._members))
                best = await self._ranker.remote(prompt, texts)
                text = await self._fuser.remote(best, texts)
                return {"choices": [{"message": {"role": "assistant", "content": text}}]}

        nothing = serve.deployment(Nothing).options(**options)
        members = [nothing.options(name=f"member{number}").bind() for number in range(_MODELS)]
        parts = [nothing.options(name=name).bind() for name in ("ranker", "fuser")]
        graph = serve.deployment(Gateway).options(**options).bind(members, *parts)
        proxy = {"host": HOST, "port": free_port()}  # Ray Serve starts one; it is not used
        serve.start(http_options=proxy, logging_config=quiet)
        serve.run(graph, logging_config=quiet)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            serve.shutdown()


def main() -> None:
    """Run one of the processes that a benchmark needs."""
    parser = argparse.ArgumentParser(
        prog="python -m llm_blender_ray.pipelines.bench.online_service", description=__doc__
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--port", type=int, help="be the bare graph, at this port")
    what.add_argument("--delay-s", type=float, help="be the model server")
    given = parser.parse_args()
    if given.port is not None:
        serve_bare(given.port)
    else:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(serve_models(given.delay_s))


if __name__ == "__main__":
    main()
