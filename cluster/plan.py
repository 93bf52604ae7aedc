"""What runs where: the actors of a run, what each takes, and whether the cluster can hold them all at once.

Ray Data starts every actor pool of a run together, and neither warns nor fails when they don't fit: it waits for
ever. So the sums are compared before anything starts. Pure; what the cluster has comes in as a `Capacity`.
"""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from actors.errors import BlendError
from configs.schema import BlendConfig, Fuser, Judge, Model, PairRanker, Placed, Ranker, Replicas, RewardModel

READ_CPUS = 1.0  # reading and writing need a CPU beside the actors
MANY_CPUS, CPUS_TOGETHER = 8, 4.0  # from how many on actors have several, and how many


class PlanError(BlendError):
    """The cluster can't hold what the config asks for."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a cluster has, in Ray's units."""

    cpus: float
    gpus: float = 0.0
    resources: dict[str, float] = field(default_factory=dict)

    def amounts(self) -> dict[str, float]:
        """By Ray's names."""
        return {"CPU": self.cpus, "GPU": self.gpus, **self.resources}


@dataclass(frozen=True, slots=True)
class Placement:
    """One pool of actors that all hold the same model."""

    name: str  # base LLM's name, "ranker" or "fuser"
    runs: str  # what runs it: engine or class, and the model
    settings: Model | Ranker | Fuser
    num_cpus: float
    num_gpus: float

    @property
    def placed(self) -> Placed:
        """The settings that say where it runs."""
        return _placed(self.settings)

    @property
    def replicas(self) -> tuple[int, int]:
        """Fewest and most actors."""
        return self.placed.replicas.min, self.placed.replicas.max

    def amounts(self) -> dict[str, float]:
        """What one actor takes, by Ray's names."""
        return {"CPU": self.num_cpus, "GPU": self.num_gpus, **self.placed.resources}

    def ray_options(self) -> dict[str, Any]:
        """What one actor takes, as Ray's arguments."""
        return {
            "num_cpus": self.num_cpus,
            "num_gpus": self.num_gpus,
            "resources": dict(self.placed.resources) or None,
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """All pools of a run."""

    placements: tuple[Placement, ...]
    capacity: Capacity

    def needed(self) -> dict[str, float]:
        """What the fewest actors of all pools take together, with reading and writing."""
        total: Counter[str] = Counter({"CPU": READ_CPUS})
        for placement in self.placements:
            for name, amount in placement.amounts().items():
                total[name] += amount * placement.replicas[0]  # type: ignore[assignment]  # Counter of floats
        return {name: round(amount, 6) for name, amount in total.items()}

    def shortages(self) -> list[str]:
        """One line per resource of which there is too little; empty when the run fits."""
        have = self.capacity.amounts()
        return [
            f"{amount:g} {name} needed at once, {have.get(name, 0):g} there"
            for name, amount in self.needed().items()
            if amount > have.get(name, 0) + 1e-6
        ]

    def check(self) -> None:
        """Raise PlanError when the run doesn't fit."""
        if shortages := self.shortages():
            raise PlanError(
                f"the cluster can't hold all models at once: {'; '.join(shortages)} "
                "(`blend plan` shows who takes what; set num_gpus, num_cpus or replicas of models, ranker, fuser)"
            )


def plan(config: BlendConfig, capacity: Capacity) -> Plan:
    """The pools of a whole blend on a cluster."""
    placements = [place(model.name, model, capacity) for model in config.models]
    placements.append(place("ranker", config.placing_ranker, capacity))
    if config.fuser:
        placements.append(place("fuser", config.fuser, capacity))
    return Plan(tuple(placements), capacity)


def place(name: str, settings: Model | Ranker | Fuser, capacity: Capacity) -> Placement:
    """One pool, with what was left open filled in: a GPU where the engine wants one, else a CPU."""
    placed = _placed(settings)
    gpus = placed.num_gpus if placed.num_gpus is not None else _gpus_wanted(placed, capacity)
    cpus = placed.num_cpus
    if cpus is None:
        cpus = 0.0 if gpus or getattr(placed, "engine", None) == "endpoint" else 1.0
    return Placement(name, _runs(settings), settings, cpus, gpus)


def spread(settings: Ranker | Fuser, capacity: Capacity) -> Ranker | Fuser:
    """The settings of a stage that has the cluster to itself: its pool fills it, unless they say otherwise.

    On CPUs the actors share what reading and writing leave: one for each core (with less than one CPU it still runs
    on one), or on many cores one for every four, which hold a model together.
    """
    if isinstance(settings, Judge) or {"num_cpus", "num_gpus", "resources"} & settings.model_fields_set:
        return settings
    alone = place("", settings, capacity)
    left = capacity.cpus - READ_CPUS
    if "replicas" in settings.model_fields_set:
        replicas, cpus = settings.replicas, min(1.0, left / settings.replicas.max)
    else:
        many = capacity.cpus > MANY_CPUS
        on_cpus = int(left / CPUS_TOGETHER if many else capacity.cpus)
        count = max(1, int(capacity.gpus / alone.num_gpus) if alone.num_gpus else on_cpus)
        replicas, cpus = Replicas(min=count, max=count), CPUS_TOGETHER if many else left / count
    if alone.num_gpus or left <= 0:
        return settings.model_copy(update={"replicas": replicas})
    return settings.model_copy(update={"replicas": replicas, "num_cpus": math.floor(cpus * 1000) / 1000})


def _placed(settings: Model | Ranker | Fuser) -> Placed:
    return settings.llm if isinstance(settings, Judge) else settings


def _runs(settings: Model | Ranker | Fuser) -> str:
    """What runs a model, and which."""
    match settings:
        case Judge(llm=llm):
            return f"judge {llm.engine} {llm.model}"
        case PairRanker():
            return f"PairRanker {settings.model}"
        case RewardModel():
            return f"reward model {settings.model}"
        case Fuser():
            return f"GenFuser {settings.model}"
    return f"{settings.engine} {settings.model}"


def _gpus_wanted(settings: Placed, capacity: Capacity) -> float:
    match getattr(settings, "engine", None), getattr(settings, "device", None):
        case "vllm", _:
            return float(getattr(settings, "tensor_parallel_size", 1))
        case "endpoint", _:
            return 0.0
        case _, "cpu":
            return 0.0
        case _, "cuda":
            return 1.0
    return 1.0 if capacity.gpus else 0.0
