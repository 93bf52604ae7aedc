"""What a blend is asked for, what it is made by, and what is told of it on the way.

Who answers, ranks and fuses are parts behind three protocols: plain classes in this process, or handles of replicas
elsewhere.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from llm_blender_ray.actors.engines import Completion
from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.records import Blend, Candidate, Prompt, Ranking, Refusal
from llm_blender_ray.configs.schema import ComparisonSettings, SamplingOverrides

BLEND, BEST = "blend", "blend-best"  # asked for by these names; any other is a member's own


class Member(Protocol):
    """One base LLM. Neither method raises for a prompt: what went wrong is the candidate's error."""

    @property
    def name(self) -> str: ...

    @property
    def samples(self) -> int: ...

    async def answer(
        self, prompt: Prompt, sample: int = 0, change: SamplingOverrides | None = None
    ) -> Candidate: ...

    def stream(
        self, prompt: Prompt, sample: int = 0, change: SamplingOverrides | None = None
    ) -> AsyncGenerator[str | Candidate, None]:
        """Pieces of the answer's text as they are made, then the candidate."""
        ...


class RankerPart(Protocol):
    """Ranks one prompt's candidates. Both raise when there is no ranking.

    budget_s: after so long no further round of comparisons begins, and the ranking so far is not `complete`.
    comparing: which pairs, and how many places must be right, in place of the settings'.
    """

    async def rank_one(
        self,
        prompt: Prompt,
        candidates: Sequence[Candidate],
        budget_s: float | None = None,
        comparing: ComparisonSettings | None = None,
    ) -> Ranking: ...

    def rounds(
        self, prompt: Prompt, candidates: Sequence[Candidate], budget_s: float | None = None
    ) -> AsyncGenerator[Ranking, None]:
        """The ranking after every round; the last is the one that counts."""
        ...


class FuserPart(Protocol):
    """The half of `actors.fusers.Fuser` that writes."""

    async def fuse(
        self, prompt: Prompt, candidates: Sequence[str], change: SamplingOverrides | None = None
    ) -> Completion: ...

    def stream(
        self, prompt: Prompt, candidates: Sequence[str], change: SamplingOverrides | None = None
    ) -> AsyncGenerator[str | Completion, None]: ...


class NoAnswerError(BlendError):
    """No member answered.

    Attributes:
        refused: All refuse the prompt itself; "too long" where a shorter one may do.
        retry_after_s: Seconds until a member may be asked again where all are left out; None: nobody is.
    """

    def __init__(self, message: str, refused: Refusal | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message, refused, retry_after_s)
        self.refused, self.retry_after_s = refused, retry_after_s

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long is waited for what; see `configs.serving.Serving`. Without a deadline everything is waited for."""

    deadline_s: float | None = None
    generation_share: float = 0.6
    ranking_share: float = 0.2
    quorum: int | None = None
    quorum_grace: float = 0.5
    timeouts_s: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BlendRequest:
    """One answer that somebody wants.

    model: `blend`, `blend-best`, or a member's name. choice: which of several answers, from 0; with a seed each is
    reproducible. follow: pieces of the answer as they are made; follow_members: of the members' answers, too, and
    the ranking so far. waited_s: how much of the deadline is over.
    """

    prompt: Prompt
    model: str = BLEND
    given: tuple[Candidate, ...] = ()
    choice: int = 0
    change: SamplingOverrides | None = None
    follow: bool = False
    follow_members: bool = False
    deadline_s: float | None = None  # in place of Timeouts.deadline_s
    waited_s: float = 0.0


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
