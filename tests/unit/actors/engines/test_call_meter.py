"""Bounds of a call, which its budget reserves."""

from llm_blender_ray.actors.engines.call_meter import TEMPLATE_TOKENS, token_bounds
from llm_blender_ray.actors.records import Message


def test_the_bound_covers_what_tokenizers_make_of_any_text() -> None:
    prompt, completion_tokens = token_bounds({"messages": [Message(role="user", content="ÿ🙂\n")], "max_tokens": 7})
    assert prompt >= len("ÿ🙂\n".encode()) + TEMPLATE_TOKENS
    assert completion_tokens == 7
    assert token_bounds({"messages": [], "max_completion_tokens": 9})[1] == 9
