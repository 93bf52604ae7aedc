"""Events that a blend emits while it runs; `BlendResult` is always the last."""

from dataclasses import dataclass

from llm_blender_ray.actors.engines import Completion
from llm_blender_ray.actors.records import Blend, Candidate, Ranking


@dataclass(frozen=True, slots=True)
class MemberPiece:
    """Some more of a member's answer."""

    index: int  # of the candidate
    model: str
    text: str


@dataclass(frozen=True, slots=True)
class Answered:
    """A member's whole answer, or why there is none."""

    index: int
    candidate: Candidate
    seconds: float  # since it was asked


@dataclass(frozen=True, slots=True)
class Ranked:
    """The ranking so far. candidates: those it is about, by index."""

    ranking: Ranking
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Fusing:
    """The fuser has begun. fused_from: indexes of the candidates it reads."""

    fused_from: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """Some more of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class BlendResult:
    """How it ended: always the last event.

    answer: text, why it ended, and the fuser's own tokens. seconds: by stage (`generate`, `rank`, `fuse`).
    degraded: what the answer lacks, and why, a line each.
    """

    blend: Blend
    answer: Completion
    seconds: dict[str, float]
    degraded: tuple[str, ...] = ()

    @property
    def prompt_tokens(self) -> int:
        """Read by all members and the fuser, as far as they tell."""
        return sum(candidate.prompt_tokens or 0 for candidate in self.blend.candidates) + (
            self.answer.prompt_tokens or 0
        )

    @property
    def completion_tokens(self) -> int:
        """Written by all members and the fuser, as far as they tell."""
        return sum(candidate.completion_tokens or 0 for candidate in self.blend.candidates) + (
            self.answer.completion_tokens or 0
        )


Event = MemberPiece | Answered | Ranked | Fusing | Piece | BlendResult
