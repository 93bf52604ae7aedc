"""The stage of an LLM judge: its comparisons of pairs of a row's answers.

Judges read the input alone, and each has a column of its own, so several are independent stages. Their replies are
journaled one by one: a killed run repeats no call that was answered.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, ClassVar

import pyarrow as pa

from llm_blender_ray.actors.errors import UNPAID
from llm_blender_ray.actors.judged_pairs import JUDGED_PAIR, JudgedAnswers, JudgedPair, JudgeReply
from llm_blender_ray.actors.judging import JudgePairs, Replies
from llm_blender_ray.actors.records import Blend
from llm_blender_ray.actors.usage import TokenUsage
from llm_blender_ray.pipelines.bulk.row_stages.base import FAILED, Journal, RowStage
from llm_blender_ray.pipelines.quality.error_kinds import ErrorKinds
from llm_blender_ray.pipelines.quality.judgements import SWAPPED
from llm_blender_ray.pipelines.rows.schema import INTERNAL


class JudgeRows(RowStage):
    """See `actors.judging.JudgePairs`."""

    stage: ClassVar[Any] = JudgePairs
    columns: ClassVar[Mapping[str, pa.DataType]] = {"judged": pa.list_(JUDGED_PAIR)}
    result: ClassVar[str] = "judged"
    independent: ClassVar[bool] = True
    journaled: ClassVar[bool] = True
    pair_settings: ClassVar[frozenset[str]] = frozenset({"pairs"})
    failure_verb: ClassVar[str] = "no verdict on"
    made: ClassVar[str] = "judgements"

    @property
    def row_columns(self) -> tuple[str, ...]:
        """See base class."""
        return ()

    def values(self, blend: Blend) -> dict[str, Any]:
        """See base class."""
        return {"judged": blend.judged and [one.to_row() for one in blend.judged.pairs]}

    def restored(self, blend: Blend, row: Mapping[str, Any], usage: TokenUsage | None) -> Blend:
        """See base class."""
        pairs = tuple(map(JudgedPair.from_row, row["judged"] or ()))
        return replace(blend, judged=JudgedAnswers(pairs, None if pairs else row.get(FAILED), usage))

    def usage(self, blend: Blend) -> TokenUsage | None:
        """See base class."""
        return blend.judged.usage if blend.judged else TokenUsage()

    def error(self, blend: Blend) -> str | None:
        """See base class. A row of which some pairs have a verdict did not fail."""
        if blend.judged is None:
            return None
        if blend.judged.error is not None:
            return blend.judged.error
        made = [one for one in blend.judged.pairs if one.key]
        return made[0].error if made and not any(one.preferred for one in made) else None

    def left_out(self, blend: Blend) -> int:
        """See base class."""
        return sum(one.error is not None for one in _distinct(blend))

    def unpaid(self, blend: Blend) -> int:
        """See base class."""
        return 0 if self.error(blend) else sum(UNPAID in (one.error or "") for one in _distinct(blend))

    def inputs(self, blend: Blend) -> list[Any]:
        """See base class."""
        return [*super().inputs(blend), [candidate.model for candidate in blend.candidates], blend.fused]

    def joined(self, table: pa.Table, name: str, result: pa.Table) -> pa.Table:
        """See base class."""
        return table.append_column(judged_column(name), result.column("judged"))

    def known(self, blends: Sequence[Blend], results: Sequence[pa.Table], journal: Journal) -> Replies:
        """See base class. Calls of finished results are counted there, so their replies have no usage here."""
        known = {
            pair["key"]: JudgeReply(pair["preferred"], pair["reply"])
            for result in results
            for pairs in result.column("judged").to_pylist()
            for pair in pairs or ()
            if pair["key"] and pair["preferred"]
        }
        for key, reply in journal.replies().items():
            known[key] = JudgeReply(**reply | {"usage": TokenUsage(**reply["usage"])})
        return Replies(known, lambda key, reply: journal.keep(key, asdict(reply)))

    def numbers(self, after: Sequence[Blend]) -> dict[str, Any]:
        """See base class. Errors are those of comparisons; comparisons, those with a verdict."""
        kinds = ErrorKinds()
        account = dict.fromkeys(("comparisons", "both_orders", "agreeing", "left_out"), 0)
        for blend in after:
            pairs = list(_distinct(blend))
            errors = [one.error for one in pairs if one.error is not None]
            if blend.judged is not None and blend.judged.error is not None:
                errors.append(blend.judged.error)
            for error in errors:
                kinds.add(error)
            found = {(one.left, one.right): one.preferred for one in pairs if one.preferred}
            both = [(one, found[right, left]) for (left, right), one in found.items() if (right, left) in found]
            account["comparisons"] += len(found)
            account["both_orders"] += len(both) // 2
            account["agreeing"] += sum(one == SWAPPED[other] for one, other in both) // 2
            account["left_out"] += sum(one.error is not None for one in pairs)
        return account | {"errors": kinds.counts}


def judged_column(judge: str) -> str:
    """Column of the stages that has a judge's comparisons; it is never written."""
    return f"{INTERNAL}judged by {judge}"


def _distinct(blend: Blend) -> Iterator[JudgedPair]:
    """Comparisons that the judge was asked for: one of each pair of texts."""
    if blend.judged is not None:
        yield from {one.key: one for one in reversed(blend.judged.pairs) if one.key}.values()
