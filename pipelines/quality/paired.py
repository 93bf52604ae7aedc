"""Differences of systems on the same prompts: intervals, p-values, and Holm's correction for their number."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from llm_blender_ray.pipelines.quality.bradley_terry import Strengths
from llm_blender_ray.pipelines.quality.means import Mean

LEVEL = 0.05  # of all comparisons together
PERMUTATIONS = 9_999
_CHUNK = 256  # permutations at once


@dataclass(frozen=True, slots=True)
class Difference:
    """By how much the first system leads.

    Attributes:
        low: Lower end of the 95% interval, of this difference alone.
        high: Its upper end.
        p: Two-sided p-value of this difference alone.
        p_holm: The same, corrected for all comparisons made together.
    """

    first: str
    second: str
    value: float
    low: float
    high: float
    p: float
    p_holm: float = math.nan

    @property
    def better(self) -> str | None:
        """The better system; None where the difference does not hold after correction."""
        if not self.p_holm < LEVEL:
            return None
        return self.first if self.value > 0 else self.second


def paired_differences(
    values_P_S: np.ndarray, systems: Sequence[str], *, permutations: int = PERMUTATIONS, seed: int = 0
) -> list[Difference]:
    """Differences of means of all pairs of systems, prompt by prompt.

    The p-value is that of the permutation test that exchanges the two systems' values on random prompts; the
    interval is normal.

    Args:
        values_P_S: Value of each system on each prompt, NaN where it has none; higher is better.
        systems: Names of the systems.
        permutations: Random exchanges; the least p-value is 1 / (permutations + 1).
        seed: Of the exchanges.

    Returns:
        A difference for each pair with a prompt in common.
    """
    pairs = list(combinations(range(len(systems)), 2))
    gap_P_K = np.column_stack([values_P_S[:, i] - values_P_S[:, j] for i, j in pairs] or [values_P_S[:, :0]])
    known_P_K = np.isfinite(gap_P_K)
    zeroed_P_K = np.where(known_P_K, gap_P_K, 0.0)
    total_K = np.abs(zeroed_P_K.sum(axis=0))
    bar_K = total_K * (1 - 1e-9)  # sums of equal terms in another order differ by rounding
    rng = np.random.default_rng(seed)
    beyond_K = np.zeros(len(pairs))
    for start in range(0, permutations, _CHUNK):
        signs = rng.integers(0, 2, (min(_CHUNK, permutations - start), len(values_P_S)), dtype=np.int8) * 2.0 - 1
        beyond_K += (np.abs(signs @ zeroed_P_K) >= bar_K).sum(axis=0)
    found = []
    for at, (i, j) in enumerate(pairs):
        mean = Mean.of(gap_P_K[known_P_K[:, at], at])
        if mean.value is not None:
            half = mean.ci95_half_width if mean.ci95_half_width is not None else math.inf
            p = (1 + beyond_K[at]) / (permutations + 1)
            found.append(
                Difference(systems[i], systems[j], mean.value, mean.value - half, mean.value + half, float(p))
            )
    return found


def strength_differences(strengths: Strengths) -> list[Difference]:
    """Differences of the strengths of all pairs, with the standard error of the paired resamples."""
    found = []
    for one, other in combinations(strengths.values, 2):
        value = strengths.values[one] - strengths.values[other]
        low, high = strengths.interval(one, other)
        error = strengths.standard_error(one, other)
        p = math.erfc(abs(value) / error / math.sqrt(2)) if error > 0 else float(value == 0)
        found.append(Difference(one, other, value, low, high, p))
    return found


def correct(families: Sequence[Sequence[Difference]]) -> list[list[Difference]]:
    """Differences with Holm's corrected p-values over all of them (Holm 1979), which holds for dependent ones."""
    from statsmodels.stats.multitest import multipletests

    together = [one.p for family in families for one in family]
    corrected = iter(multipletests(together, method="holm")[1].tolist() if together else ())
    return [[replace(one, p_holm=next(corrected)) for one in family] for family in families]
