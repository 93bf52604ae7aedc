"""Accuracy on pairs of answers, with an interval that counts prompts: pairs of one prompt are not independent."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 4000


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
    right = (np.sign(np.asarray(leads)) * np.sign(np.asarray(better)) + 1) / 2
    _, prompt_of = np.unique(np.asarray(prompts), return_inverse=True)
    hits, counts = np.bincount(prompt_of, weights=right), np.bincount(prompt_of)
    drawn = np.random.default_rng(seed).multinomial(len(counts), np.full(len(counts), 1 / len(counts)), RESAMPLES)
    low, high = np.quantile(drawn @ hits / (drawn @ counts), (0.025, 0.975))
    return PairAccuracy(float(right.mean()), float(low), float(high), len(right), len(counts))
