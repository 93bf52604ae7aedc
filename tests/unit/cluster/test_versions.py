"""Each deployment of the service has a version of its own, which only its own settings change."""

import copy
from typing import Any

import pytest
from ray import serve
from ray.serve._private.build_app import build_app
from ray.serve._private.config import DeploymentConfig

from llm_blender_ray.cluster.session import grown_capacity
from llm_blender_ray.configs.schema import BlendConfig
from llm_blender_ray.pipelines.serve import Arguments, application
from llm_blender_ray.pipelines.serve.deployments import STOP_S, build

ECHO = {"engine": "echo", "model": "echo"}
CONFIG: dict[str, Any] = {
    "models": [{"name": "a", **ECHO}, {"name": "b", **ECHO, "replicas": {"min": 1, "max": 2}}],
    "ranker": {"kind": "echo", "num_cpus": 1},
    "fuser": {"kind": "chat", "llm": {"name": "writer", **ECHO}},
    "serve": {"votes": "votes.jsonl", "deadline_s": 50},
    "ray": {"nodes": [{"count": 1, "num_cpus": 8}]},
}
ALL = {"a", "b", "ranker", "fuser", "ballots", "gateway"}


def deployed(**changes: Any) -> dict[str, DeploymentConfig]:
    """Options of the deployments, as Ray Serve's controller gets them: with the application's version set."""
    config = copy.deepcopy(CONFIG)
    overrides = [f"{path.replace('__', '.')}={value}" for path, value in changes.items()]
    return options_of(application(Arguments(config=config, overrides=overrides)))


def options_of(application: serve.Application) -> dict[str, DeploymentConfig]:
    app = build_app(application, name="blend")
    found = {}
    for deployment in app.deployments:
        options = deployment._deployment_config
        options.version = "the application's"
        found[deployment.name] = DeploymentConfig.from_proto_bytes(options.to_proto_bytes())
    return found


def test_equal_settings_are_one_version() -> None:
    one, other = deployed(), deployed()
    assert set(one) == ALL
    assert {name: options.version for name, options in one.items()} == {
        name: options.version for name, options in other.items()
    }
    assert len({options.version for options in one.values()} - {"the application's"}) == len(ALL)


@pytest.mark.parametrize(
    ("changes", "restarted"),
    [
        ({"models__0__sampling": "{max_tokens: 7}"}, {"a", "gateway"}),
        ({"models__1__replicas": "3"}, set()),
        ({"ranker__strategy": "{kind: full}"}, {"ranker", "gateway"}),
        ({"fuser__llm__sampling": "{max_tokens: 7}"}, {"fuser", "gateway"}),
        ({"serve__deadline_s": "60"}, {"gateway"}),
        ({"serve__votes": "others.jsonl"}, {"ballots", "gateway"}),
    ],
)
def test_a_setting_changes_the_versions_of_what_it_decides(changes: dict[str, str], restarted: set[str]) -> None:
    before, after = deployed(), deployed(**changes)
    assert {name for name in ALL if before[name].version != after[name].version} == restarted


def test_a_replica_finishes_its_requests_and_is_replaced_before_it_stops_where_there_is_room() -> None:
    roomy, tight = deployed(), deployed(ray__nodes="[{count: 1, num_cpus: 2}]")
    assert {roomy[name].graceful_shutdown_timeout_s for name in ALL - {"ballots"}} == {50}
    assert {name for name in ALL if roomy[name].max_surge_percent} == ALL - {"ballots"}
    assert {name for name in ALL if tight[name].max_surge_percent} == {"a", "b", "fuser"}  # they take no CPU


def test_a_gateway_that_listens_itself_ends_soon() -> None:
    config = BlendConfig.model_validate(CONFIG)
    options = options_of(build(config, grown_capacity(config.ray), ("127.0.0.1", 8000)))
    assert options["gateway"].graceful_shutdown_timeout_s == STOP_S < options["a"].graceful_shutdown_timeout_s
