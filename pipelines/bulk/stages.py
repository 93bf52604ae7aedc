"""Stages of a run on a block: a base LLM's candidates, the ranker's and the fuser's columns.

Only the blocks' names travel through Ray Data. Rows and results are in the store, where every stage finds its
inputs:
nothing is lost with a node, waits in memory, or is held by the driver.

A result belongs to one place in the input: what is sampled for a block is no other block's answer. Deterministic
results are made once and copied (`pipelines.bulk.deduplication`).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from llm_blender_ray.actors.prices import TokenPrice
from llm_blender_ray.actors.records import REFERENCE_COLUMN, RESULT_COLUMNS, Candidate
from llm_blender_ray.actors.stages import Generate, with_new
from llm_blender_ray.cluster.placement import Placement
from llm_blender_ray.configs.parts import Stage
from llm_blender_ray.configs.schema import MAX_ERROR_RATE, BaseLLM
from llm_blender_ray.pipelines.bulk.checkpoints import CheckpointStore, Result
from llm_blender_ray.pipelines.bulk.checksums import DamagedError
from llm_blender_ray.pipelines.bulk.results import CANDIDATES_TYPE
from llm_blender_ray.pipelines.bulk.row_stages import ROW_STAGES

STAGES: dict[Stage, Any] = {"generate": Generate, **{kind: one.stage for kind, one in ROW_STAGES.items()}}
FLOWING = ("id", "instruction", "input", "prompt", "messages", "candidates", *RESULT_COLUMNS, "error")


@dataclass(frozen=True, slots=True)
class StageSpec:
    """One stage of a run.

    Attributes:
        placement: Of the part, by its name.
        key: Folder of its results.
        older: Folders of other rankings of the same rows.
        previous: Folder of its results before the config was changed (`--update`).
        scorer: Of a ranker, the key of its scores of two answers (`keys.scorer_key`).
        price: Price of its LLM's tokens; None for no or an unknown one.
        shared: Placement of the actors that it shares with other base LLMs; None: they are its own.
    """

    placement: Placement
    key: str
    older: tuple[str, ...] = ()
    previous: str | None = None
    scorer: str = ""
    price: TokenPrice | None = None
    shared: Placement | None = None

    @property
    def actors(self) -> Placement:
        """Placement of its actors."""
        return self.shared or self.placement

    @property
    def name(self) -> str:
        """Name of its placement."""
        return self.placement.name

    @property
    def kind(self) -> Stage:
        """Kind of the stage."""
        return self.placement.settings.stage

    @property
    def llm(self) -> BaseLLM | None:
        """Its LLM: a base LLM, a judge's or a fuser's."""
        return self.placement.settings.prompted_llm

    @property
    def deterministic(self) -> bool:
        """Whether equal rows always get equal results: it does not sample, or samples with a seed."""
        return self.placement.settings.deterministic

    @property
    def max_error_rate(self) -> float:
        """Share of the rows run that may fail; an LLM's own setting, also that of a judge or a fuser."""
        return self.llm.max_error_rate if self.llm else MAX_ERROR_RATE


