"""Settings of prices and budgets."""

from typing import Any

import pytest
from pydantic import ValidationError

from llm_blender_ray.configs.prices import ModelPrice
from llm_blender_ray.configs.schema import BlendConfig


def blend(**more: Any) -> BlendConfig:
    models = [{"name": "a", "engine": "echo", "model": "a"}]
    return BlendConfig.model_validate({"models": models, "ranker": {"kind": "echo"}, **more})


@pytest.mark.parametrize(
    ("price", "told"),
    [
        ({}, "expected either input and output, or gpu_hour"),
        ({"input": 1}, "expected both input and output"),
        ({"output": 1}, "expected both input and output"),
        ({"gpu_hour": 1, "cached_input": 1}, "expected input and output beside cached_input"),
        ({"input": 1, "output": 1, "gpu_hour": 1}, "expected either input and output, or gpu_hour"),
        ({"input": -1, "output": 1}, "greater than or equal to 0"),
        ({"input": float("inf"), "output": 1}, "finite"),
        ({"input": 1, "output": 1, "minute": 1}, "minute"),
    ],
)
def test_a_price_that_is_none_is_refused(price: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        ModelPrice.model_validate(price)


def test_prices_are_of_parts_of_the_blend() -> None:
    assert blend(prices={"a": {"gpu_hour": 2}, "ranker": {"input": 1, "output": 2}}).prices["a"].gpu_hour == 2
    with pytest.raises(ValidationError, match=r"prices\.b is neither a model's name nor ranker nor fuser"):
        blend(prices={"b": {"gpu_hour": 2}})


@pytest.mark.parametrize("limit", [0, -1, float("nan"), "much"])
def test_a_budget_is_a_positive_amount(limit: object) -> None:
    with pytest.raises(ValidationError, match="usd_per_run"):
        blend(budget={"usd_per_run": limit})
