"""One metric over a stream of rows: means of models and systems, and by how much the blend and the ranker lead."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Self, TypeVar

from llm_blender_ray.pipelines.quality.means import Mean
from llm_blender_ray.pipelines.quality.paired import Difference, correct, mean_difference
from llm_blender_ray.pipelines.quality.votes import margin_between, name_of

_KeyT = TypeVar("_KeyT")
Means = dict[str, dict[str, Mean]]


def _means() -> Any:
    return defaultdict(lambda: defaultdict(Mean))


@dataclass
class Tally:
    """One metric over all rows.

    Attributes:
        gains: By how much a system beat each model and the ranker's choice (None), row by row: the difficulty of a
            row cancels, so that the interval is narrower than those of the two means suggest.
        pairwise: Share of pairs of different quality that the ranker orders right.
        sign: 1 where higher is better, else -1. Means are of the values as the metric gives them.
        varies: Whether it tells any two candidates of a row apart.
    """

    sign: int = 1
    rows: int = 0
    varies: bool = False
    models: Means = field(default_factory=_means)
    systems: Means = field(default_factory=_means)
    gains: dict[str, dict[str | None, Mean]] = field(default_factory=_means)
    pairwise: Mean = field(default_factory=Mean)

    def add(self, row: Mapping[str, Any], quality: Sequence[float | None], blend: float | None = None) -> None:
        """Add one row: the quality of each of its candidates and of the fused answer; None where unknown."""
        if blend is not None:
            self.systems["blend"]["mean"].add(blend)
        known = {index: value for index, value in enumerate(quality) if value is not None}
        values = list(known.values())
        if not values:
            return
        top = max(values) if self.sign > 0 else min(values)
        self.varies = self.varies or max(values) > min(values)
        chosen = known.get(row["ranking"][0]) if row["ranking"] else None
        self.rows += 1
        by_model: dict[str, list[float]] = defaultdict(list)
        for index, value in known.items():
            by_model[name_of(row["candidates"][index], index)].append(value)
        # Answers of one model to one prompt are no independent values: a row adds their mean.
        for name, own in by_model.items():
            model, mean = self.models[name], sum(own) / len(own)
            model["mean"].add(mean)
            model["rank"].add(sum(self._rank(value, values) for value in own) / len(own))
            model["best_share"].add(own.count(top) / values.count(top))
            if chosen is not None:
                self.gains["ranker"][name].add(self.sign * (chosen - mean))
            if blend is not None:
                self.gains["blend"][name].add(self.sign * (blend - mean))
        self.systems["random"]["mean"].add(sum(values) / len(values))
        self.systems["random"]["rank"].add((len(values) + 1) / 2)
        self.systems["oracle"]["mean"].add(top)
        if chosen is not None and blend is not None:
            self.gains["blend"][None].add(self.sign * (blend - chosen))
        if chosen is not None:
            self.systems["ranker"]["mean"].add(chosen)
            self.systems["ranker"]["rank"].add(self._rank(chosen, values))
            self.systems["ranker"]["is_best"].add(chosen == top)
        for (i, a), (j, b) in combinations(known.items(), 2):
            margin = margin_between(row, i, j)
            if margin is not None and a != b:
                self.pairwise.add(0.5 if margin == 0 else (margin > 0) == (self.sign * (a - b) > 0))

    def _rank(self, value: float, values: Sequence[float]) -> float:
        """Rank of a value: 1 is the best; tied values take the mean of the ranks they span."""
        return 1 + sum(self.sign * (other - value) > 0 for other in values) + (values.count(value) - 1) / 2

    def merge(self, other: Self) -> None:
        """Add the rows of another tally of the same metric."""
        self.rows += other.rows
        self.varies = self.varies or other.varies
        self.pairwise.merge(other.pairwise)
        pairs: tuple[tuple[Any, Any], ...] = (
            (self.models, other.models),
            (self.systems, other.systems),
            (self.gains, other.gains),
        )
        for ours, theirs in pairs:
            for name, means in theirs.items():
                for what, mean in means.items():
                    ours[name][what].merge(mean)

    def report(self, differences: Sequence[Difference] = ()) -> dict[str, Any]:
        """The means, as plain data, with corrected differences."""
        return {
            "rows": self.rows,
            "models": {name: _values(means) for name, means in sorted(self.models.items())},
            **{name: _values(means) for name, means in self.systems.items()},
            "pairwise": self.pairwise.value,
            "ci95_half_widths": {
                "models": {name: _half_widths(means) for name, means in sorted(self.models.items())},
                **{name: _half_widths(means) for name, means in self.systems.items()},
            },
            "differences": [one.report() for one in differences],
        }

    def differences(self) -> list[Difference]:
        """By how much the blend and the ranker's choice lead each model and each other, not yet corrected."""
        found = [
            mean_difference(system, "ranker" if name is None else name, gain)
            for system, gains in self.gains.items()
            for name, gain in gains.items()
        ]
        return [one for one in found if one is not None]


def corrected_differences(tallies: Mapping[_KeyT, Tally]) -> dict[_KeyT, list[Difference]]:
    """`Tally.differences` of each metric, corrected for all of them."""
    return dict(zip(tallies, correct([tally.differences() for tally in tallies.values()]), strict=True))


def _half_widths(means: Mapping[str, Mean]) -> dict[str, float | None]:
    return {name: mean.ci95_half_width for name, mean in means.items()}


def _values(means: Mapping[str, Mean]) -> dict[str, float | None]:
    return {name: mean.value for name, mean in means.items()}
