"""The stage of a metric: scores of a row's answers by its references.

Metrics read the input alone, and each has a column of its own, so several are stages next to each other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pyarrow as pa

from llm_blender_ray.actors.metric_scores import METRIC_SCORES, MetricScores
from llm_blender_ray.actors.records import Blend
from llm_blender_ray.actors.scoring import ScoreAnswers, is_scorable, texts_to_score
from llm_blender_ray.actors.usage import TokenUsage
from llm_blender_ray.pipelines.bulk.row_stages.base import FAILED, RowStage
from llm_blender_ray.pipelines.rows.schema import INTERNAL


class ScoreRows(RowStage):
    """See `actors.scoring.ScoreAnswers`."""

    stage: ClassVar[Any] = ScoreAnswers
    columns: ClassVar[Mapping[str, pa.DataType]] = {"scored": METRIC_SCORES}
    result: ClassVar[str] = "scored"
    independent: ClassVar[bool] = True
    failure_verb: ClassVar[str] = "no score of"
    made: ClassVar[str] = "scores"

    @property
    def row_columns(self) -> tuple[str, ...]:
        """See base class."""
        return ()

    def values(self, blend: Blend) -> dict[str, Any]:
        """See base class."""
        made = blend.scored if blend.scored and blend.scored.error is None else None
        return {"scored": made and {"candidates": made.candidates, "fused": made.fused}}

    def restored(self, blend: Blend, row: Mapping[str, Any], usage: TokenUsage | None) -> Blend:
        """See base class."""
        made = row["scored"]
        if made is not None:
            return replace(blend, scored=MetricScores(tuple(made["candidates"]), made["fused"]))
        return replace(blend, scored=MetricScores(error=row[FAILED]) if row.get(FAILED) else None)

    def usage(self, blend: Blend) -> TokenUsage | None:
        """See base class."""
        return TokenUsage()

    def asks(self, blend: Blend) -> bool:
        """See base class."""
        return is_scorable(blend)

    def error(self, blend: Blend) -> str | None:
        """See base class. It is no error of the row, whose other scores hold."""
        return blend.scored.error if blend.scored else None

    def inputs(self, blend: Blend) -> list[Any]:
        """See base class."""
        return [*super().inputs(blend), blend.references, blend.fused]

    def joined(self, table: pa.Table, name: str, result: pa.Table) -> pa.Table:
        """See base class."""
        return table.append_column(scores_column(name), result.column("scored"))

    def numbers(self, after: Sequence[Blend]) -> dict[str, Any]:
        """See base class."""
        unknown = [blend for blend in after if blend.error is None and texts_to_score(blend)]
        return {"without_reference": sum(not blend.references for blend in unknown)}


def scores_column(metric: str) -> str:
    """Column of the stages that has a metric's scores; it is never written."""
    return f"{INTERNAL}scores by {metric}"
