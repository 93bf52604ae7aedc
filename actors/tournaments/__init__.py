"""Which pairs of candidates to compare next, and what follows from the answers: pure, no torch, no Ray.

A tournament is asked for a round of ordered pairs and told their logits, until it asks for nothing more. Whoever
scores the pairs (one process, a pool of actors, an LLM judge) is not its business. Settings: `configs.strategies`;
what each strategy does and promises: `actors.tournaments.strategies`.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np

from actors.errors import RowError
from actors.records import Comparison, Ranking
from actors.tournaments.aggregation import aggregate, falling
from actors.tournaments.board import Board, Pair
from actors.tournaments.strategies import most_forwards, reference, rounds
from configs.strategies import Strategy, ToReference

__all__ = ["Pair", "Tournament", "most_comparisons", "tournament"]


class Tournament(Protocol):
    """Rounds of pairs out, comparisons in, a ranking out."""

    def ask(self) -> list[Pair]:
        """The pairs of the round that wait for an answer, the next round when none do; empty when it is over.

        Asked in the middle of a round, it names what is still missing again: for a caller that lost some.
        """
        ...

    def tell(self, comparisons: Iterable[Comparison]) -> None:
        """Some or all of the round's answers, in any order; a second answer to the same pair is ignored.

        Raises RowError for a logit that is not a finite number, ValueError for a pair that was never asked.
        """
        ...

    def ranking(self) -> Ranking:
        """What follows from the comparisons so far; `comparisons` counts them."""
        ...


def tournament(
    settings: Strategy,
    keys: Sequence[str | None],
    *,
    top_k: int | None = None,
    symmetric: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> Tournament:
    """A tournament of the candidates with these texts.

    keys: equal texts are one player, compared once and of one score; None (no answer) is not ranked.
    top_k: how many of the best matter, the first thing a strategy spends on; None: the whole order.
    symmetric: logit(j, i) = -logit(i, j), as of a reward model: without position bias, so one order is enough.

    Raises RowError when the row lacks what the strategy names.
    """
    return _Rounds(settings, keys, top_k, symmetric, clock)


def most_comparisons(settings: Strategy, n: int, top_k: int | None, symmetric: bool) -> int:
    """The forwards that a tournament of n distinct candidates takes at most."""
    forwards = most_forwards(settings, n, top_k, symmetric)
    return forwards if settings.budget is None else min(forwards, settings.budget)


class _Rounds:
    """A strategy's rounds, played on a board: what was asked, what it cost, and the ranking."""

    def __init__(
        self,
        settings: Strategy,
        keys: Sequence[str | None],
        top_k: int | None,
        symmetric: bool,
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._keys = tuple(keys)
        self._board = Board(keys, seed=settings.seed, symmetric=symmetric)
        self._rounds = rounds(settings, self._board, keys, top_k, clock) if self._board.size else iter(())
        self._budget = math.inf if settings.budget is None else settings.budget
        self._open: list[Pair] = []
        self._asked = 0
        self._comparisons = 0

    def ask(self) -> list[Pair]:
        while not self._open and self._asked < self._budget:
            cells = next(self._rounds, None)
            if cells is None:
                break
            self._open = self._affordable(self._new(cells))
            self._asked += len(self._open)
        return [(self._board.candidates[left][0], self._board.candidates[right][-1]) for left, right in self._open]

    def _new(self, cells: Sequence[Pair]) -> list[Pair]:
        """The cells that have no logit yet, each once; for a symmetric scorer each pair once."""
        board = self._board
        new = dict.fromkeys(
            (min(cell), max(cell)) if board.symmetric else cell for cell in cells if not board.knows(cell)
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
            cell = board.seat.get(comparison.left, -1), board.seat.get(comparison.right, -1)
            if cell not in self._open:
                if min(cell) >= 0 and board.knows(cell):
                    continue
                raise ValueError(f"candidates {comparison.left} and {comparison.right} were not asked for")
            if not math.isfinite(comparison.logit):
                raise RowError(
                    f"the ranker gave {comparison.logit} for candidates {comparison.left} and {comparison.right}; "
                    "float32 may cure it"
                )
            board.enter(cell, comparison.logit)
            self._open.remove(cell)
            self._comparisons += 1

    def ranking(self) -> Ranking:
        board = self._board
        scores_P = aggregate(self._settings.aggregation, board.logits_PP, board.copies_P)
        if isinstance(self._settings, ToReference) and board.size:
            scores_P = scores_P - scores_P[board.seat[reference(self._settings, self._keys)]]
        place_P = np.full(board.size, len(board.placed))
        place_P[board.placed] = range(len(board.placed))
        if board.placed:
            seats = np.lexsort((-scores_P, place_P))
            scores_P[seats] = falling(scores_P[seats], board.copies_P[seats])
        order = sorted(board.seat, key=lambda i: (place_P[board.seat[i]], -scores_P[board.seat[i]], i))
        seats_N = [board.seat.get(i) for i in range(len(self._keys))]
        return Ranking(
            order=tuple(order),
            scores=tuple(None if seat is None else float(scores_P[seat]) for seat in seats_N),
            logits=tuple(
                tuple(self._logit(i, j, left, right) for j, right in enumerate(seats_N))
                for i, left in enumerate(seats_N)
            ),
            comparisons=self._comparisons,
        )

    def _logit(self, i: int, j: int, left: int | None, right: int | None) -> float | None:
        if i == j or left is None or right is None or not self._board.knows((left, right)):
            return None
        return float(self._board.logits_PP[left, right])
