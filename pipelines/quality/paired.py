"""Differences of systems on the same prompts: intervals, p-values, and Holm's correction for their number."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

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

    def report(self) -> dict[str, Any]:
        """The difference as plain data, with `better`; None where no number is known."""
        numbers = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }
        return numbers | {"better": self.better}


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
    """Differences of the strengths of all pairs, with the standard error of the paired resamples.

    A p-value is no less than that of a permutation test can be on so few prompts.
    """
    least = 2.0 ** (1 - strengths.prompts)
    found = []
    for one, other in combinations(strengths.values, 2):
        value = strengths.values[one] - strengths.values[other]
        low, high = strengths.interval(one, other)
        error = strengths.standard_error(one, other)
        found.append(Difference(one, other, value, low, high, max(least, _normal_p(value, error))))
    return found


def mean_difference(first: str, second: str, gain: Mean) -> Difference | None:
    """Difference of two systems from the mean of their differences on the same rows; None for fewer than two rows.

    The p-value is that of a normal test. It is no less than that of a permutation test can be on so few rows.
    """
    if gain.value is None or gain.standard_error is None or gain.ci95_half_width is None:
        return None
    half = gain.ci95_half_width
    least = 2.0 ** (1 - gain.count)
    p = max(least, _normal_p(gain.value, gain.standard_error))
    return Difference(first, second, gain.value, gain.value - half, gain.value + half, p)


def _normal_p(value: float, error: float) -> float:
    return math.erfc(abs(value) / error / math.sqrt(2)) if error > 0 else float(value == 0)


def correct(families: Sequence[Sequence[Difference]]) -> list[list[Difference]]:
    """Differences with p-values corrected over all of them (Holm 1979: also right for dependent ones).

    `blend evaluate` and `blend report` correct, too, and need no statsmodels, whose `multipletests` gives the same.
    """
    p_K = np.array([one.p for family in families for one in family])
    order_K = np.argsort(p_K, kind="stable")
    stepped_K = np.maximum.accumulate((len(p_K) - np.arange(len(p_K))) * p_K[order_K])
    corrected_K = np.empty(len(p_K))
    corrected_K[order_K] = np.minimum(stepped_K, 1.0)
    corrected = iter(corrected_K.tolist())
    return [[replace(one, p_holm=next(corrected)) for one in family] for family in families]
