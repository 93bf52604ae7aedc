"""Accuracy on pairs of answers, with an interval that counts prompts: pairs of one prompt are not independent."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 4000
_ENDS = (0.025, 0.975)


@dataclass(frozen=True, slots=True)
class PairAccuracy:
    """Share of pairs with the right winner; a tie counts half.

    Attributes:
        low: Lower end of the 95% interval, by bootstrap over prompts.
        high: Its upper end.
        prompts: Prompts that the pairs are of.
    """

    accuracy: float
    low: float
    high: float
    pairs: int
    prompts: int

    def text(self) -> str:
        """The figures in words."""
        return (
            f"{self.accuracy:.3f} (95% interval {self.low:.3f} to {self.high:.3f}, {self.pairs:,} pairs of "
            f"{self.prompts:,} prompts)"
        )


def pair_accuracy(
    prompts: Sequence[int], leads: Sequence[float], better: Sequence[float], *, seed: int = 0
) -> PairAccuracy:
    """Accuracy of leads.

    Args:
        prompts: Prompt of each pair; at least one pair.
        leads: By how much the first answer of each pair leads, 0 for a tie.
        better: By how much it is better; not 0.
        seed: Of the bootstrap.

    Returns:
        The accuracy.
    """
    right = _right(leads, better)
    hits, counts, drawn = _drawn(prompts, right, seed)
    low, high = np.quantile(drawn @ hits / (drawn @ counts), _ENDS)
    return PairAccuracy(float(right.mean()), float(low), float(high), len(right), len(counts))


def accuracy_gain(
    prompts: Sequence[int],
    before: Sequence[float],
    after: Sequence[float],
    better: Sequence[float],
    *,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Accuracy of the leads `after` less that of the leads `before` on the same pairs.

    Returns:
        The difference and its 95% interval, by bootstrap over prompts; see `pair_accuracy` for the arguments.
    """
    gain = _right(after, better) - _right(before, better)
    gains, counts, drawn = _drawn(prompts, gain, seed)
    low, high = np.quantile(drawn @ gains / (drawn @ counts), _ENDS)
    return float(gain.mean()), float(low), float(high)


def _right(leads: Sequence[float], better: Sequence[float]) -> NDArray[np.float64]:
    right: NDArray[np.float64] = (np.sign(np.asarray(leads)) * np.sign(np.asarray(better)) + 1) / 2
    return right


def _drawn(
    prompts: Sequence[int], values: NDArray[np.float64], seed: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Sums and numbers of each prompt's values, and how often each resample draws each prompt."""
    _, prompt_of = np.unique(np.asarray(prompts), return_inverse=True)
    sums: NDArray[np.float64] = np.bincount(prompt_of, weights=values).astype(np.float64)
    counts = np.bincount(prompt_of)
    drawn = np.random.default_rng(seed).multinomial(len(counts), np.full(len(counts), 1 / len(counts)), RESAMPLES)
    return sums, counts, drawn
