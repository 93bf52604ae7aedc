"""Result of a stage for a block, as a table: its columns, and marks of the rows that are to be run again.

`inputs` marks the inputs of a ranking or fusion: if they differ, the row is run again. `failed` is the error of the
last attempt: a row with a ranking or a fusion keeps it when a new attempt fails, without an `error`.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from llm_blender_ray.actors.records import CANDIDATE_TYPE, USAGE_TYPE, Blend, Candidate
from llm_blender_ray.actors.stages import lacks_answer, with_new
from llm_blender_ray.actors.usage import TokenUsage, summed
from llm_blender_ray.configs.parts import Stage
from llm_blender_ray.pipelines.bulk.accounts import added
from llm_blender_ray.pipelines.bulk.row_stages import ROW_STAGES
from llm_blender_ray.pipelines.bulk.row_stages.base import (
    ANSWERS,
    FAILED,
    INPUTS,
    LEFT_OUT,
    ROWS,
    UNPAID_CALLS,
    USAGE,
    RowStage,
    inputs_of,
    mark_of,
)

CANDIDATES_TYPE = pa.list_(CANDIDATE_TYPE)
REFUSALS = "refused"  # of each candidate: `Candidate.refused`


def columns_of(kind: Stage, before: Sequence[Blend], after: Sequence[Blend]) -> pa.Table:
    """Make the table of what a stage has added to blends."""
    marks = pa.array([row_mark(kind, blend) for blend in before], pa.string())
    if kind == "generate":
        return _generated(added(before, after), marks)
    stage = ROW_STAGES[kind]
    values = [stage.values(blend) for blend in after]
    table = pa.table({name: pa.array([one[name] for one in values], of) for name, of in stage.columns.items()})
    answers = [[mark_of(candidate.text) for candidate in blend.candidates] for blend in after]
    own = {
        ANSWERS: pa.array(answers, pa.list_(pa.string())),
        INPUTS: pa.array([inputs_of(stage, blend) for blend in before], pa.string()),
        FAILED: pa.array(_failures(stage, before, after), pa.string()),
        LEFT_OUT: pa.array(map(stage.left_out, after), pa.int64()),
        UNPAID_CALLS: pa.array(map(stage.unpaid, after), pa.int64()),
        ROWS: marks,
        USAGE: _usages([stage.usage(blend) for blend in after]),
    }
    for name, column in own.items():
        table = table.append_column(name, column)
    return table


def _generated(rows: Sequence[Sequence[Candidate]], marks: pa.Array | pa.ChunkedArray) -> pa.Table:
    candidates = [[candidate.to_row() for candidate in row] for row in rows]
    refused = [[candidate.refused for candidate in row] for row in rows]
    usages = [[candidate.usage and candidate.usage.to_row() for candidate in row] for row in rows]
    return pa.table(
        {
            "candidates": pa.array(candidates, CANDIDATES_TYPE),
            REFUSALS: pa.array(refused, pa.list_(pa.string())),
            ROWS: marks,
            USAGE: pa.array(usages, pa.list_(USAGE_TYPE)),
        }
    )


def _usages(usages: Sequence[TokenUsage | None]) -> pa.Array:
    return pa.array([usage and usage.to_row() for usage in usages], USAGE_TYPE)


def candidates_of(table: pa.Table) -> list[list[Candidate]]:
    """Candidates of each row in a base LLM's result."""
    lists = [row or () for row in table.column("candidates").to_pylist()]
    refused, usages = (
        table.column(name).to_pylist() if name in table.column_names else [None] * len(lists)
        for name in (REFUSALS, USAGE)
    )
    return [
        [
            Candidate(**one, refused=why, usage=TokenUsage.from_row(usage))
            for one, why, usage in zip(row, reasons or [None] * len(row), used or [None] * len(row), strict=True)
        ]
        for row, reasons, used in zip(lists, refused, usages, strict=True)
    ]


