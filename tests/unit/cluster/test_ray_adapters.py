"""Adapters of Ray's private parts: what happens where another release lacks them."""

from types import SimpleNamespace

import pytest
import torch
from ray._private import accelerators, ray_constants
from ray._private.accelerators import NvidiaGPUAcceleratorManager
from ray._private.node import Node
from ray.job_submission import JobSubmissionClient

from llm_blender_ray.cluster import job_client, ray_internals
from llm_blender_ray.cluster.address import ClusterError
from llm_blender_ray.cluster.capacity import local_capacity
from llm_blender_ray.cluster.placement import Capacity
from llm_blender_ray.cluster.session import private_ray
from llm_blender_ray.configs.extras import missing_method
from llm_blender_ray.configs.schema import RayCluster


def test_a_local_ray_is_refused_where_it_would_listen_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ray_constants, "ENABLE_RAY_CLUSTER")
    with pytest.raises(ClusterError, match="would listen on all interfaces"), private_ray():
        raise AssertionError("unreachable")


def test_the_constant_is_restored() -> None:
    before = ray_constants.ENABLE_RAY_CLUSTER
    with ray_internals.loopback_only():
        assert ray_constants.ENABLE_RAY_CLUSTER is False
    assert before == ray_constants.ENABLE_RAY_CLUSTER


@pytest.mark.parametrize("logs", [True, False])
def test_a_lean_start_leaves_out_what_is_unused(logs: bool) -> None:
    methods = [Node.start_monitor, Node.start_api_server, Node.start_log_monitor]
    with ray_internals.lean_start(logs=logs):
        left = [Node.start_monitor, Node.start_api_server, Node.start_log_monitor]
        assert [one is other for one, other in zip(methods, left, strict=True)] == [False, False, logs]
    assert [Node.start_monitor, Node.start_api_server, Node.start_log_monitor] == methods


def test_a_ray_without_those_methods_starts_as_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Node, "start_monitor")
    with ray_internals.lean_start():
        assert not hasattr(Node, "start_monitor")
    assert not hasattr(Node, "start_monitor")
    monkeypatch.setattr(ray_internals, "_module", lambda name: None)
    method = Node.start_api_server
    with ray_internals.lean_start():
        assert Node.start_api_server is method


@pytest.mark.parametrize("worker", [None, SimpleNamespace(), SimpleNamespace(_global_node=SimpleNamespace())])
def test_without_a_session_folder_there_is_none(worker: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_internals, "_module", lambda name: worker)
    assert ray_internals.session_folder() is None


@pytest.mark.parametrize(("visible", "expected"), [(None, 4), (["2", "3"], 2), ([], 0)])
def test_gpus_are_those_that_ray_would_count(
    visible: list[str] | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NvidiaGPUAcceleratorManager, "get_current_node_num_accelerators", lambda: 4)
    monkeypatch.setattr(accelerators, "get_accelerator_manager_for_resource", lambda _: NvidiaGPUAcceleratorManager)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(visible))
    assert ray_internals.local_gpus() == expected
    assert local_capacity(RayCluster(num_cpus=2)) == Capacity.machine(2, expected, {})
    assert local_capacity(RayCluster(num_cpus=2, num_gpus=1)) == Capacity.machine(2, 1, {})


def test_where_ray_does_not_say_torch_counts_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_internals, "_module", lambda name: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert ray_internals.local_gpus() is None
    assert local_capacity(RayCluster(num_cpus=2)) == Capacity.machine(2, 3, {})


def test_a_job_client_without_its_hooks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing_method(JobSubmissionClient, job_client._HOOKS) is None
    assert missing_method(SimpleNamespace, job_client._HOOKS) == "_do_request"
    monkeypatch.setattr(job_client, "JobSubmissionClient", SimpleNamespace)
    with pytest.raises(ClusterError, match="job client has no _do_request"):
        job_client.connect("http://127.0.0.1:1")
