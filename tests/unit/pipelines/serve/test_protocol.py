"""How much work a request can make before it is refused: few mistakes are looked for, whatever it holds."""

import json
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from llm_blender_ray.pipelines.serve.ballots import Vote
from llm_blender_ray.pipelines.serve.protocol import MAX_ITEMS, ChatRequest, CompareRequest, RerankRequest

CHAT = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
KEYS = {f"k{i}": 1 for i in range(20_000)}
PAIR = {"prompt": "p", "candidates": ["a", "b"]}


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (ChatRequest, CHAT | {"messages": [{}] * (MAX_ITEMS + 1)}),
        (ChatRequest, CHAT | KEYS),
        (ChatRequest, CHAT | {"stream_options": KEYS}),
        (ChatRequest, CHAT | {"blend": KEYS}),
        (ChatRequest, CHAT | {"stop": [""] * 20_000}),
        (ChatRequest, CHAT | {"tools": [{}] * 20_000}),
        (ChatRequest, CHAT | {"logit_bias": KEYS}),
        (ChatRequest, CHAT | {"modalities": [{}] * 20_000}),
        (ChatRequest, CHAT | {"response_format": KEYS}),
        (RerankRequest, {"query": "q", "documents": [{}] * 20_000}),
        (RerankRequest, {"query": "q", "documents": [{}] * 5_000}),
        (RerankRequest, {"query": "q", "documents": ["x"] * (MAX_ITEMS + 1)}),
        (CompareRequest, PAIR | {"candidates": [{}] * 20_000}),
        (CompareRequest, PAIR | {"prompt": [{}] * 20_000}),
        (CompareRequest, PAIR | {"messages": [{}] * 20_000}),
        (CompareRequest, PAIR | KEYS),
        (Vote, {"id": "x", "left": 0, "right": 1, "preferred": "left"} | KEYS),
    ],
)
def test_a_hostile_body_makes_few_mistakes(model: type[BaseModel], body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(json.loads(json.dumps(body)))
    assert caught.value.error_count() <= 3


def test_unknown_fields_that_are_null_are_no_mistake() -> None:
    assert ChatRequest.model_validate(CHAT | dict.fromkeys(KEYS)).model == "m"
