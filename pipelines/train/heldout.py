"""A trained ranker on held-out pairs, compared as when ranking: from its saved folder, in both orders."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.records import Matchup
from llm_blender_ray.actors.scorers.pairwise import PairwiseScorer
from llm_blender_ray.configs.schema import PairRanker
from llm_blender_ray.configs.training import PairSampling
from llm_blender_ray.pipelines.quality.pair_accuracy import PairAccuracy, accuracy_gain, pair_accuracy
from llm_blender_ray.pipelines.quality.ranker_signs import (
    all_equal,
    constant_sign,
    contradiction_sign,
    order_agreement,
    orders_agree,
)
from llm_blender_ray.pipelines.quality.rounding import fixed
from llm_blender_ray.pipelines.train.pairs import TrainingPair, sample_pairs
from llm_blender_ray.pipelines.train.rows import TrainingRow

CHANCE = 0.5


@dataclass(frozen=True, slots=True)
class HeldoutResult:
    """Held-out pairs after both comparisons.

    Attributes:
        pairs: The pairs; `lead` is by how much left is better.
        margins: (logit(left, right) - logit(right, left)) / 2 of each.
        accuracy: Of the margins.
        agreeing: Pairs with the same winner in both orders.
        constant: Rows on which no pair has a winner.
        ranked: Rows with a pair.
    """

    pairs: tuple[TrainingPair, ...]
    margins: tuple[float, ...]
    accuracy: PairAccuracy
    agreeing: int
    constant: int
    ranked: int

    def line(self) -> str:
        """Accuracy and consistency in one line."""
        return f"held-out accuracy {self.accuracy.text()}; {order_agreement(self.agreeing, len(self.pairs))}"

    def gain_over(self, before: Self) -> tuple[float, float, float]:
        """By how much the accuracy on the same pairs has risen, with the ends of its 95% interval."""
        better = [sum(pair.lead) for pair in self.pairs]
        return accuracy_gain([pair.row for pair in self.pairs], before.margins, self.margins, better)

    def gain_line(self, before: Self) -> str:
        """`gain_over` in one line."""
        values = [fixed(one, sign=True) for one in self.gain_over(before)]
        return "held-out accuracy {} (95% interval {} to {})".format(*values)

    def warnings(self) -> list[str]:
        """What makes the ranker useless: a constant score, orders that contradict each other, chance accuracy."""
        signs = [
            constant_sign(self.constant, self.ranked) or contradiction_sign(self.agreeing, len(self.pairs)),
            "at chance on held-out pairs: the interval of its accuracy reaches 0.500 or less"
            if self.accuracy.low <= CHANCE
            else None,
        ]
        return [sign for sign in signs if sign]


def heldout_pairs(
    rows: Sequence[TrainingRow], metrics: Sequence[str], per_row: int, seed: int
) -> list[TrainingPair]:
    """Random pairs of each row, easy and hard ones alike.

    Raises:
        BlendError: A score is missing, or no two candidates of any row differ.
    """
    rng = random.Random(seed)
    sampling = PairSampling(sampling="all_pair", per_row=per_row)
    pairs = [
        pair
        for i, row in enumerate(rows)
        for pair in sample_pairs(row.texts, row.scores(metrics), sampling, rng, i)
        if sum(pair.lead)
    ]
    if not pairs:
        raise BlendError("no held-out row has two candidates with different texts and different scores")
    return pairs


def measure_heldout(folder: str, rows: Sequence[TrainingRow], pairs: Sequence[TrainingPair]) -> HeldoutResult:
    """Compare held-out pairs in both orders.

    Args:
        folder: The ranker.
        rows: The held-out rows.
        pairs: Pairs of them, at least one.

    Returns:
        The result.

    Raises:
        ModelLoadError: The ranker can't be used.
    """
    matchups = [
        Matchup(rows[pair.row].prompt, *(rows[pair.row].texts[i] for i in (pair.left, pair.right)))
        for pair in pairs
    ]
    scorer = PairwiseScorer(PairRanker(model=folder))
    swapped = [Matchup(one.prompt, one.right, one.left) for one in matchups]
    logits = [float(score) for score in scorer.logits([*matchups, *swapped]) if isinstance(score, float)]
    asyncio.run(scorer.close())
    both = list(zip(logits[: len(pairs)], logits[len(pairs) :], strict=True))
    margins = [(forward - back) / 2 for forward, back in both]
    of_row: dict[int, list[float]] = {}
    for pair, margin in zip(pairs, margins, strict=True):
        of_row.setdefault(pair.row, []).append(margin)
    return HeldoutResult(
        pairs=tuple(pairs),
        margins=tuple(margins),
        accuracy=pair_accuracy([pair.row for pair in pairs], margins, [sum(pair.lead) for pair in pairs]),
        agreeing=sum(orders_agree(*one) for one in both),
        constant=sum(map(all_equal, of_row.values())),
        ranked=len(of_row),
    )
