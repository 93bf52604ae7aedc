"""Capacity of a Ray that isn't running: a local one, or what a cluster can grow to."""

import os

from llm_blender_ray.cluster import ray_internals
from llm_blender_ray.cluster.placement import Capacity, Node
from llm_blender_ray.configs.schema import RayCluster


def grown_capacity(settings: RayCluster) -> Capacity:
    """Capacity that the cluster can grow to, by the settings."""
    return Capacity(
        tuple(
            Node(group.num_cpus, group.num_gpus, dict(group.resources), group.accelerator_type)
            for group in settings.nodes
            for _ in range(group.count)
        )
    )


def local_capacity(settings: RayCluster) -> Capacity:
    """Capacity of a local Ray, without starting one."""
    cpus = settings.num_cpus if settings.num_cpus is not None else os.cpu_count() or 1
    gpus = settings.num_gpus if settings.num_gpus is not None else ray_internals.local_gpus()
    if gpus is None:
        import torch  # takes seconds

        gpus = torch.cuda.device_count()
    return Capacity.machine(cpus, gpus, dict(settings.resources))
