"""Events that a blend emits while it runs; `BlendResult` is always the last.

A `ReasoningDelta` is a piece of the reasoning before the final answer.
"""

from dataclasses import dataclass

from llm_blender_ray.actors.engines import Completion, ReasoningDelta
from llm_blender_ray.actors.records import Blend, Candidate, FinishReason, Ranking
from llm_blender_ray.actors.usage import TokenUsage
from llm_blender_ray.pipelines.online.circuits import FUSER, RANKER


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
        answer: Text, reasoning and finish reason.
        seconds: Duration of each stage (`generate`, `rank`, `fuse`).
        degraded: What the answer lacks and why, one line each.
    """

    blend: Blend
    answer: Completion
    seconds: dict[str, float]
    degraded: tuple[str, ...] = ()

    @property
    def usage(self) -> TokenUsage:
        """Usage of all parts: what the answer cost, whatever became of it."""
        return sum(usage_by_part(self.blend).values(), TokenUsage())


Event = MemberDelta | Answered | Ranked | Fusing | ReasoningDelta | AnswerDelta | BlendResult


def usage_by_part(blend: Blend) -> dict[str, TokenUsage]:
    """Usage of a blend by model, and of its ranker (an LLM that judges) and its fuser, where they made calls."""
    found: dict[str, TokenUsage] = {}
    for candidate in blend.candidates:
        name = candidate.model or ""
        found[name] = found.get(name, TokenUsage()) + candidate.known_usage
    found |= {RANKER: blend.ranking_usage or TokenUsage(), FUSER: blend.fusing_usage or TokenUsage()}
    return {name: usage for name, usage in found.items() if usage.calls}


def answer_of(candidate: Candidate) -> Completion:
    """A candidate as the answer."""
    reason: FinishReason = "length" if candidate.finish_reason == "length" else "stop"
    return Completion(candidate.text or "", reason, reasoning=candidate.reasoning, logprobs=candidate.logprobs)


def delta_of(piece: str | ReasoningDelta) -> AnswerDelta | ReasoningDelta:
    """A streamed piece as an event."""
    return AnswerDelta(piece) if isinstance(piece, str) else piece
