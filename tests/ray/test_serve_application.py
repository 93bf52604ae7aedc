"""The application by its import path, behind Ray Serve's own proxy, as `serve deploy` and KubeRay run it."""

import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from ray import serve

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.cluster.plan import PlanError
from llm_blender_ray.pipelines.serve import Arguments, application


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models that repeat the prompt, one of which is there only while it is asked."""
    echo = {"engine": "echo", "model": "echo", "num_cpus": 0.1}
    asleep = {"name": "asleep", **echo, "replicas": {"min": 0, "max": 1}}
    file = tmp_path_factory.mktemp("application") / "blend.yaml"
    ranker = {"kind": "echo", "num_cpus": 0.1}
    fuser = {"kind": "chat", "llm": {"name": "writer", **echo}}
    serving = {"gateway": {"num_cpus": 0.1, "replicas": 2}}
    models = [{"name": "awake", **echo}, asleep]
    file.write_text(yaml.safe_dump({"models": models, "ranker": ranker, "fuser": fuser, "serve": serving}))
    return file


@pytest.fixture(scope="module")
def client(ray_session: None, config: Path) -> Iterator[httpx.Client]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(application(Arguments(config=str(config))), name="blend", route_prefix="/")
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


def test_the_request_is_called_one_thing_everywhere(client: httpx.Client) -> None:
    answer = ask(client, "blend", **{"x-request-id": "mine"})
    assert answer.status_code == 200
    assert answer.headers.get_list("x-request-id") == ["mine"]
    assert answer.json()["id"] == "chatcmpl-mine"


def test_without_keys_a_request_that_was_forwarded_is_refused(client: httpx.Client) -> None:
    refused = ask(client, "blend", **{"x-forwarded-for": "10.1.2.3"})
    assert refused.status_code == 403 and "keys" in refused.json()["error"]["message"]


def test_overrides_count_and_what_does_not_fit_is_refused(ray_session: None, config: Path) -> None:
    with pytest.raises(PlanError, match="awake needs 64 CPU"):
        application(Arguments(config=str(config), overrides=["models.0.num_cpus=64"]))
    assert issubclass(PlanError, BlendError)
