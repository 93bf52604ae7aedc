"""Tokenization of a prompt and two candidates as one prompt of a causal LM, whose last token has seen both.

    Prompt:
    source<end>Answer A:
    left<end>Answer B:
    right<end>The better answer is answer

`<end>` is the model's own end of text, which no text can spell, so that a text can't close its part. Each text is
tokenized once per row. Budgets and truncation are those of `tokenization`.
"""

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer

from llm_blender_ray.actors.pairrm.tokenization import PairBudget
from llm_blender_ray.actors.tokens import LiteralTokenizer
from llm_blender_ray.actors.truncation import keep_last_turn

SOURCE_HEADING, LEFT_HEADING, RIGHT_HEADING = "Prompt:\n", "Answer A:\n", "Answer B:\n"
QUESTION = "The better answer is answer"
CAUSAL_ARCHITECTURE = "CausalPairRanker"


class PromptPairTokenizer:
    """A `tokenization.PairTokenization` for causal LMs."""

    def __init__(
        self, backend: Tokenizer, budget: PairBudget, *, end: str, pad: str, begin: str | None = None
    ) -> None:
        """Make one.

        Args:
            backend: The model's tokenizer.
            budget: Token budgets.
            end: Token after each text.
            pad: Token to pad with.
            begin: Token before each sequence, for models that were trained with one.
        """
        self.backend = backend
        self.budget = budget
        self.special_tokens = {"eos_token": end, "pad_token": pad} | ({"bos_token": begin} if begin else {})
        self._literal = LiteralTokenizer(backend)
        self.pad_id, self._end = self._literal.id_of(pad), [self._literal.id_of(end)]
        begins = [self._literal.id_of(begin)] if begin else []
        encode = self._literal.encode
        self._source = [*begins, *encode(SOURCE_HEADING)]
        self._left, self._right, self._question = map(encode, (LEFT_HEADING, RIGHT_HEADING, QUESTION))
        self._heading = max(len(self._left), len(self._right))

    @property
    def config_fields(self) -> dict[str, Any]:
        """See `tokenization.PairTokenization`."""
        return {"architectures": [CAUSAL_ARCHITECTURE]}

    @property
    def marker_ids(self) -> Sequence[int]:
        """See `tokenization.PairTokenization`."""
        return ()

    def encode_source(self, *turns: str) -> list[int]:
        """See `tokenization.PairTokenization`."""
        room = max(0, self.budget.source_max_length - len(self._source) - 1)
        ids = self._literal.encode("\n".join(turns))
        if len(ids) > room and len(turns) > 1:
            ids = keep_last_turn(self._literal.encode_many(turns), room)
        return [*self._source, *ids[:room], *self._end]

    def encode_candidate(self, text: str, source_length: int) -> list[int]:
        """See `tokenization.PairTokenization`."""
        room = max(0, self.budget.candidate(source_length) - self._heading - 1)
        return [*self._literal.encode(text)[:room], *self._end]

    def join(self, source: Sequence[int], left: Sequence[int], right: Sequence[int]) -> list[int]:
        """See `tokenization.PairTokenization`."""
        return [*source, *self._left, *left, *self._right, *right, *self._question]
