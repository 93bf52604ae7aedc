"""`blend serve` as people start it: a real Ray Serve with the miniature and an endpoint that never answers."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
import yaml
from endpoint_server import EndpointServer, hang
from serving import event_loop
from tiny_models import save_adapter

from llm_blender_ray.actors.records import Message, Prompt
from llm_blender_ray.cluster.processes import free_port
from llm_blender_ray.configs.loading import PRESETS, load
from llm_blender_ray.configs.schema import BlendConfig
from llm_blender_ray.pipelines.online.blender import Blender
from llm_blender_ray.pipelines.online.protocols import BlendRequest
from llm_blender_ray.pipelines.rows.readers import read_rows

LLMS = 3  # two of the miniature, each a process with torch, and an adapter of the second one
LAST_IDS = [f"last-{at}" for at in range(20)]  # of requests right before the end
SERVED = re.compile(r"blend: serving .* at (http://\S+) ")


class Service:
    """A running `blend serve`, and what it has written to stderr."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "llm_blender_ray", "serve", *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self.lines.append("")  # it has ended
            self._changed.notify_all()

    def line(self, pattern: str | re.Pattern[str]) -> re.Match[str]:
        """The first line that matches, when it is there."""

        def found() -> re.Match[str] | None:
            return next((match for line in self.lines if (match := re.search(pattern, line))), None)

        with self._changed:
            self._changed.wait_for(lambda: found() or "" in self.lines[-1:], timeout=300)
        match = found()
        assert match, "\n".join(self.lines)
        return match

    def replicas(self, part: str) -> list[psutil.Process]:
        """The processes of a part's replicas."""
        title = f"ray::ServeReplica:blend:{part}"
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if " ".join(process.cmdline()).startswith(title):
                    found.append(process)
        return found

    def stop(self) -> int:
        """Interrupt it, as a person does; its exit code. Nothing that it started is left."""
        started = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(timeout=120)
        _, left = psutil.wait_procs(started, timeout=60)
        assert not left
        return code


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def endpoint() -> Iterator[EndpointServer]:
    """Takes every request, and never answers."""
    server = EndpointServer(faults=[hang] * 1000)
    asyncio.run_coroutine_threadsafe(server.__aenter__(), event_loop()).result()
    yield server
    asyncio.run_coroutine_threadsafe(server.__aexit__(None, None, None), event_loop()).result()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def service(endpoint: EndpointServer, port: int, folder: Path) -> Iterator[Service]:
    config = yaml.safe_load((PRESETS / "demo.yaml").read_text())
    config["models"] = config["models"][:2]
    for part in (*config["models"], config["ranker"], config["fuser"]):
        part["model"] = str(PRESETS / part["model"])
    adapter = save_adapter(Path(config["models"][1]["model"]), folder / "adapter", 1, lora_alpha=8)
    config["models"][1]["adapters"] = {"birch-law": str(adapter)}
    config["models"].append(
        {"name": "mute", "engine": "endpoint", "model": "m", "base_url": endpoint.url, "timeout_s": 600}
    )
    config["fuser"]["num_beams"] = 1
    config["serve"] = {"quorum": LLMS, "votes": str(folder / "votes.jsonl"), "gateway": {"num_cpus": 0.1}}
    file = folder / "blend.yaml"
    file.write_text(yaml.safe_dump(config))
    running = Service(str(file), "--port", str(port))
    try:
        running.line(SERVED)
        yield running
        for id in LAST_IDS:
            httpx.get(f"http://127.0.0.1:{port}/v1/models", headers={"x-request-id": id})
    finally:
        assert running.stop() == 0
    for id in LAST_IDS:
        assert json.loads(running.line(f'"id": "{id}"').string)["status"] == 200


@pytest.fixture(scope="module")
def client(service: Service, port: int) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as made:
        yield made


def prompts(count: int) -> list[str]:
    rows = read_rows(str(PRESETS / "miniature" / "heldout.jsonl"), count)
    return ["\n".join(filter(None, (row["instruction"], row["input"]))) for row in rows]


def asked(client: openai.OpenAI, text: str, **more: Any) -> Any:
    messages: Any = [{"role": "user", "content": text}]
    return client.chat.completions.create(**{"model": "blend", "messages": messages, **more})


