"""Equal blocks: deterministic results are made once and copied; sampled ones are made for each block.

A result is copied only if nothing in it failed: a short outage affects only the rows that it hit. A copy has no
usage: no LLM was called for it.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import pyarrow as pa

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.records import Blend
from llm_blender_ray.actors.tables import to_blends
from llm_blender_ray.actors.usage import TokenUsage
from llm_blender_ray.pipelines.bulk.checkpoints import Block, CheckpointStore, Index, Result
from llm_blender_ray.pipelines.bulk.results import with_row_marks, without_usage
from llm_blender_ray.pipelines.bulk.retry import Todo
from llm_blender_ray.pipelines.bulk.row_stages import ROW_STAGES
from llm_blender_ray.pipelines.bulk.row_stages.base import INPUTS, inputs_of
from llm_blender_ray.pipelines.bulk.stages import StageGraph, StageSpec

Named = Mapping[str, Block]  # blocks by the names of their results


def representatives(blocks: Named, work: StageGraph, wave: Sequence[StageSpec], todo: Todo) -> Todo:
    """One of several equal blocks, which is run first, by the steps whose results the others can take."""
    first: Todo = {}
    for step in wave:
        equal: dict[str, list[str]] = defaultdict(list)
        for name, block in blocks.items():
            if name in todo[step.name]:
                equal[block.digest].append(name)
        if work.shared(step) and any(len(names) > 1 for names in equal.values()):
            first[step.name] = {names[0] for names in equal.values()}
    return first


def copy_results(
    store: CheckpointStore, index: Index, work: StageGraph, wave: Sequence[StageSpec], todo: Todo
) -> Todo:
    """Copy results between equal blocks, also from those of an earlier input.

    Args:
        store: The results.
        index: The input.
        work: All steps.
        wave: The steps to do this for, in order.
        todo: What they lack; what is copied is removed.

    Returns:
        What was copied.
    """
    copied: Todo = {}
    blocks = dict(zip(index.names, index.blocks, strict=True))
    for step in wave:
        if not work.shared(step) or not todo[step.name]:
            continue
        there: dict[str, list[str]] = defaultdict(list)
        for name in sorted(store.done(step.key)):
            there[name.partition("-")[0]].append(name)
        for name, block in blocks.items():
            others = there[block.digest] if name in todo[step.name] else []
            if name not in others and (found := _found(store, index, work, step, block, name, others)):
                store.save_result(step.key, name, found)
                copied.setdefault(step.name, set()).add(name)
        todo[step.name] -= copied.get(step.name, set())
    return copied


def _found(
    store: CheckpointStore,
    index: Index,
    work: StageGraph,
    step: StageSpec,
    block: Block,
    name: str,
    there: Sequence[str],
) -> Result | None:
    """Result of an equal block without failures, made of the same candidates."""
    if not there:
        return None
    try:
        seen = to_blends(work.seen_by(step, store, index.fingerprint, block.file, name))
    except BlendError:  # an earlier step is not done
        return None
    for other in there:
        result = store.result(step.key, other)
        if result is None or len(result.table) != len(seen):
            continue
        if not (result.account.get("failed") or result.account.get("retryable")) and _same(
            step, seen, result.table
        ):
            account = {**result.account, "ended": result.account.get("started", 0.0), "earlier": [], "again": 0}
            account |= {**TokenUsage().to_row(), "uncounted": 0}
            return Result(without_usage(with_row_marks(step.kind, seen, result.table)), account)
    return None


def _same(step: StageSpec, seen: Sequence[Blend], table: pa.Table) -> bool:
    if step.kind == "generate":
        return True
    inputs = [inputs_of(ROW_STAGES[step.kind], blend) for blend in seen]
    return INPUTS in table.column_names and table.column(INPUTS).to_pylist() == inputs
