"""Reasoning of one answer by its token ids: how many tokens it has, and what ends it when its budget is used up."""

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llm_blender_ray.actors.engines.reasoning import AnswerFilter
from llm_blender_ray.actors.engines.reasoning_formats import ReasoningFormat


@dataclass(frozen=True, slots=True)
class ReasoningTokens:
    """How to read the reasoning in the ids of an answer.

    Attributes:
        decode: Makes text of the answer's ids, with the marks of reasoning.
        encode: Makes ids of a mark.
        formats: Formats in which the answer may mark reasoning.
        opened: Begin mark that the prompt has.
        budget: Tokens after which reasoning is ended; None: any number.
    """

    decode: Callable[[list[int]], str]
    encode: Callable[[str], list[int]]
    formats: Sequence[ReasoningFormat]
    opened: str = ""
    budget: int | None = None

    def forced(self, ids: Sequence[int]) -> list[int] | None:
        """Ids that have to follow the answer so far.

        Args:
            ids: The answer so far.

        Returns:
            Those of the end mark where the answer has used up its budget and is still within reasoning; none where
            it no longer is, or never was. None while that is open.
        """
        if self.budget is None:
            return []
        if len(ids) < self.budget or (read := self._read(ids)).starting:
            return None
        return self.encode(mark) if (mark := read.forced_end) else []

    def count(self, ids: Sequence[int]) -> int | None:
        """Count the tokens of reasoning, with its marks.

        Args:
            ids: The whole answer.

        Returns:
            Their number; None where the answer has no reasoning, or none that ends.
        """
        if not self._read(ids).past_reasoning:
            return None
        return bisect.bisect_left(range(len(ids)), True, key=lambda count: self._read(ids[:count]).past_reasoning)

    def _read(self, ids: Sequence[int]) -> AnswerFilter:
        answer = AnswerFilter(self.formats)
        answer.add(self.opened + self.decode(list(ids)))
        return answer
