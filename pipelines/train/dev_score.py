"""Scores of the candidates that a ranker chooses on held-out rows, measured while it trains.

The original's `dev_score` (`compute_metrics_for_pairranker`): all candidates of a row are compared, each pair in
both orders, and the score of the winner counts; beside it that of the best candidate, and the mean of all.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from llm_blender_ray.actors.tournaments.aggregation import aggregate
from llm_blender_ray.pipelines.train.pairs import TrainingPair, distinct_texts, score_lead
from llm_blender_ray.pipelines.train.rows import TrainingRow


def full_pairs(rows: Iterable[TrainingRow], metrics: Sequence[str]) -> Iterator[TrainingPair]:
    """All ordered pairs of each row's different texts: n(n - 1) of n.

    Args:
        rows: Rows with scored candidates.
        metrics: Names of the scores.

    Raises:
        BlendError: A score is missing.
    """
    for number, row in enumerate(rows):
        scores = row.scores(metrics)
        for left, right in permutations(distinct_texts(row.texts), 2):
            yield TrainingPair(number, left, right, score_lead(scores, left, right))


@dataclass(frozen=True, slots=True)
class Choices:
    """Scores of chosen candidates, means over rows.

    Attributes:
        by_metric: For each metric: `selected`, the score of the candidate that the ranker chooses; `oracle`, that
            of the candidate with the best mean over the metrics; `random`, the mean of all; `gain`, by how much
            `selected` is above `random`.
        dev_score: Mean of `selected` over the metrics.
    """

    by_metric: Mapping[str, Mapping[str, float]]
    dev_score: float

    def flat(self) -> dict[str, float]:
        """As the Trainer's logs have them: `dev_score`, `bartscore/selected` and the like."""
        of_metrics = {
            f"{metric}/{name}": x for metric, found in self.by_metric.items() for name, x in found.items()
        }
        return {"dev_score": self.dev_score, **of_metrics}


def chosen_scores(
    rows: Sequence[TrainingRow], pairs: Sequence[TrainingPair], logits: Sequence[float], metrics: Sequence[str]
) -> Choices:
    """Scores of the candidates that win the comparisons.

    Args:
        rows: Rows with scored candidates.
        pairs: Their `full_pairs`.
        logits: Of left over right, one for each pair.
        metrics: Names of the scores.
    """
    chosen = _winners(rows, pairs, logits)
    answered = [(i, np.asarray(row.scores(metrics))) for i, row in enumerate(rows) if row.texts]
    selected = np.mean([scores[chosen[i]] for i, scores in answered], axis=0)
    oracle = np.mean([scores[scores.mean(axis=1).argmax()] for _, scores in answered], axis=0)
    random = np.mean([scores.mean(axis=0) for _, scores in answered], axis=0)
    return Choices(
        {
            metric: {
                "selected": float(selected[i]),
                "oracle": float(oracle[i]),
                "random": float(random[i]),
                "gain": float(selected[i] - random[i]),
            }
            for i, metric in enumerate(metrics)
        },
        float(selected.mean()),
    )


def _winners(rows: Sequence[TrainingRow], pairs: Sequence[TrainingPair], logits: Sequence[float]) -> list[int]:
    """The best candidate of each row, as the strategy `full` ranks; the first one where there are no pairs."""
    found = [0] * len(rows)
    compared = zip(pairs, logits, strict=True)
    for number, of_row in groupby(compared, key=lambda one: one[0].row):
        cells = [(pair.left, pair.right, logit) for pair, logit in of_row]
        players = sorted({left for left, _, _ in cells})
        logits_PP = np.full((len(players), len(players)), np.nan)
        for left, right, logit in cells:
            logits_PP[players.index(left), players.index(right)] = logit
        texts = rows[number].texts
        copies_P = np.array([texts.count(texts[player]) for player in players])
        found[number] = players[int(aggregate("max-logits", logits_PP, copies_P).argmax())]
    return found


class ChoiceMetrics:
    """Accuracy and `Choices` of an evaluation, accumulated over its batches in the Trainer's interface."""

    def __init__(self, rows: Sequence[TrainingRow], pairs: Sequence[TrainingPair], metrics: Sequence[str]) -> None:
        """Start.

        Args:
            rows: Held-out rows.
            pairs: Their `full_pairs`, which are evaluated in this order.
            metrics: Names of the scores.
        """
        self._rows, self._pairs, self._metrics = rows, pairs, metrics
        self._logits: list[NDArray[Any]] = []

    def __call__(self, prediction: Any, compute_result: bool) -> dict[str, float]:
        """Add a batch; called by the Trainer.

        Args:
            prediction: The batch's `predictions`, the logits.
            compute_result: Whether it is the last batch.

        Returns:
            `accuracy` and `Choices.flat` after the last batch, else nothing.
        """
        self._logits.append(prediction.predictions.reshape(-1).float().cpu().numpy())
        if not compute_result:
            return {}
        logits = np.concatenate(self._logits)[: len(self._pairs)]
        self._logits.clear()
        better = np.array([sum(pair.lead) for pair in self._pairs])
        right = (np.sign(logits) * np.sign(better) + 1)[better != 0] / 2
        found = chosen_scores(self._rows, self._pairs, logits.tolist(), self._metrics)
        return {"accuracy": float(right.mean()) if len(right) else 0.5, **found.flat()}


def logits_only(logits: Any, labels: Tensor) -> Any:
    """What `ChoiceMetrics` takes of a batch."""
    return logits
