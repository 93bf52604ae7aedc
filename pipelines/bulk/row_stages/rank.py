"""The ranker's stage: order, scores and logits of the candidates."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any, ClassVar

import pyarrow as pa

from llm_blender_ray.actors.errors import BLANK
from llm_blender_ray.actors.records import RESULT_COLUMNS, Blend, Ranking, digest
from llm_blender_ray.actors.stages import NOTHING_TO_RANK, RANKING_FAILED, Rank
from llm_blender_ray.actors.usage import TokenUsage
from llm_blender_ray.pipelines.bulk.row_stages.base import (
    ANSWERS,
    LEFT_OUT,
    UNPAID_CALLS,
    Journal,
    RowStage,
    current_places,
    mark_of,
)
from llm_blender_ray.pipelines.quality.ranker_signs import all_equal, orders_agree

_COUNTED = ("comparisons", "full", "both_orders", "agreeing", "left_out", "ranked", "constant")


class RankRows(RowStage):
    """See `actors.stages.Rank`."""

    stage: ClassVar[Any] = Rank
    columns: ClassVar[Mapping[str, pa.DataType]] = {
        **{name: RESULT_COLUMNS[name] for name in ("ranking", "scores", "comparisons", "logits")},
        "error": pa.string(),
    }
    result: ClassVar[str] = "ranking"
    error_prefixes: ClassVar[tuple[str, ...]] = (NOTHING_TO_RANK, RANKING_FAILED, BLANK)
    pair_settings: ClassVar[frozenset[str]] = frozenset({"strategy", "top_k"})
    failure_verb: ClassVar[str] = "no ranking of"
    made: ClassVar[str] = "ranking"

    def values(self, blend: Blend) -> dict[str, Any]:
        """See base class."""
        ranking = blend.ranking
        found = {name: ranking and getattr(ranking, name) for name in ("scores", "comparisons", "logits")}
        return {"ranking": ranking and ranking.order, **found, "error": blend.error}

    def restored(self, blend: Blend, row: Mapping[str, Any], usage: TokenUsage | None) -> Blend:
        """See base class."""
        return replace(blend, ranking=_ranking(row), error=row["error"], ranking_usage=usage)

    def usage(self, blend: Blend) -> TokenUsage | None:
        """See base class."""
        return blend.ranking_usage

    def left_out(self, blend: Blend) -> int:
        """See base class."""
        return blend.ranking.unreadable if blend.ranking and not blend.error else 0

    def unpaid(self, blend: Blend) -> int:
        """See base class."""
        return blend.ranking.unpaid if blend.ranking and not blend.error else 0

    def moved(self, blend: Blend, was: Mapping[str, Any]) -> dict[str, Any] | None:
        """See base class."""
        now = current_places(blend, was[ANSWERS])
        if was["ranking"] is None or any(now[i] is None for i in was["ranking"]):
            return None
        size = len(blend.candidates)
        scores: list[float | None] = [None] * size
        logits: list[list[float | None]] = [[None] * size for _ in range(size)]
        for i, to in enumerate(now):
            if to is not None:
                scores[to] = was["scores"][i]
                for j, other in enumerate(now):
                    if other is not None:
                        logits[to][other] = was["logits"][i][j]
        order = [now[i] for i in was["ranking"]]
        return {
            "ranking": order,
            "scores": scores,
            "comparisons": was["comparisons"],
            "logits": logits,
            "error": None,
        }

    def known(
        self, blends: Sequence[Blend], results: Sequence[pa.Table], journal: Journal
    ) -> Mapping[bytes, float]:
        """Scores in stored rankings of the rows, for current candidates: see `Ranker.rank`."""
        known: dict[bytes, float] = {}
        for ranking in results:
            rows = ranking.select([ANSWERS, "logits"]).to_pylist()
            for blend, row in zip(blends, rows, strict=True):
                texts = {mark_of(c.text): c.text for c in blend.candidates if c.text is not None}
                had = [texts.get(mark) for mark in row[ANSWERS] or ()]
                for i, logits in enumerate(row["logits"] or ()):
                    for j, logit in enumerate(logits):
                        left, right = had[i], had[j]
                        if logit is not None and left is not None and right is not None:
                            known[digest(blend.prompt, left, right)] = logit
        return known

    def numbers(self, after: Sequence[Blend]) -> dict[str, Any]:
        """See base class."""
        account = dict.fromkeys(_COUNTED, 0)
        for blend in after:
            if blend.ranking is not None and blend.error is None:
                for name, number in _counted(blend, blend.ranking).items():
                    account[name] += number
        return account


def _ranking(row: Mapping[str, Any]) -> Ranking | None:
    if row["ranking"] is None:
        return None
    logits = tuple(map(tuple, row["logits"]))
    left_out, unpaid = (row.get(name) or 0 for name in (LEFT_OUT, UNPAID_CALLS))
    order, scores = tuple(row["ranking"]), tuple(row["scores"])
    return Ranking(order, scores, logits, row["comparisons"], unreadable=left_out, unpaid=unpaid)


def _counted(blend: Blend, ranking: Ranking) -> dict[str, int]:
    """Count one ranking. Copies of one text count once; two logits of 0 agree."""
    firsts = list({c.text: i for i, c in reversed([*enumerate(blend.candidates)]) if c.text is not None}.values())
    pairs = [(ranking.logits[i][j], ranking.logits[j][i]) for i, j in combinations(firsts, 2)]
    both = [(forward, back) for forward, back in pairs if forward is not None and back is not None]
    in_one_order = [
        forward if back is None else back for forward, back in pairs if (forward is None) != (back is None)
    ]
    leads = [(forward - back) / 2 for forward, back in both] + [lead for lead in in_one_order if lead is not None]
    return {
        "comparisons": ranking.comparisons,
        "full": len(firsts) * (len(firsts) - 1),
        "both_orders": len(both),
        "agreeing": sum(orders_agree(*logits) for logits in both),
        "left_out": ranking.unreadable,
        "ranked": len(firsts) > 1,
        "constant": len(firsts) > 1 and all_equal(leads),
    }
