"""The strategies: generators of rounds over a board, and what each may cost.

A generator yields the cells of a round (ordered pairs of seats) and continues once the board has their logits.
Cells that are known already may be yielded; they aren't compared again. Rounds are few and wide, since a pool of
rankers takes as long for one pair as for many. n is the number of players, k how many of the best are wanted.

What is promised holds for a ranker without noise. *Additive*: logit(i, j) = q_i - q_j + bias for some q. *Ordinal*:
(logit(i, j) - logit(j, i)) / 2 is positive wherever i is better than j, and no more. "Both orders" includes scorers
without position bias.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, permutations

import numpy as np

from llm_blender_ray.actors.errors import RowError
from llm_blender_ray.actors.tournaments.aggregation import aggregate, certainty, least_squares
from llm_blender_ray.actors.tournaments.board import Board, Pair
from llm_blender_ray.actors.tournaments.design import circulant, most_informative
from llm_blender_ray.configs.strategies import (
    Bubble,
    Focus,
    Full,
    Knockout,
    Sparse,
    SparseRefine,
    Stoppable,
    Strategy,
    Swiss,
    ToReference,
)

Rounds = Iterator[list[Pair]]
Clock = Callable[[], float]  # seconds


def rounds(settings: Strategy, board: Board, keys: Sequence[str | None], top_k: int | None, clock: Clock) -> Rounds:
    """The rounds of a strategy.

    Raises:
        RowError: The row lacks what the strategy names.
    """
    match settings:
        case Full():
            return _full(settings, board)
        case Sparse():
            return _sparse(settings, board)
        case SparseRefine():
            return _sparse_refine(settings, board, top_k)
        case Focus():
            return _focus(settings, board, top_k, clock)
        case Swiss():
            return _swiss(settings, board, top_k, clock)
        case Knockout():
            return _knockout(settings, board, top_k)
        case Bubble():
            return _bubble(settings, board, top_k)
        case ToReference():
            return _to_reference(settings, board, board.seat[reference_index(settings, keys)])


def max_forwards(settings: Strategy, n: int, top_k: int | None, symmetric: bool) -> int:
    """Forwards that a strategy takes at most, its budget aside."""
    orders = 1 if symmetric or settings.orders == "one" else 2
    again = 1 if symmetric else 2  # of a pair that is asked in the other order too
    pairs = n * (n - 1) // 2
    match settings:
        case Full():
            return orders * pairs
        case Sparse():
            return orders * min(pairs, n * settings.degree // 2)
        case SparseRefine():
            leaders = _leaders(settings, n, top_k)
            return min(again * pairs, orders * n * settings.degree // 2 + again * leaders * (leaders - 1) // 2)
        case Focus():
            further = (settings.rounds - 1) * orders * _further(settings, n, symmetric)
            return min(again * pairs, orders * min(pairs, n * settings.degree // 2) + further)
        case Swiss():
            return orders * min(pairs, n // 2 * settings.rounds)
        case Knockout():
            return orders * min(pairs, _most_knockout_pairs(n, top_k))
        case Bubble():
            passes = _passes(settings, n, top_k)
            return orders * passes * (2 * n - passes - 1) // 2
        case ToReference():
            return orders * max(n - 1, 0)


def _cells(settings: Strategy, board: Board, pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs in the settings' orders; pairs compared in one order already keep it."""
    if settings.orders == "both":
        return board.both_orders(pairs)
    return board.one_order([pair for pair in pairs if not board.met(*pair)])


