"""What flows through a bulk run: blocks of rows, one to a row of the Ray Dataset, and what stages add to them.

A block is one row with its rows as a list of structs, so that Ray Data, which cuts and glues its own blocks as it
likes, never takes one apart: a stage's call is about exactly one. What a stage makes of it are columns: of a base
LLM its candidates, of the ranker and the fuser theirs.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import pyarrow as pa

from actors.records import CANDIDATE_TYPE, RESULT_COLUMNS, Blend, Ranking, digest
from actors.stages import Fuse, Generate, Rank
from cluster.plan import Placement
from configs.schema import Fuser, Judge, PairRanker, RewardModel

Kind = Literal["generate", "rank", "fuse"]
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
            case Fuser():
                return "fuse"
        return "generate"


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


def nested(block: str, table: pa.Table) -> pa.Table:
    """A table as one row."""
    rows = table.to_struct_array().combine_chunks()
    lists = pa.ListArray.from_arrays(pa.array([0, len(rows)], pa.int32()), rows)
    return pa.table({"block": [block], "rows": lists})


def flat(row: pa.Table) -> tuple[str, pa.Table]:
    """The block's digest and its table, of what `nested` made."""
    (block,) = row.column("block").to_pylist()
    rows = row.column("rows").combine_chunks()
    return block, pa.Table.from_struct_array(rows.flatten())


def columns_of(kind: Kind, before: Sequence[Blend], after: Sequence[Blend]) -> pa.Table:
    """What a stage has added to blends, as columns."""
    if kind == "generate":
        new = [
            [candidate.to_row() for candidate in done.candidates[len(had.candidates) :]]
            for had, done in zip(before, after, strict=True)
        ]
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


def account_of(kind: Kind, before: Sequence[Blend], after: Sequence[Blend]) -> dict[str, int]:
    """What a stage has done, as numbers of `board.Count` and `manifest.StageRecord`."""
    if kind == "generate":
        new = [c for had, done in zip(before, after, strict=True) for c in done.candidates[len(had.candidates) :]]
        return {
            "rows": len(after),
            "failed": sum(
                any(c.error for c in done.candidates[len(had.candidates) :])
                for had, done in zip(before, after, strict=True)
            ),
            "prompt_tokens": sum(c.prompt_tokens or 0 for c in new),
            "completion_tokens": sum(c.completion_tokens or 0 for c in new),
        }
    failed = sum(had.error is None and done.error is not None for had, done in zip(before, after, strict=True))
    account = {"rows": len(after), "failed": failed}
    if kind == "rank":
        account |= {"comparisons": 0, "full": 0, "both_orders": 0, "agreeing": 0}
        for blend in after:
            if blend.ranking is not None and blend.error is None:
                for name, number in _compared(blend, blend.ranking).items():
                    account[name] += number
    return account


def _compared(blend: Blend, ranking: Ranking) -> dict[str, int]:
    """Copies of one text count once; two logits of 0 say the same in both orders."""
    firsts = list({c.text: i for i, c in reversed([*enumerate(blend.candidates)]) if c.text is not None}.values())
    both = [
        (forward, back)
        for i, j in combinations(firsts, 2)
        if (forward := ranking.logits[i][j]) is not None and (back := ranking.logits[j][i]) is not None
    ]
    return {
        "comparisons": ranking.comparisons,
        "full": len(firsts) * (len(firsts) - 1),
        "both_orders": len(both),
        "agreeing": sum(forward * back < 0 or forward == back == 0 for forward, back in both),
    }


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
