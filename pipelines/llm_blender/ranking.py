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

ROWS_AT_A_TIME = 256  # enough pairs to sort by length; those of a million rows would not fit in memory
PAIRS_AT_A_TIME = 32768
BOTH_ORDERS = "[A,B]+[B,A]"
MODES = ("[A,B]", "[B,A]", BOTH_ORDERS)


class LoadedRanker:
    """A PairRanker or a reward model."""

    def __init__(self, settings: LocalRanker) -> None:
        """Raises ModelLoadError."""
        self._given = self._settings = settings
        self._scorer: Scorer | None = load_scorer(settings)

    def use_lengths(self, source: int | None, candidate: int | None) -> None:
        """Cut texts to so many tokens from now on; None: to those it was made with. Raises ModelLoadError."""
        settings = with_lengths(self._given, source, candidate)
        if settings != self._settings:
            self._scorer = None  # its memory goes first
            self._scorer, self._settings = load_scorer(settings), settings

    @property
    def scorer(self) -> Scorer:
        """What scores pairs, loaded anew if the last attempt at that failed."""
        if self._scorer is None:
            self._scorer = load_scorer(self._settings)
        return self._scorer

    def scores(self, rows: Rows) -> list[Sequence[float | None]]:
        """Every row's scores from all pairs in both orders, as the original has them; a reward model's rewards."""
        scorer = self.scorer
        if not isinstance(scorer, RewardScorer):
            return [ranking.scores for ranking in self.rankings(rows, Full())]
        rewards = iter(_floats(scorer.rewards([(prompt, text) for prompt, texts in rows for text in texts])))
        return [[next(rewards) for _ in texts] for _, texts in rows]

    def rankings(self, rows: Rows, strategy: Strategy, *, worst_first: bool = False) -> list[Ranking]:
        """Every row's ranking. Raises BlendError when a row has none."""
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
        """What `Blender.compare` gives with `return_logits`, A being on the left of the matchups."""
        if mode not in MODES:
            raise ValueError(f"mode {mode!r}: expected one of {', '.join(MODES)}")
        turned = [Matchup(matchup.prompt, matchup.right, matchup.left) for matchup in matchups]
        if mode == "[A,B]" or self.scorer.traits.pointwise:
            return self._logits(matchups)
        if mode == "[B,A]":
            return self._logits(turned)
        left, right = np.split(self._logits([*matchups, *turned]), 2)
        return left - right

    def _logits(self, matchups: Sequence[Matchup]) -> NDArray[np.float32]:
        """One logit per matchup; equal ones are scored once. Raises ScoringError."""
        distinct = list(dict.fromkeys(matchups))
        scores: list[float] = []
        for start in range(0, len(distinct), PAIRS_AT_A_TIME):
            scores += _floats(_run(self.scorer.score(distinct[start : start + PAIRS_AT_A_TIME])))
            _log.info("scored %d of %d pairs", len(scores), len(distinct))
        known = dict(zip(distinct, scores, strict=True))
        return np.array([known[matchup] for matchup in matchups], np.float32)


class _Reversed:
    """A scorer turned round: what loses wins, so that rankings begin with the worst."""

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
    """The scores. Raises the first ScoringError among them."""
    known: list[float] = []
    for score in scores:
        if isinstance(score, ScoringError):
            raise score
        known.append(score)
    return known


def _run(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """The coroutine's result; where a loop runs already (in a notebook, say), from a loop in another thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()
