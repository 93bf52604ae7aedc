"""Usage of LLMs: calls and their tokens, of a judge and a chat fuser as of base LLMs.

A plain value that travels with the result it was spent on: a completion, a candidate, a comparison's score, a
ranking, a row. Who needs a sum adds; nothing is counted in passing, so a result that is read again is not counted
again.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """What calls of an LLM used. Sums of it are made with `+`; nothing used is `TokenUsage()`.

    None in place of a `TokenUsage` is an unknown one: of a result that an earlier version stored without it.

    Attributes:
        calls: Answers of the LLM, those that were thrown away included (blank, unreadable, filtered, repeated), and
            calls that were given up and may be billed all the same.
        unreported_calls: Those of the calls whose tokens are unknown, because the server reports none or the call
            was given up. The tokens of all calls are at least those below.
        prompt_tokens: Tokens of the prompts, cached ones included.
        cached_prompt_tokens: Those of the prompts' tokens that a server took from its prefix cache.
        completion_tokens: Tokens of reasoning and answers.
        reasoning_tokens: Those of the completions' tokens that are reasoning.
    """

    calls: int = 0
    unreported_calls: int = 0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0

    def __add__(self, other: Self) -> Self:
        return type(self)(*(getattr(self, name) + getattr(other, name) for name in USAGE_FIELDS))

    @property
    def total_tokens(self) -> int:
        """Tokens of prompts and completions."""
        return self.prompt_tokens + self.completion_tokens

    @classmethod
    def of_call(
        cls, prompt: int | None, completion: int | None, cached: int | None = None, reasoning: int | None = None
    ) -> Self:
        """Usage of one call, from counts that may be unknown.

        A call counts as unreported unless both totals are known. More cached than prompt tokens, or more reasoning
        than completion tokens, are cut to those.
        """
        prompt_tokens, completion_tokens = prompt or 0, completion or 0
        return cls(
            1,
            int(prompt is None or completion is None),
            prompt_tokens,
            min(cached or 0, prompt_tokens),
            completion_tokens,
            min(reasoning or 0, completion_tokens),
        )

    @classmethod
    def given_up(cls) -> Self:
        """Usage of one call that was given up: it may be billed, for an unknown number of tokens."""
        return cls.of_call(None, None)

    @classmethod
    def from_row(cls, row: Mapping[str, Any] | None) -> Self | None:
        """The usage in a value of `records.USAGE_TYPE`; None for null."""
        return None if row is None else cls(**{name: row[name] for name in USAGE_FIELDS})

    def to_row(self) -> dict[str, int]:
        """The usage as a value of `records.USAGE_TYPE`."""
        return {name: getattr(self, name) for name in USAGE_FIELDS}


USAGE_FIELDS = tuple(field.name for field in fields(TokenUsage))


def summed(usages: Iterable[TokenUsage | None]) -> TokenUsage | None:
    """Sum of usages; None, unknown, as soon as one of them is."""
    total = TokenUsage()
    for usage in usages:
        if usage is None:
            return None
        total += usage
    return total
