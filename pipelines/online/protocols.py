"""Interfaces of the parts that a blend runs on, and the request and time limits that it takes.

A part is a plain class in this process or a handle of replicas elsewhere.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from llm_blender_ray.actors.engines import ReasoningDelta
from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.records import Candidate, Prompt, Ranking, Refusal
from llm_blender_ray.actors.usage import TokenUsage
from llm_blender_ray.configs.schema import ComparisonSettings, SamplingOverrides

BLEND, BEST = "blend", "blend-best"  # names of the blends; any other is a member's own


class Member(Protocol):
    """One base LLM. Its methods do not raise for a prompt: failures are the candidate's error."""

    @property
    def name(self) -> str:
        """Name of the model."""
        ...

    @property
    def samples(self) -> int:
        """Number of its answers to each prompt."""
        ...

    async def answer(self, prompt: Prompt, sample: int = 0, change: SamplingOverrides | None = None) -> Candidate:
        """See `actors.generator.Generator.answer`."""
        ...

    def stream(
        self, prompt: Prompt, sample: int = 0, change: SamplingOverrides | None = None
    ) -> AsyncGenerator[str | ReasoningDelta | Candidate, None]:
        """Pieces of the reasoning and of the answer's text as they are made, then the candidate."""
        ...


class RankerPart(Protocol):
    """Ranks one prompt's candidates. Both methods raise when there is no ranking.

    After `budget_s` no further round of comparisons begins, and the ranking so far is not `complete`. `comparing`
    sets which pairs are compared, and how many places must be right, in place of the settings.
    """

    async def rank_one(
        self,
        prompt: Prompt,
        candidates: Sequence[Candidate],
        budget_s: float | None = None,
        comparing: ComparisonSettings | None = None,
    ) -> Ranking:
        """Rank the candidates."""
        ...

    def rounds(
        self, prompt: Prompt, candidates: Sequence[Candidate], budget_s: float | None = None
    ) -> AsyncGenerator[Ranking, None]:
        """Yield the ranking after every round; the last is final."""
        ...


class NoAnswerError(BlendError):
    """No member answered.

    Attributes:
        refused: All reject the prompt itself; "too long" if a shorter one may be accepted.
        retry_after_s: Seconds until a member may be called again if all are left out; None: otherwise.
        unpaid: A budget had no room for a call that might have given an answer.
        usages: Usage by part, as `events.usage_by_part` has it: calls that came to nothing are billed, too.
    """

    def __init__(
        self,
        message: str,
        refused: Refusal | None = None,
        retry_after_s: float | None = None,
        *,
        unpaid: bool = False,
    ) -> None:
        super().__init__(message, refused, retry_after_s)
        self.refused, self.retry_after_s, self.unpaid = refused, retry_after_s, unpaid
        self.usages: Mapping[str, TokenUsage] = {}

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Time limits of a blend; see `configs.serving.Serving`. Without a deadline there is no limit."""

    deadline_s: float | None = None
    generation_share: float = 0.6
    ranking_share: float = 0.2
    quorum: int | None = None
    quorum_grace: float = 0.5
    timeouts_s: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BlendRequest:
    """Request for one answer.

    Attributes:
        prompt: The prompt.
        model: `blend`, `blend-best`, or a member's name.
        given: Existing candidates; a member is called only for the samples that they lack.
        choice: Index of this answer among several; with a seed each is reproducible.
        change: Sampling parameters in place of the settings'.
        follow: Whether to emit the answer's pieces.
        follow_members: Whether to emit the members' pieces and the ranking after every round.
        deadline_s: Used in place of `Timeouts.deadline_s`.
        waited_s: Part of the deadline that has passed already.
    """

    prompt: Prompt
    model: str = BLEND
    given: tuple[Candidate, ...] = ()
    choice: int = 0
    change: SamplingOverrides | None = None
    follow: bool = False
    follow_members: bool = False
    deadline_s: float | None = None
    waited_s: float = 0.0
