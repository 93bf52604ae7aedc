"""Placement of models: which run together, on how many actors, and whether they fit the cluster.

Ray Data starts every actor pool of a plan at once, and neither warns nor fails when they don't fit: it waits
indefinitely. So models run in waves, each of as many as fit at once, and actors are packed onto nodes before
anything starts.
Pure; what the cluster has comes in as a `Capacity`.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.configs.parts import ModelPart, PartSettings
from llm_blender_ray.configs.schema import BlendConfig, Replicas

GATEWAY = "gateway"  # name of the deployment of a service's gateways
READ_CPUS = 1.0  # for reading and writing, in addition to the actors
MANY_CPUS, CPUS_TOGETHER = 8, 4.0  # from how many on actors have several, and how many
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
    """Resources of a cluster by node: an actor is on one node, so sums are not enough to decide what fits."""

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
    """One pool of actors that all hold the same model."""

    name: str  # base LLM's name, "ranker" or "fuser"
    settings: PartSettings
    num_cpus: float
    num_gpus: float
    replicas: int

    @property
    def model(self) -> ModelPart:
        """Settings of the model that the actors hold, with their resources."""
        return self.settings.model_settings

    def amounts(self) -> dict[str, float]:
        """Resources of one actor, by Ray's names."""
        return {"CPU": self.num_cpus, "GPU": self.num_gpus, **self.model.resources}

    def ray_options(self) -> dict[str, Any]:
        """Resources of one actor, as Ray's arguments."""
        options: dict[str, Any] = {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus}
        if self.model.resources:
            options["resources"] = dict(self.model.resources)
        if self.model.accelerator_type:
            options["accelerator_type"] = self.model.accelerator_type
        return options

    @property
    def most(self) -> int | None:
        """Most useful actors; None: as many as fit.

        Without `replicas` in the settings only pools with GPUs or custom resources are spread: on CPUs it is
        unknown how many copies of a model fit the machine's memory.
        """
        if "replicas" in self.model.model_fields_set:
            return self.model.replicas.max
        return None if self.num_gpus or self.model.resources else 1


@dataclass(frozen=True, slots=True)
class Plan:
    """All pools of a run, in waves: those of a wave run together, one wave after the other.

    Within a wave rows pass the pools in their order; rankers and fuser come after all base LLMs.
    """

    waves: tuple[tuple[Placement, ...], ...]
    capacity: Capacity

    @property
    def placements(self) -> tuple[Placement, ...]:
        """Placements of all waves."""
        return tuple(placement for wave in self.waves for placement in wave)


def make_plan(config: BlendConfig, capacity: Capacity) -> Plan:
    """Waves of a whole blend on a cluster.

    Raises:
        PlanError: A part cannot run at all.
    """
    llms = [place(model.name, model, capacity) for model in config.models]
    llms.sort(key=_largest_first)
    last = [place("ranker", config.placing_ranker, capacity)]
    if config.fuser:
        last.append(place("fuser", config.fuser, capacity))
    return pack_waves(llms, last, capacity)


def pack_waves(llms: Sequence[Placement], last: Sequence[Placement], capacity: Capacity) -> Plan:
    """Pack `llms` into waves, first fit; `last` in their order in the last wave, or waves of their own.

    The rest of a wave's resources go to more replicas.

    Raises:
        PlanError: A pool does not fit even by itself.
    """
    waves: list[_Wave] = []
    for pool in llms:
        if not any(wave.take(pool) for wave in waves):
            waves.append(_Wave.of(pool, capacity))
    for pool in last:
        if not waves or not waves[-1].take(pool):
            waves.append(_Wave.of(pool, capacity))
    return Plan(tuple(wave.spread() for wave in waves), capacity)


