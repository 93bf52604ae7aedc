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
    columns_of,
    finished,
    keep_earlier_results,
    merge_results,
    results_from_other_blocks,
    row_mark,
    rows_to_ask,
    rows_to_rerun,
)
from llm_blender_ray.pipelines.bulk.row_stages import ROW_STAGES
from llm_blender_ray.pipelines.bulk.row_stages.base import ANSWERS, FAILED, ROWS, Journal
from llm_blender_ray.pipelines.bulk.stages import StageSpec


@dataclass(frozen=True, slots=True)
class PendingRows:
    """Rows of a block that a stage has to run.

    Attributes:
        blends: All rows of the block, as the stage sees them.
        rows: Numbers of those to run.
        asked: Those to run.
        known: Results of pairs that are not made again (`RowStage.known`).
        earlier: Result of an earlier attempt at the block.
        old: Results of all rows that those of `rows` are merged into.
        spans: Actors and busy times of earlier results.
    """

    blends: list[Blend]
    rows: list[int]
    asked: list[Blend]
    known: Any
    earlier: Result | None
    old: pa.Table | None
    spans: Sequence[Sequence[Any]] = ()


class Reuse:
    """Earlier results of one stage in the work folder."""

    def __init__(
        self, step: StageSpec, store: CheckpointStore, elsewhere: Sequence[str] = (), attempt: int = 0
    ) -> None:
        """Reuse results of one stage.

        Args:
            step: The stage.
            store: Where results are.
            elsewhere: Names of results of blocks that an earlier input had and this one does not.
            attempt: Number of the attempt that runs.
        """
        self._step, self._store, self._elsewhere, self._attempt = step, store, elsewhere, attempt
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
        known = self._known(block, blends, old)
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
        if self._step.scorer:
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

    def _known(self, block: str, blends: Sequence[Blend], old: pa.Table | None) -> Any:
        """Results of pairs of these rows by this scorer, whichever pairs were chosen."""
        if not self._step.scorer:
            return {}
        found = [self._store.result(key, block) for key in self._step.older]
        tables = [one.table for one in found if one and one.account.get("scorer") == self._step.scorer]
        if old is not None:
            tables.append(old)
        tables = [table for table in tables if len(table) == len(blends) and ANSWERS in table.column_names]
        journal = StoredJournal(self._store, self._step.key, block, self._attempt)
        return ROW_STAGES[self._step.kind].known(blends, tables, journal)


class StoredJournal(Journal):
    """Journal in the work folder: one small file for each reply, until the block has its result."""

    def __init__(self, store: CheckpointStore, stage: str, block: str, attempt: int) -> None:
        """Use the journal of one attempt at a block by a stage, named as its results are."""
        self._store, self._stage, self._block, self._attempt = store, stage, block, attempt

    def replies(self) -> dict[str, dict[str, Any]]:
        """See base class."""
        return self._store.replies(self._stage, self._block, self._attempt)

    def keep(self, key: str, reply: Mapping[str, Any]) -> None:
        """See base class."""
        self._store.save_reply(self._stage, self._block, self._attempt, key, reply)


def _spans(account: Mapping[str, Any]) -> list[Sequence[Any]]:
    """Actor, start and end of each time that something worked on a result."""
    return [*account.get("earlier", ()), [account[name] for name in ("actor", "started", "ended")]]