def test_it_says_where_it_listens_and_to_whom(service: Service, port: int) -> None:
    told = service.line(SERVED)
    assert told.group(1) == f"http://127.0.0.1:{port}"
    assert "without API keys: this machine only" in told.string
    listening = {
        connection.laddr.ip
        for process in service.replicas("gateway")
        for connection in process.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
    }
    assert listening == {"127.0.0.1"}
    own, rays = service.line(r"blend: metrics at (http://\S+), Ray's at (http://\S+)").groups()
    assert own == f"http://127.0.0.1:{port}/metrics"
    assert [httpx.get(url, timeout=60).status_code for url in (own, rays)] == [200, 200]


def test_answers_are_those_of_the_reference(client: openai.OpenAI, folder: Path) -> None:
    config = load(folder / "blend.yaml", BlendConfig)
    reference = Blender.local(config.model_copy(update={"models": config.models[:-1]}))

    async def expected(text: str) -> Any:
        return await reference.outcome(BlendRequest(Prompt("p", messages=(Message(role="user", content=text),))))

    async def all_expected(texts: list[str]) -> list[Any]:
        return [await expected(text) for text in texts]

    texts = prompts(4)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda text: asked(client, text, extra_body={"blend": True}), texts))
    for answer, outcome in zip(answers, asyncio.run(all_expected(texts)), strict=True):
        assert answer.choices[0].message.content == outcome.answer.text
        assert [c["text"] for c in answer.blend["candidates"][:LLMS]] == [c.text for c in outcome.blend.candidates]
        assert answer.blend["ranking"] == list(outcome.blend.ranking.order)
        assert answer.usage.completion_tokens == outcome.usage.completion_tokens
        assert answer.blend["degraded"] == [f"mute: not waited for: {LLMS} others had answered"]


def test_an_adapter_is_a_model_by_its_name(client: openai.OpenAI, service: Service) -> None:
    text = prompts(1)[0]
    names = ["alder", "birch", "birch-law"]
    assert [one.id for one in client.models.list()] == ["blend", "blend-best", *names, "mute"]
    own = [asked(client, text, model=name).choices[0].message.content for name in names]
    whole = asked(client, text, extra_body={"blend": True})
    assert own == [candidate["text"] for candidate in whole.blend["candidates"][:LLMS]]
    assert own[1] != own[2]
    assert service.replicas("birch") and not service.replicas("birch-law")  # one engine


@pytest.mark.parametrize("model", ["blend", "blend-best", "birch-law"])
def test_a_stream_is_the_same_answer(client: openai.OpenAI, model: str) -> None:
    text = prompts(1)[0]
    whole = asked(client, text, model=model).choices[0].message.content
    pieces = [
        chunk.choices[0].delta.content or ""
        for chunk in asked(client, text, model=model, stream=True)
        if chunk.choices
    ]
    assert "".join(pieces) == whole
    assert model == "blend-best" or len([piece for piece in pieces if piece]) > 1


def test_a_client_that_goes_away_cancels_the_work_down_to_the_engines(
    client: openai.OpenAI, service: Service, endpoint: EndpointServer, port: int
) -> None:
    for stream in (False, True):
        endpoint.disconnected.clear()
        request_id = f"leaves-{stream}"
        with contextlib.suppress(httpx.ReadTimeout):
            httpx.post(
                f"http://127.0.0.1:{port}/v1/chat/completions",
                json={"model": "mute", "messages": [{"role": "user", "content": "hello"}], "stream": stream},
                headers={"x-request-id": request_id},
                timeout=httpx.Timeout(60, read=1),
            )
        asyncio.run_coroutine_threadsafe(endpoint.disconnected.wait(), event_loop()).result(timeout=60)
        told = service.line(rf'"id": "{request_id}"')
        assert json.loads(told.string)["status"] == 499


def test_a_request_is_one_line_with_its_id_and_without_its_prompt(client: openai.OpenAI, service: Service) -> None:
    answer = client.chat.completions.with_raw_response.create(
        model="blend",
        messages=[{"role": "user", "content": "a secret question"}],
        extra_headers={"x-request-id": "told-once"},
    )
    assert answer.headers["x-request-id"] == "told-once"
    assert answer.parse().id == "chatcmpl-told-once"
    told = json.loads(service.line('"id": "told-once"').string)
    assert told["status"] == 200 and told["model"] == "blend" and told["answered"] == LLMS
    assert not any("a secret question" in line for line in service.lines)


