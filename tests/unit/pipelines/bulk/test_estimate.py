"""Estimates of a run's cost before it runs, against what a service bills for the same rows."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from manifests import manifest_of_stages

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.fusers.llm_fuser import task
from llm_blender_ray.actors.prices import token_price
from llm_blender_ray.actors.records import Matchup, Message, Prompt
from llm_blender_ray.actors.scorers.judge import question
from llm_blender_ray.actors.usage import TokenUsage
from llm_blender_ray.configs.schema import BlendConfig
from llm_blender_ray.pipelines.bulk.estimate import CostEstimate, estimate_cost, estimated_lines
from llm_blender_ray.pipelines.bulk.manifest import Manifest, StageRecord

ROWS = 300
PRICES = {
    "far": {"input": 1, "output": 4},
    "ranker": {"input": 0.5, "output": 2},
    "fuser": {"input": 2, "output": 8},
}


def llm(name: str, **more: Any) -> dict[str, Any]:
    endpoint = {"name": name, "engine": "endpoint", "model": name, "base_url": "http://127.0.0.1:9/v1"}
    return endpoint | {"sampling": {"max_tokens": 400}} | more


def blend(**more: Any) -> BlendConfig:
    settings = {
        "models": [{"name": "echo", "engine": "echo", "model": "m"}, llm("far", system_prompt="Be brief.")],
        "ranker": {"kind": "judge", "llm": llm("judge"), "strategy": {"kind": "full"}},
        "fuser": {"kind": "chat", "llm": llm("writer"), "top_k": 2},
        "prices": PRICES,
    }
    return BlendConfig.model_validate(settings | more)


def words(count: int) -> str:
    return " ".join(["lorem"] * count)


def prompts(longer: float = 1.0) -> list[Prompt]:
    """300 prompts of very different lengths, the later ones longer by a factor."""
    draw = random.Random(1)
    return [
        Prompt(f"{i}", words(int(draw.lognormvariate(3, 1) * (longer if i >= ROWS // 6 else 1)) + 1))
        for i in range(ROWS)
    ]


def tokens(messages: Sequence[Message]) -> int:
    """A tokenizer that is not the rule of thumb: 1.5 tokens a word, and a template's 7 a message."""
    return sum(7 + 3 * len(turn["content"].split()) // 2 for turn in messages)


def billed(config: BlendConfig, rows: Sequence[Prompt]) -> dict[str, TokenUsage]:
    """What the service counts for a run of these rows, each call by itself."""
    draw, spent = random.Random(2), dict.fromkeys(("far", "ranker", "fuser"), TokenUsage())

    def call(name: str, chat: list[Message], mean: float) -> int:
        answer = int(draw.expovariate(1 / mean)) + 1
        spent[name] += TokenUsage(1, 0, tokens(chat), 0, answer)
        return answer

    for prompt in rows:
        far = words(int(call("far", prompt.chat("Be brief."), 60) / 1.5))
        echo = prompt.texts()[0]
        for left, right in ((far, echo), (echo, far)):
            call("ranker", [Message(role="user", content=question(Matchup(prompt, left, right)))], 40)
        call("fuser", [Message(role="user", content=task(prompt, [far, echo]))], 80)
    return spent


def usd(config: BlendConfig, spent: dict[str, TokenUsage]) -> float:
    prices = {name: token_price(name, config.parts[name], config.prices) for name in spent}
    return sum(price.usd(spent[name]) for name, price in prices.items() if price)


def manifest(config: BlendConfig, rows: Sequence[Prompt]) -> Manifest:
    fixed = {"runs": "", "wave": 1, "replicas": 1, "rows": len(rows), "failed": 0, "seconds": 1.0}
    stages = [
        StageRecord(**fixed, name=name, kind=config.parts[name].stage, **usage.to_row())
        for name, usage in billed(config, rows).items()
    ]
    return manifest_of_stages(*stages, rows=len(rows))


def total(estimate: CostEstimate) -> float:
    return sum(stage.usd or 0.0 for stage in estimate.stages)


@pytest.mark.parametrize("longer", [1.0, 4.0])
def test_an_estimate_by_50_measured_rows_is_within_15_percent(longer: float) -> None:
    """Also where the other rows are longer: their prompts are known."""
    config, rows = blend(), prompts(longer)
    real = usd(config, billed(config, rows))
    estimate = estimate_cost(config, rows, manifest(config, rows[:50]))
    assert total(estimate) == pytest.approx(real, rel=0.15)
    first, second = estimate.lines()
    assert first.startswith("cost of 300 rows: about $") and "fuser $" in first
    assert second == "assumed: answers, comparisons and tokens as measured on 50 rows"


def test_without_a_measured_run_the_estimate_is_an_upper_bound_and_named_as_one() -> None:
    config, rows = blend(), prompts()
    estimate = estimate_cost(config, rows)
    assert total(estimate) > usd(config, billed(config, rows))
    by_name = {stage.name: stage.usage for stage in estimate.stages}
    assert {name: usage.calls for name, usage in by_name.items()} == {
        "far": ROWS,
        "ranker": 2 * ROWS,
        "fuser": ROWS,
    }
    assert by_name["far"].completion_tokens == 400 * ROWS
    first, second = estimate.lines()
    assert "at most about $" in first and "sampling.max_tokens" in second


def test_a_given_length_of_answers_is_no_more_than_they_may_have() -> None:
    config, rows = blend(), prompts()
    short, long = (estimate_cost(config, rows, answer_tokens=n).stages[0].usage for n in (50, 5000))
    assert (short.completion_tokens, long.completion_tokens) == (50 * ROWS, 400 * ROWS)


def test_what_has_no_price_is_unknown_and_bad_rows_cost_nothing() -> None:
    config = blend(prices={"far": PRICES["far"]})
    estimate = estimate_cost(config, [*prompts(), None, None], answer_tokens=60)
    assert estimate.rows == ROWS
    assert [stage.usd is None for stage in estimate.stages] == [False, True, True]
    assert list(estimate.lines())[-2:] == [
        f"cost of {name} unknown: neither the config nor the table has a price" for name in ("ranker", "fuser")
    ]


def test_an_empty_input_costs_nothing() -> None:
    assert total(estimate_cost(blend(), [])) == 0.0


def test_the_lines_of_a_plan(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "a question"}\n{"prompt": ""}\n{"prompt": "another"}\n')
    lines = estimated_lines(blend(), str(tmp_path / "in.jsonl"), answer_tokens=10)
    assert lines[0].startswith("cost of 2 rows: about $")
    for usd, warned in ((1e-6, True), (100, False)):
        lines = estimated_lines(blend(budget={"usd_per_run": usd}), str(tmp_path / "in.jsonl"), answer_tokens=10)
        assert (lines[-1].startswith(f"budget.usd_per_run {usd:g} is less than the estimate")) == warned
    (line,) = estimated_lines(blend(), str(tmp_path / "none.jsonl"))
    assert line.startswith("cost: not estimated: ") and "none.jsonl" in line
    with pytest.raises(BlendError, match="no finished run wrote it"):
        estimated_lines(blend(), str(tmp_path / "in.jsonl"), str(tmp_path / "out"))
