"""Placement of models: which run together, on how many actors, and whether they fit the cluster.

Ray Data starts every actor pool of a plan at once, and neither warns nor fails when they don't fit: it waits
indefinitely. So models run in waves, each of as many as fit at once, and actors are packed onto nodes before
anything starts.
Pure; what the cluster has comes in as a `Capacity`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from llm_blender_ray.cluster.placement import Capacity, Placement, PlanError, fits, packed, place, subtract, why_not
from llm_blender_ray.configs.parts import ModelPart, PartSettings
from llm_blender_ray.configs.schema import BlendConfig, Replicas

GATEWAY = "gateway"  # name of the deployment of a service's gateways
READ_CPUS = 1.0  # for reading and writing, in addition to the actors
MANY_CPUS, CPUS_TOGETHER = 8, 4.0  # from how many on actors have several, and how many


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
            raise PlanError(why_not(pool, capacity))
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
        fitting = [at for at in range(len(self._free)) if fits({"CPU": beside}, self._free[at])]
        if not fitting:
            raise PlanError(f"the cluster has no CPU for {what} in addition to its models")
        best = min(fitting, key=lambda at: (self._free[at]["GPU"], -self._free[at]["CPU"]))
        subtract(self._free[best], {"CPU": beside})

    @classmethod
    def of(cls, pool: Placement, capacity: Capacity) -> "_Wave":
        """A wave of this one pool.

        Raises:
            PlanError: It does not fit.
        """
        wave = cls(capacity)
        if not wave.take(pool):
            raise PlanError(why_not(pool, capacity, f", beside {READ_CPUS:g} CPU for reading"))
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
        kind = pool.model.accelerator_type
        if not pool.node_gpus:
            return self.take_one(pool.amounts(), kind)
        found = packed(pool.pipeline_amounts(), self._free, self._eligible(kind))
        for stage, at in zip(pool.pipeline_amounts(), found or (), strict=False):
            subtract(self._free[at], stage)
        return found is not None

    def take_one(self, needs: dict[str, float], kind: str | None = None) -> bool:
        """Place one actor with these resources, on a node of this accelerator type; False when it does not fit."""
        fitting = [at for at in self._eligible(kind) if fits(needs, self._free[at])]
        if not fitting:
            return False
        # the tightest node: larger holes stay for larger models, and GPUs for those that need them
        subtract(self._free[min(fitting, key=lambda at: (self._free[at]["GPU"], self._free[at]["CPU"]))], needs)
        return True

    def _eligible(self, kind: str | None) -> list[int]:
        """Nodes of an accelerator type; None: all."""
        return [at for at, node in enumerate(self._nodes) if kind in (None, node.accelerator)]


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
