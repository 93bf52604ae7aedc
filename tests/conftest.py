"""Fixtures that several packages' tests share: one Ray, and an S3 server, both on 127.0.0.1 only."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import InProcess
from faulty_proxy import FaultyProxy
from hypothesis import settings
from paths import ROOT

import llm_blender_ray
from llm_blender_ray.cluster.ray_internals import lean_start
from llm_blender_ray.cluster.serving import LEAN

if ROOT not in Path(llm_blender_ray.__file__).resolve().parents:  # a worktree with another's .venv
    raise pytest.UsageError(f"llm_blender_ray is imported from {llm_blender_ray.__file__}, not from {ROOT}")
settings.register_profile("ours", deadline=None)  # a slow machine is no failure
settings.load_profile("ours")
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # Ray listens on 127.0.0.1 only
os.environ.setdefault("OMP_NUM_THREADS", "1")  # small models: more threads only wait for each other
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB, in Ray's workers too; else most of the memory
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # an engine's worker is in its core's process: 10 s less of CPU
# Metrics each half second instead of ten; and Ray Serve as the service has it.
os.environ.update({"RAY_metrics_report_interval_ms": "500", **LEAN})


@pytest.fixture(scope="session")
def s3_environment() -> Iterator[FaultyProxy]:
    """The usual AWS variables, set before Ray starts so that its workers have them too.

    They lead to a proxy, which `s3_bucket` puts a server behind and `s3_faults` injects faults into.
    """
    with FaultyProxy() as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        _forget_s3()  # an earlier test's file system has no credentials
        yield proxy


@pytest.fixture(scope="session")
def ray_session(s3_environment: FaultyProxy) -> Iterator[None]:
    """A Ray of two CPUs for the whole test run, with a token of its own: none is written to ~/.ray."""
    import ray

    from llm_blender_ray.cluster.session import private_ray

    with private_ray():
        with lean_start():
            ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield
        ray.shutdown()


@pytest.fixture
def ray_of_commands(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands of the test run on the test run's Ray: they start none of their own."""
    import ray

    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)


@pytest.fixture
def blend_here(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> InProcess:
    """The `blend` command in this process; with `ray_session`, on the test run's Ray."""
    return InProcess(monkeypatch, capfd)


@pytest.fixture(scope="session")
def _s3_server(s3_environment: FaultyProxy) -> Iterator[None]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    _, s3_environment.port = server.get_host_and_port()
    yield
    server.stop()


@pytest.fixture
def s3_bucket(_s3_server: None) -> str:
    """An empty bucket of a real HTTP server that speaks S3, as `s3://name`."""
    import s3fs

    name = f"rows-{uuid.uuid4().hex}"
    s3fs.S3FileSystem().mkdir(name)
    return f"s3://{name}"


@pytest.fixture
def s3_faults(s3_bucket: str, s3_environment: FaultyProxy) -> Iterator[FaultyProxy]:
    """What stands between every client and the server of `s3_bucket`: `plan` faults."""
    s3_environment.clear()
    yield s3_environment
    s3_environment.clear()


@pytest.fixture
def new_s3() -> Iterator[None]:
    """File systems of this process that are made in the test know the AWS variables that it sets."""
    _forget_s3()
    yield
    _forget_s3()


def _forget_s3() -> None:
    """Let the next S3 file system of this process be a new one, of the environment as it is then."""
    from llm_blender_ray.pipelines.rows.s3 import S3

    S3.clear_instance_cache()
