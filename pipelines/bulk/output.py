"""Output of a run from the stored results of every block, and the account of all of it."""

import contextlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray.data

from llm_blender_ray.actors.usage import USAGE_FIELDS
from llm_blender_ray.pipelines.bulk.checkpoints import Block, CheckpointStore, Index
from llm_blender_ray.pipelines.bulk.costs import row_costs
from llm_blender_ray.pipelines.bulk.manifest import StageRecord
from llm_blender_ray.pipelines.bulk.stages import StageGraph, StageSpec, pools
from llm_blender_ray.pipelines.bulk.tracker import reporting_failure
from llm_blender_ray.pipelines.quality.error_kinds import kind_of
from llm_blender_ray.pipelines.rows.schema import ROW_SCHEMA
from llm_blender_ray.pipelines.rows.writers import COST_COLUMNS, FileRecord, Sink, WrittenRows

_READ_AT_ONCE = 16
ROWS_PER_PIECE = 4096  # of a folder's parts, at least: thousands of tiny files are slow to read
_NUMBERS = (
    "rows",
    "asked",
    "failed",
    "unpaid",
    "retryable",
    "again",
    *USAGE_FIELDS,
    "uncounted",
    "comparisons",
    "full",
    "both_orders",
    "agreeing",
    "left_out",
    "without_reference",
    "ranked",
    "constant",
)


@dataclass
class Account:
    """Statistics and costs of the output's rows.

    Attributes:
        kinds: Rows by the kind of their error.
        bad: Rows that came with an error, likewise.
        failures: Rows on which a stage failed, likewise, by stage.
        spans: Busy times of each actor of a stage.
    """

    rows: int = 0
    errors: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)
    failures: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    numbers: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))  # by stage
    spans: dict[str, dict[str, list[tuple[float, float]]]] = field(default_factory=dict)  # by stage and actor

    def add(self, other: Mapping[str, Any]) -> None:
        """Add another account."""
        self.rows += other["rows"]
        self.errors += other["errors"]
        self.kinds.update(other["kinds"])
        self.bad.update(other["bad"])
        for stage, account in other["stages"]:
            self.numbers[stage].update({name: account[name] for name in _NUMBERS if name in account})
            if "uncounted" not in account:  # of a version that counted base LLMs' answers alone
                self.numbers[stage]["uncounted"] += account["rows"]
            self.failures[stage].update(account.get("errors", {}))
            actors = self.spans.setdefault(stage, {})
            own = (account["actor"], account["started"], account["ended"])
            for actor, started, ended in [*account.get("earlier", ()), own]:
                actors.setdefault(actor, []).append((started, ended))

    def stages(self, work: StageGraph, waves: Mapping[str, int]) -> tuple[StageRecord, ...]:
        """Records for the manifest.

        Args:
            work: All steps.
            waves: Wave of each stage, from 1.
        """
        seconds = self._seconds(work)
        return tuple(
            StageRecord(
                name=step.name,
                kind=step.kind,
                runs=step.placement.settings.label,
                wave=waves[step.name],
                replicas=step.placement.replicas,
                seconds=round(seconds[step.name], 3),
                errors=dict(self.failures[step.name].most_common()),
                max_error_rate=step.max_error_rate,
                scorer=getattr(step.placement.settings, "kind", None) if step.kind == "rank" else None,
                **{"rows": 0, "failed": 0, **self.numbers[step.name], **_not_uncounted(step)},
            )
            for step in work.steps
        )

    def _seconds(self, work: StageGraph) -> dict[str, float]:
        """Busy time of each stage, summed over actors; stages with the same actors divide theirs by their own."""
        seconds: dict[str, float] = {}
        for pool in pools(work.steps):
            spans = [self.spans.get(step.name, {}) for step in pool]
            own = [sum(map(covered_seconds, one.values())) for one in spans]
            actors = {actor for one in spans for actor in one}
            busy = sum(covered_seconds([span for one in spans for span in one.get(actor, ())]) for actor in actors)
            total = sum(own) or 1.0
            seconds |= {step.name: busy * one / total for step, one in zip(pool, own, strict=True)}
        return seconds


def _not_uncounted(step: StageSpec) -> dict[str, int]:
    """Nothing is uncounted of a ranker that is no LLM, whatever version stored its results."""
    return {"uncounted": 0} if step.kind == "rank" and step.llm is None else {}


