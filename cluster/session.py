"""The Ray session: a local one that keeps to itself, or a connection to a cluster.

A local Ray listens on 127.0.0.1 only and reports no usage; both are environment variables that Ray reads when it is
imported, so this module sets them before its own import of Ray, and is the first to import it.
"""

import contextlib
import logging
import os
from collections.abc import Iterator

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # off: Ray binds 127.0.0.1
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # leaves CUDA_VISIBLE_DEVICES alone on CPU actors

import ray
import torch

from actors.errors import BlendError, one_line
from cluster.plan import Capacity
from configs.schema import RayCluster


class ClusterError(BlendError):
    """Ray can't be started or reached."""


@contextlib.contextmanager
def session(settings: RayCluster) -> Iterator[None]:
    """Ray for the length of the block; one that is connected already is used as it is and left open."""
    if ray.is_initialized():
        yield
        return
    local = settings.address == "local"
    try:
        ray.init(
            address=settings.address,
            num_cpus=settings.num_cpus if local else None,
            num_gpus=settings.num_gpus if local else None,
            resources=dict(settings.resources) or None if local else None,
            include_dashboard=False if local else None,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except Exception as error:  # a start that times out is raised as a plain Exception
        raise ClusterError(f"Ray at {settings.address}: {one_line(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()


def capacity() -> Capacity:
    """What the connected cluster has."""
    total = ray.cluster_resources()
    own = {name: amount for name, amount in total.items() if not _internal(name)}
    return Capacity(own.pop("CPU", 0.0), own.pop("GPU", 0.0), own)


def _internal(name: str) -> bool:
    return name in ("memory", "object_store_memory") or name.startswith(("node:", "accelerator_type:"))


def local_capacity(settings: RayCluster) -> Capacity:
    """What a local Ray would have, without starting one."""
    cpus = settings.num_cpus if settings.num_cpus is not None else os.cpu_count() or 1
    gpus = settings.num_gpus if settings.num_gpus is not None else torch.cuda.device_count()
    return Capacity(cpus, gpus, dict(settings.resources))