def _new_cells(settings: Strategy, board: Board, pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs in the settings' orders; for one order, the design's choice."""
    return board.both_orders(pairs) if settings.orders == "both" else list(pairs)


def _full(settings: Full, board: Board) -> Rounds:
    """All pairs in one round: n(n-1) forwards, half of that in one order.

    Promises, additive: the whole order. Copies of one text are compared to themselves too, as the original does.
    """
    pairs = circulant(board.size, board.size - 1)
    copies = [] if board.symmetric else [(i, i) for i, here in enumerate(board.candidates) if len(here) > 1]
    yield _new_cells(settings, board, pairs) + copies


def _sparse(settings: Sparse, board: Board) -> Rounds:
    """One round in which everyone meets `degree` others: n x degree forwards, half of that in one order.

    Promises, additive, aggregation least-squares: the whole order.
    """
    pairs = circulant(board.size, settings.degree)
    yield _new_cells(settings, board, pairs)


def _sparse_refine(settings: SparseRefine, board: Board, top_k: int | None) -> Rounds:
    """Sparse, then in a second round all pairs of the leaders, in both orders.

    Promises, additive: the top k. For n=11, k=3 about 38 forwards, or 56 with `orders: both`.
    """
    pairs = circulant(board.size, settings.degree)
    yield _new_cells(settings, board, pairs)
    leaders = _standing(settings, board)[: _leaders(settings, board.size, top_k)]
    yield board.both_orders(combinations(leaders, 2))


def _leaders(settings: SparseRefine, n: int, top_k: int | None) -> int:
    wanted = settings.leaders or (top_k + 2 if top_k else math.ceil(n / 2))
    return min(wanted, n)


def _focus(settings: Focus, board: Board, top_k: int | None, clock: Clock) -> Rounds:
    """Sparse, then rounds of the most informative comparisons about the top k, until it is certain enough.

    In one order a further comparison may be a new pair or the other order of an old one, by information.
    Promises, additive, aggregation least-squares: the whole order. For n=11, k=3 at most 50 forwards.
    """
    start, paired = clock(), settings.orders == "both" or board.symmetric
    pairs = circulant(board.size, settings.degree)
    yield _new_cells(settings, board, pairs)
    for _ in range(settings.rounds - 1):
        if _enough(settings, board, top_k, clock() - start):
            return
        if paired:
            pairs = [pair for pair in combinations(range(board.size), 2) if not board.met(*pair)]
        else:
            pairs = [pair for pair in permutations(range(board.size), 2) if not board.settled(pair)]
        if not pairs:
            return
        count = _further(settings, board.size, board.symmetric)
        pairs = most_informative(least_squares(board.logits_PP), pairs, top_k, count, both_orders=paired)
        yield _new_cells(settings, board, pairs)


def _further(settings: Focus, n: int, symmetric: bool) -> int:
    """Pairs, in as many orders as asked for, of a round after the first."""
    return max(1, int(n * settings.width / (1 if symmetric or settings.orders == "one" else 2)))


def _swiss(settings: Swiss, board: Board, top_k: int | None, clock: Clock) -> Rounds:
    """Rounds of n/2 pairs, each against the nearest in standing not yet met, until the top k is sure enough.

    Parts of the field that haven't met come first, so log2(n) rounds (rounded up) join all. From then on it
    promises, additive, aggregation least-squares: the whole order.
    """
    start = clock()
    for number in range(settings.rounds):
        if number and _enough(settings, board, top_k, clock() - start):
            return
        yield _cells(settings, board, _neighbours(board, _standing(settings, board)))


def _enough(settings: Stoppable, board: Board, top_k: int | None, seconds: float) -> bool:
    """Whether no further round is to begin."""
    if settings.deadline_s is not None and seconds >= settings.deadline_s:
        return True
    if settings.confidence is None:
        return False
    return certainty(least_squares(board.logits_PP), top_k) >= settings.confidence


def _neighbours(board: Board, standing: list[int]) -> list[Pair]:
    part, waiting, pairs = board.parts(), list(standing), []
    while waiting:
        i = waiting.pop(0)
        strangers = [j for j in waiting if not board.met(i, j)]
        if strangers:
            j = min(strangers, key=lambda j: part[j] == part[i])  # the first of another part, else the first
            waiting.remove(j)
            pairs.append((i, j))
    return pairs


def _knockout(settings: Knockout, board: Board, top_k: int | None) -> Rounds:
    """Unbeaten players meet in pairs until one remains, which takes the next place; k times.

    Promises, ordinal, both orders: the top k in their order. For n=11, k=3 it takes 15 pairs in 8 rounds or so.
    """
    left = set(range(board.size))
    victors: list[set[int]] = [set() for _ in left]  # by seat, the players that have beaten it
    wins = [0] * board.size
    for _ in range(min(top_k or board.size, board.size)):
        while len(unbeaten := [i for i in left if not victors[i] & left]) > 1:
            unbeaten.sort(key=lambda i: (wins[i], i))  # like against like: a player that meets few has beaten few
            pairs = list(zip(unbeaten[::2], unbeaten[1::2], strict=False))
            yield _cells(settings, board, pairs)
            for i, j in pairs:
                winner, loser = (i, j) if board.beats(i, j) else (j, i)
                victors[loser].add(winner)
                wins[winner] += 1
        board.placed += unbeaten
        left -= set(unbeaten)


def _most_knockout_pairs(n: int, top_k: int | None) -> int:
    """A placed player leaves as many unbeaten as it has beaten directly, at most one for each round it was in."""
    if n < 2:
        return 0
    first = math.ceil(math.log2(n))
    pairs, contenders, earlier = n - 1, first, first - 1
    for place in range(1, min(top_k or n, n)):
        contenders = min(contenders, n - place)
        pairs += contenders - 1
        earlier += math.ceil(math.log2(contenders))
        contenders = earlier
    return pairs


def _bubble(settings: Bubble, board: Board, top_k: int | None) -> Rounds:
    """Passes from the last seat to the first, each carrying the best of the rest to its place.

    A pass starts as soon as the one before is two seats ahead, so p passes take n + p - 2 rounds instead of p n.
    Promises, ordinal, both orders: the first p in their order.
    """
    n, seats = board.size, list(range(board.size))
    passes = _passes(settings, n, top_k)
    for step in range(n - 2 + passes):
        fronts = {number: n - 2 - step + 2 * number for number in range(passes)}  # of the pair a pass has come to
        games = {number: at for number, at in fronts.items() if number <= at <= n - 2}
        yield _cells(settings, board, [(seats[at], seats[at + 1]) for at in games.values()])
        for number, at in games.items():
            if board.beats(seats[at + 1], seats[at]):
                seats[at], seats[at + 1] = seats[at + 1], seats[at]
            if at == number:  # where the pass ends
                board.placed.append(seats[at])


def _passes(settings: Bubble, n: int, top_k: int | None) -> int:
    return max(0, min(settings.passes or top_k or n - 1, n - 1))


def _to_reference(settings: ToReference, board: Board, seat: int) -> Rounds:
    """Everyone against the reference in one round: 2(n-1) forwards. Promises, additive, both orders: the order."""
    others = [i for i in range(board.size) if i != seat]
    yield _cells(settings, board, [(i, seat) for i in others])


def reference_index(settings: ToReference, keys: Sequence[str | None], *, by_place: bool = False) -> int:
    """The candidate all are compared to, chosen as llm-blender 0.0.2's `rank_with_ref` does.

    Args:
        settings: Which is wanted.
        keys: The candidates' texts.
        by_place: Whether the first in the list counts among texts of the same length, as in the original; else
            their own order does, so that the result doesn't depend on the list's.

    Returns:
        Its index.

    Raises:
        RowError: There is no such candidate.
    """
    present = [i for i, key in enumerate(keys) if key is not None]
    by_length = sorted(present, key=lambda i: (len(keys[i] or ""), "" if by_place else keys[i] or ""))
    match settings.reference:
        case "longest":
            return max(by_length, key=lambda i: len(keys[i] or "")) if by_place else by_length[-1]
        case "shortest":
            return by_length[0]
        case "median":
            return by_length[len(by_length) // 2]
        case "first":
            return present[0]
        case "last":
            return present[-1]
        case index:
            if index not in present:
                raise RowError(f"strategy reference: this row has no candidate {index}")
            return index


def _standing(settings: Strategy, board: Board) -> list[int]:
    scores = aggregate(settings.aggregation, board.logits_PP, board.copies_P)
    return [int(i) for i in np.argsort(-scores, kind="stable")]
