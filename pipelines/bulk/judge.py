"""`blend judge`: LLM judges compare the answers of rows; every judge is a stage of its own.

Rows get the column `judgements` (`pipelines.quality.judgements`). It is one of the user's own columns: it keeps
what campaigns and other runs have put into it.
"""

import contextlib
import functools
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from llm_blender_ray.cluster.notices import report_line
from llm_blender_ray.cluster.placement import Capacity, place
from llm_blender_ray.cluster.plan import Plan, pack_waves
from llm_blender_ray.configs.identity import deciding
from llm_blender_ray.configs.judges import ALL_MODELS, BLEND_CONTESTANT, RANKER_CONTESTANT, JudgeConfig
from llm_blender_ray.pipelines.bulk.checkpoints import CheckpointStore
from llm_blender_ray.pipelines.bulk.commands import checked
from llm_blender_ray.pipelines.bulk.description import Run
from llm_blender_ray.pipelines.bulk.manifest import Manifest
from llm_blender_ray.pipelines.bulk.row_stages.judge import judged_column
from llm_blender_ray.pipelines.bulk.run import execute
from llm_blender_ray.pipelines.bulk.summary import Summary
from llm_blender_ray.pipelines.quality.cmp_results import CMP_RESULTS_COLUMNS, cmp_results_text, read_pairs
from llm_blender_ray.pipelines.quality.judge_bias import judge_bias
from llm_blender_ray.pipelines.quality.judgements import (
    JUDGEMENTS,
    MIXINSTRUCT,
    Judgement,
    read_judgements,
    read_outcomes,
)
from llm_blender_ray.pipelines.quality.votes import parsed_side
from llm_blender_ray.pipelines.rows.arrow_types import to_python
from llm_blender_ray.pipelines.rows.columns import JSON, as_json
from llm_blender_ray.pipelines.rows.readers import read_rows
from llm_blender_ray.pipelines.rows.schema import EXTRA

SIDES = ("left", "right")


def plan_judges(config: JudgeConfig, capacity: Capacity) -> Plan:
    """Waves of the judges on a cluster.

    Raises:
        PlanError: A judge cannot run at all.
    """
    return pack_waves([place(name, judge, capacity) for name, judge in config.parts.items()], [], capacity)


def run_judge(config: JudgeConfig, **existing: bool) -> Summary:
    """Run `blend judge`.

    Args:
        config: With `input` and `output`.
        **existing: Treatment of an existing output; see `run.execute`.

    Raises:
        BlendError: The run failed.
        FailedRunError: Everything is written, but a judge gave too few verdicts.
    """
    written = {"replies": config.replies, "cmp_results": config.cmp_results_of, "format": config.format}
    run = Run.of_config(
        "judge",
        config,
        planned=functools.partial(plan_judges, config),
        results=(),
        keep=("ranking", "scores", "comparisons", "logits", "fused", "fused_from"),
        adds=_columns(config),
        reads=("fused",),
        identity={
            "command": "judge",
            "judges": {name: deciding(judge) for name, judge in config.parts.items()},
            "limit": config.limit,
            **written,
        },
        finish=functools.partial(
            with_judgements, tuple(config.parts), replies=config.replies, cmp_results=config.cmp_results_of
        ),
    )
    summary = execute(run, **existing)
    if summary.manifest.judges is None:
        summary = replace(summary, manifest=_measured(config, summary.manifest))
        CheckpointStore(run.output.work_folder).save_manifest(summary.manifest.json_text())
    return checked(summary, config.max_error_rate)


def _measured(config: JudgeConfig, manifest: Manifest) -> Manifest:
    """The manifest of a written output with the biases of its judges."""
    rows = read_rows(manifest.output.uri)
    outcomes = list(read_outcomes(rows, read=functools.partial(_made_by, frozenset(config.parts))))
    there = {name for one in outcomes for name in (one.left, one.right)}
    designs = [judge.pairs for judge in config.parts.values() if judge.pairs]
    named = {name for pairs in designs for name in pairs.contestants}
    for name in sorted(named - there - {ALL_MODELS, BLEND_CONTESTANT, RANKER_CONTESTANT}):
        report_line(f"contestants: no row has a judged answer of {name}")
    families = {name: judge.family for name, judge in config.parts.items()}
    return manifest.model_copy(update={"judges": judge_bias(outcomes, families)})


