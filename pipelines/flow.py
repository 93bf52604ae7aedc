"""What stages make of a block: columns. Of a base LLM its candidates, of the ranker and the fuser theirs.

Through Ray Data flow the blocks' names alone. Rows and results are in the store, where every stage finds what it
needs of them: nothing is lost with a node, waits in memory, or is held by the driver.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from actors.errors import BlendError
from actors.records import CANDIDATE_TYPE, RESULT_COLUMNS, Blend, digest
from actors.stages import Fuse, Generate, Rank
from cluster.plan import Placement
from configs.schema import MAX_ERROR_RATE, BaseLLM, GenFuser, Judge, LLMFuser, PairRanker, RewardModel
from pipelines.accounts import Kind, added
from pipelines.store import Result, Store

STAGES: dict[Kind, type] = {"generate": Generate, "rank": Rank, "fuse": Fuse}
COLUMNS: dict[Kind, tuple[str, ...]] = {
    "generate": ("candidates",),
    "rank": ("ranking", "scores", "comparisons", "logits", "error"),
    "fuse": ("fused", "fused_from", "error"),
}
TYPES = {"candidates": pa.list_(CANDIDATE_TYPE), **RESULT_COLUMNS, "error": pa.string()}
ANSWERS = "answers"  # of a ranking: digests of the candidates' texts, by which its logits are found again
FLOWING = ("id", "instruction", "input", "prompt", "messages", "candidates", *RESULT_COLUMNS, "error")


@dataclass(frozen=True, slots=True)
class Step:
    """One stage of a run. key: the folder of its results; older: folders of other rankings of the same rows."""

    placement: Placement
    key: str
    older: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.placement.name

    @property
    def kind(self) -> Kind:
        match self.placement.settings:
            case PairRanker() | RewardModel() | Judge():
                return "rank"
            case GenFuser() | LLMFuser():
                return "fuse"
        return "generate"

    @property
    def max_error_rate(self) -> float:
        """Share of the rows asked on which it may fail; an LLM's own setting, also that of a judge or a fuser."""
        settings = self.placement.settings
        llm = settings.llm if isinstance(settings, Judge | LLMFuser) else settings
        return llm.max_error_rate if isinstance(llm, BaseLLM) else MAX_ERROR_RATE


@dataclass(frozen=True, slots=True)
class Work:
    """What is made of every block.

    llms: their names in the config's order, which is that of their candidates. prepare: done to the rows before any
    stage; finish: after all of them. Both must be importable by name.
    """

    steps: tuple[Step, ...]
    llms: tuple[str, ...] = ()
    prepare: Callable[[pa.Table], pa.Table] | None = None
    finish: Callable[[pa.Table], pa.Table] | None = None

    def fresh(self, rows: pa.Table) -> pa.Table:
        """The rows without what they came with of results that are made anew."""
        table = self.prepare(rows) if self.prepare else rows
        made = {column for step in self.steps if step.kind != "generate" for column in COLUMNS[step.kind]}
        for name in made - {"error"}:
            table = _with(table, name, pa.nulls(len(table), TYPES[name]))
        return table

    def seen_by(self, step: Step, store: Store, fingerprint: str, block: str, digest: str) -> pa.Table:
        """The rows of a block as a step sees them, with what the steps before it made.

        Raises BlendError when a result is gone that was there.
        """
        table = self.fresh(store.rows(fingerprint, block)).select(FLOWING)
        if step.kind == "generate":
            return table
        for before in self.steps[: self.steps.index(step)]:
            table = self.joined(table, before, self.result(before, store, digest, len(table)).table)
        return self.gathered(table)

    def result(self, step: Step, store: Store, digest: str, rows: int) -> Result:
        """What a step made of a block. Raises BlendError when it is gone or damaged."""
        result = store.result(step.key, digest)
        if result is None or len(result.table) != rows:
            raise BlendError(f"{store.root}: what {step.name} made of block {digest} is gone or damaged")
        return result

    def joined(self, table: pa.Table, step: Step, result: pa.Table) -> pa.Table:
        """The table with what a step made."""
        if step.kind == "generate":
            return table.append_column(_own(step.name), result.column("candidates"))
        for name in COLUMNS[step.kind]:
            table = _with(table, name, result.column(name))
        return table

    def gathered(self, table: pa.Table) -> pa.Table:
        """The table with all LLMs' candidates in the one column, after those that came with the row."""
        names = [name for name in map(_own, self.llms) if name in table.column_names]
        if not names:
            return table
        lists = [table.column(name).to_pylist() for name in ("candidates", *names)]
        rows = [[one for part in row for one in part or ()] for row in zip(*lists, strict=True)]
        return _with(table, "candidates", pa.array(rows, TYPES["candidates"])).drop_columns(names)


def _own(llm: str) -> str:
    return f"candidates of {llm}"


def _with(table: pa.Table, name: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, values)


def columns_of(kind: Kind, before: Sequence[Blend], after: Sequence[Blend]) -> pa.Table:
    """What a stage has added to blends, as columns."""
    if kind == "generate":
        new = [[candidate.to_row() for candidate in added] for added in added(before, after)]
        return pa.table({"candidates": pa.array(new, TYPES["candidates"])})
    columns: dict[str, list[Any]] = {"error": [blend.error for blend in after]}
    if kind == "fuse":
        columns["fused"] = [blend.fused for blend in after]
        columns["fused_from"] = [blend.fused_from if blend.fused is not None else None for blend in after]
    else:
        rankings = [blend.ranking for blend in after]
        columns["ranking"] = [ranking and ranking.order for ranking in rankings]
        for name in ("scores", "comparisons", "logits"):
            columns[name] = [ranking and getattr(ranking, name) for ranking in rankings]
    table = pa.table({name: pa.array(columns[name], TYPES[name]) for name in COLUMNS[kind]})
    if kind == "rank":
        answers = [[_mark(candidate.text) for candidate in blend.candidates] for blend in after]
        table = table.append_column(ANSWERS, pa.array(answers, pa.list_(pa.string())))
    return table


def known_scores(blends: Sequence[Blend], rankings: Sequence[pa.Table]) -> Mapping[bytes, float]:
    """The scores in older rankings of the same rows, for texts that are candidates still: see `Ranker.rank`."""
    known: dict[bytes, float] = {}
    for ranking in rankings:
        rows = ranking.select([ANSWERS, "logits"]).to_pylist()
        for blend, row in zip(blends, rows, strict=True):
            texts = {_mark(c.text): c.text for c in blend.candidates if c.text is not None}
            had = [texts.get(mark) for mark in row[ANSWERS]]
            for i, logits in enumerate(row["logits"] or ()):
                for j, logit in enumerate(logits):
                    left, right = had[i], had[j]
                    if logit is not None and left is not None and right is not None:
                        known[digest(blend.prompt, left, right)] = logit
    return known


def _mark(text: str | None) -> str | None:
    return None if text is None else hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
