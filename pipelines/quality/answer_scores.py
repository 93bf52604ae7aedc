"""Scores of rows' answers: by metrics, each text once, and those that rows give."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_blender_ray.pipelines.quality.metrics import Metric
from llm_blender_ray.pipelines.rows.user_columns import column, references_of

CANDIDATE_SCORES, FUSED_SCORES = "scores", "fused_scores"  # of a candidate; of a row's fused answer


@dataclass(frozen=True, slots=True)
class AnswerScores:
    """Scores of one row's answers by one metric.

    Attributes:
        candidates: Score of each candidate; that of one without text is the metric's worst.
        fused: Score of the fused answer; None without one.
    """

    candidates: list[float]
    fused: float | None


def score_answers(
    rows: Sequence[Mapping[str, Any]], metrics: Mapping[str, Metric]
) -> list[dict[str, AnswerScores]]:
    """Score the candidates and fused answers of rows that have references.

    Args:
        rows: Rows of `rows.readers.read_rows`; their texts are one batch.
        metrics: Metrics by key, applicable to all rows.

    Returns:
        For each row, the scores by the metric's key.

    Raises:
        BlendError: A metric's scores are malformed.
    """
    texts = [list(dict.fromkeys(text for text in (*_texts(row), row["fused"]) if text is not None)) for row in rows]
    references = [of_row for of_row, some in zip(map(references_of, rows), texts, strict=True) for _ in some]
    flat = [text for some in texts for text in some]
    found: list[dict[str, AnswerScores]] = [{} for _ in rows]
    for key, metric in metrics.items():
        scores = iter(metric.checked_score(references, flat))
        for row, some, of_row in zip(rows, texts, found, strict=True):
            by_text: dict[str | None, float] = {text: next(scores) for text in some}
            of_row[key] = AnswerScores(
                [by_text.get(text, metric.score_without_text) for text in _texts(row)], by_text.get(row["fused"])
            )
    return found


def given_scores(candidates: Sequence[Mapping[str, Any]]) -> dict[str, list[float | None]]:
    """For each metric in `candidates[].scores`, its value for each candidate."""
    given = [json.loads(one["extra"]).get(CANDIDATE_SCORES) if one["extra"] else None for one in candidates]
    scores = [one if isinstance(one, dict) else {} for one in given]
    metrics = {name for one in scores for name, value in one.items() if _is_number(value)}
    return {name: [one[name] if _is_number(one.get(name)) else None for one in scores] for name in sorted(metrics)}


def given_fused_scores(row: Mapping[str, Any]) -> dict[str, float]:
    """For each metric in `fused_scores`, its value for the fused answer."""
    given = column(row, FUSED_SCORES)
    return {name: one for name, one in given.items() if _is_number(one)} if isinstance(given, dict) else {}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _texts(row: Mapping[str, Any]) -> list[str | None]:
    return [one["text"] for one in row["candidates"] or ()]
