"""Commands over whole datasets: `blend run`, `rank`, `fuse` and `compare`."""

import functools
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from llm_blender_ray.actors.records import Blend
from llm_blender_ray.actors.stages import TakeBest, margin
from llm_blender_ray.actors.tables import to_blends, with_blends
from llm_blender_ray.cluster.placement import Capacity, place
from llm_blender_ray.cluster.plan import Plan, fill_cluster, make_plan, pack_waves
from llm_blender_ray.configs.identity import deciding
from llm_blender_ray.configs.preferences import Preferences
from llm_blender_ray.configs.schema import (
    BlendConfig,
    FuserSettings,
    RankerSection,
    RankerSettings,
    RayCluster,
)
from llm_blender_ray.pipelines.bulk.description import Run
from llm_blender_ray.pipelines.bulk.run import execute
from llm_blender_ray.pipelines.bulk.summary import FailedRunError, Summary
from llm_blender_ray.pipelines.rows.outputs import Output
from llm_blender_ray.pipelines.rows.schema import EXTRA
from llm_blender_ray.pipelines.rows.writers import COMPARE_COLUMNS, COST_COLUMNS

RANK_RESULTS = ("ranking", "scores", "comparisons")
FUSE_RESULTS = ("fused", "fused_from")


def run_blend(config: BlendConfig, **existing: bool) -> Summary:
    """Run `blend run`.

    Args:
        config: With `input` and `output`.
        **existing: Treatment of an existing output; see `run.execute`.

    Raises:
        BlendError: The run failed.
        FailedRunError: Everything is written, but a model or too many rows failed.
    """
    run = Run.of_config(
        "run",
        config,
        planned=functools.partial(make_plan, config),
        results=(
            *RANK_RESULTS,
            *(("logits",) if config.matrix else ()),
            *FUSE_RESULTS,
            *(COST_COLUMNS if config.row_costs else ()),
        ),
        identity={
            "models": {member.name: deciding(member) for member in config.members},
            "order": [member.name for member in config.members],
            "ranker": deciding(config.placing_ranker),
            "fuser": deciding(config.fuser) if config.fuser else None,
            **_written(config),
        },
        llms=tuple(member.name for member in config.members),
        preferences=config.preferences,
        finish=None if config.fuser else with_best,
    )
    return checked(execute(run, **existing), config.max_error_rate)


def checked(summary: Summary, max_error_rate: float = 1.0) -> Summary:
    """The summary of a run that counts as done.

    Raises:
        FailedRunError: Too many rows failed.
    """
    if problem := summary.problem(max_error_rate):
        raise FailedRunError(problem, summary.details())
    return summary


def _written(config: BlendConfig) -> Mapping[str, Any]:
    """Settings that decide the output, but no result."""
    preferences = deciding(config.preferences) if config.preferences else None
    written = {"limit": config.limit, "matrix": config.matrix, "format": config.format, "preferences": preferences}
    return written | ({"row_costs": True} if config.row_costs else {})  # a newer setting


def run_rank(
    section: RankerSection,
    input: str,
    output: str,
    *,
    matrix: bool = False,
    preferences: Preferences | None = None,
    **existing: bool,
) -> Summary:
    """Run `blend rank`, with the section's prices and budget; `existing` as for `run.execute`.

    Raises:
        BlendError: The run failed.
    """
    results = (*RANK_RESULTS, *(("logits",) if matrix else ()))
    costs = {"prices": section.prices, "usd": section.budget.usd_per_run}
    return _run_stage("rank", section.ranker, input, output, results, existing, preferences=preferences, **costs)


def run_fuse(settings: FuserSettings, input: str, output: str, **existing: bool) -> Summary:
    """Run `blend fuse`: the ranking in the rows stays; `existing` as for `run.execute`.

    Raises:
        BlendError: The run failed.
    """
    return _run_stage(
        "fuse",
        settings,
        input,
        output,
        FUSE_RESULTS,
        existing,
        keep=(*RANK_RESULTS, "logits"),
        prepare=with_readable_rankings,
    )


def run_compare(section: RankerSection, input: str, output: str, **existing: bool) -> Summary:
    """Run `blend compare`, with the section's prices and budget; `existing` as for `run.execute`.

    Raises:
        BlendError: The run failed.
    """
    results = ("margin", "preference", "comparisons")
    return _run_stage(
        "compare",
        section.ranker,
        input,
        output,
        results,
        existing,
        prepare=only_pairs,
        finish=with_margins,
        prices=section.prices,
        usd=section.budget.usd_per_run,
    )


def _run_stage(
    command: str,
    settings: RankerSettings | FuserSettings,
    input: str,
    output: str,
    results: Sequence[str],
    existing: Mapping[str, bool],
    *,
    preferences: Preferences | None = None,
    **changes: Any,
) -> Summary:
    """One stage over rows with candidates, on the Ray of RAY_ADDRESS or a local one."""
    name = "fuser" if settings.stage == "fuse" else "ranker"

    def planned(have: Capacity) -> Plan:
        return pack_waves([], [place(name, fill_cluster(settings, have), have)], have)

    pairs = deciding(preferences) if preferences else None
    run = Run(
        command=command,
        input=input,
        output=Output(output),
        cluster=RayCluster(num_cpus=max(2, os.cpu_count() or 1)),  # one to read, one for the model
        planned=planned,
        results=results,
        identity={"command": command, name: deciding(settings), "results": list(results), "preferences": pairs},
        settings={"command": command, name: settings.model_dump(mode="json"), "preferences": pairs},
        parts={name: settings},
        preferences=preferences,
        **changes,
    )
    return checked(execute(run, **existing))


def with_readable_rankings(table: pa.Table) -> pa.Table:
    """The table with an error in every row whose `ranking` is no order of its candidates."""
    errors = [
        row["error"] or ("ranking: expected distinct indexes of the candidates" if _is_odd(row) else None)
        for row in table.select(["error", EXTRA]).to_pylist()
    ]
    return table.set_column(table.schema.get_field_index("error"), "error", pa.array(errors, pa.string()))


def _is_odd(row: Mapping[str, Any]) -> bool:
    return row[EXTRA] is not None and json.loads(row[EXTRA]).get("ranking") is not None


def only_pairs(table: pa.Table) -> pa.Table:
    """The table with an error in every row without exactly two candidates."""
    errors = [_not_a_pair(blend) for blend in to_blends(table)]
    return table.set_column(table.schema.get_field_index("error"), "error", pa.array(errors, pa.string()))


def _not_a_pair(blend: Blend) -> str | None:
    if blend.error is None and len(blend.candidates) != 2:
        return f"candidates: expected two to compare, got {len(blend.candidates)}"
    failed = next((c.error for c in blend.candidates if c.text is None), None)
    return blend.error or (f"candidates: one has no text: {failed}" if failed else None)


def with_margins(table: pa.Table) -> pa.Table:
    """The table with `margin`, and `preference` 0 or 1 (null for a tie), of ranked rows."""
    blends = to_blends(table)
    margins = [margin(blend.ranking) if blend.ranking and blend.error is None else None for blend in blends]
    preferences = [int(value < 0) if value else None for value in margins]
    for name, values in (("margin", margins), ("preference", preferences)):
        table = table.append_column(name, pa.array(values, COMPARE_COLUMNS[name]))
    return table


def with_best(table: pa.Table) -> pa.Table:
    """The table with the best candidate as the answer: a blend without a fuser."""
    return with_blends(table, TakeBest()(to_blends(table)))
