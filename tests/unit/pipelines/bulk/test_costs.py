"""Costs of a run: by stage, and as last lines; what has no price is named and not 0."""

from typing import Any

import pyarrow as pa
import pytest
from manifests import manifest_of_stages

from llm_blender_ray.actors.prices import token_price
from llm_blender_ray.actors.records import USAGE_TYPE
from llm_blender_ray.actors.usage import TokenUsage
from llm_blender_ray.cluster.placement import Placement
from llm_blender_ray.configs.prices import ModelPrice
from llm_blender_ray.configs.schema import EchoModel, EndpointModel, LLMFuser, VLLMModel
from llm_blender_ray.pipelines.bulk.costs import cost_lines, row_costs, unpriced_stages, with_costs
from llm_blender_ray.pipelines.bulk.manifest import Manifest, StageRecord
from llm_blender_ray.pipelines.bulk.stages import StageGraph, StageSpec
from llm_blender_ray.pipelines.quality.rounding import dollars

ENDPOINT = {"engine": "endpoint", "model": "m", "base_url": "http://127.0.0.1:9/v1"}
PRICES = {
    "far": ModelPrice(input=2, cached_input=1, output=10),
    "own": ModelPrice(gpu_hour=3.6),
}


def step(name: str, gpus: float = 0.0) -> StageSpec:
    part: Any = VLLMModel(name=name, engine="vllm", model="m")
    if name in ("far", "lost"):
        part = EndpointModel.model_validate({"name": name, **ENDPOINT})
    elif name == "echo":
        part = EchoModel(name=name, engine="echo", model="m")
    return StageSpec(Placement(name, part, 1.0, gpus, 1), name, price=token_price(name, part, PRICES))


def record(name: str, **more: Any) -> StageRecord:
    fixed = {"kind": "generate", "runs": "", "wave": 1, "replicas": 1, "rows": 10, "failed": 0, "seconds": 0.0}
    return StageRecord.model_validate(fixed | more | {"name": name})


def manifest(*stages: StageRecord, unpriced: tuple[str, ...] = ()) -> Manifest:
    return manifest_of_stages(*stages, rows=10, unpriced=unpriced)


def test_tokens_and_gpus_are_billed_and_the_rest_is_not() -> None:
    records = [
        record("far", calls=10, prompt_tokens=1_000_000, cached_prompt_tokens=500_000, completion_tokens=100_000),
        record("own", calls=10, prompt_tokens=5, completion_tokens=5, seconds=500.0),
        record("lost", calls=10, prompt_tokens=5, completion_tokens=5),
        record("echo", calls=10),
    ]
    work = StageGraph((step("far"), step("own", gpus=2.0), step("lost"), step("echo")))
    done = with_costs(records, work, PRICES)
    assert [stage.cost_usd for stage in done] == [pytest.approx(2.5), pytest.approx(1.0), None, None]
    assert unpriced_stages(records, work, PRICES) == ("lost",)
    unanswered = [record(one.name) for one in records]
    assert unpriced_stages(unanswered, work, PRICES) == ()
    assert cost_lines(manifest(*done, unpriced=("lost",))) == [
        "cost: $3.5, $0.35 a row: far $2.5, own $1",
        "cost of lost unknown: neither the config nor the table has a price; prices.lost would set it",
    ]


def test_tokens_that_are_not_all_known_make_the_cost_a_lower_bound() -> None:
    stage = record("far", cost_usd=1.0, unreported_calls=1)
    assert cost_lines(manifest(stage)) == ["cost: at least $1, $0.1 a row: far $1"]


def test_a_run_that_nobody_bills_has_no_line_of_costs() -> None:
    assert manifest(record("echo")).cost_usd is None
    assert cost_lines(manifest(record("echo"))) == []


def test_a_service_that_is_free_costs_nothing_and_that_is_known() -> None:
    assert cost_lines(manifest(record("far", cost_usd=0.0))) == ["cost: $0, $0 a row: far $0"]


@pytest.mark.parametrize(
    ("usd", "shown"), [(0, "$0"), (0.00012345, "$0.0001234"), (12.345, "$12.35"), (1234.5, "$1,234.50")]
)
def test_amounts(usd: float, shown: str) -> None:
    assert dollars(usd) == shown


def test_a_row_costs_what_its_calls_did_in_all_stages() -> None:
    used = [TokenUsage(1, 0, 1_000_000, 0, 0).to_row(), None, TokenUsage().to_row()]
    fused = pa.table({"fused": ["a", "b", "c"], "usage": pa.array(used, USAGE_TYPE)})
    prices = {"fuser": ModelPrice(input=2, output=10)}
    part = LLMFuser.model_validate({"kind": "chat", "llm": {"name": "far", **ENDPOINT}})
    fuser = StageSpec(Placement("fuser", part, 1.0, 0.0, 1), "f", price=token_price("fuser", part, prices))
    assert row_costs([None, 0.5, None], fuser, fused) == [pytest.approx(2.0), 0.5, 0.0]
    assert row_costs([None, 0.5, None], step("echo"), fused) == [None, 0.5, None]
