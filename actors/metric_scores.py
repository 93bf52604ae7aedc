"""Scores of one row's answers by one metric (`blend score`)."""

from dataclasses import dataclass

import pyarrow as pa


@dataclass(frozen=True, slots=True)
class MetricScores:
    """Scores of a row's answers; those of a failed attempt are all None.

    Attributes:
        candidates: Score of each candidate; None for one without text.
        fused: Score of the fused answer; None without one.
        error: Reason why the metric gave no score.
    """

    candidates: tuple[float | None, ...] = ()
    fused: float | None = None
    error: str | None = None


METRIC_SCORES = pa.struct([("candidates", pa.list_(pa.float64())), ("fused", pa.float64())])
