"""Checks on this machine before Ray starts: what would fail an hour later, in a second."""

from pathlib import Path

from pydantic import BaseModel

from llm_blender_ray.actors.model_files import check_config
from llm_blender_ray.cluster.session import LOCAL_ADDRESS, address_of
from llm_blender_ray.configs.parts import weights_of
from llm_blender_ray.configs.schema import RayCluster


def check_local_models(settings: RayCluster, *parts: BaseModel) -> None:
    """Check that local model folders are model folders. Weights are read later, by the actors.

    Args:
        settings: Which Ray. The machines of a cluster have disks of their own, so there nothing is checked.
        parts: Settings with models.

    Raises:
        ModelLoadError: One is something else; the message says what.
    """
    if address_of(settings) != LOCAL_ADDRESS:
        return
    for model, _ in weights_of(list(parts)):
        path = Path(model).expanduser()
        if path.is_absolute() or path.exists():
            check_config(path)