def place_together(config: BlendConfig, capacity: Capacity) -> tuple[Placement, ...]:
    """Placements of all parts of a service, which run at the same time, each with its fewest replicas.

    Raises:
        PlanError: The parts do not all fit at once.
    """
    wave = _Wave.beside_gateways(config, capacity)
    pools = [place(model.name, model, capacity) for model in config.models]
    pools.append(place("ranker", config.placing_ranker, capacity))
    if config.fuser:
        pools.append(place("fuser", config.fuser, capacity))
    for pool in sorted(pools, key=_largest_first):
        if not pool.model.replicas.min or wave.take(pool):
            continue
        if not _Wave(capacity, 0.0).take(pool):
            raise PlanError(_why_not(pool, capacity, ""))
        raise PlanError(
            f"{pool.name} finds no room with the others: a service holds all its models at once (set num_gpus, "
            "num_cpus or replicas; with `replicas: {min: 0, max: 1}` a model is loaded only while it has requests)"
        )
    return tuple(pools)


def replaceable(config: BlendConfig, placements: Sequence[Placement], capacity: Capacity) -> frozenset[str]:
    """Names of the parts of a service whose replicas an update can start before it stops the earlier ones.

    There is room for one more replica of each of them at the same time, beside all parts at their most replicas: an
    update never waits for room, whatever has changed. `gateway` stands for the gateways.
    """
    pools = sorted(placements, key=_largest_first)
    wave = _Wave.beside_gateways(config, capacity)
    if not all(wave.take(replace(pool, replicas=pool.model.replicas.max)) for pool in pools):
        return frozenset()
    # the gateway first: without it nothing is answered
    found = {GATEWAY} if wave.take_one({"CPU": config.serve.gateway.num_cpus}) else set()
    return frozenset(found | {pool.name for pool in pools if wave.take(replace(pool, replicas=1))})


def _largest_first(pool: Placement) -> tuple[float, float]:
    """Sort key: large ones first, while nodes are empty, like Ray."""
    return -pool.num_gpus, -pool.num_cpus


class _Wave:
    """Pools that run together, and the rest of every node."""

    def __init__(
        self, capacity: Capacity, beside: float = READ_CPUS, what: str = "reading and writing; a run takes one"
    ) -> None:
        """Start from an empty cluster.

        Args:
            capacity: The cluster.
            beside: CPUs taken in addition to the models, on one node.
            what: What takes them, for messages.
        """
        self._free = [dict(node.amounts()) for node in capacity.nodes]
        self._nodes = capacity.nodes
        self._pools: list[Placement] = []
        # where it is least in the way: on a node without GPUs, else on that with most CPUs
        fitting = [at for at in range(len(self._free)) if self._fits(at, {"CPU": beside})]
        if not fitting:
            raise PlanError(f"the cluster has no CPU for {what} in addition to its models")
        best = min(fitting, key=lambda at: (self._free[at]["GPU"], -self._free[at]["CPU"]))
        self._subtract(best, {"CPU": beside})

    @classmethod
    def of(cls, pool: Placement, capacity: Capacity) -> "_Wave":
        """A wave of this one pool.

        Raises:
            PlanError: It does not fit.
        """
        wave = cls(capacity)
        if not wave.take(pool):
            raise PlanError(_why_not(pool, capacity))
        return wave

    @classmethod
    def beside_gateways(cls, config: BlendConfig, capacity: Capacity) -> "_Wave":
        """A wave of a service's parts, with room taken by its gateways.

        Raises:
            PlanError: The gateways do not fit.
        """
        gateway = config.serve.gateway
        return cls(capacity, gateway.num_cpus * gateway.replicas, "the gateway (serve.gateway.num_cpus)")

    def take(self, pool: Placement) -> bool:
        """Place the pool's fewest actors; False when they do not all fit."""
        before = [dict(free) for free in self._free]
        if all(self._place_one(pool) for _ in range(pool.replicas)):
            self._pools.append(pool)
            return True
        self._free = before
        return False

    def spread(self) -> tuple[Placement, ...]:
        """The pools, with one more actor at a time for the pool that has fewest, as long as one fits."""
        counts = {pool.name: pool.replicas for pool in self._pools}
        growing = [pool for pool in self._pools if any(pool.amounts().values())]  # others always fit
        while growing:
            pool = min(growing, key=lambda one: counts[one.name])
            if (pool.most is None or counts[pool.name] < pool.most) and self._place_one(pool):
                counts[pool.name] += 1
            else:
                growing.remove(pool)
        return tuple(replace(pool, replicas=counts[pool.name]) for pool in self._pools)

    def _place_one(self, pool: Placement) -> bool:
        return self.take_one(pool.amounts(), pool.model.accelerator_type)

    def take_one(self, needs: dict[str, float], kind: str | None = None) -> bool:
        """Place one actor with these resources, on a node of this accelerator type; False when it does not fit."""
        fitting = [
            at
            for at in range(len(self._free))
            if self._fits(at, needs) and kind in (None, self._nodes[at].accelerator)
        ]
        if not fitting:
            return False
        # the tightest node: larger holes stay for larger models, and GPUs for those that need them
        self._subtract(min(fitting, key=lambda at: (self._free[at]["GPU"], self._free[at]["CPU"])), needs)
        return True

    def _fits(self, at: int, needs: dict[str, float]) -> bool:
        return all(amount <= self._free[at].get(name, 0.0) + _EPSILON for name, amount in needs.items() if amount)

    def _subtract(self, at: int, needs: dict[str, float]) -> None:
        for name, amount in needs.items():
            if amount:
                self._free[at][name] -= amount


