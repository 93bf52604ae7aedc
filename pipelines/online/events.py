"""Events that a blend emits while it runs; `BlendResult` is always the last.

A `ReasoningDelta` is a piece of the reasoning before the final answer.
"""

from dataclasses import dataclass

from llm_blender_ray.actors.engines import Completion, ReasoningDelta
from llm_blender_ray.actors.records import Blend, Candidate, FinishReason, Ranking


@dataclass(frozen=True, slots=True)
class MemberDelta:
    """A streamed piece of a member's answer."""

    index: int  # of the candidate
    model: str
    text: str


@dataclass(frozen=True, slots=True)
class Answered:
    """A member's whole answer, or its error."""

    index: int
    candidate: Candidate
    seconds: float  # since the member was called


@dataclass(frozen=True, slots=True)
class Ranked:
    """The ranking after a round of comparisons.

    Attributes:
        ranking: Ranking of `candidates`.
        candidates: The ranked candidates, by index.
    """

    ranking: Ranking
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Fusing:
    """Start of fusion.

    Attributes:
        fused_from: Indexes of the candidates that the fuser reads.
    """

    fused_from: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AnswerDelta:
    """A streamed piece of the final answer."""

    text: str


@dataclass(frozen=True, slots=True)
class BlendResult:
    """Result of a blend: always the last event.

    Attributes:
        blend: Candidates, ranking and fused text.
        answer: Text, reasoning, finish reason and the fuser's own token counts.
        seconds: Duration of each stage (`generate`, `rank`, `fuse`).
        degraded: What the answer lacks and why, one line each.
    """

    blend: Blend
    answer: Completion
    seconds: dict[str, float]
    degraded: tuple[str, ...] = ()

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens of all members and the fuser, where known."""
        return sum(candidate.prompt_tokens or 0 for candidate in self.blend.candidates) + (
            self.answer.prompt_tokens or 0
        )

    @property
    def completion_tokens(self) -> int:
        """Completion tokens of all members and the fuser, where known."""
        return sum(candidate.completion_tokens or 0 for candidate in self.blend.candidates) + (
            self.answer.completion_tokens or 0
        )

    @property
    def reasoning_tokens(self) -> int:
        """Those of the completion tokens that are reasoning, where known."""
        return sum(candidate.reasoning_tokens or 0 for candidate in self.blend.candidates) + (
            self.answer.reasoning_tokens or 0
        )


Event = MemberDelta | Answered | Ranked | Fusing | ReasoningDelta | AnswerDelta | BlendResult


def answer_of(candidate: Candidate) -> Completion:
    """A candidate as the answer; its tokens count as the candidate's."""
    reason: FinishReason = "length" if candidate.finish_reason == "length" else "stop"
    return Completion(candidate.text or "", reason, reasoning=candidate.reasoning, logprobs=candidate.logprobs)


def delta_of(piece: str | ReasoningDelta) -> AnswerDelta | ReasoningDelta:
    """A streamed piece as an event."""
    return AnswerDelta(piece) if isinstance(piece, str) else piece
