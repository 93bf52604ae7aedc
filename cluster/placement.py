"""What one pool of actors takes of a cluster, and what the cluster's nodes have.

Pure; what the cluster has comes in as a `Capacity`.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.configs.parts import ModelPart, PartSettings

ACCELERATOR_SHARE = 0.001  # of a node's `accelerator_type:` resource, what Ray's own option takes
_EPSILON = 1e-6


class PlanError(BlendError):
    """The cluster can't hold what the config requests."""


@dataclass(frozen=True, slots=True)
class Node:
    """Resources of one machine, in Ray's units; `accelerator` is Ray's name of its GPUs, such as "H100"."""

    cpus: float
    gpus: float = 0.0
    resources: dict[str, float] = field(default_factory=dict)
    accelerator: str | None = None

    def amounts(self) -> dict[str, float]:
        """Resources by Ray's names."""
        return {"CPU": self.cpus, "GPU": self.gpus, **self.resources}


@dataclass(frozen=True, slots=True)
class Capacity:
    """Resources of a cluster by node: what an actor takes is on one, so sums are not enough to decide what fits."""

    nodes: tuple[Node, ...]

    @classmethod
    def machine(cls, cpus: float, gpus: float = 0.0, resources: dict[str, float] | None = None) -> "Capacity":
        """A cluster of one node."""
        return cls((Node(cpus, gpus, resources or {}),))

    def amounts(self) -> dict[str, float]:
        """Resources of all nodes together, by Ray's names."""
        total: Counter[str] = Counter({"CPU": 0, "GPU": 0})
        for node in self.nodes:
            total.update(node.amounts())
        return dict(total)

    @property
    def cpus(self) -> float:
        """CPUs of all nodes together."""
        return self.amounts()["CPU"]

    @property
    def gpus(self) -> float:
        """GPUs of all nodes together."""
        return self.amounts()["GPU"]


@dataclass(frozen=True, slots=True)
class Placement:
    """One pool of actors that all hold the same model.

    Attributes:
        name: Base LLM's name, "ranker" or "fuser".
        settings: Of the part.
        num_cpus: Of one replica.
        num_gpus: Of one replica.
        replicas: Number of actors.
        node_gpus: GPUs of one replica on each of its nodes, in a cluster with room; empty where one node holds it.
    """

    name: str
    settings: PartSettings
    num_cpus: float
    num_gpus: float
    replicas: int
    node_gpus: tuple[int, ...] = ()

    @property
    def model(self) -> ModelPart:
        """Settings of the model that the actors hold, with their resources."""
        return self.settings.model_settings

    def amounts(self) -> dict[str, float]:
        """Resources of one replica, by Ray's names."""
        return {"CPU": self.num_cpus, "GPU": self.num_gpus, **self.model.resources}

    def pipeline_amounts(self) -> list[dict[str, float]]:
        """Resources of the pipeline stages of one replica, each on one node: the actor is on that of the first."""
        count = self.model.pipeline_stages
        own = {"GPU": self.num_gpus / count}
        return [self.amounts() | own, *[own] * (count - 1)]

    def ray_options(self) -> dict[str, Any]:
        """Resources of one actor, as Ray's arguments. The GPUs of several nodes are those of `bundles`."""
        options: dict[str, Any] = {"num_cpus": self.num_cpus, "num_gpus": 0 if self.node_gpus else self.num_gpus}
        if self.model.resources:
            options["resources"] = dict(self.model.resources)
        if self.model.accelerator_type and not self.node_gpus:
            options["accelerator_type"] = self.model.accelerator_type
        return options

    def bundles(self) -> list[dict[str, float]]:
        """Bundles of a replica's placement group: one a GPU, as vLLM's Ray executor needs, the actor in the first.

        Empty where one node holds a replica: it has no placement group.
        """
        gpu = {"GPU": 1.0}
        if self.model.accelerator_type:
            gpu[f"accelerator_type:{self.model.accelerator_type}"] = ACCELERATOR_SHARE
        first = {name: amount for name, amount in self.amounts().items() if amount and name != "GPU"}
        return [gpu | (first if at == 0 else {}) for at in range(sum(self.node_gpus))]

    @property
    def parts(self) -> "tuple[Placement, ...]":
        """Placement of each part that the actors run, by its own name and settings: several share an engine."""
        parts = self.settings.named_parts(self.name)
        return tuple(replace(self, name=name, settings=settings) for name, settings in parts.items())

    @property
    def node_shape(self) -> str:
        """Nodes of one replica and its GPUs on them, for people; empty where one node holds it."""
        if not self.node_gpus:
            return ""
        nodes, first = len(self.node_gpus), self.node_gpus[0]
        if self.num_gpus == nodes * first:
            return f"{nodes} nodes x {first:g} GPU"
        return f"{nodes} nodes, {' + '.join(f'{gpus:g}' for gpus in self.node_gpus)} GPU"

    @property
    def most(self) -> int | None:
        """Most useful actors; None: as many as fit.

        Without `replicas` in the settings only pools with GPUs or custom resources are spread: on CPUs it is
        unknown how many copies of a model fit the machine's memory.
        """
        if "replicas" in self.model.model_fields_set:
            return self.model.replicas.max
        return None if self.num_gpus or self.model.resources else 1