def usages_of(kind: Stage, table: pa.Table) -> list[TokenUsage | None]:
    """Usage of each row in a stage's result; None where an earlier version stored the result."""
    if kind == "generate":
        return [summed(candidate.usage for candidate in row) for row in candidates_of(table)]
    if USAGE not in table.column_names:
        return [None] * len(table)
    return [TokenUsage.from_row(row) for row in table.column(USAGE).to_pylist()]


def without_usage(table: pa.Table) -> pa.Table:
    """A stage's result as a copy, for which no call is made."""
    others = table.select([name for name in table.column_names if name != USAGE])
    if "candidates" not in table.column_names:
        return others.append_column(USAGE, _usages([TokenUsage()] * len(table)))
    none = [[TokenUsage().to_row() for _ in row or ()] for row in table.column("candidates").to_pylist()]
    return others.append_column(USAGE, pa.array(none, pa.list_(USAGE_TYPE)))


def rows_to_rerun(kind: Stage, before: Sequence[Blend], had: pa.Table, *, retry: bool) -> list[int]:
    """Find the rows that a stage has to run again.

    Args:
        kind: Of the stage.
        before: The block's rows before the stage.
        had: Their results; null without one.
        retry: Whether failed rows are run again; otherwise only rows with other inputs are.

    Returns:
        Their numbers.
    """
    if kind == "generate":
        new = had.column("candidates").is_null().to_pylist()
        return [i for i, row in enumerate(candidates_of(had)) if new[i] or (retry and any(map(lacks_answer, row)))]
    if INPUTS not in had.column_names:
        return list(range(len(before)))
    columns = (had.column(name).to_pylist() for name in (INPUTS, FAILED, LEFT_OUT))
    return [
        i
        for i, (blend, inputs, failed, left_out) in enumerate(zip(before, *columns, strict=True))
        if inputs != inputs_of(ROW_STAGES[kind], blend) or (retry and (failed is not None or left_out))
    ]


def rows_to_ask(kind: Stage, name: str, before: Sequence[Blend], had: pa.Table) -> list[Blend]:
    """The rows for another run of a stage: for a base LLM with its own candidates in place."""
    if kind != "generate":
        return list(before)
    made = candidates_of(had)
    return [
        replace(blend, candidates=with_new(blend.candidates, {name: own}, [name]))
        for blend, own in zip(before, made, strict=True)
    ]


def merge_results(kind: Stage, rows: Sequence[int], had: pa.Table, new: pa.Table) -> pa.Table:
    """Merge new results of some rows into the old ones of all.

    Args:
        kind: Of the stage.
        rows: Numbers of the rows that were run again.
        had: The old results.
        new: The new results of those rows; of a base LLM, the candidates that were missing.

    Returns:
        The table. A row with a ranking or a fusion keeps it if the new attempt failed, even if `inputs` shows that
        it has older inputs. The usage is of all attempts.
    """
    at = list(range(len(had)))
    if kind == "generate":
        made, answers = candidates_of(had), candidates_of(new)
        nothing = had.column("candidates").is_null().to_pylist()
        for row, fresh in zip(rows, answers, strict=True):
            left = list(fresh)
            if nothing[row]:
                made[row] = left
            else:
                made[row] = [_retried(one, left.pop(0)) if lacks_answer(one) else one for one in made[row]]
        marks = had.column(ROWS).to_pylist() if ROWS in had.column_names else [None] * len(had)
        for row, mark in zip(rows, new.column(ROWS).to_pylist(), strict=True):
            marks[row] = marks[row] or mark
        return _generated(made, pa.array(marks, pa.string()))
    failures = new.column(FAILED).to_pylist()
    failed = had.column(FAILED).to_pylist()
    there, usages = had.column(INPUTS).is_valid().to_pylist(), usages_of(kind, had)
    new_usages = usages_of(kind, new)
    kept = [value is not None for value in had.column(ROW_STAGES[kind].result).to_pylist()]
    for number, row in enumerate(rows):
        usages[row] = summed([usages[row], new_usages[number]]) if there[row] else new_usages[number]
        if failures[number] is not None and kept[row]:
            failed[row] = failures[number]
        else:
            at[row] = len(had) + number
    whole = had.set_column(had.schema.get_field_index(FAILED), FAILED, pa.array(failed, pa.string()))
    merged = pa.concat_tables([whole, new], promote_options="default").take(pa.array(at, pa.int64()))
    return merged.set_column(merged.schema.get_field_index(USAGE), USAGE, _usages(usages)).combine_chunks()


