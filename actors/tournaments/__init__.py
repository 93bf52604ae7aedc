"""Tournaments: which pairs of candidates to compare next, and the ranking. Pure, without torch or Ray.

A tournament yields rounds of ordered pairs (`ask`) and takes their logits (`tell`) until no round remains; it is
independent of how pairs are scored (one process, a pool of actors, an LLM judge). Settings: `configs.strategies`;
behaviour and guarantees of each strategy: `actors.tournaments.strategies`.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np

from llm_blender_ray.actors.errors import RowError
from llm_blender_ray.actors.records import Comparison, Ranking
from llm_blender_ray.actors.tournaments.aggregation import aggregate, falling
from llm_blender_ray.actors.tournaments.board import Board, Pair, draw_by_hash
from llm_blender_ray.actors.tournaments.strategies import max_forwards, reference_index, rounds
from llm_blender_ray.configs.strategies import Strategy, ToReference

__all__ = ["Pair", "Tournament", "max_comparisons", "tournament"]


class Tournament(Protocol):
    """Rounds of pairs out, comparisons in, a ranking out."""

    def ask(self) -> list[Pair]:
        """The pairs of the round that wait for an answer, the next round when none do; empty when it is over.

        Asked in the middle of a round, it names what is still missing again: for a caller that lost some.
        """
        ...

    def tell(self, comparisons: Iterable[Comparison]) -> None:
        """Some or all of the round's answers, in any order; a second answer to the same pair is ignored.

        Raises:
            RowError: A logit is not a finite number.
            ValueError: A pair was never requested.
        """
        ...

    def skip(self, pairs: Iterable[Pair]) -> None:
        """Leave out pairs of the round that the scorer has no answer for: they are not asked again.

        The ranking follows from the rest; a player without any comparison stands behind those that have one.

        Raises:
            ValueError: A pair was never requested.
        """
        ...

    def ranking(self) -> Ranking:
        """Ranking by the comparisons so far; `comparisons` counts them, `unreadable` those left out."""
        ...


def tournament(
    settings: Strategy,
    keys: Sequence[str | None],
    *,
    top_k: int | None = None,
    symmetric: bool = False,
    labels: Sequence[str | None] | None = None,
    salt: str = "",
    clock: Callable[[], float] = time.monotonic,
) -> Tournament:
    """Make a tournament of candidates.

    Args:
        settings: The strategy.
        keys: Texts of the candidates. Equal texts are one player, compared once and with one score; None (no
            answer) is not ranked.
        top_k: How many of the best matter, which a strategy decides first; None: the whole order.
        symmetric: logit(j, i) = -logit(i, j), as of a reward model: without position bias, so one order is enough.
        labels: Distinguish candidates with equal texts (their models), so that their order does not depend on
            the list's.
        salt: Distinguishes rows in the draw that breaks ties, so that a model whose answers are the same in all
            rows does not win or lose all ties.
        clock: Seconds, never going back.

    Raises:
        RowError: The row lacks what the strategy names.
    """
    return _Rounds(settings, keys, top_k, symmetric, labels or [None] * len(keys), salt, clock)


def max_comparisons(settings: Strategy, n: int, top_k: int | None, symmetric: bool) -> int:
    """The forwards that a tournament of n distinct candidates takes at most."""
    forwards = max_forwards(settings, n, top_k, symmetric)
    return forwards if settings.budget is None else min(forwards, settings.budget)


class _Rounds:
    """A strategy's rounds, played on a board: what was asked, what it cost, and the ranking."""

    def __init__(
        self,
        settings: Strategy,
        keys: Sequence[str | None],
        top_k: int | None,
        symmetric: bool,
        labels: Sequence[str | None],
        salt: str,
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._keys = tuple(keys)
        self._board = Board(keys, seed=settings.seed, symmetric=symmetric, salt=salt)
        self._rounds = rounds(settings, self._board, keys, top_k, clock) if self._board.size else iter(())
        self._budget = math.inf if settings.budget is None else settings.budget
        self._open: list[Pair] = []
        self._asked = self._skips = 0
        self._comparisons = 0
        self._draws = [_draw(settings.seed, salt, *names) for names in zip(keys, labels, strict=True)]

    def ask(self) -> list[Pair]:
        while not self._open and self._asked < self._budget:
            cells = next(self._rounds, None)
            if cells is None:
                break
            self._open = self._affordable(self._new(cells))
            self._asked += len(self._open)
        return [(self._board.candidates[left][0], self._board.candidates[right][-1]) for left, right in self._open]

    def _new(self, cells: Sequence[Pair]) -> list[Pair]:
        """The cells that are still open, each once; for a symmetric scorer each pair once."""
        board = self._board
        new = dict.fromkeys(
            (min(cell), max(cell)) if board.symmetric else cell for cell in cells if not board.settled(cell)
        )
        return list(new)

    def _affordable(self, cells: Sequence[Pair]) -> list[Pair]:
        """As many whole pairs from the front as the budget still pays for, and no more of any kind after that."""
        pairs: dict[frozenset[int], list[Pair]] = {}
        for cell in cells:
            pairs.setdefault(frozenset(cell), []).append(cell)
        kept: list[Pair] = []
        for orders in pairs.values():
            if self._asked + len(kept) + len(orders) > self._budget:
                self._rounds = iter(())
                break
            kept += orders
        return kept

    def tell(self, comparisons: Iterable[Comparison]) -> None:
        board = self._board
        for comparison in comparisons:
            cell = self._opened((comparison.left, comparison.right))
            if cell is None:
                continue
            if not math.isfinite(comparison.logit):
                raise RowError(
                    f"the ranker gave {comparison.logit} for candidates {comparison.left} and {comparison.right}; "
                    "float32 may cure it"
                )
            board.enter(cell, comparison.logit)
            self._open.remove(cell)
            self._comparisons += 1

    def skip(self, pairs: Iterable[Pair]) -> None:
        for pair in pairs:
            if (cell := self._opened(pair)) is not None:
                self._board.skip(cell)
                self._open.remove(cell)
                self._skips += 1

    def _opened(self, pair: Pair) -> Pair | None:
        """The pair's cell; None where it is settled already.

        Raises:
            ValueError: The pair was never requested.
        """
        cell = self._board.seat.get(pair[0], -1), self._board.seat.get(pair[1], -1)
        if cell in self._open:
            return cell
        if min(cell) >= 0 and self._board.settled(cell):
            return None
        raise ValueError(f"candidates {pair[0]} and {pair[1]} were not asked for")

    def ranking(self) -> Ranking:
        board = self._board
        scores_P = aggregate(self._settings.aggregation, board.logits_PP, board.copies_P)
        if isinstance(self._settings, ToReference) and board.size:
            scores_P = scores_P - scores_P[board.seat[reference_index(self._settings, self._keys)]]
        place_P = np.full(board.size, len(board.placed))
        place_P[board.placed] = range(len(board.placed))
        alone_P = self._alone()
        if alone_P.any():
            place_P[alone_P] = board.size
            scores_P[alone_P] = np.minimum(scores_P[alone_P], scores_P[~alone_P].min())
        if board.placed:
            seats = np.lexsort((-scores_P, place_P))
            scores_P[seats] = falling(scores_P[seats], board.copies_P[seats])
        order = sorted(board.seat, key=lambda i: self._standing(i, place_P, scores_P))
        seats_N = [board.seat.get(i) for i in range(len(self._keys))]
        return Ranking(
            order=tuple(order),
            scores=tuple(None if seat is None else float(scores_P[seat]) for seat in seats_N),
            logits=tuple(
                tuple(self._logit(i, j, left, right) for j, right in enumerate(seats_N))
                for i, left in enumerate(seats_N)
            ),
            comparisons=self._comparisons,
            unreadable=self._skips,
        )

    def _alone(self) -> np.ndarray:
        """By seat, whether all that was asked of a player was left out, while others were compared."""
        met_PP = ~np.isnan(self._board.logits_PP)
        np.fill_diagonal(met_PP, False)  # copies of one text, compared with each other
        asked_P = np.zeros(self._board.size, dtype=bool)
        asked_P[[seat for cell in self._board.skipped for seat in cell]] = True
        return asked_P & ~(met_PP | met_PP.T).any(1) & bool(met_PP.any())

    def _standing(self, i: int, place_P: np.ndarray, scores_P: np.ndarray) -> tuple[int, float, int, bytes, int]:
        """Sort key of candidates; for the same place and score, the draw."""
        seat = self._board.seat[i]
        return int(place_P[seat]), -float(scores_P[seat]), seat, self._draws[i], i

    def _logit(self, i: int, j: int, left: int | None, right: int | None) -> float | None:
        if i == j or left is None or right is None or not self._board.knows((left, right)):
            return None
        return float(self._board.logits_PP[left, right])


def _draw(seed: int, salt: str, key: str | None, label: str | None) -> bytes:
    """The place of a candidate among those with its text; without a label there is none, and the list's counts."""
    if key is None or label is None:
        return b""
    return draw_by_hash(f"{salt}{label}\0{key}", seed)
