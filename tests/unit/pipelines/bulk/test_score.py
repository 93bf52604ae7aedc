"""`blend score` without Ray: its plan, its columns, and what its results depend on."""

import json
from typing import Any

import pyarrow as pa
import pytest

from llm_blender_ray.actors.metric_scores import METRIC_SCORES, MetricScores
from llm_blender_ray.actors.records import REFERENCE_COLUMN, Blend, Candidate, Prompt
from llm_blender_ray.actors.tables import to_blends
from llm_blender_ray.cluster.placement import Capacity
from llm_blender_ray.configs.identity import deciding
from llm_blender_ray.configs.loading import ConfigError
from llm_blender_ray.pipelines.bulk.keys import result_keys
from llm_blender_ray.pipelines.bulk.row_stages import ROW_STAGES
from llm_blender_ray.pipelines.bulk.row_stages.score import scores_column
from llm_blender_ray.pipelines.bulk.score import WithReferences, plan_metrics, with_scores
from llm_blender_ray.pipelines.quality.metrics import read_metric, read_named_metrics
from llm_blender_ray.pipelines.rows.schema import ROW_SCHEMA, read_row

MODEL = "bertscore:model=m,layer=1"


def table_of(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist([read_row({"prompt": "p", **row}, "test") for row in rows], schema=ROW_SCHEMA)


def test_metrics_without_a_model_share_the_cluster_and_those_with_one_fill_it() -> None:
    metrics = read_named_metrics(["bleu", "rouge_l", MODEL, "exact"])
    plan = plan_metrics(metrics, Capacity.machine(16))
    assert [[(one.name, one.replicas, one.num_cpus) for one in wave] for wave in plan.waves] == [
        [("bleu", 5, 1.0), ("rouge_l", 5, 1.0), ("exact", 5, 1.0)],
        [("bertscore", 3, 4.0)],
    ]
    small = plan_metrics(metrics, Capacity.machine(2))
    assert [[one.name for one in wave] for wave in small.waves] == [["bleu", "rouge_l", "exact"], ["bertscore"]]
    on_gpus = plan_metrics(read_named_metrics([MODEL]), Capacity.machine(16, 4))
    assert [(one.replicas, one.num_gpus) for one in on_gpus.placements] == [(4, 1.0)]
    named = plan_metrics(read_named_metrics(["bleu:replicas=2,num_cpus=3"]), Capacity.machine(16))
    assert [(one.replicas, one.num_cpus) for one in named.placements] == [(2, 3.0)]


def test_scores_are_named_by_their_metric_or_as_they_are_told() -> None:
    named = read_named_metrics(["rouge_l", "rouge_l:as=stems,stemmer=true", "exact:as=match"])
    assert {name: metric.key for name, metric in named.items()} == {
        "rouge_l": "rouge_l",
        "stems": "rouge_l:stemmer=true",
        "match": "exact",
    }
    with pytest.raises(ConfigError, match="two scores are named bleu; give one another name with as=NAME"):
        read_named_metrics(["bleu", "bleu"])
    with pytest.raises(ConfigError, match="as: expected letters, digits"):
        read_named_metrics(["bleu:as=a b"])


def test_scores_join_those_that_rows_have() -> None:
    rows = table_of(
        {"candidates": [{"text": "a", "scores": {"human": 1, "m": 9}}, {"text": "b"}], "fused": "f"},
        {"candidates": [{"text": "a", "scores": {"m": 9}}], "fused_scores": {"other": 0.5}},
        {"candidates": [{"text": "a", "scores": [7]}], "fused": "f"},
        {"candidates": None},
    )
    made = [
        {"candidates": [0.25, None], "fused": 0.75},
        None,
        {"candidates": [0.5], "fused": None},
        None,
    ]
    table = WithReferences("output")(rows).append_column(scores_column("m"), pa.array(made, METRIC_SCORES))
    done = with_scores(["m"], table)
    assert done.column_names == rows.column_names
    scores = [
        [json.loads(one["extra"])["scores"] for one in row or ()] for row in done.column("candidates").to_pylist()
    ]
    assert scores == [[{"human": 1, "m": 0.25}, {"m": None}], [{"m": 9}], [{"m": 0.5}], []]
    assert json.loads(done.column("candidates")[2].as_py()[0]["extra"])["raw"] == {"scores": [7]}
    fused = [json.loads(one or "{}").get("fused_scores") for one in done.column("extra").to_pylist()]
    assert fused == [
        {"m": 0.75},
        {"m": None, "other": 0.5},
        {"m": None},
        None,
    ]


def test_references_come_from_any_column() -> None:
    rows = table_of({"output": "a"}, {"output": ["a", "b"]}, {"output": ""}, {"gold": ["g"], "output": "a"})
    assert WithReferences("output")(rows).column(REFERENCE_COLUMN).to_pylist() == [["a"], ["a", "b"], [], ["a"]]
    other = WithReferences("gold")(rows)
    assert [blend.references for blend in to_blends(other)] == [(), (), (), ("g",)]
    native = rows.append_column("native", pa.array([["x"], [], None, ["y", "z"]]))
    assert WithReferences("native")(native).column(REFERENCE_COLUMN).to_pylist() == [["x"], [], [], ["y", "z"]]


def test_a_stored_score_holds_while_texts_and_references_stay() -> None:
    stage = ROW_STAGES["score"]
    blend = Blend(Prompt("1", "p"), (Candidate("m", "a"), Candidate("m", None, "e")), fused="f", references=("r",))
    base = stage.inputs(blend)
    for other in (
        Blend(blend.prompt, blend.candidates, fused="f", references=("r", "s")),
        Blend(blend.prompt, blend.candidates, fused="g", references=("r",)),
        Blend(blend.prompt, blend.candidates[:1], fused="f", references=("r",)),
    ):
        assert stage.inputs(other) != base
    scored = Blend(blend.prompt, blend.candidates, scored=MetricScores((1.0, None), 0.5))
    assert stage.restored(blend, stage.values(scored), None).scored == scored.scored
    failed = Blend(blend.prompt, blend.candidates, scored=MetricScores(error="no"))
    row = stage.values(failed) | {"failed": stage.error(failed)}
    assert stage.restored(blend, row, None).scored == failed.scored
    assert stage.numbers([blend, Blend(blend.prompt, blend.candidates)]) == {"without_reference": 1}


def test_metrics_keep_their_scores_whichever_others_are_computed() -> None:
    one, more = (read_named_metrics(names) for names in (["bleu"], ["rouge_1", "bleu", "rouge_2"]))
    keys = result_keys(more, {}, ())
    assert keys["bleu"] == result_keys(one, {}, ())["bleu"]
    assert len(set(keys.values())) == 3
    assert deciding(read_metric("bleu:replicas=2")) == deciding(read_metric("bleu"))