def covered_seconds(spans: Iterable[tuple[float, float]]) -> float:
    """Total length of the union of intervals."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def write_output(
    store: CheckpointStore,
    index: Index,
    work: StageGraph,
    sinks: Sequence[Sink],
    tracker: Any,
    *,
    costs: bool = False,
) -> tuple[Account, list[list[FileRecord]]]:
    """Write every row of the run to each sink.

    Returns:
        The account, and the files of each sink.

    Raises:
        BlendError: Something cannot be written.
    """
    named = zip(index.blocks, index.names, strict=True)
    groups = [[(b.file, name, b.rows) for b, name in group] for group in grouped(list(named))]
    items = [{"number": i, "blocks": group} for i, group in enumerate(groups)]
    dataset = ray.data.from_items([{"group": json.dumps(item)} for item in items], override_num_blocks=len(items))
    dataset.context.execution_options.preserve_order = True  # its own copy
    done = dataset.map(_Assembler(store, index.fingerprint, work, tuple(sinks), tracker, costs))
    account = Account()
    with contextlib.ExitStack() as stack:
        written = [stack.enter_context(sink.writing()) for sink in sinks]
        for row in done.iter_rows():
            account.add(json.loads(row["account"]))
            for one, made, data in zip(written, json.loads(row["pieces"]), row["data"], strict=True):
                file = FileRecord.model_validate(made["file"]) if made["file"] else None
                one.add(WrittenRows(made["rows"], data, file))
    return account, [one.files for one in written]


def grouped(blocks: Sequence[tuple[Block, str]]) -> Iterator[list[tuple[Block, str]]]:
    """Groups of consecutive blocks with enough rows; one empty group when there are none."""
    group: list[tuple[Block, str]] = []
    for block in blocks:
        group.append(block)
        if sum(one.rows for one, _ in group) >= ROWS_PER_PIECE:
            yield group
            group = []
    if group or not blocks:
        yield group


@dataclass(frozen=True)
class _Assembler:
    """Task that writes one group of blocks to every sink, and returns its account."""

    store: CheckpointStore
    fingerprint: str
    work: StageGraph
    sinks: tuple[Sink, ...]
    tracker: Any
    costs: bool

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        group = json.loads(row["group"])
        with reporting_failure(self.tracker):
            with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
                blocks = list(pool.map(self._block, group["blocks"]))
            rows = pa.concat_tables([done.table for done in blocks]) if blocks else ROW_SCHEMA.empty_table()
            pieces = [sink.piece(group["number"], rows) for sink in self.sinks]
        errors = [error for error in rows.column("error").to_pylist() if error is not None]
        account = {
            "rows": len(rows),
            "errors": len(errors),
            "kinds": Counter(map(kind_of, errors)),
            "bad": Counter(kind_of(error) for done in blocks for error in done.bad),
            "stages": [account for done in blocks for account in done.accounts],
        }
        made = [{"rows": p.rows, "file": p.file.model_dump() if p.file else None} for p in pieces]
        return {"account": json.dumps(account), "pieces": json.dumps(made), "data": [p.data for p in pieces]}

    def _block(self, block: tuple[str, str, int]) -> "_Done":
        file, name, rows = block
        table, accounts = self.work.fresh(self.store.rows(self.fingerprint, file)), []
        bad = [error for error in table.column("error").to_pylist() if error is not None]
        costs: list[float | None] = [None] * rows
        for step in self.work.steps:
            result = self.work.result(step, self.store, name, rows)
            table = self.work.joined(table, step, result.table)
            accounts.append((step.name, result.account))
            costs = row_costs(costs, step, result.table)
        table = self.work.gathered(table)
        if self.costs:
            for column, kind in COST_COLUMNS.items():
                others = [name for name in table.column_names if name != column]  # it may be the input's
                table = table.select(others).append_column(column, pa.array(costs, kind))
        return _Done(self.work.finish(table) if self.work.finish else table, accounts, bad)


@dataclass(frozen=True)
class _Done:
    """Finished rows of one block, each stage's account of them, and their input errors."""

    table: pa.Table
    accounts: list[tuple[str, dict[str, Any]]]
    bad: list[str]
