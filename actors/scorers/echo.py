"""Scorer without a model: the longer of two answers is better. For trials, tests, benchmarks; needs no torch."""

import asyncio
from collections.abc import Sequence

from llm_blender_ray.actors.records import Matchup, digest
from llm_blender_ray.actors.scorers import Score, Traits
from llm_blender_ray.configs.schema import EchoRanker


class EchoScorer:
    """See `actors.scorers.Scorer`. Scores are deterministic and antisymmetric."""

    def __init__(self, settings: EchoRanker) -> None:
        """Take the settings; there is nothing to load."""
        self.traits = Traits(
            pointwise=False, identity=f"echo {settings.results_version}" if settings.cache else None
        )
        self._comparison_s = settings.comparison_s
        self._turn = asyncio.Lock()  # one call after the other, as a model would

    async def score(self, matchups: Sequence[Matchup]) -> list[Score]:
        """See `actors.scorers.Scorer`. Takes `comparison_s` for each matchup."""
        async with self._turn:
            if self._comparison_s:
                await asyncio.sleep(self._comparison_s * len(matchups))
        return [_strength(matchup, matchup.left) - _strength(matchup, matchup.right) for matchup in matchups]

    async def check_health(self) -> None:
        """There is nothing to break."""

    async def close(self) -> None:
        """There is nothing to free."""


def _strength(matchup: Matchup, answer: str) -> float:
    """Length of an answer in words, plus a fraction below one that differs between answers of the same length."""
    draw = int.from_bytes(digest(matchup.prompt, answer)[:4], "big") / 2**32
    return (len(answer.split()) + draw) / 16
