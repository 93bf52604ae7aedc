"""Reuse of earlier results in a block: which of its rows a stage still has to run, and the result of all of them.

Earlier results are those of an earlier attempt, of the same rows in other blocks of an earlier input, of another
config (`--update`), and the scores in other rankings of the same rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from llm_blender_ray.actors.records import Blend
from llm_blender_ray.actors.tables import to_blends
from llm_blender_ray.pipelines.bulk.accounts import account_of
from llm_blender_ray.pipelines.bulk.checkpoints import CheckpointStore, Result
from llm_blender_ray.pipelines.bulk.results import (
    ANSWERS,
    FAILED,
    ROWS,
    columns_of,
    finished,
    keep_earlier_results,
    known_scores,
    merge_results,
    results_from_other_blocks,
    row_mark,
    rows_to_ask,
    rows_to_rerun,
)
from llm_blender_ray.pipelines.bulk.stages import StageSpec

KnownScores = Mapping[bytes, float]  # see `Ranker.rank`


@dataclass(frozen=True, slots=True)
class PendingRows:
    """Rows of a block that a stage has to run.

    Attributes:
        blends: All rows of the block, as the stage sees them.
        rows: Numbers of those to run.
        asked: Those to run.
        known: Scores of their candidates that need no comparison.
        earlier: Result of an earlier attempt at the block.
        old: Results of all rows that those of `rows` are merged into.
        spans: Actors and busy times of earlier results.
    """

    blends: list[Blend]
    rows: list[int]
    asked: list[Blend]
    known: KnownScores
    earlier: Result | None
    old: pa.Table | None
    spans: Sequence[Sequence[Any]] = ()


class Reuse:
    """Earlier results of one stage in the work folder."""

    def __init__(self, step: StageSpec, store: CheckpointStore, elsewhere: Sequence[str] = ()) -> None:
        """Reuse results of one stage.

        Args:
            step: The stage.
            store: Where results are.
            elsewhere: Names of results of blocks that an earlier input had and this one does not.
        """
        self._step, self._store, self._elsewhere = step, store, elsewhere
        self._places: dict[str, str] | None = None  # names of results in `elsewhere` by the marks of their rows

    def pending(self, block: str, table: pa.Table, earlier: Result | None) -> PendingRows:
        """Find the rows of a block that have to run: without a result, with a failure, or with other inputs.

        Args:
            block: Name of the block.
            table: Its rows as the stage sees them.
            earlier: Result of an earlier attempt at the block.

        Returns:
            The rows, and what is reused for the others.
        """
        kind, blends = self._step.kind, to_blends(table)
        old = earlier.table if earlier is not None and len(earlier.table) == len(blends) else None
        spans = _spans(earlier.account) if earlier is not None else []
        if earlier is None and self._elsewhere:
            found = self._in_other_blocks(blends)
            old = results_from_other_blocks(kind, blends, [result.table for result in found])
            spans = [span for result in found for span in _spans(result.account)] if old is not None else []
        known = self._known_scores(block, blends, old)
        if old is None:
            return PendingRows(blends, list(range(len(blends))), blends, known, earlier, None, spans)
        rows = rows_to_rerun(kind, blends, old, retry=True)
        asked = rows_to_ask(kind, self._step.name, blends, old)
        return PendingRows(blends, rows, [asked[row] for row in rows], known, earlier, old, spans)

    def result(self, block: str, pending: PendingRows, done: Sequence[Blend], session: Mapping[str, Any]) -> Result:
        """Make the result of all rows of a block.

        Args:
            block: Name of the block.
            pending: Its rows as `pending` found them.
            done: What the stage made of `pending.asked`.
            session: Fields of the account: `attempt`, `actor`, `started`, `ended`.

        Returns:
            The result with its account.
        """
        kind = self._step.kind
        table = columns_of(kind, pending.asked, done)
        if pending.old is not None:
            table = merge_results(kind, pending.rows, pending.old, table)
        elif self._step.previous and (previous := self._store.result(self._step.previous, block)):
            table = keep_earlier_results(kind, done, table, previous.table)
        failed = table.column(FAILED).to_pylist() if kind != "generate" else ()
        account = account_of(kind, pending.blends, finished(pending.blends, kind, table), failed) | {**session}
        if kind == "rank":
            account["scorer"] = self._step.scorer
        if pending.spans:
            account["earlier"] = pending.spans
        if pending.earlier is not None:
            account["again"] = pending.earlier.account.get("again", 0) + len(pending.rows)
        return Result(table, account)

    def _in_other_blocks(self, blends: Sequence[Blend]) -> list[Result]:
        """Results of blocks of an earlier input that had some of these rows."""
        if self._places is None:
            marked: dict[str, str] = {}  # whole before other threads see it: blocks run concurrently
            for name in self._elsewhere:
                result = self._store.result(self._step.key, name)
                if result is not None and ROWS in result.table.column_names:
                    marked |= dict.fromkeys(result.table.column(ROWS).to_pylist(), name)
            self._places = marked
        places = {self._places.get(row_mark(self._step.kind, blend)) for blend in blends}
        found = [self._store.result(self._step.key, name) for name in sorted(name for name in places if name)]
        return [result for result in found if result is not None]

    def _known_scores(self, block: str, blends: Sequence[Blend], old: pa.Table | None) -> KnownScores:
        """Scores that this ranker gave to candidates of these rows, in this or another ranking."""
        if self._step.kind != "rank":
            return {}
        found = [self._store.result(key, block) for key in self._step.older]
        tables = [one.table for one in found if one and one.account.get("scorer") == self._step.scorer]
        if old is not None:
            tables.append(old)
        return known_scores(
            blends, [table for table in tables if len(table) == len(blends) and ANSWERS in table.column_names]
        )


def _spans(account: Mapping[str, Any]) -> list[Sequence[Any]]:
    """Actor, start and end of each time that something worked on a result."""
    return [*account.get("earlier", ()), [account[name] for name in ("actor", "started", "ended")]]
