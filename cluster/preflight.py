"""Checks on this machine before Ray starts: what would fail an hour later, in a second."""

import os
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel

from llm_blender_ray.actors.model_kinds import check_loadable
from llm_blender_ray.cluster.address import LOCAL_ADDRESS, ClusterError, address_of
from llm_blender_ray.cluster.notices import report_line
from llm_blender_ray.configs.environment import missing_variables
from llm_blender_ray.configs.parts import PartSettings
from llm_blender_ray.configs.schema import RayCluster


def check_variables(settings: RayCluster, *parts: BaseModel) -> None:
    """Check the environment variables that models need, before anything starts.

    Args:
        settings: Which Ray. The machines of a cluster have environments of their own, so there it is only a hint.
        parts: Settings with models.

    Raises:
        ClusterError: Some are not set on this machine, which is to run the models; the message names all of them.
    """
    if missing := missing_variables(os.environ, *parts):
        if address_of(settings) == LOCAL_ADDRESS:
            raise ClusterError(missing)
        report_line(f"on this machine {missing} on the machines of the cluster")


def check_local_models(settings: RayCluster, parts: Iterable[PartSettings]) -> None:
    """Check that local models are of kinds that their parts load. Weights are read later, by the actors.

    Args:
        settings: Which Ray. The machines of a cluster have disks of their own, so there nothing is checked.
        parts: Parts whose models are to be loaded.

    Raises:
        ModelLoadError: One is something else; the message says what.
    """
    if address_of(settings) != LOCAL_ADDRESS:
        return
    for weights in (part.model_settings.weights for part in parts):
        if weights is not None and weights.is_path:
            check_loadable(Path(weights.model).expanduser(), weights.formats)
