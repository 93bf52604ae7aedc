"""A ranker behind the synchronous methods: many rows or pairs in, their rankings or logits out."""

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from llm_blender_ray.actors.errors import BlendError, one_line
from llm_blender_ray.actors.ranker import Ranker
from llm_blender_ray.actors.records import Candidate, Matchup, Ranking
from llm_blender_ray.actors.scorers import Score, Scorer, ScoringError, load_scorer
from llm_blender_ray.actors.scorers.reward import RewardScorer
from llm_blender_ray.configs.strategies import Full, Strategy
from llm_blender_ray.pipelines.llm_blender.arguments import Rows
from llm_blender_ray.pipelines.llm_blender.configs import LocalRanker, with_lengths

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

ROWS_AT_A_TIME = 256  # enough pairs to sort by length; the pairs of a million rows do not fit in memory
PAIRS_AT_A_TIME = 32768
BOTH_ORDERS = "[A,B]+[B,A]"
MODES = ("[A,B]", "[B,A]", BOTH_ORDERS)


class LoadedRanker:
    """A loaded PairRanker or reward model."""

    def __init__(self, settings: LocalRanker) -> None:
        """Load the model.

        Raises:
            ModelLoadError: It cannot be used.
        """
        self._given = self._settings = settings
        self._scorer: Scorer | None = load_scorer(settings)

    def use_lengths(self, source: int | None, candidate: int | None) -> None:
        """Set the token lengths; other lengths than the last call's reload the model.

        Args:
            source: Tokens of a prompt; None: as loaded.
            candidate: Tokens of a candidate; None: as loaded.

        Raises:
            ModelLoadError: The model cannot be used.
        """
        settings = with_lengths(self._given, source, candidate)
        if settings != self._settings:
            self._scorer = None  # frees its memory first
            self._scorer, self._settings = load_scorer(settings), settings

    @property
    def scorer(self) -> Scorer:
        """The scorer, reloaded if the last attempt failed."""
        if self._scorer is None:
            self._scorer = load_scorer(self._settings)
        return self._scorer

    def scores(self, rows: Rows) -> list[Sequence[float | None]]:
        """Every row's scores from all pairs in both orders, like the original's; a reward model's rewards."""
        scorer = self.scorer
        if not isinstance(scorer, RewardScorer):
            return [ranking.scores for ranking in self.rankings(rows, Full())]
        rewards = iter(_floats(scorer.rewards([(prompt, text) for prompt, texts in rows for text in texts])))
        return [[next(rewards) for _ in texts] for _, texts in rows]

    def rankings(self, rows: Rows, strategy: Strategy, *, worst_first: bool = False) -> list[Ranking]:
        """Rank every row.

        Args:
            rows: Prompts and their candidates.
            strategy: Which pairs are compared.
            worst_first: Reverse every comparison.

        Raises:
            BlendError: A row cannot be ranked.
        """
        scorer = _Reversed(self.scorer) if worst_first else self.scorer
        ranker = Ranker(self._settings.model_copy(update={"strategy": strategy}), scorer)
        rankings: list[Ranking] = []
        for start in range(0, len(rows), ROWS_AT_A_TIME):
            some = rows[start : start + ROWS_AT_A_TIME]
            played = ranker.rank([(prompt, [Candidate(None, text) for text in texts]) for prompt, texts in some])
            for ranking in _run(played):
                if isinstance(ranking, Exception):
                    raise BlendError(f"inputs[{len(rankings)}] can't be ranked: {one_line(ranking)}") from ranking
                rankings.append(ranking)
            _log.info("ranked %d of %d inputs", len(rankings), len(rows))
        return rankings

    def compare(self, matchups: Sequence[Matchup], mode: str) -> NDArray[np.float32]:
        """Logits of `Blender.compare`; A is on the left of the matchups.

        Raises:
            ValueError: `mode` is unknown.
        """
        if mode not in MODES:
            raise ValueError(f"mode {mode!r}: expected one of {', '.join(MODES)}")
        swapped = [Matchup(matchup.prompt, matchup.right, matchup.left) for matchup in matchups]
        if mode == "[A,B]" or self.scorer.traits.pointwise:
            return self._logits(matchups)
        if mode == "[B,A]":
            return self._logits(swapped)
        left, right = np.split(self._logits([*matchups, *swapped]), 2)
        return left - right

    def _logits(self, matchups: Sequence[Matchup]) -> NDArray[np.float32]:
        """One logit per matchup; equal matchups are scored once.

        Raises:
            ScoringError: A matchup cannot be scored.
        """
        distinct = list(dict.fromkeys(matchups))
        scores: list[float] = []
        for start in range(0, len(distinct), PAIRS_AT_A_TIME):
            scores += _floats(_run(self.scorer.score(distinct[start : start + PAIRS_AT_A_TIME])))
            _log.info("scored %d of %d pairs", len(scores), len(distinct))
        known = dict(zip(distinct, scores, strict=True))
        return np.array([known[matchup] for matchup in matchups], np.float32)


class _Reversed:
    """Scorer with negated scores: rankings begin with the worst."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self.traits = scorer.traits

    async def score(self, matchups: Sequence[Matchup]) -> list[Score]:
        scores = await self._scorer.score(matchups)
        return [score if isinstance(score, ScoringError) else -score for score in scores]

    async def check_health(self) -> None:
        await self._scorer.check_health()

    async def close(self) -> None:
        await self._scorer.close()


def _floats(scores: Sequence[Score]) -> list[float]:
    """The scores.

    Raises:
        ScoringError: The first error among them.
    """
    known: list[float] = []
    for score in scores:
        if isinstance(score, ScoringError):
            raise score
        known.append(score)
    return known


def _run(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Result of a coroutine; inside a running loop (a notebook), computed by a loop in another thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()