def test_ranking_alone(client: openai.OpenAI, port: int) -> None:
    row = next(iter(read_rows(str(PRESETS / "miniature" / "heldout.jsonl"), 1)))
    query = f"{row['instruction']}\n{row['input']}"
    texts = ["nonsense", row["output"], "1) 2) 3)"]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
        ranked = http.post("/v1/rerank", json={"model": "blend", "query": query, "documents": texts}).json()
        assert ranked["results"][0]["index"] == 1
        compared = http.post("/v1/compare", json={"prompt": query, "candidates": texts[:2]}).json()
        assert compared["preference"] == 1 and compared["margin"] < 0


def test_votes_are_kept(client: openai.OpenAI, port: int, folder: Path) -> None:
    answer = asked(
        client, prompts(1)[0], extra_body={"blend": {"vote": True}}, extra_headers={"x-request-id": "voted"}
    )
    vote = {"id": "voted", "left": 0, "right": "fused", "preferred": "right"}
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
        assert http.post("/v1/votes", json=vote).status_code == 201
        assert http.post("/v1/votes", json=vote).status_code == 409
        assert http.post("/v1/votes", json=vote | {"id": "unknown"}).status_code == 404
    (row,) = read_rows(str(folder / "votes.jsonl"))
    assert row["fused"] == answer.choices[0].message.content


@pytest.mark.parametrize("part", ["fuser", "ranker", "alder"])
def test_a_dead_replica_costs_no_answer(client: openai.OpenAI, service: Service, part: str) -> None:
    """Some requests are in flight when it dies; others come while it is replaced."""
    (before,) = service.replicas(part)
    texts = prompts(12)
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(asked, client, text, extra_body={"blend": True}) for text in texts]
        answers[0].result()
        before.kill()
        done = [answer.result() for answer in answers]
    assert all(answer.choices[0].message.content for answer in done)
    assert asked(client, texts[0]).choices[0].message.content
    psutil.wait_procs([before], timeout=60)
    while not service.replicas(part):  # the rest of the tests want it back
        assert asked(client, texts[0]).choices[0].message.content


def test_a_dead_gateway_is_replaced_at_the_same_port(client: openai.OpenAI, service: Service) -> None:
    (before,) = service.replicas("gateway")
    before.kill()
    patient = client.with_options(max_retries=100)
    assert asked(patient, prompts(1)[0]).choices[0].message.content


# ---- what doesn't start


def failed(*arguments: str, **environment: str) -> tuple[int, list[str]]:
    """Exit code and stderr of a service that can't be started."""
    done = subprocess.run(
        [sys.executable, "-m", "llm_blender_ray", "serve", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )
    return done.returncode, done.stderr.splitlines()


def test_without_keys_nobody_else_may_ask() -> None:
    code, lines = failed(str(PRESETS / "demo.yaml"), "--host", "0.0.0.0")
    assert code == 2
    (line,) = lines
    assert line.startswith("blend: --host 0.0.0.0 needs API keys")


def test_a_taken_port_is_told_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, lines = failed(str(PRESETS / "demo.yaml"), "--port", str(port))
    assert code == 1
    assert lines == [f"blend: can't listen on 127.0.0.1:{port}: Address already in use; give another --port"]


def test_a_model_that_can_not_be_loaded_is_told_in_one_line(port: int, tmp_path: Path) -> None:
    config = tmp_path / "broken.yaml"
    (tmp_path / "empty").mkdir()
    models = [{"name": "a", "engine": "transformers", "model": str(tmp_path / "empty"), "num_cpus": 0.1}]
    config.write_text(yaml.safe_dump({"models": models, "ranker": {"kind": "echo"}, "ray": {"num_cpus": 2}}))
    code, lines = failed(str(config), "--port", str(port + 1))
    assert code == 1
    (line,) = lines
    assert line.startswith(f"blend: {tmp_path / 'empty'}: ")


@pytest.mark.slow
def test_a_model_that_breaks_while_it_loads_is_told_in_one_line(port: int, tmp_path: Path) -> None:
    config = tmp_path / "broken.yaml"
    miniature = PRESETS / "miniature"
    sampling = {"max_tokens": 100_000}
    model = {"name": "a", "engine": "transformers", "model": str(miniature / "alder"), "sampling": sampling}
    gateway = {"gateway": {"num_cpus": 0.1}}
    config.write_text(
        yaml.safe_dump({"models": [model], "ranker": {"kind": "echo"}, "serve": gateway, "ray": {"num_cpus": 2}})
    )
    once = {"RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT": "1"}  # Ray Serve starts it three times, each with torch
    code, lines = failed(str(config), "--port", str(port + 1), **once)
    assert code == 1
    (line,) = lines
    assert line.startswith("blend: a: ") and "sampling.max_tokens (100000) leaves no room" in line