def _why_not(pool: Placement, capacity: Capacity, beside: str = f", beside {READ_CPUS:g} CPU for reading") -> str:
    """Reason why a pool does not fit into an empty cluster.

    Args:
        pool: The pool.
        capacity: The cluster.
        beside: What else has to fit.
    """
    kind = pool.model.accelerator_type
    nodes = [node for node in capacity.nodes if kind in (None, node.accelerator)]
    actors = f"{pool.replicas} actors with " if pool.replicas > 1 else ""
    needs = ", ".join(f"{amount:g} {name}" for name, amount in pool.amounts().items() if amount) or "nothing"
    if not nodes:
        return f"{pool.name} needs a node of accelerator type {kind}: the cluster has none"
    there = Capacity(tuple(nodes)).amounts()
    has = ", ".join(f"{there.get(name, 0):g} {name}" for name, amount in pool.amounts().items() if amount)
    most = f"{kind} nodes have" if kind else "the cluster has"
    apart = f" on {len(nodes)} nodes, and an actor is on one" if len(nodes) > 1 else ""
    return (
        f"{pool.name} needs {actors}{needs}{beside}: {most} {has}{apart} "
        f"(set its num_gpus, num_cpus or replicas; `blend plan` shows what each takes)"
    )


def place(name: str, settings: PartSettings, capacity: Capacity) -> Placement:
    """Describe one pool of actors, with the part's defaults for resources that its settings leave open."""
    model = settings.model_settings
    gpus = model.default_gpus(has_gpus=capacity.gpus > 0) if model.num_gpus is None else model.num_gpus
    cpus = model.num_cpus
    if cpus is None:
        cpus = 0.0 if gpus else model.default_cpus
    return Placement(name, settings, cpus, gpus, max(1, model.replicas.min))


def fill_cluster(settings: PartSettings, capacity: Capacity) -> PartSettings:
    """Settings of a stage that has the cluster to itself: its pool fills it, unless they set resources.

    On CPUs the actors share what reading and writing leave: one for each core (with less than one CPU it still runs
    on one), or on many cores one for every four, which hold a model together.
    """
    if not isinstance(settings, ModelPart) or {"num_cpus", "num_gpus", "resources"} & settings.model_fields_set:
        return settings  # the LLM of a judge or fuser has settings of its own
    alone = place("", settings, capacity)
    if alone.num_gpus:
        return settings  # `pack_waves` spreads over GPUs
    left = capacity.cpus - READ_CPUS
    if "replicas" in settings.model_fields_set:
        replicas, cpus = settings.replicas, min(1.0, left / settings.replicas.max)
    else:
        many = capacity.cpus > MANY_CPUS
        count = max(1, int(left / CPUS_TOGETHER if many else capacity.cpus))
        replicas, cpus = Replicas(min=count, max=count), CPUS_TOGETHER if many else left / count
    if left <= 0:
        return settings.model_copy(update={"replicas": replicas})
    return settings.model_copy(update={"replicas": replicas, "num_cpus": math.floor(cpus * 1000) / 1000})