def _made_by(judges: Collection[str], row: Mapping[str, Any]) -> list[Judgement]:
    """Judgements of a row by these judges, or by people: what self-preference is compared with."""
    return [one for one in read_judgements(row) if one.judge in judges or one.person]


def _columns(config: JudgeConfig) -> dict[str, pa.DataType]:
    texts = ("judge", "preferred", *(("reply",) if config.replies else ()))
    judgement = {"judge": pa.string(), "left": JSON, "right": JSON, **dict.fromkeys(texts, pa.string())}
    found = {JUDGEMENTS: pa.list_(pa.struct(judgement.items()))}
    return found | (dict.fromkeys(CMP_RESULTS_COLUMNS, pa.string()) if config.cmp_results_of else {})


def with_judgements(
    judges: Sequence[str], table: pa.Table, *, replies: bool = False, cmp_results: str | None = None
) -> pa.Table:
    """The table with the judges' comparisons in `judgements`, behind given ones.

    Args:
        judges: Names of the judges.
        table: Rows with the columns of all judges' stages.
        replies: Whether what a judge wrote is kept.
        cmp_results: Name of the judge whose comparisons are also written as MixInstruct has them. A row's given
            `cmp_results` move to its `judgements`.
    """
    native = [name for name in (JUDGEMENTS, *CMP_RESULTS_COLUMNS) if name in table.column_names]
    given = {name: to_python(table.column(name)) for name in native}
    made = {judge: table.column(judged_column(judge)).to_pylist() for judge in judges}
    extras = []
    for i, row in enumerate(table.select([EXTRA, "candidates", "fused"]).to_pylist()):
        extra = json.loads(row[EXTRA] or "{}")
        extra |= {name: as_json(values[i]) for name, values in given.items() if values[i] is not None}
        old = extra.get(JUDGEMENTS)
        candidates = row["candidates"] or ()
        new = [_judgement(judge, pair, replies=replies) for judge in judges for pair in _decided(made[judge][i])]
        was = old if isinstance(old, list) else [old] if old else ()
        kept = [_with_parsed_sides(one) for one in was if not _is_of(one, judges)]
        if cmp_results is not None:
            judge = extra.get("cmp_results_judge") or MIXINSTRUCT
            if judge not in judges:
                kept += [_given(judge, *pair) for pair in read_pairs(extra.get("cmp_results"), candidates)]
            mine = [(one["left"], one["right"], one["preferred"]) for one in new if one["judge"] == cmp_results]
            text = cmp_results_text(candidates, mine)
            extra |= dict(zip(CMP_RESULTS_COLUMNS, (text, text and cmp_results), strict=True))
        extra[JUDGEMENTS] = [*kept, *new]
        extras.append(json.dumps(extra))
    columns = {EXTRA: pa.array(extras, pa.string())}
    columns |= {name: pa.nulls(len(table), table.schema.field(name).type) for name in native}
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, values)
    return table.drop_columns([judged_column(judge) for judge in judges])


def _decided(pairs: Sequence[Mapping[str, Any]] | None) -> list[Mapping[str, Any]]:
    return [pair for pair in pairs or () if pair["preferred"] is not None]


def _judgement(judge: str, pair: Mapping[str, Any], *, replies: bool) -> dict[str, Any]:
    sides = {side: pair[side] if pair[side] == "fused" else int(pair[side]) for side in SIDES}
    reply = {"reply": pair["reply"]} if replies else {}
    return {"judge": judge, **sides, "preferred": pair["preferred"], **reply}


def _with_parsed_sides(judgement: Any) -> Any:
    """A given judgement; of a Parquet column its sides are JSON text, which is not to be written as text again."""
    if not isinstance(judgement, Mapping):
        return judgement
    with contextlib.suppress(ValueError):  # not ours
        return {**judgement, **{side: parsed_side(judgement[side]) for side in SIDES if side in judgement}}
    return judgement


def _given(judge: str, left: int, right: int, preferred: str) -> dict[str, Any]:
    return {"judge": judge, "left": left, "right": right, "preferred": preferred}


def _is_of(judgement: Any, judges: Sequence[str]) -> bool:
    """Whether a given judgement is of one of these judges, from an earlier run: the new ones replace it."""
    return isinstance(judgement, Mapping) and judgement.get("judge") in judges
