"""Fixtures that several packages' tests share: one Ray, and an S3 server, both on 127.0.0.1 only."""

import os
import socket
import uuid
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("ours", deadline=None)  # a slow machine is no failure
settings.load_profile("ours")
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # Ray listens on 127.0.0.1 only
os.environ.setdefault("OMP_NUM_THREADS", "1")  # small models: more threads only wait for each other
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


@pytest.fixture(scope="session")
def s3_environment() -> Iterator[int]:
    """The usual AWS variables, set before Ray starts so that its workers have them too; gives the server's port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield port


@pytest.fixture(scope="session")
def ray_session(s3_environment: int) -> Iterator[None]:
    """A Ray of two CPUs for the whole test run."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def _s3_server(s3_environment: int) -> Iterator[None]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", s3_environment, verbose=False)
    server.start()
    yield
    server.stop()


@pytest.fixture
def s3_bucket(_s3_server: None) -> str:
    """An empty bucket of a real HTTP server that speaks S3, as `s3://name`."""
    import s3fs

    name = f"rows-{uuid.uuid4().hex}"
    s3fs.S3FileSystem().mkdir(name)
    return f"s3://{name}"
