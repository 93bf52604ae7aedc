"""Which pairs of candidates to compare next, and what follows from the answers: pure, no torch, no Ray.

A tournament is asked for a round of ordered pairs and told their logits, until it asks for nothing more. Whoever
scores the pairs (one process, a pool of actors, an LLM judge) is not its business.
"""

from collections.abc import Hashable, Iterable, Sequence
from itertools import permutations
from typing import Protocol

from actors.records import Comparison, Ranking

Pair = tuple[int, int]  # candidate indexes, left then right


class Tournament(Protocol):
    """Rounds of pairs out, comparisons in, a ranking out."""

    def ask(self) -> list[Pair]:
        """The next round; empty when the tournament is over."""
        ...

    def tell(self, comparisons: Iterable[Comparison]) -> None:
        """The round's answers, in any order."""
        ...

    def ranking(self) -> Ranking:
        """What follows from the comparisons so far."""
        ...


class Full:
    """Every candidate against every other in both orders, in one round: n(n-1) forwards for n distinct candidates.

    Candidates are told apart by `keys` (their texts, say): equal ones are the same input to a ranker, so each
    ordered pair of keys is compared once and its logit stands for all. A None key (no answer) is not ranked.
    """

    def __init__(self, keys: Sequence[Hashable | None]) -> None:
        self._keys = tuple(keys)
        self._logits: dict[tuple[Hashable, Hashable], float] = {}
        self._comparisons = 0
        self._asked = False

    def _pairs(self) -> Iterable[Pair]:
        present = [i for i, key in enumerate(self._keys) if key is not None]
        return permutations(present, 2)

    def ask(self) -> list[Pair]:
        if self._asked:
            return []
        self._asked = True
        return list({(self._keys[i], self._keys[j]): (i, j) for i, j in self._pairs()}.values())

    def tell(self, comparisons: Iterable[Comparison]) -> None:
        for comparison in comparisons:
            self._logits[self._keys[comparison.left], self._keys[comparison.right]] = comparison.logit
            self._comparisons += 1

    def ranking(self) -> Ranking:
        size = len(self._keys)
        logits: list[list[float | None]] = [[None] * size for _ in range(size)]
        for i, j in self._pairs():
            logits[i][j] = self._logits[self._keys[i], self._keys[j]]
        scores = max_logits(logits, [key is not None for key in self._keys])
        return Ranking(
            order=order(scores),
            scores=tuple(scores),
            logits=tuple(map(tuple, logits)),
            comparisons=self._comparisons,
        )


def max_logits(logits: Sequence[Sequence[float | None]], present: Sequence[bool]) -> list[float | None]:
    """The original's score: mean over j of logit(i, j) - logit(j, i), itself counted as 0; None for the absent.

    llm-blender 0.0.2, `get_scores_from_cmps(policy="max_logits")`; n is the number of candidates present.
    """
    n = sum(present)
    scores: list[float | None] = []
    for i, here in enumerate(present):
        if not here:
            scores.append(None)
            continue
        beats = sum(value for value in logits[i] if value is not None)
        loses = sum(row[i] or 0.0 for row in logits)
        scores.append((beats - loses) / n)
    return scores


def order(scores: Sequence[float | None]) -> tuple[int, ...]:
    """Indexes by score, best first; equal scores in the order given; those without a score left out."""
    ranked = [(-score, i) for i, score in enumerate(scores) if score is not None]
    return tuple(i for _, i in sorted(ranked))
