"""Token counts in responses of OpenAI-compatible chat completions services."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from llm_blender_ray.actors.usage import TokenUsage

MAX_TOKEN_COUNT = 2**53  # a larger count is invalid; JSON readers with floats only would round it


class TokenCounts(NamedTuple):
    """Counts of one response; None for what is not reported.

    Attributes:
        prompt: Tokens of the prompt, cached ones included.
        completion: Tokens of the answer, its reasoning included.
        cached: Those of the prompt that came from a prefix cache.
        reasoning: Those of the completion that are reasoning.
    """

    prompt: int | None = None
    completion: int | None = None
    cached: int | None = None
    reasoning: int | None = None


def read_token_counts(usage: Any) -> TokenCounts:
    """Counts in a response's `usage`.

    Cached tokens are in `prompt_tokens_details` (OpenAI, vLLM, Gemini, xAI, OpenRouter), or DeepSeek's
    `prompt_cache_hit_tokens`, or Moonshot's `cached_tokens`. xAI's completion tokens lack those of reasoning, which
    its total has: they are added.
    """
    if not isinstance(usage, Mapping):
        return TokenCounts()
    prompt, completion = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    reasoning = _detail(usage, "completion_tokens_details", "reasoning_tokens")
    cached = _detail(usage, "prompt_tokens_details", "cached_tokens")
    for name in ("prompt_cache_hit_tokens", "cached_tokens"):
        cached = _count(usage.get(name)) if cached is None else cached
    total = (prompt or 0) + (completion or 0) + (reasoning or 0)
    if completion is not None and reasoning and usage.get("total_tokens") == total:
        completion += reasoning
    return TokenCounts(prompt, completion, cached, reasoning)


def usage_in(body: Any) -> TokenUsage:
    """Usage of a call by its parsed response, an answer or not: a failure counts only if it reports tokens."""
    if not isinstance(body, Mapping):
        return TokenUsage()
    counts = read_token_counts(body.get("usage"))
    answered = bool(body.get("choices")) and not body.get("error")
    return TokenUsage.of_call(*counts) if answered or any(counts) else TokenUsage()


def _detail(usage: Mapping[str, Any], group: str, name: str) -> int | None:
    details = usage.get(group)
    return _count(details.get(name)) if isinstance(details, Mapping) else None


def _count(value: Any) -> int | None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_TOKEN_COUNT
    return value if is_count else None
