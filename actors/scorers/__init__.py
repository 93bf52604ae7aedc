"""Scorers: implementations of one protocol that compare two answers.

A scorer has no notion of tournaments: it maps matchups of any prompts to scores. So every
scorer works with every strategy, in this process or in a pool of replicas.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from llm_blender_ray.actors.budget import BudgetError
from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.records import Matchup
from llm_blender_ray.actors.usage import TokenUsage
from llm_blender_ray.configs.schema import RankerSettings


class ScoringError(BlendError):
    """One matchup has no score; others have."""


class UnpaidScoringError(ScoringError, BudgetError):
    """One matchup has no score, because a budget had no room for a judge's call."""


class CountedScore(float):
    """Score that calls of an LLM have made; a number like any other. `usage`: of these calls."""

    usage: TokenUsage

    @classmethod
    def of(cls, score: float, usage: TokenUsage) -> Self:
        """The score with its usage."""
        counted = cls(score)
        counted.usage = usage
        return counted


Score = float | ScoringError  # how much better left is than right, or why there is no score


def usage_of_score(score: Score) -> TokenUsage:
    """Calls of an LLM for a score, or for an attempt at one; none for scores of other models."""
    return score.usage if isinstance(score, CountedScore | ScoringError) else TokenUsage()


@dataclass(frozen=True, slots=True)
class Traits:
    """Properties of a scorer that tournaments and caches need.

    Attributes:
        pointwise: Every answer is scored by itself and a matchup's score is the difference, so that n forwards are
            enough for n answers, and the order of two has no effect.
        identity: Digest of everything that decides a score; None when the settings name no cache.
    """

    pointwise: bool
    identity: str | None = None

    def forwards(self, matchups: Sequence[Matchup]) -> int:
        """Number of forwards that score matchups of one prompt."""
        if self.pointwise:
            return len({text for matchup in matchups for text in (matchup.left, matchup.right)})
        return len(matchups)


class Scorer(Protocol):
    """One model, loaded and ready, or several that look like one."""

    @property
    def traits(self) -> Traits:
        """Properties of the scorer."""
        ...

    async def score(self, matchups: Sequence[Matchup]) -> list[Score]:
        """Score matchups. May be called concurrently.

        Returns:
            One score per matchup, in order; positive when left is better.

        Raises:
            Exception: The model fails on all of them.
        """
        ...

    async def check_health(self) -> None:
        """Raise BlendError when the model can't score any more, so that its actor has to be replaced."""
        ...

    async def close(self) -> None:
        """Free what the model holds (threads, processes, connections). Calls still open are finished, or fail."""
        ...


def load_scorer(settings: RankerSettings) -> Scorer:
    """Load the scorer of a ranker: seconds to minutes.

    Args:
        settings: The settings of the ranker.

    Returns:
        The scorer.

    Raises:
        ModelLoadError: The ranker cannot be used.
    """
    scorer: Scorer = settings.load()
    return scorer
