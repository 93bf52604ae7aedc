"""Checks on this machine before Ray starts: what would fail an hour later, in a second."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import BaseModel

from llm_blender_ray.actors.adapter_files import ADAPTER_CONFIG, check_adapter, other_base
from llm_blender_ray.actors.model_kinds import check_loadable
from llm_blender_ray.cluster.address import LOCAL_ADDRESS, ClusterError, address_of
from llm_blender_ray.cluster.notices import report_line
from llm_blender_ray.cluster.placement import Capacity, PlanError
from llm_blender_ray.configs.environment import missing_variables
from llm_blender_ray.configs.parts import PartSettings, is_path
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
    """Check that local models and adapters are of kinds that their parts load. The actors read weights, later.

    Args:
        settings: Which Ray. The machines of a cluster have disks of their own, so there nothing is checked.
        parts: Parts whose models are to be loaded.

    Raises:
        ModelLoadError: One is something else; the message says what.
    """
    if address_of(settings) != LOCAL_ADDRESS:
        return
    warnings: set[str] = set()
    for weights in (part.model_settings.weights for part in parts):
        if weights is None:
            continue
        model = Path(weights.model).expanduser()
        if weights.is_path:
            check_loadable(model, weights.formats)
        for folder in (Path(one.path).expanduser() for one in weights.adapters if is_path(one.path)):
            check_adapter(folder, weights.formats, model if model.is_dir() else None)
            if named := other_base(folder, weights.model):
                warnings.add(f"{folder}: an adapter of {named}, applied to {weights.model}")
    for line in sorted(warnings):
        report_line(line)


def check_hub_models(settings: RayCluster, parts: Iterable[PartSettings]) -> None:
    """Check that the hub has models and adapters that are no folders here: a mistyped folder looks like one, too.

    Args:
        settings: Which Ray. The machines of a cluster may reach another hub, and look for themselves.
        parts: Parts whose models are to be loaded.

    Raises:
        ModelLoadError: One isn't there, or its name can't be one of a hub.
    """
    found = [part.model_settings.weights for part in parts if address_of(settings) == LOCAL_ADDRESS]
    asked = [(one.model, one.revision, "config.json") for one in found if one]
    asked += [(a.path, a.revision, ADAPTER_CONFIG) for one in found if one for a in one.adapters]
    for model, revision, config in dict.fromkeys(asked):
        if not is_path(model):
            from llm_blender_ray.actors.weight_checks import check_on_hub  # half a second, for hub models alone

            check_on_hub(model, revision, config)


def check_workers(count: int, amounts: Mapping[str, float], accelerator_type: str | None, have: Capacity) -> None:
    """Check that a cluster has room for workers; Ray waits for it without end.

    Args:
        count: Number of workers.
        amounts: Resources of one, by Ray's names.
        accelerator_type: Type of its GPUs; None: any.
        have: The cluster.

    Raises:
        PlanError: It has not.
    """
    wanted = {name: amount for name, amount in amounts.items() if amount}
    nodes = [node for node in have.nodes if accelerator_type in (None, node.accelerator)]
    room = sum(
        min((int(node.amounts().get(name, 0.0) / amount + 1e-6) for name, amount in wanted.items()), default=count)
        for node in nodes
    )
    if room < count:
        what = ", ".join(f"{amount:g} {name}" for name, amount in wanted.items())
        kind = f" on {accelerator_type}" if accelerator_type else ""
        raise PlanError(
            f"scaling.workers: the cluster has room for {room} of {count} workers with {what} each{kind}"
        )
