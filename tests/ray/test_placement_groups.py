"""Replicas that are larger than any node: a placement group for each, freed when their wave has ended."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from paths import ROOT

from llm_blender_ray.actors.errors import ModelLoadError
from llm_blender_ray.cluster.placement import Placement
from llm_blender_ray.cluster.replicas import check_node_weights
from llm_blender_ray.configs.schema import VLLMModel

SUPPORT = ROOT / "tests" / "support"


@pytest.mark.slow
def test_every_replica_has_a_group_of_its_own_until_its_wave_ends(tmp_path: Path) -> None:
    path = os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")])
    # Ray of this process may have a token, which that cluster, of processes that start by themselves, has not
    own = ("RAY_ADDRESS", "RAY_AUTH")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    done = subprocess.run(
        [sys.executable, SUPPORT / "spread_blend.py", tmp_path],
        capture_output=True,
        text=True,
        env=environment | {"PYTHONPATH": path, "RAY_AUTH_MODE": "disabled"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert "2 waves, one after the other: first, then second + ranker" in done.stderr
    assert "second: one replica takes 2 nodes, 2 + 1 GPU; " in done.stderr
    groups = {"first": set(), "second": set()}
    for row in found["rows"]:
        for candidate in row["candidates"]:
            told = json.loads(candidate["text"])
            groups[candidate["model"]].add(told["group"])
            assert (told["strategy"], told["bundles"]) == ("PACK", [{"GPU": 1}] * 3)
            assert len(set(told["nodes"])) == 2 and told["node"] == told["nodes"][0]
            assert (told["own_gpus"], told["visible"], told["address"]) == ([], "", found["address"])
            assert told["arguments"] == {
                "tensor_parallel_size": 1,
                "pipeline_parallel_size": 3,
                "distributed_executor_backend": "ray",
            }
    assert not groups["first"] & groups["second"]
    assert len(found["groups"]) == 4 and set(found["groups"].values()) == {"REMOVED"}


@pytest.mark.usefixtures("ray_session")
def test_weights_that_a_node_lacks_are_refused_with_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [{**node, "Resources": {**node["Resources"], "GPU": 1.0}} for node in ray.nodes()]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    model = VLLMModel(name="v", engine="vllm", model=str(tmp_path / "gone"), pipeline_parallel_size=2)
    check_node_weights([Placement("v", model, 0, 2, 1)])  # on one node: its actor looks for them
    with pytest.raises(ModelLoadError, match=r"gone: .*no such.* \(on node [0-9.]+\)$"):
        check_node_weights([Placement("v", model, 0, 2, 1, (1, 1))])
