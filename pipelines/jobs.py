"""The commands that work on whole datasets: what `blend run`, `rank`, `fuse`, `compare` and `plan` do."""

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
from ray.data import Dataset
from rich import box
from rich.console import Console
from rich.table import Table

from actors.errors import BlendError
from actors.records import Blend
from actors.stages import margin
from actors.tables import to_blends
from cluster.plan import Capacity, Plan, place, plan, spread
from cluster.session import LOCAL, address_of, capacity, local_capacity, session
from configs.schema import BlendConfig, Fuser, Ranker, RayCluster
from pipelines.batch import blended, running, watched
from pipelines.sinks import COMPARE_COLUMNS, Written, check_output, write
from pipelines.sources import read

RANK_RESULTS = ("ranking", "scores", "comparisons")
FUSE_RESULTS = ("fused", "fused_from")


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run wrote, for a person."""

    written: Written
    output: str

    def line(self) -> str:
        """One line: rows, errors, where."""
        errors = f", {self.written.errors} of them with an error" if self.written.errors else ""
        return f"{self.written.rows} rows{errors}: {self.output}"


def run_blend(config: BlendConfig, *, overwrite: bool = False) -> Summary:
    """`blend run`: `config.input` and `config.output` are set. Raises BlendError, also for too many bad rows."""
    assert config.input is not None and config.output is not None
    source = functools.partial(read, config.input, config.limit, config.rows_per_block)
    work = functools.partial(blended, take_best=config.fuser is None)
    results = (*RANK_RESULTS, *(("logits",) if config.matrix else ()), *FUSE_RESULTS)
    planned = functools.partial(plan, config)
    summary = _run(config.ray, planned, source, work, config.output, results, overwrite=overwrite)
    written = summary.written
    if written.rows and written.errors / written.rows > config.max_error_rate:
        raise BlendError(f"{summary.line()}; more than max_error_rate {config.max_error_rate:g} allows")
    return summary


def run_rank(
    settings: Ranker, input: str, output: str, *, matrix: bool = False, overwrite: bool = False
) -> Summary:
    """`blend rank`. Raises BlendError."""
    results = (*RANK_RESULTS, *(("logits",) if matrix else ()))
    return _run_stage("ranker", settings, input, output, results, overwrite=overwrite)


def run_fuse(settings: Fuser, input: str, output: str, *, overwrite: bool = False) -> Summary:
    """`blend fuse`: what ranking left in the rows stays there. Raises BlendError."""
    keep = (*RANK_RESULTS, "logits")
    return _run_stage("fuser", settings, input, output, FUSE_RESULTS, keep=keep, overwrite=overwrite)


def run_compare(settings: Ranker, input: str, output: str, *, overwrite: bool = False) -> Summary:
    """`blend compare`. Raises BlendError."""

    def work(dataset: Dataset, pools: Plan, board: Any) -> Dataset:
        pairs = dataset.map_batches(only_pairs, batch_format="pyarrow")
        return blended(pairs, pools, board).map_batches(with_margins, batch_format="pyarrow")

    results = ("margin", "preference", "comparisons")
    return _run_stage("ranker", settings, input, output, results, work=work, overwrite=overwrite)


def _run_stage(
    name: str,
    settings: Ranker | Fuser,
    input: str,
    output: str,
    results: Sequence[str],
    *,
    work: Callable[[Dataset, Plan, Any], Dataset] = blended,
    keep: Sequence[str] = (),
    overwrite: bool = False,
) -> Summary:
    """One stage over rows that have candidates, on the Ray that RAY_ADDRESS names or a local one."""

    def planned(have: Capacity) -> Plan:
        return Plan((place(name, spread(settings, have), have),), have)

    local = RayCluster(num_cpus=max(2, os.cpu_count() or 1))  # one to read, one for the model, if in turns
    source = functools.partial(read, input)
    return _run(local, planned, source, work, output, results, keep=keep, overwrite=overwrite)


def _run(
    cluster: RayCluster,
    planned: Callable[[Capacity], Plan],
    source: Callable[[], Dataset],
    work: Callable[[Dataset, Plan, Any], Dataset],
    output: str,
    results: Sequence[str],
    *,
    keep: Sequence[str] = (),
    overwrite: bool = False,
) -> Summary:
    """Plan, read, work, write: nothing expensive starts before the output and the plan are known to do."""
    check_output(output, overwrite)
    with running(cluster):
        pools = planned(capacity())
        pools.check()
        with watched(pools) as board:
            rows = source()
            dataset = work(rows, pools, board)
            written = write(dataset, output, source=rows, results=results, keep=keep, overwrite=overwrite)
    return Summary(written, output)


def only_pairs(table: pa.Table) -> pa.Table:
    """The table with an error in every row that hasn't exactly two candidates."""
    errors = [_not_a_pair(blend) for blend in to_blends(table)]
    return table.set_column(table.schema.get_field_index("error"), "error", pa.array(errors, pa.string()))


def _not_a_pair(blend: Blend) -> str | None:
    if blend.error is None and len(blend.candidates) != 2:
        return f"candidates: expected two to compare, got {len(blend.candidates)}"
    failed = next((c.error for c in blend.candidates if c.text is None), None)
    return blend.error or (f"candidates: one has no text: {failed}" if failed else None)


def with_margins(table: pa.Table) -> pa.Table:
    """The table with `margin`, and `preference` 0 or 1 (null for a tie), of rows that were ranked."""
    blends = to_blends(table)
    margins = [margin(blend.ranking) if blend.ranking and blend.error is None else None for blend in blends]
    preferences = [int(value < 0) if value else None for value in margins]
    for name, values in (("margin", margins), ("preference", preferences)):
        table = table.append_column(name, pa.array(values, COMPARE_COLUMNS[name]))
    return table


def show_plan(config: BlendConfig, gpus: int | None) -> None:
    """`blend plan`: print who takes what. Raises PlanError after that when it doesn't fit."""
    if address_of(config.ray) == LOCAL:
        have = local_capacity(config.ray)
    else:
        with session(config.ray):
            have = capacity()
    if gpus is not None:
        have = replace(have, gpus=float(gpus))
    pools = plan(config, have)
    console = Console()
    if not console.is_terminal:
        console.width = 120  # a file or pipe is not 80 columns wide
    console.print(plan_table(pools))
    pools.check()
    console.print("Everything fits at once.")


def plan_table(pools: Plan) -> Table:
    """A plan as a table: a line per pool, then the sums."""
    table = Table(box=box.SIMPLE)
    table.add_column("actors", no_wrap=True)
    table.add_column("run", overflow="fold")
    for name in ("replicas", "CPUs", "GPUs", "other"):
        table.add_column(name, justify="right", no_wrap=True)
    for pool in pools.placements:
        least, most = pool.replicas
        other = " ".join(f"{name}:{amount:g}" for name, amount in pool.placed.resources.items())
        replicas = str(least) if least == most else f"{least}..{most}"
        table.add_row(pool.name, pool.runs, replicas, f"{pool.num_cpus:g}", f"{pool.num_gpus:g}", other)
    table.add_section()
    needed, amounts = pools.needed(), pools.capacity.amounts()
    for label, values in (("needed, with reading", needed), ("there", amounts)):
        other = " ".join(f"{name}:{amount:g}" for name, amount in values.items() if name not in ("CPU", "GPU"))
        table.add_row(label, "", "", f"{values.get('CPU', 0):g}", f"{values.get('GPU', 0):g}", other)
    return table
