"""`blend score`: metrics score the answers of rows by their references; every metric is a stage of its own.

Candidates get `scores.{name}`, and rows with a fused answer `fused_scores.{name}`; other scores stay.
"""

import functools
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from llm_blender_ray.actors.records import REFERENCE_COLUMN
from llm_blender_ray.cluster.placement import Capacity, place
from llm_blender_ray.cluster.plan import READ_CPUS, Plan, fill_cluster, pack_waves
from llm_blender_ray.configs.identity import deciding
from llm_blender_ray.configs.resources import Replicas
from llm_blender_ray.configs.schema import RayCluster
from llm_blender_ray.pipelines.bulk.commands import checked
from llm_blender_ray.pipelines.bulk.description import Run
from llm_blender_ray.pipelines.bulk.row_stages.score import scores_column
from llm_blender_ray.pipelines.bulk.run import execute
from llm_blender_ray.pipelines.bulk.summary import FailedRunError, Summary
from llm_blender_ray.pipelines.quality.answer_scores import CANDIDATE_SCORES, FUSED_SCORES
from llm_blender_ray.pipelines.quality.metrics import Metric
from llm_blender_ray.pipelines.rows.arrow_types import to_python
from llm_blender_ray.pipelines.rows.columns import as_json
from llm_blender_ray.pipelines.rows.outputs import Output
from llm_blender_ray.pipelines.rows.schema import EXTRA, RAW
from llm_blender_ray.pipelines.rows.user_columns import references_of

OUTPUT = "output"  # the column of references


def run_score(
    metrics: Mapping[str, Metric], input: str, output: str, *, references: str = OUTPUT, **existing: bool
) -> Summary:
    """Run `blend score` on the Ray of RAY_ADDRESS or a local one.

    Args:
        metrics: The metrics by the names of their scores.
        input: URI of the rows.
        output: Where they are written.
        references: Column of the references: a text, or a list of texts.
        **existing: Treatment of an existing output; see `run.execute`.

    Raises:
        BlendError: The run failed.
        FailedRunError: Everything is written, but a metric failed on too many rows, or no row has a reference.
    """
    of_metrics = pa.struct([(name, pa.float64()) for name in metrics])
    run = Run(
        command="score",
        input=input,
        output=Output(output),
        cluster=RayCluster(num_cpus=max(2, os.cpu_count() or 1)),  # one to read
        planned=functools.partial(plan_metrics, metrics),
        results=(),
        keep=("ranking", "scores", "comparisons", "logits", "fused", "fused_from"),
        adds={FUSED_SCORES: of_metrics},
        candidate_adds={CANDIDATE_SCORES: of_metrics},
        reads=tuple(dict.fromkeys(("fused", OUTPUT, EXTRA, references))),
        identity={
            "command": "score",
            "metrics": {name: deciding(metric) for name, metric in metrics.items()},
            "references": references,
        },
        settings={
            "command": "score",
            "metrics": {name: metric.model_dump(mode="json") for name, metric in metrics.items()},
            "references": references,
        },
        parts=metrics,
        prepare=WithReferences(references),
        finish=functools.partial(with_scores, tuple(metrics)),
    )
    summary = checked(execute(run, **existing))
    if summary.manifest.output.rows and not any(stage.asked for stage in summary.manifest.stages):
        raise FailedRunError(
            f"{summary.line()}; no row has an answer and a reference in column {references}", summary.details()
        )
    return summary


def plan_metrics(metrics: Mapping[str, Metric], capacity: Capacity) -> Plan:
    """Waves of metrics: those without a model together, each with a model has the cluster to itself.

    Raises:
        PlanError: A metric cannot run at all.
    """
    light = {name: metric for name, metric in metrics.items() if metric.weights is None}
    left = max(capacity.cpus - READ_CPUS, 0.0)
    share = min(1.0, math.floor(1000 * left / max(len(light), 1)) / 1000)
    spread = {"num_cpus": share, "replicas": Replicas(min=1, max=max(1, int(left)))}

    def shared(metric: Metric) -> Metric:
        return metric.model_copy(update={k: v for k, v in spread.items() if k not in metric.model_fields_set})

    pools = [place(name, shared(metric), capacity) for name, metric in light.items()]
    alone = [
        place(name, fill_cluster(metric, capacity), capacity)
        for name, metric in metrics.items()
        if name not in light
    ]
    waves = [pack_waves(group, [], capacity).waves for group in (pools, *([pool] for pool in alone)) if group]
    return Plan(tuple(wave for some in waves for wave in some), capacity)


@dataclass(frozen=True)
class WithReferences:
    """Adds the references of rows to their table, as stages read them.

    Attributes:
        column: Column of the references.
    """

    column: str

    def __call__(self, table: pa.Table) -> pa.Table:
        """The table with `REFERENCE_COLUMN`."""
        names = list(dict.fromkeys(name for name in (self.column, EXTRA) if name in table.column_names))
        columns = {name: to_python(table.column(name)) for name in names}
        rows = [{name: values[i] for name, values in columns.items()} for i in range(len(table))]
        found = [references_of(row, self.column) for row in rows]
        return table.append_column(REFERENCE_COLUMN, pa.array(found, pa.list_(pa.string())))


def with_scores(metrics: Sequence[str], table: pa.Table) -> pa.Table:
    """The table with the metrics' scores among those that candidates and rows had.

    Args:
        metrics: Names of the metrics.
        table: Rows with the columns of all metrics' stages.
    """
    made = {name: table.column(scores_column(name)).to_pylist() for name in metrics}
    native = to_python(table.column(FUSED_SCORES)) if FUSED_SCORES in table.column_names else None
    extras, candidates = [], []
    for i, row in enumerate(table.select([EXTRA, "candidates", "fused"]).to_pylist()):
        own = {name: found for name, values in made.items() if (found := values[i]) is not None}
        scored = []
        for at, one in enumerate(row["candidates"] or ()):
            new = {name: found["candidates"][at] for name, found in own.items()}
            scored.append(
                one | {EXTRA: json.dumps(_merged(json.loads(one[EXTRA] or "{}"), CANDIDATE_SCORES, new, metrics))}
            )
        candidates.append(scored)
        extra = json.loads(row[EXTRA] or "{}")
        if native is not None and native[i] is not None:
            extra[FUSED_SCORES] = as_json(native[i])
        if row["fused"] is not None or FUSED_SCORES in extra:
            extra = _merged(extra, FUSED_SCORES, {name: found["fused"] for name, found in own.items()}, metrics)
        extras.append(json.dumps(extra) if extra else None)
    kind = table.schema.field("candidates").type
    columns = {EXTRA: pa.array(extras, pa.string()), "candidates": pa.array(candidates, kind)}
    columns |= {FUSED_SCORES: pa.nulls(len(table), table.schema.field(FUSED_SCORES).type)} if native else {}
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, values)
    return table.drop_columns([REFERENCE_COLUMN, *(scores_column(name) for name in metrics)])


def _merged(
    fields: dict[str, Any], column: str, new: Mapping[str, float | None], metrics: Sequence[str]
) -> dict[str, Any]:
    """Fields with new scores in a column; a score that was not made stays as it was, or is null."""
    given = fields.get(column)
    if not isinstance(given, dict):
        if given is not None:  # of another form: kept as other odd values are
            fields = fields | {RAW: {column: given} | ({RAW: fields[RAW]} if RAW in fields else {})}
        given = {}
    made = {name: score for name, score in new.items() if score is not None}
    return fields | {column: given | {name: None for name in metrics if name not in given} | made}
