"""Pairs of a row's candidates that a ranker learns from or is measured on."""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.configs.training import PairSampling
from llm_blender_ray.pipelines.train.rows import TrainingRow


@dataclass(frozen=True, slots=True)
class TrainingPair:
    """Two candidates of a row.

    Attributes:
        row: Index of the row.
        left: Index of the left candidate.
        right: Index of the right candidate.
        lead: By how much left is better, per metric.
        weight: How much it counts, 1 in the mean.
    """

    row: int
    left: int
    right: int
    lead: tuple[float, ...]
    weight: float = 1.0


def sample_pairs(
    texts: Sequence[str],
    scores: Sequence[tuple[float, ...]],
    settings: PairSampling,
    rng: random.Random,
    row: int = 0,
) -> list[TrainingPair]:
    """Sample pairs of different texts and different scores, on random sides.

    Args:
        texts: The candidates of a row. A text that several have counts once, with the first one's score.
        scores: Each candidate's score by each metric.
        settings: Which pairs, and how many.
        rng: Decides pairs and sides.
        row: Index that the pairs carry.

    Returns:
        The pairs; none when all texts or all scores are equal.
    """
    best_first = sorted(distinct_texts(texts), key=lambda i: sum(scores[i]), reverse=True)
    chosen = [pair for pair in _chosen(best_first, scores, settings, rng) if scores[pair[0]] != scores[pair[1]]]
    sided = [pair if rng.random() < 0.5 else pair[::-1] for pair in chosen]
    return [TrainingPair(row, i, j, score_lead(scores, i, j)) for i, j in sided]


def distinct_texts(texts: Sequence[str]) -> list[int]:
    """Index of the first of each text, ascending."""
    first: dict[str, int] = {}
    for i, text in enumerate(texts):
        first.setdefault(text, i)
    return list(first.values())


def score_lead(scores: Sequence[tuple[float, ...]], left: int, right: int) -> tuple[float, ...]:
    """By how much one candidate is scored higher than another, per metric."""
    return tuple(a - b for a, b in zip(scores[left], scores[right], strict=True))


def _chosen(
    best_first: Sequence[int], scores: Sequence[tuple[float, ...]], settings: PairSampling, rng: random.Random
) -> list[tuple[int, int]]:
    """Pairs of the sampling; those with equal scores are still among them where the sampling goes by place."""
    if settings.sampling == "top_bottom":
        count = min(settings.per_row, len(best_first) - 1)
        return list(zip(best_first[:count], best_first[-count:], strict=True)) if count > 0 else []
    if settings.sampling == "uniform":
        places = best_first[:: int(1 / settings.ratio)]
        return list(pairwise(places))
    differing = [pair for pair in combinations(best_first, 2) if scores[pair[0]] != scores[pair[1]]]
    share = max(1, int(settings.ratio * len(best_first)))
    count = settings.per_row if settings.sampling == "all_pair" else share
    return rng.sample(differing, min(count, len(differing)))


def scored_pairs(
    rows: Iterable[TrainingRow], metrics: Sequence[str], settings: PairSampling, seed: int
) -> Iterator[TrainingPair]:
    """Sample the pairs of all rows, one row at a time.

    Args:
        rows: Rows with scored candidates.
        metrics: Names of the scores.
        settings: How pairs are sampled.
        seed: Decides pairs and sides.

    Yields:
        The pairs in the order of their rows.

    Raises:
        BlendError: A score is missing, or no two candidates of any row differ.
    """
    rng = random.Random(seed)
    found = False
    for i, row in enumerate(rows):
        for pair in sample_pairs(row.texts, row.scores(metrics), settings, rng, i):
            found = True
            yield pair
    if not found:
        raise BlendError("no row has two candidates with different texts and different scores to learn from")