def place(name: str, settings: PartSettings, capacity: Capacity) -> Placement:
    """Describe one pool of actors, with the part's defaults for resources that its settings leave open.

    A replica that needs more GPUs than any node has is placed on several, by whole pipeline stages.
    """
    model = settings.model_settings
    gpus = model.default_gpus(has_gpus=capacity.gpus > 0) if model.num_gpus is None else model.num_gpus
    cpus = model.num_cpus
    if cpus is None:
        cpus = 0.0 if gpus else model.default_cpus
    pool = Placement(name, settings, cpus, gpus, max(1, model.replicas.min))
    return replace(pool, node_gpus=_node_gpus(pool, capacity))


def _node_gpus(pool: Placement, capacity: Capacity) -> tuple[int, ...]:
    """GPUs of a replica on each node, where it needs several and the cluster has them; else empty."""
    model = pool.model
    nodes = _nodes_of(model.accelerator_type, capacity)
    if model.pipeline_stages == 1 or any(pool.num_gpus <= node.gpus for node in nodes):
        return ()
    if not _splits(pool) or len(_gpu_types(nodes)) > 1:
        return ()
    on = packed(pool.pipeline_amounts(), [node.amounts() for node in nodes], range(len(nodes)))
    gpus = pool.num_gpus / model.pipeline_stages
    return tuple(round(stages * gpus) for stages in Counter(on or ()).values())


def _splits(pool: Placement) -> bool:
    """Whether a replica's GPUs are those of its pipeline stages, and so can be on several nodes."""
    model = pool.model
    return model.pipeline_setting is not None and pool.num_gpus == model.default_gpus(has_gpus=True)


def _nodes_of(kind: str | None, capacity: Capacity) -> list[Node]:
    return [node for node in capacity.nodes if kind in (None, node.accelerator)]


def _gpu_types(nodes: Sequence[Node]) -> list[str]:
    return sorted({node.accelerator or "unknown" for node in nodes if node.gpus})


def packed(
    shares: Sequence[dict[str, float]], free: Sequence[dict[str, float]], nodes: Iterable[int]
) -> list[int] | None:
    """Find a node for each share, as Ray packs a placement group: the node with most GPUs first, in full.

    Args:
        shares: Resources that are each on one node.
        free: What every node has left; unchanged.
        nodes: Indexes of those to be used.

    Returns:
        An index for each share; None where they do not all fit.
    """
    found: list[int] = []
    for at in sorted(nodes, key=lambda at: -free[at]["GPU"]):
        left = dict(free[at])
        while len(found) < len(shares) and fits(shares[len(found)], left):
            subtract(left, shares[len(found)])
            found.append(at)
    return found if len(found) == len(shares) else None


def fits(needs: dict[str, float], free: dict[str, float]) -> bool:
    """Whether a node has these resources left."""
    return all(amount <= free.get(name, 0.0) + _EPSILON for name, amount in needs.items() if amount)


def subtract(free: dict[str, float], needs: dict[str, float]) -> None:
    """Take resources of a node that has them."""
    for name, amount in needs.items():
        if amount:
            free[name] -= amount


def why_not(pool: Placement, capacity: Capacity, beside: str = "") -> str:
    """Reason why a pool does not fit into an empty cluster.

    Args:
        pool: The pool.
        capacity: The cluster.
        beside: What else has to fit.
    """
    kind = pool.model.accelerator_type
    nodes = _nodes_of(kind, capacity)
    actors = f"{pool.replicas} actors with " if pool.replicas > 1 else ""
    needs = ", ".join(f"{amount:g} {name}" for name, amount in pool.amounts().items() if amount) or "nothing"
    if not nodes:
        return f"{pool.name} needs a node of accelerator type {kind}: the cluster has none"
    there = Capacity(tuple(nodes)).amounts()
    has = ", ".join(f"{there.get(name, 0):g} {name}" for name, amount in pool.amounts().items() if amount)
    most = f"{kind} nodes have" if kind else "the cluster has"
    return (
        f"{pool.name} needs {actors}{needs}{beside}: {most} {has}{_apart(pool, nodes)} "
        f"(set its num_gpus, num_cpus or replicas; `blend plan` shows what each takes)"
    )


def _apart(pool: Placement, nodes: Sequence[Node]) -> str:
    """What keeps a pool from using all that these nodes have together."""
    stages, setting = pool.model.pipeline_stages, pool.model.pipeline_setting
    if len(nodes) == 1:
        on_more = stages > 1 and _splits(pool) and pool.num_gpus > nodes[0].gpus
        return f"; nodes of a larger cluster can share its {stages} pipeline stages" if on_more else ""
    there = f" on {len(nodes)} nodes"
    if pool.num_gpus <= max(node.gpus for node in nodes) or not _splits(pool):
        return f"{there}, and an actor is on one"
    if stages == 1:
        return f"{there}, and an actor is on one, or, with {setting}, on several"
    types = _gpu_types(nodes)
    if len(types) > 1:
        return f"{there} with GPUs of different types, {' and '.join(types)}: set its accelerator_type to one"
    return f"{there}, and each of its {stages} pipeline stages, {pool.num_gpus / stages:g} GPU, is on one"
