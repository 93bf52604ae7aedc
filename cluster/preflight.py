"""Checks on this machine before Ray starts: what would fail an hour later, in a second."""

from collections.abc import Iterable
from pathlib import Path

from llm_blender_ray.actors.model_kinds import check_loadable
from llm_blender_ray.cluster.session import LOCAL_ADDRESS, address_of
from llm_blender_ray.configs.parts import PartSettings
from llm_blender_ray.configs.schema import RayCluster


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
        if weights is None:
            continue
        path = Path(weights.model).expanduser()
        if path.is_absolute() or path.exists():
            check_loadable(path, weights.formats)