def _retried(failed: Candidate, new: Candidate) -> Candidate:
    return replace(new, usage=summed([failed.usage, new.usage]))


def keep_earlier_results(kind: Stage, after: Sequence[Blend], new: pa.Table, earlier: pa.Table) -> pa.Table:
    """Give failed rows the results of another ranker or fuser, or of the same one with fewer candidates.

    Args:
        kind: Of the stage.
        after: The rows with their candidates.
        new: Their results.
        earlier: Results of the same rows before the config was changed.

    Returns:
        The new results; a failed row whose earlier candidates all exist keeps its earlier result, with the current
        indexes.
    """
    if ANSWERS not in earlier.column_names or len(earlier) != len(new):
        return new
    rows, old = new.to_pylist(), earlier.to_pylist()
    for blend, row, was in zip(after, rows, old, strict=True):
        if row[FAILED] is not None and (found := ROW_STAGES[kind].moved(blend, was)):
            row |= found
    return pa.Table.from_pylist(rows, schema=new.schema)


def results_from_other_blocks(kind: Stage, before: Sequence[Blend], earlier: Sequence[pa.Table]) -> pa.Table | None:
    """Find the results of rows that were in other blocks before the input changed.

    Args:
        kind: Of the stage.
        before: A block's rows before the stage.
        earlier: Results of blocks that no longer exist.

    Returns:
        A table of the block's rows, null without a result; None if no row has one.
    """
    tables = [table for table in earlier if ROWS in table.column_names]
    if not tables:
        return None
    whole = pa.concat_tables(tables, promote_options="default")
    places: dict[str, list[int]] = {}
    for at, mark in enumerate(whole.column(ROWS).to_pylist()):
        if mark is not None:
            places.setdefault(mark, []).append(at)
    marks = [row_mark(kind, blend) for blend in before]
    found = [places[mark].pop(0) if places.get(mark) else None for mark in marks]
    if all(at is None for at in found):
        return None
    return whole.take(pa.array(found, pa.int64())).combine_chunks()


def with_row_marks(kind: Stage, before: Sequence[Blend], table: pa.Table) -> pa.Table:
    """Results of equal rows as results of these rows."""
    marks = pa.array([row_mark(kind, blend) for blend in before], pa.string())
    others = [name for name in table.column_names if name != ROWS]
    return table.select(others).append_column(ROWS, marks)


def row_mark(kind: Stage, blend: Blend) -> str:
    """Mark of a row for a stage; rankings and fusions also have `inputs`."""
    prompt = blend.prompt
    parts: list[Any] = [prompt.id, prompt.instruction, prompt.input, prompt.messages]
    if kind == "generate":
        parts += [[(c.model, c.text, c.error) for c in blend.candidates], blend.error]
    return mark_of(json.dumps(parts, default=str)) or ""


def _failures(stage: RowStage, before: Sequence[Blend], after: Sequence[Blend]) -> list[str | None]:
    """Errors of the rows that the stage had to run."""
    return [stage.error(done) if stage.asks(had) else None for had, done in zip(before, after, strict=True)]


def finished(blends: Sequence[Blend], kind: Stage, table: pa.Table) -> list[Blend]:
    """Blends with the stored results of a ranker or fuser, for its account."""
    if kind == "generate":
        pairs = zip(blends, candidates_of(table), strict=True)
        return [replace(blend, candidates=(*blend.candidates, *own)) for blend, own in pairs]
    rows, usages = table.to_pylist(), usages_of(kind, table)
    restored = ROW_STAGES[kind].restored
    return [restored(blend, row, usage) for blend, row, usage in zip(blends, rows, usages, strict=True)]
