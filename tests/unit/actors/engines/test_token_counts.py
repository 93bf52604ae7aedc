from typing import Any

import pytest

from llm_blender_ray.actors.engines.token_counts import TokenCounts, read_token_counts, usage_in
from llm_blender_ray.actors.usage import TokenUsage

TOTALS = {"prompt_tokens": 10, "completion_tokens": 7}


@pytest.mark.parametrize(
    ("more", "counts"),
    [
        pytest.param({}, TokenCounts(10, 7), id="totals alone"),
        pytest.param({"prompt_tokens_details": {"cached_tokens": 4}}, TokenCounts(10, 7, 4), id="openai's cache"),
        pytest.param({"prompt_cache_hit_tokens": 4}, TokenCounts(10, 7, 4), id="deepseek's cache"),
        pytest.param({"cached_tokens": 4}, TokenCounts(10, 7, 4), id="moonshot's cache"),
        pytest.param({"prompt_tokens_details": None}, TokenCounts(10, 7), id="details that are null"),
        pytest.param(
            {"completion_tokens_details": {"reasoning_tokens": 5}, "total_tokens": 17},
            TokenCounts(10, 7, None, 5),
            id="reasoning within the completion",
        ),
        pytest.param(
            {"completion_tokens_details": {"reasoning_tokens": 5}, "total_tokens": 22},
            TokenCounts(10, 12, None, 5),
            id="xai's reasoning beside the completion",
        ),
    ],
)
def test_counts_of_each_service(more: dict[str, Any], counts: TokenCounts) -> None:
    assert read_token_counts({**TOTALS, **more}) == counts


@pytest.mark.parametrize("usage", [None, [], "many", {}, {"prompt_tokens": -1}, {"prompt_tokens": True}])
def test_what_is_no_count_is_not_reported(usage: Any) -> None:
    assert read_token_counts(usage) == TokenCounts()


@pytest.mark.parametrize(
    ("body", "usage"),
    [
        pytest.param({"choices": [{}], "usage": TOTALS}, TokenUsage(1, 0, 10, 0, 7, 0), id="an answer"),
        pytest.param({"choices": [{}]}, TokenUsage.given_up(), id="an answer without counts"),
        pytest.param({"error": {}, "usage": TOTALS}, TokenUsage(1, 0, 10, 0, 7, 0), id="a failure that was billed"),
        pytest.param({"error": {"message": "busy"}}, TokenUsage(), id="a failure"),
        pytest.param({"error": {"message": "busy"}, "choices": [{}]}, TokenUsage(), id="a failure amid choices"),
        pytest.param("no", TokenUsage(), id="no object"),
    ],
)
def test_a_failure_is_a_call_only_with_counts(body: Any, usage: TokenUsage) -> None:
    assert usage_in(body) == usage
