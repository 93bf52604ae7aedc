"""Records of judged pairs: what an LLM judge found of two answers of a row (`blend judge`)."""

from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

from llm_blender_ray.actors.usage import TokenUsage

Preferred = Literal["left", "right", "tie", "both_good", "both_bad"]
FUSED: Literal["fused"] = "fused"
Answer = int | Literal["fused"]  # of a row: a candidate's index, or its fused answer


@dataclass(frozen=True, slots=True)
class JudgeReply:
    """Reply of a judge about two answers.

    Attributes:
        preferred: Its verdict; None if it gave none.
        text: What it wrote, if it was called and answered.
        error: Reason why there is no verdict.
        unpaid: Whether that is a budget without room for the call.
        usage: All calls for it.
    """

    preferred: Preferred | None = None
    text: str | None = None
    error: str | None = None
    unpaid: bool = False
    usage: TokenUsage = field(default=TokenUsage(), compare=False)


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """Comparison of two answers of a row, as the judge saw them; exactly one of `preferred` and `error` is set.

    Attributes:
        key: Digest of the prompt and both texts, in this order; pairs of equal texts have one reply. Empty where
            the two texts are equal: a tie that no judge was asked for.
    """

    left: Answer
    right: Answer
    preferred: Preferred | None = None
    reply: str | None = None
    error: str | None = None
    key: str = ""

    def to_row(self) -> dict[str, Any]:
        """The pair as a value of `JUDGED_PAIR`."""
        return {name: getattr(self, name) for name in JUDGED_PAIR.names} | {
            "left": str(self.left),
            "right": str(self.right),
        }

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "JudgedPair":
        """The pair of a value of `JUDGED_PAIR`."""
        return cls(**row | {side: read_answer_index(row[side]) for side in ("left", "right")})


@dataclass(frozen=True, slots=True)
class JudgedAnswers:
    """One judge's comparisons of a row.

    Attributes:
        error: Reason why none could be made.
        usage: Calls for them; None: unknown.
    """

    pairs: tuple[JudgedPair, ...] = ()
    error: str | None = None
    usage: TokenUsage | None = field(default=TokenUsage(), compare=False)


JUDGED_PAIR = pa.struct([(name, pa.string()) for name in ("left", "right", "preferred", "reply", "error", "key")])


def read_answer_index(text: str) -> Answer:
    """The answer that a text of `JUDGED_PAIR` names."""
    return FUSED if text == FUSED else int(text)
