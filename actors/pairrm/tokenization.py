"""Tokenization of a prompt and two candidates as one sequence, exactly as in llm-blender 0.0.2.

    [CLS] <|source|> source [SEP] [CLS] <|candidate1|> left [SEP] [CLS] <|candidate2|> right [SEP]

Each text is tokenized once per row: only the joining differs between pairs. The candidates' token budget grows by
half of what the source leaves free. The original takes the longest source of a batch for that, so that a row's
score depends on its neighbours; here the row alone decides.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

from tokenizers import Tokenizer

from llm_blender_ray.actors.tokens import LiteralTokenizer
from llm_blender_ray.actors.truncation import keep_last_turn

SOURCE, LEFT, RIGHT, CANDIDATE = "<|source|>", "<|candidate1|>", "<|candidate2|>", "<|candidate|>"
ENCODER_ARCHITECTURE = "DebertaV2PairRM"  # of every encoder's ranker, as `llm-blender/PairRM-hf` has it
MARKERS = (SOURCE, LEFT, RIGHT, CANDIDATE)  # in the order in which the original adds them


@dataclass(frozen=True, slots=True)
class PairBudget:
    """Token budgets of a checkpoint, special tokens counted."""

    source_max_length: int
    candidate_max_length: int

    def candidate(self, source_length: int) -> int:
        """Tokens a candidate may have next to a source of `source_length` tokens."""
        return self.candidate_max_length + (self.source_max_length - source_length) // 2


class PairTokenization(Protocol):
    """Makes one sequence of a prompt and two candidates."""

    backend: Tokenizer
    budget: PairBudget
    pad_id: int

    @property
    def special_tokens(self) -> dict[str, str]:
        """Special tokens by the names that transformers' tokenizers have for them."""
        ...

    @property
    def config_fields(self) -> dict[str, Any]:
        """Fields of a ranker's config.json that the tokenization decides, its architecture among them."""
        ...

    @property
    def marker_ids(self) -> Sequence[int]:
        """Token ids that a pair has and no backbone was trained on."""
        ...

    def encode_source(self, *turns: str) -> list[int]:
        """Token ids of a prompt, at most `source_max_length`.

        Args:
            turns: One text, which loses its end where it is too long, as in the original; or the turns of a chat
                (`Prompt.turns`), of which the oldest tokens go, since the candidates answer the last turn.
        """
        ...

    def encode_candidate(self, text: str, source_length: int) -> list[int]:
        """Ids of a candidate, its side left open, for a source of `source_length` tokens."""
        ...

    def join(self, source: list[int], left: list[int], right: list[int]) -> list[int]:
        """One sequence of the three."""
        ...


class PairTokenizer:
    """A `PairTokenization` for encoders. `backend` already holds the four markers."""

    def __init__(self, backend: Tokenizer, budget: PairBudget, *, cls: str, sep: str, pad: str) -> None:
        self.backend = backend
        self.budget = budget
        self.cls, self.sep, self.pad = cls, sep, pad
        self._literal = LiteralTokenizer(backend)
        self.cls_id, self.sep_id, self.pad_id = (self._literal.id_of(token) for token in (cls, sep, pad))
        self.source_id, self.left_id, self.right_id, self.candidate_id = map(self._literal.id_of, MARKERS)

    @property
    def vocab_size(self) -> int:
        """Ids the embedding must have: the vocabulary with all added tokens."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    @property
    def special_tokens(self) -> dict[str, str]:
        """See PairTokenization."""
        return {"cls_token": self.cls, "sep_token": self.sep, "pad_token": self.pad}

    @property
    def config_fields(self) -> dict[str, Any]:
        """See PairTokenization. The names are those of `llm-blender/PairRM-hf`."""
        return {
            "architectures": [ENCODER_ARCHITECTURE],
            "vocab_size": self.vocab_size,
            "sep_token_id": self.sep_id,
            "source_prefix_id": self.source_id,
            "cand1_prefix_id": self.left_id,
            "cand2_prefix_id": self.right_id,
            "cand_prefix_id": self.candidate_id,
        }

    @property
    def marker_ids(self) -> Sequence[int]:
        """See PairTokenization."""
        return (self.source_id, self.left_id, self.right_id)

    def _encode(self, marker: str, text: str) -> list[int]:
        return self._literal.encode(self._literal.mark(marker) + text.replace(self.sep, " "))

    def encode_source(self, *turns: str) -> list[int]:
        """See PairTokenization."""
        room = self.budget.source_max_length - 2
        ids = self._encode(SOURCE, "\n".join(turns))
        if len(ids) > room and len(turns) > 1:
            texts = [text.replace(self.sep, " ") for text in turns]
            ids = [self.source_id, *keep_last_turn(self._literal.encode_many(texts), room - 1)]
        return [self.cls_id, *ids[:room], self.sep_id]

    def encode_candidate(self, text: str, source_length: int) -> list[int]:
        """See PairTokenization."""
        ids = self._encode(CANDIDATE, text)
        return [self.cls_id, *ids[: self.budget.candidate(source_length) - 2], self.sep_id]

    def join(self, source: list[int], left: list[int], right: list[int]) -> list[int]:
        """See PairTokenization. The candidates' markers mark the sides."""
        sided = ((self.left_id, left), (self.right_id, right))
        return source + list(chain.from_iterable([ids[0], marker, *ids[2:]] for marker, ids in sided))
