"""Log-probabilities of tokens in responses of OpenAI-compatible services."""

from collections.abc import Mapping
from typing import Any

from llm_blender_ray.actors.records import TokenLogprob


def read_token_logprobs(value: Any) -> tuple[TokenLogprob, ...] | None:
    """Log-probabilities of a choice's tokens; None without any, or in another form than OpenAI's."""
    content = value.get("content") if isinstance(value, Mapping) else None
    if not isinstance(content, list) or not content:
        return None
    read = [_token_logprob(one) for one in content]
    return tuple(one for one in read if one is not None) if None not in read else None


def _token_logprob(value: Any) -> TokenLogprob | None:
    if not isinstance(value, Mapping) or not isinstance(value.get("token"), str):
        return None
    logprob = value.get("logprob")
    if isinstance(logprob, bool) or not isinstance(logprob, int | float):
        return None
    top = [_token_logprob(one) for one in value.get("top_logprobs") or ()]
    return TokenLogprob(value["token"], float(logprob), tuple(one for one in top if one is not None))
