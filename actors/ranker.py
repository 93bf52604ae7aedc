"""Ranker: plays the rows' tournaments together, so that their matchups are scored in common batches.

The `Scorer` is one model in this process, or a pool of replicas that many requests share. A row's ranking depends
on the row alone.
"""

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeGuard, TypeVar

from llm_blender_ray.actors.cache import CacheError, ComparisonCache
from llm_blender_ray.actors.records import Candidate, Comparison, Matchup, Prompt, Ranking, digest, is_blank
from llm_blender_ray.actors.scorers import (
    Score,
    Scorer,
    ScoringError,
    UnpaidScoringError,
    load_scorer,
    usage_of_score,
)
from llm_blender_ray.actors.tournaments import Pair, tournament
from llm_blender_ray.actors.usage import TokenUsage
from llm_blender_ray.configs.schema import ComparisonSettings
from llm_blender_ray.configs.schema import RankerSettings as RankerSettings
from llm_blender_ray.configs.strategies import default_strategy

_A = TypeVar("_A")
_T = TypeVar("_T")

_log = logging.getLogger(__name__)

CandidateRow = tuple[Prompt, Sequence[Candidate]]
BEHIND = 1e-6  # how far below the lowest score of a text a blank candidate's is, at least


class Ranker:
    """A scorer, and the strategy that makes rankings of its scores."""

    def __init__(self, settings: RankerSettings, scorer: Scorer | None = None) -> None:
        """`scorer`: used in place of the one that the settings name.

        Raises:
            ModelLoadError: The model can't be used.
            CacheError: The cache file can't be used.
        """
        self._settings = settings
        self._scorer = scorer or load_scorer(settings)
        self.identity = self._scorer.traits.identity
        self._cache = ComparisonCache(settings.cache, self.identity) if settings.cache and self.identity else None
        self.cache_hits = 0  # comparisons that the cache knew, so far

    async def rank(
        self, rows: Sequence[CandidateRow], known: Mapping[bytes, float] = {}
    ) -> list[Ranking | Exception]:
        """Rank every row.

        Args:
            rows: Prompts and candidates, of any number.
            known: Scores of this scorer that need not be made again, by `digest(prompt, left, right)`.

        Returns:
            Per row the ranking of its candidates, or the error.
        """
        try:
            games = [_Game(self._settings, self._scorer, prompt, candidates) for prompt, candidates in rows]
            await self._play(games, known)
        except Exception as error:  # whatever a model raises: one row's failure must not affect others
            if len(rows) == 1:
                return [error]
            return [result for row in rows for result in await self.rank([row], known)]
        return [game.result() for game in games]

    async def rank_one(
        self,
        prompt: Prompt,
        candidates: Sequence[Candidate],
        budget_s: float | None = None,
        comparing: ComparisonSettings | None = None,
    ) -> Ranking:
        """The ranking of one row's candidates; see `rounds`."""
        return [ranking async for ranking in self.rounds(prompt, candidates, budget_s, comparing)][-1]

    async def rounds(
        self,
        prompt: Prompt,
        candidates: Sequence[Candidate],
        budget_s: float | None = None,
        comparing: ComparisonSettings | None = None,
    ) -> AsyncGenerator[Ranking, None]:
        """Rank one row, round by round.

        Args:
            prompt: The prompt.
            candidates: Its candidates.
            budget_s: Seconds after which no further round begins.
            comparing: Which pairs, and how many places must be right; None: the settings'.

        Yields:
            The ranking after every round of comparisons; the last is `complete`, as from `rank`.

        Raises:
            RowError: The row cannot be ranked.
            Exception: The scorer failed.
        """
        until = None if budget_s is None else time.monotonic() + budget_s
        game = _Game(comparing or self._settings, self._scorer, prompt, candidates)
        asked = game.ask()
        while asked and (until is None or time.monotonic() < until):
            scores = await self._scores([(game, game.matchup(pair)) for pair in asked], {})
            for pair, score in zip(asked, scores, strict=True):
                game.tell(pair, score)
            if (asked := game.ask()) and game.compared:
                yield replace(game.ranking(), complete=False)
        yield replace(game.ranking(), complete=not asked)

    async def close(self) -> None:
        """Free what the scorer holds."""
        await self._scorer.close()

    async def check_health(self) -> None:
        """Raise BlendError when the scorer can't score any more."""
        await self._scorer.check_health()

    async def _play(self, games: Sequence["_Game"], known: Mapping[bytes, float]) -> None:
        while asked := [(game, pair) for game in games for pair in game.ask()]:
            scores = await self._scores([(game, game.matchup(pair)) for game, pair in asked], known)
            for (game, pair), score in zip(asked, scores, strict=True):
                game.tell(pair, score)

    async def _scores(self, asked: Sequence[tuple["_Game", Matchup]], known: Mapping[bytes, float]) -> list[Score]:
        """The scores of what is asked: from what is known or cached where it's there, else from the scorer."""
        matchups = [matchup for _, matchup in asked]
        had: dict[int, float] = {}
        if self._cache:
            had = await self._cached(self._cache.get, matchups) or {}
        self.cache_hits += len(had)
        for i, m in enumerate(matchups if known else ()):
            if (score := known.get(digest(m.prompt, m.left, m.right))) is not None:
                had[i] = score
        new = [i for i in range(len(asked)) if i not in had]
        made = await self._scorer.score([matchups[i] for i in new]) if new else []
        for i, new_score in zip(new, made, strict=True):
            game, matchup = asked[i]
            game.scored.append(matchup)
            game.usage += usage_of_score(new_score)
        if self._cache:
            numbers = [(matchups[i], score) for i, score in zip(new, made, strict=True) if _is_number(score)]
            await self._cached(self._cache.put, numbers)
        scores: dict[int, Score] = {**had}
        scores.update(zip(new, made, strict=True))
        return [scores[i] for i in range(len(asked))]

    async def _cached(self, operation: Callable[[Sequence[_A]], _T], argument: Sequence[_A]) -> _T | None:
        """Read or write the cache; one that fails, as on a full disk, is not used again."""
        try:
            return await asyncio.to_thread(operation, argument)  # waits for the disk, or for another's lock
        except CacheError as error:
            if self._cache:  # the first of several rankings
                _log.warning("comparisons are no longer cached: %s", error)
            self._cache = None
            return None


