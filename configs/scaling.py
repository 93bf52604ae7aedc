"""Schema of the workers of a training on Ray."""

from typing import Annotated

from pydantic import Field

from llm_blender_ray.configs.resources import Amount
from llm_blender_ray.configs.settings import RUNTIME_ONLY, Settings


class TrainingScaling(Settings):
    """Workers of a training: processes of Ray Train, each with a share of every step.

    A step takes workers * batch_size * accumulation examples. N workers make the same steps as one with N times the
    batch_size.
    """

    workers: Annotated[int, Field(ge=1)] = 1  # processes, each with the whole model unless it is sharded
    cpus_per_worker: Annotated[Amount, RUNTIME_ONLY] = 1.0  # CPUs that a worker reserves
    gpus_per_worker: Annotated[Annotated[int, Field(ge=0)] | None, RUNTIME_ONLY] = (
        None  # None: one where the cluster has GPUs
    )
    resources: Annotated[dict[str, Amount], RUNTIME_ONLY] = Field(default_factory=dict)  # custom Ray resources
    accelerator_type: Annotated[str | None, RUNTIME_ONLY] = None  # Ray's name of the GPU type, such as H100
    max_failures: Annotated[int, Field(ge=0), RUNTIME_ONLY] = 3  # restarts of all workers after the death of some
