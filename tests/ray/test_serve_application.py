"""The application by its import path, behind Ray Serve's own proxy, as `serve deploy` and KubeRay run it."""

import copy
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from endpoint_server import EndpointServer, completion, in_a_thread
from paths import ROOT
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.cluster.placement import PlanError
from llm_blender_ray.configs.loading import ConfigError
from llm_blender_ray.pipelines.serve import Arguments, application

MANIFEST = ROOT / "cluster" / "kuberay" / "rayservice.yaml"
ECHO = {"engine": "echo", "model": "echo", "num_cpus": 0.1}
CONFIG: dict[str, Any] = {
    "models": [
        {"name": "awake", **ECHO},
        {"name": "asleep", **ECHO, "replicas": {"min": 0, "max": 1}},  # it is there only while it is asked
    ],
    "ranker": {"kind": "echo", "num_cpus": 0.1},
    "fuser": {"kind": "chat", "llm": {"name": "writer", **ECHO}},
    "serve": {"gateway": {"num_cpus": 0.1, "replicas": 2}},
}


def deploy(config: dict[str, Any]) -> None:
    """Deploy a config as KubeRay and `serve deploy` do: in the manifest's Serve config."""
    content = yaml.safe_load(yaml.safe_load(MANIFEST.read_text())["spec"]["serveConfigV2"])
    content["applications"][0]["args"]["config"] = config
    client = _get_global_client()
    client.deploy_apps(ServeDeploySchema.model_validate(content))
    client._wait_for_application_running("blend", timeout_s=120)


@pytest.fixture(scope="module")
def server() -> Iterator[EndpointServer]:
    async def answer(body: dict[str, Any]) -> dict[str, Any]:
        return completion("here", usage={"prompt_tokens": 20, "completion_tokens": 10})

    with in_a_thread(EndpointServer(answer=answer)) as running:
        yield running


@pytest.fixture(scope="module")
def config(server: EndpointServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The echoes, and an endpoint with a budget."""
    made = copy.deepcopy(CONFIG)
    far = {"name": "far", "engine": "endpoint", "model": "far", "base_url": server.url, "num_cpus": 0.1}
    made["models"].append({**far, "sampling": {"max_tokens": 100}})
    made["prices"] = {"far": {"input": 0, "output": 10}}  # a call costs $0.0001, and $0.001 at most
    made["budget"] = {"usd_per_key_per_day": 0.0012}
    made["serve"]["spending"] = str(tmp_path_factory.mktemp("spending") / "spending.json")
    return made


@pytest.fixture(scope="module")
def client(ray_session: None, config: dict[str, Any]) -> Iterator[httpx.Client]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    deploy(config)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as made:
        yield made
    serve.shutdown()


def ask(client: httpx.Client, model: str, **headers: str) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "say it"}]}
    return client.post("/v1/chat/completions", json=body, headers=headers)


def test_a_model_that_nobody_asked_is_loaded_when_it_is(client: httpx.Client) -> None:
    before = serve.status().applications["blend"].deployments["asleep"].replica_states
    assert not before.get("RUNNING")
    # it isn't waited for, also by a gateway that has yet to hear of the others' replicas
    assert "asleep" not in client.get("/healthz").json().get("missing", ())
    assert ask(client, "asleep").json()["choices"][0]["message"]["content"] == "say it"
    assert serve.status().applications["blend"].deployments["asleep"].replica_states.get("RUNNING") == 1


def test_a_keys_budget_of_the_day_bounds_its_calls(
    client: httpx.Client, server: EndpointServer, config: dict[str, Any]
) -> None:
    """One ledger for all gateways and replicas, which writes what was spent before each call."""
    answers = [ask(client, "far") for _ in range(5)]
    assert [one.status_code for one in answers] == [200, 200, 200, 429, 429]
    assert len(server.requests) == 3
    assert answers[-1].json()["error"]["code"] == "insufficient_quota"
    spent = json.loads(Path(config["serve"]["spending"]).read_text())["nano_usd"]
    assert list(spent.values()) == [1_200_000]
    assert "far: budget spent" in ask(client, "blend").text


def test_the_request_is_called_one_thing_everywhere(client: httpx.Client) -> None:
    answer = ask(client, "blend", **{"x-request-id": "mine"})
    assert answer.status_code == 200
    assert answer.headers.get_list("x-request-id") == ["mine"]
    assert answer.json()["id"] == "chatcmpl-mine"


def test_without_keys_a_request_that_was_forwarded_is_refused(client: httpx.Client) -> None:
    refused = ask(client, "blend", **{"x-forwarded-for": "10.1.2.3"})
    assert refused.status_code == 403 and "keys" in refused.json()["error"]["message"]


def replicas() -> dict[str, set[str]]:
    """Replicas of each deployment."""
    deployments = _get_global_client().get_serve_details()["applications"]["blend"]["deployments"]
    return {name: {one["replica_id"] for one in found["replicas"]} for name, found in deployments.items()}


def test_an_edited_config_takes_effect_and_restarts_nothing_else(
    client: httpx.Client, config: dict[str, Any]
) -> None:
    """The manifest's promise, under requests that follow each other."""
    before, answers, ended = replicas(), [], threading.Event()

    def keep_asking() -> None:
        with httpx.Client(base_url=client.base_url, timeout=120) as other:
            while not ended.is_set():
                answers.append(ask(other, "blend"))

    edited = copy.deepcopy(config)
    edited["models"][0]["sampling"] = {"max_tokens": 100}
    edited["models"].append({"name": "new", **ECHO})
    with ThreadPoolExecutor() as pool:
        asking = pool.submit(keep_asking)
        deploy(edited)
        ended.set()
        asking.result()
    assert answers and {answer.status_code for answer in answers} == {200}
    assert ask(client, "new").status_code == 200
    after = replicas()
    kept = {name for name in before if before[name] & after[name]}
    assert kept - {"asleep"} == {"far", "ranker", "fuser", "budget"}


@pytest.mark.parametrize("as_file", [False, True])
def test_overrides_count_and_what_does_not_fit_is_refused(ray_session: None, tmp_path: Path, as_file: bool) -> None:
    file = tmp_path / "blend.yaml"
    file.write_text(yaml.safe_dump(CONFIG))
    arguments = Arguments(config=str(file) if as_file else CONFIG, overrides=["models.0.num_cpus=64"])
    with pytest.raises(PlanError, match="awake needs 64 CPU"):
        application(arguments)
    assert issubclass(PlanError, BlendError)


def test_a_node_with_another_file_than_the_deployed_one_does_not_build(tmp_path: Path) -> None:
    file = tmp_path / "blend.yaml"
    file.write_text(yaml.safe_dump(CONFIG))
    with pytest.raises(
        ConfigError, match=r"blend\.yaml: its SHA-256 is [0-9a-f]{12}\.\.\. on this node, and 012345678901"
    ):
        application(Arguments(config=str(file), digest="0123456789012345"))
