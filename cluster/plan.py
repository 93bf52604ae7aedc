"""What runs where: the actors of a run, what each takes, and whether the cluster can hold them all at once.

Ray Data starts every actor pool of a run together, and neither warns nor fails when they don't fit: it waits for
ever. So the sums are compared before anything starts. Pure; what the cluster has comes in as a `Capacity`.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from actors.errors import BlendError
from configs.schema import BlendConfig, Fuser, Model, Placed, Ranker

READ_CPUS = 1.0  # reading and writing need a CPU beside the actors


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
    def replicas(self) -> tuple[int, int]:
        """Fewest and most actors."""
        return self.settings.replicas.min, self.settings.replicas.max

    def amounts(self) -> dict[str, float]:
        """What one actor takes, by Ray's names."""
        return {"CPU": self.num_cpus, "GPU": self.num_gpus, **self.settings.resources}

    def ray_options(self) -> dict[str, Any]:
        """What one actor takes, as Ray's arguments."""
        return {
            "num_cpus": self.num_cpus,
            "num_gpus": self.num_gpus,
            "resources": dict(self.settings.resources) or None,
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
    placements.append(place("ranker", config.ranker, capacity))
    if config.fuser:
        placements.append(place("fuser", config.fuser, capacity))
    return Plan(tuple(placements), capacity)


def place(name: str, settings: Model | Ranker | Fuser, capacity: Capacity) -> Placement:
    """One pool, with what was left open filled in: a GPU where the engine wants one, else a CPU."""
    gpus = settings.num_gpus if settings.num_gpus is not None else _gpus_wanted(settings, capacity)
    cpus = settings.num_cpus
    if cpus is None:
        cpus = 0.0 if gpus or getattr(settings, "engine", None) == "endpoint" else 1.0
    kind = getattr(settings, "engine", "PairRanker" if isinstance(settings, Ranker) else "GenFuser")
    return Placement(name, f"{kind} {settings.model}", settings, cpus, gpus)


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
