"""What models cost: by the config, by the offline table, and unknown where neither has a price."""

import socket
from typing import Any

import pytest

from llm_blender_ray.actors.prices import (
    PriceList,
    Rates,
    TokenPrice,
    gpu_usd,
    lacks_price,
    nano_usd,
    table_price,
    token_price,
    total_usd,
)
from llm_blender_ray.actors.usage import TokenUsage
from llm_blender_ray.configs.prices import ModelPrice
from llm_blender_ray.configs.schema import EchoModel, EndpointModel, Judge, VLLMModel

OPENAI = "https://api.openai.com/v1"
PRICE = TokenPrice(Rates(1.0, 0.25, 4.0), ((1000, Rates(2.0, 0.5, 8.0)),))


def endpoint(model: str, base_url: str = OPENAI) -> EndpointModel:
    return EndpointModel.model_validate({"name": "m", "engine": "endpoint", "model": model, "base_url": base_url})


def judge(model: str) -> Judge:
    return Judge.model_validate({"kind": "judge", "llm": endpoint(model).model_dump()})


def priced(**price: Any) -> ModelPrice:
    return ModelPrice.model_validate(price)


@pytest.mark.parametrize(
    ("usage", "usd"),
    [
        (TokenUsage(), 0.0),
        (TokenUsage(calls=1, prompt_tokens=1000, completion_tokens=100), 1000e-6 + 400e-6),
        (TokenUsage(calls=1, prompt_tokens=1000, cached_prompt_tokens=800, completion_tokens=0), 200e-6 + 200e-6),
        (
            TokenUsage(calls=1, prompt_tokens=1001, completion_tokens=100),
            2002e-6 + 800e-6,
        ),  # all of it, not the rest
        (TokenUsage(calls=10, prompt_tokens=9000, completion_tokens=100), 9000e-6 + 400e-6),  # each is short
    ],
)
def test_cost_of_calls(usage: TokenUsage, usd: float) -> None:
    assert PRICE.usd(usage) == pytest.approx(usd)


def test_costs_by_part_tell_unknown_from_unbilled() -> None:
    parts = {
        "far": endpoint("m", "http://127.0.0.1:9/v1"),
        "ranker": judge("gpt-4o"),
        "near": VLLMModel(name="near", engine="vllm", model="m"),
    }
    listed = PriceList.of(parts, {"ranker": priced(input=1, output=4), "near": priced(gpu_hour=2)})
    used = TokenUsage(calls=1, prompt_tokens=1000, completion_tokens=100)
    costs = listed.usd_by_part({"far": used, "ranker": used, "near": used})
    assert costs == {"far": None, "ranker": pytest.approx(1400e-6)} and listed.known
    assert total_usd(costs.values()) is None
    assert total_usd([0.5, 0.25]) == 0.75 and total_usd([]) == 0.0
    assert not PriceList.of({"far": parts["far"]}, {}).known and not PriceList().known


def test_the_bound_of_a_call_is_no_less_than_its_cost_however_its_prompt_is_cached_or_counted() -> None:
    price = TokenPrice(Rates(1.0, 3.0, 4.0), ((1000, Rates(0.5, 0.5, 1.0)),))  # odd, but possible
    bound = price.most_usd(2000, 50)
    for prompt in (1, 1000, 1001, 2000):
        for cached in (0, prompt):
            assert price.usd(TokenUsage(1, 0, prompt, cached, 50)) <= bound


def test_an_amount_of_a_budget_is_rounded_up() -> None:
    assert nano_usd(1.5e-9) == 2
    assert nano_usd(0.0) == 0


def test_the_table_knows_services_by_their_url() -> None:
    known = table_price(OPENAI, "gpt-4o-mini")
    assert known is not None
    assert 0 < known.rates.cached_input < known.rates.input < known.rates.output < 100
    assert table_price(f"{OPENAI}/", "gpt-4o-mini") == known
    assert table_price("http://127.0.0.1:8000/v1", "gpt-4o-mini") is None  # another server's model of that name
    assert table_price(OPENAI, "no-such-model") is None


def test_the_table_has_tiers_of_long_prompts() -> None:
    price = table_price("https://generativelanguage.googleapis.com/v1beta/openai", "gemini-2.5-pro")
    assert price is not None
    (start, rates), *_ = price.tiers
    assert start >= 100_000
    assert rates.input > price.rates.input and rates.output > price.rates.output


def test_the_table_is_never_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    table_price.cache_clear()
    assert table_price(OPENAI, "gpt-4o") is not None


def test_a_price_of_the_config_is_before_the_table() -> None:
    part = endpoint("gpt-4o-mini")
    assert token_price("m", part, {}) == table_price(OPENAI, "gpt-4o-mini")
    assert token_price("m", part, {"m": priced(input=1, output=2)}) == TokenPrice(Rates(1, 1, 2))
    assert token_price("m", part, {"m": priced(input=1, cached_input=0.5, output=2)}) == TokenPrice(
        Rates(1, 0.5, 2)
    )


def test_a_judges_price_is_that_of_its_llm() -> None:
    assert token_price("ranker", judge("gpt-4o"), {}) == table_price(OPENAI, "gpt-4o")


def test_an_endpoint_without_a_price_is_unknown_and_a_model_of_your_own_has_none() -> None:
    unknown = endpoint("m", "http://127.0.0.1:8000/v1")
    assert token_price("m", unknown, {}) is None
    assert lacks_price("m", unknown, {})
    assert lacks_price("ranker", judge("no-such-model"), {})
    assert not lacks_price("m", unknown, {"m": priced(input=0, output=0)})  # free, and known to be
    own = VLLMModel.model_validate({"name": "m", "engine": "vllm", "model": "org/m"})
    assert not lacks_price("m", own, {})
    assert not lacks_price("m", EchoModel.model_validate({"name": "m", "engine": "echo", "model": "m"}), {})


def test_gpus_cost_by_the_hour() -> None:
    assert gpu_usd("m", {"m": priced(gpu_hour=3.6)}, 1000) == pytest.approx(1.0)
    assert gpu_usd("m", {"m": priced(input=1, output=1)}, 1000) is None
    assert gpu_usd("m", {}, 1000) is None
