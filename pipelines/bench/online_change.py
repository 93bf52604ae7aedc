"""Changes of a deployed service's config under load, and their effect on clients and on what did not change.

A Ray of its own with a dashboard, the service on it by `blend deploy`, and the same command again with each change:
what a user types. Clients send requests on a schedule meanwhile, without retries. What restarted is read from Ray
Serve: a replica that is there before and after an update was left alone.
"""

import asyncio
import copy
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.cluster.plan import GATEWAY
from llm_blender_ray.cluster.processes import free_port, nodes
from llm_blender_ray.cluster.serving import lean_serve
from llm_blender_ray.pipelines.bench.online_load import (
    ANSWERED,
    DEGRADED,
    ChatClient,
    OpenLoop,
    Shot,
    arrivals,
    connections,
)
from llm_blender_ray.pipelines.bench.online_service import HOST, without_models
from llm_blender_ray.pipelines.serve.serve_config import APPLICATION

CPUS = 16  # by Ray's count: room for every part twice
STEADY_S = 5.0  # of load before an update, and after it
_Config = dict[str, Any]
_Replicas = dict[str, frozenset[str]]


@dataclass(frozen=True, slots=True)
class Change:
    """A change of the config.

    Attributes:
        apply: Changes the config in place.
        restarted: Parts that it may restart, beside the gateways.
    """

    apply: Callable[[_Config], None]
    restarted: frozenset[str] = frozenset()


def changed_service() -> _Config:
    """The first config: models without work, so that updates decide what requests take."""
    return {**without_models(), "serve": {"gateway": {"num_cpus": 0.1, "replicas": 2}}}


def _sampling(config: _Config) -> None:
    config["models"][0]["sampling"] = {"max_tokens": 100}


def _added(config: _Config) -> None:
    config["models"].append({**config["models"][0], "name": "another"})


def _removed(config: _Config) -> None:
    del config["models"][-1]


def _ranker(config: _Config) -> None:
    config["ranker"] = {**config["ranker"], "dtype": "bfloat16"}


def _fuser(config: _Config) -> None:
    config["fuser"]["llm"]["sampling"] = {"max_tokens": 100}


def _gateway(config: _Config) -> None:
    config["serve"]["requests_per_minute"] = 1_000_000


CHANGES = {
    "a model's sampling": Change(_sampling, frozenset({"echo0"})),
    "a model added": Change(_added),
    "a model removed": Change(_removed),
    "the ranker's dtype": Change(_ranker, frozenset({"ranker"})),
    "the fuser's sampling": Change(_fuser, frozenset({"fuser"})),
    "a setting of the service": Change(_gateway),
}


class _Cluster:
    """A Ray with the service, by the means of a user."""

    def __init__(self, dashboard: str, folder: Path) -> None:
        self._dashboard, self._file = dashboard, folder / "config.yaml"
        self._port = free_port()
        self.url = f"http://{HOST}:{self._port}"

    def deploy(self, config: Mapping[str, Any]) -> float:
        """Deploy or update the service; seconds until it is complete.

        Raises:
            BlendError: It fails.
        """
        self._file.write_text(yaml.safe_dump(dict(config)), encoding="utf-8")
        command = ["-m", "llm_blender_ray", "deploy", str(self._file), "--address", self._dashboard, "--wait"]
        began = time.monotonic()
        ended = subprocess.run(
            [sys.executable, *command, "--host", HOST, "--port", str(self._port)], capture_output=True, text=True
        )
        if ended.returncode:
            raise BlendError(f"blend deploy: {ended.stderr.strip()}")
        return time.monotonic() - began

    def replicas(self) -> _Replicas:
        """Replicas of each part."""
        with urllib.request.urlopen(f"{self._dashboard}/api/serve/applications/") as response:
            parts = json.load(response)["applications"][APPLICATION]["deployments"]
        return {name: frozenset(one["replica_id"] for one in part["replicas"]) for name, part in parts.items()}


@contextmanager
def _cluster() -> Iterator[_Cluster]:
    port = free_port()
    with (
        tempfile.TemporaryDirectory(prefix="bo", ignore_cleanup_errors=True) as folder,
        lean_serve(),
        nodes([CPUS], dashboard_port=port),
    ):
        yield _Cluster(f"http://{HOST}:{port}", Path(folder))


def restarted(before: Mapping[str, frozenset[str]], after: Mapping[str, frozenset[str]]) -> set[str]:
    """Parts of both that kept not all of their replicas."""
    return {name for name in before.keys() & after.keys() if before[name] - after[name]}


def account(shots: Sequence[Shot], seconds: float, parts: set[str], change: Change) -> dict[str, Any]:
    """What a change did, as plain numbers.

    Args:
        shots: Requests sent from shortly before the update until shortly after it.
        seconds: That the update took.
        parts: Parts that restarted.
        change: The change.
    """
    outcomes = Counter(shot.reply.outcome for shot in shots)
    return {
        "update_s": round(seconds, 1),
        "sent": len(shots),
        "failed": sum(count for outcome, count in outcomes.items() if outcome not in (ANSWERED, DEGRADED)),
        "outcomes": dict(outcomes),
        "slowest_s": round(max((shot.ended - shot.sent for shot in shots), default=0.0), 2),
        "restarted": sorted(parts),
        "restarted_unchanged": sorted(parts - change.restarted - {GATEWAY}),
    }


async def _change(cluster: _Cluster, prompts: Sequence[str], per_s: float, change: Change) -> dict[str, Any]:
    """One change, from the first config, under load."""
    config = changed_service()
    await asyncio.to_thread(cluster.deploy, config)
    before = await asyncio.to_thread(cluster.replicas)
    change.apply(edited := copy.deepcopy(config))
    async with connections(cluster.url) as session:
        load = OpenLoop(ChatClient(session, prompts), arrivals(per_s, float("inf")))
        sending = asyncio.create_task(load.run())
        try:
            await asyncio.sleep(STEADY_S)
            took = await asyncio.to_thread(cluster.deploy, edited)
            await asyncio.sleep(STEADY_S)
        finally:
            load.stop()
            await sending
    after = await asyncio.to_thread(cluster.replicas)
    return account(load.shots, took, restarted(before, after), change)


def change_each(prompts: Sequence[str], per_s: float) -> dict[str, dict[str, Any]]:
    """Each of `CHANGES`, one after the other.

    Args:
        prompts: The prompts to send.
        per_s: Requests a second.

    Returns:
        What each did; see `account`.

    Raises:
        BlendError: An update fails.
    """
    found = {}
    with _cluster() as cluster:
        for name, change in CHANGES.items():
            found[name] = asyncio.run(_change(cluster, prompts, per_s, change))
            print(f"{name}: {json.dumps(found[name])}", file=sys.stderr, flush=True)
    return found