@dataclass(frozen=True, slots=True)
class StageGraph:
    """Stages of a run on every block.

    Attributes:
        llms: Names of the base LLMs in the config's order, which is that of their candidates.
        prepare: Applied to the rows before any stage. Importable by name, like `finish`.
        finish: Applied to the rows after all stages.
        attempt: Number of retries (`--retry-failed`): failures of an earlier attempt are run again.
    """

    steps: tuple[StageSpec, ...]
    llms: tuple[str, ...] = ()
    prepare: Callable[[pa.Table], pa.Table] | None = None
    finish: Callable[[pa.Table], pa.Table] | None = None
    attempt: int = 0

    def shared(self, step: StageSpec) -> bool:
        """Whether equal blocks get equal results of a step, so that one's can be copied to another."""
        return all(one.deterministic for one in (*self.before(step), step))

    def before(self, step: StageSpec) -> tuple[StageSpec, ...]:
        """The steps whose results a step reads."""
        return () if is_independent(step.kind) else self.steps[: self.steps.index(step)]

    def fresh(self, rows: pa.Table) -> pa.Table:
        """The rows without input values of results that are made again."""
        table = self._without_old_failures(rows)
        table = self.prepare(table) if self.prepare else table
        stages = [ROW_STAGES[step.kind] for step in self.steps if step.kind in ROW_STAGES]
        made = {name: stage.columns[name] for stage in stages for name in stage.row_columns if name != "error"}
        for name, kind in made.items():
            table = _with(table, name, pa.nulls(len(table), kind))
        return table

    def _without_old_failures(self, table: pa.Table) -> pa.Table:
        """Drop errors of an earlier run in a stage that this one has too."""
        kinds = {step.kind for step in self.steps}
        ranked = kinds | ({"rank"} if "generate" in kinds else set())  # what failed without candidates, too
        ours = [prefix for kind, stage in ROW_STAGES.items() if kind in ranked for prefix in stage.error_prefixes]
        errors = table.column("error")
        if errors.null_count == len(table):
            return table
        left = [None if error and error.startswith(tuple(ours)) else error for error in errors.to_pylist()]
        return _with(table, "error", pa.array(left, pa.string()))

    def seen_by(self, step: StageSpec, store: CheckpointStore, fingerprint: str, file: str, name: str) -> pa.Table:
        """Rows of a block as input of a step, with the results of the steps before it.

        Raises:
            DamagedError: Rows or a result are missing or damaged.
        """
        table = self.fresh(store.rows(fingerprint, file))
        table = table.select([name for name in (*FLOWING, REFERENCE_COLUMN) if name in table.column_names])
        if is_independent(step.kind):
            return table
        for before in self.before(step):
            table = self.joined(table, before, self.result(before, store, name, len(table)).table)
        return self.gathered(table)

    def result(self, step: StageSpec, store: CheckpointStore, name: str, rows: int) -> Result:
        """Result of a step for a block.

        Raises:
            DamagedError: It is missing or damaged.
        """
        result = store.result(step.key, name)
        if result is not None and len(result.table) != rows:
            store.forget_result(step.key, name)  # it will be made again
            result = None
        if result is None:
            raise DamagedError(f"{store.root}: what {step.name} made of block {name} is gone or damaged")
        return result

    def joined(self, table: pa.Table, step: StageSpec, result: pa.Table) -> pa.Table:
        """The table with a step's result."""
        if step.kind == "generate":
            return table.append_column(_own(step.name), result.column("candidates"))
        return ROW_STAGES[step.kind].joined(table, step.name, result)

    def gathered(self, table: pa.Table) -> pa.Table:
        """The table with all LLMs' candidates in one column, after given ones.

        A given candidate with an error is replaced by its model's new one.
        """
        names = [name for name in map(_own, self.llms) if name in table.column_names]
        if not names:
            return table
        models = [name for name in self.llms if _own(name) in names]
        given = [[Candidate(**one) for one in row or ()] for row in table.column("candidates").to_pylist()]
        made = {
            model: [[Candidate(**one) for one in row] for row in table.column(_own(model)).to_pylist()]
            for model in models
        }
        rows = [
            [one.to_row() for one in with_new(row, {model: made[model][i] for model in models}, models)]
            for i, row in enumerate(given)
        ]
        return _with(table, "candidates", pa.array(rows, CANDIDATES_TYPE)).drop_columns(names)


def pools(steps: Iterable[StageSpec]) -> list[list[StageSpec]]:
    """Group steps by the actors that run them, in their order."""
    found: dict[str, list[StageSpec]] = {}
    for step in steps:
        found.setdefault(step.actors.name, []).append(step)
    return list(found.values())


def is_independent(kind: Stage) -> bool:
    """Whether stages of a kind read the input alone, and no other stage's result."""
    return kind not in ROW_STAGES or ROW_STAGES[kind].independent


def _own(llm: str) -> str:
    return f"candidates of {llm}"


def _with(table: pa.Table, name: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, values)
