"""Coverage of `blend leaderboard`'s intervals: how often they hold the strengths of contests where these are known.

`python -m llm_blender_ray.pipelines.bench.coverage`: 200 contests of each design. JSON comes last.
"""

import argparse
import json
from dataclasses import asdict, dataclass

import numpy as np

from llm_blender_ray.pipelines.quality.bradley_terry import STRENGTH_RESAMPLES, fit_strengths
from llm_blender_ray.pipelines.quality.outcome_table import OutcomeTable
from llm_blender_ray.pipelines.quality.paired import correct, strength_differences


@dataclass(frozen=True)
class Design:
    """Contests of one kind.

    Attributes:
        spread: Log-odds between the strongest and the weakest; 0 for equal ones.
        per_prompt: Comparisons of a prompt.
    """

    contestants: int
    prompts: int
    per_prompt: int
    spread: float

    @property
    def strengths(self) -> np.ndarray:
        """The true strengths."""
        return np.linspace(self.spread / 2, -self.spread / 2, self.contestants)

    def simulate(self, rng: np.random.Generator) -> OutcomeTable:
        """One contest: a third of a pair's lesser share is ties, and comparisons of a prompt lean the same way."""
        pairs = np.column_stack(np.triu_indices(self.contestants, 1))
        prompts = np.repeat(np.arange(self.prompts), self.per_prompt)
        chosen = np.concatenate(
            [rng.choice(len(pairs), self.per_prompt, replace=False) for _ in range(self.prompts)]
        )
        left, right = pairs[chosen].T
        flipped = rng.random(len(left)) < 0.5
        left, right = np.where(flipped, right, left), np.where(flipped, left, right)
        share = 1 / (1 + np.exp(self.strengths[right] - self.strengths[left]))
        tie = np.minimum(share, 1 - share) / 3
        # Half of the comparisons take the draw of their prompt, which favours low or high indexes. Shares stay.
        own = rng.random(self.prompts)[prompts]
        own = np.where(left < right, own, 1 - own)
        drawn = np.where(rng.random(len(left)) < 0.5, own, rng.random(len(left)))
        shares = np.where(drawn < share - tie / 2, 1.0, np.where(drawn < share + tie / 2, 0.5, 0.0))
        return OutcomeTable(tuple(map(str, range(self.contestants))), prompts, left, right, shares)


DESIGNS = (
    Design(contestants=3, prompts=100, per_prompt=3, spread=1.0),
    Design(contestants=5, prompts=60, per_prompt=2, spread=2.0),
    Design(contestants=11, prompts=100, per_prompt=11, spread=2.0),
    Design(contestants=11, prompts=400, per_prompt=5, spread=3.0),
    Design(contestants=11, prompts=100, per_prompt=11, spread=0.0),
)


def measure_coverage(design: Design, repetitions: int, resamples: int, seed: int) -> dict[str, float]:
    """Share of intervals that hold the truth, and of contests with a false "better".

    Args:
        design: The contests.
        repetitions: Their number.
        resamples: Draws of each bootstrap.
        seed: Of the contests.
    """
    rng = np.random.default_rng(seed)
    hits = intervals = false = 0
    for repetition in range(repetitions):
        found = fit_strengths(design.simulate(rng), resamples=resamples, seed=repetition)
        for name in found.values:
            low, high = found.interval(name)
            hits += low <= design.strengths[int(name)] <= high
        intervals += len(found.values)
        (differences,) = correct([strength_differences(found)])
        false += any(
            one.better is not None and (design.spread == 0 or one.better != min(one.first, one.second, key=int))
            for one in differences
        )
    return {
        **asdict(design),
        "intervals": intervals,
        "coverage": float(hits / intervals),
        "contests_with_a_false_better": false / repetitions,
    }


def main() -> None:
    """Print a line for each design, then all as JSON."""
    parser = argparse.ArgumentParser(description="Coverage of the intervals of blend leaderboard.")
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--resamples", type=int, default=STRENGTH_RESAMPLES)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    results = []
    for design in DESIGNS:
        results.append(measure_coverage(design, arguments.repetitions, arguments.resamples, arguments.seed))
        print({key: round(value, 3) for key, value in results[-1].items()}, flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