def _is_number(score: Score) -> TypeGuard[float]:
    return isinstance(score, float) and math.isfinite(score)


def blanks_last(ranking: Ranking, candidates: Sequence[Candidate]) -> Ranking:
    """The ranking with blank candidates behind those with text, and with lower scores.

    A scorer may prefer an empty answer; users don't. Comparisons stay as they were made, and
    blank candidates keep their order among themselves.
    """
    blank = {i for i in ranking.order if is_blank(candidates[i].text or "")}
    if not blank or len(blank) == len(ranking.order):
        return ranking
    lowest = min(ranking.scores[i] or 0.0 for i in ranking.order if i not in blank)
    scores = [
        min(score, lowest - BEHIND) if i in blank and score is not None else score
        for i, score in enumerate(ranking.scores)
    ]
    return replace(ranking, order=tuple(sorted(ranking.order, key=lambda i: i in blank)), scores=tuple(scores))


class _Game:
    """One row's tournament and its result."""

    def __init__(
        self, settings: ComparisonSettings, scorer: Scorer, prompt: Prompt, candidates: Sequence[Candidate]
    ) -> None:
        self._prompt = prompt
        self._texts = [candidate.text for candidate in candidates]
        self._traits = scorer.traits
        self._tournament = tournament(
            settings.strategy or default_strategy(settings.top_k),
            self._texts,
            top_k=settings.top_k,
            symmetric=self._traits.pointwise,
            labels=[candidate.model for candidate in candidates],
            salt=digest(prompt).hex(),
        )
        self._problem: ScoringError | None = None  # the first comparison that was left out
        self._unpaid = 0  # comparisons that a budget had no room for
        self.compared = False  # anything at all
        self.scored: list[Matchup] = []  # those that no cache knew
        self.usage = TokenUsage()  # of an LLM that scored them

    def ask(self) -> list[Pair]:
        return self._tournament.ask()

    def matchup(self, pair: Pair) -> Matchup:
        left, right = (self._texts[i] for i in pair)
        assert left is not None and right is not None  # tournaments never ask for absent candidates
        return Matchup(self._prompt, left, right)

    def tell(self, pair: Pair, score: Score) -> None:
        """The pair's score; one that is no number is left out."""
        if _is_number(score):
            self.compared = True
            self._tournament.tell([Comparison(*pair, score)])
            return
        if not isinstance(score, ScoringError):
            score = ScoringError(f"the score of candidate {pair[0]} over {pair[1]} is {score}")
        self._problem = self._problem or score
        self._unpaid += isinstance(score, UnpaidScoringError)
        self._tournament.skip([pair])

    def ranking(self) -> Ranking:
        """The ranking so far, with the forwards that were really made.

        Raises:
            ScoringError: No comparison could be made, though some were tried.
        """
        if self._problem and not self.compared:
            # of all comparisons, where the first problem knows only its own
            raise type(self._problem)(*self._problem.args).with_usage(self.usage) from self._problem
        forwards = self._traits.forwards(self.scored)
        ranking = self._tournament.ranking()
        return replace(ranking, comparisons=forwards, unpaid=self._unpaid, usage=self.usage)

    def result(self) -> Ranking | ScoringError:
        """The ranking, or why there is none."""
        try:
            return self.ranking()
        except ScoringError as error:
            return error
